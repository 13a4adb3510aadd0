//! MLX's affine quantisation: `w = scale * q + bias`, one scale and bias for each group of a row.
//!
//! A row of C weights with 4 bits is C/2 bytes; a byte holds weight 2j in its low half and 2j+1 in its high half.
//! With 8 bits a byte is a weight. (The file says `U32`: its words are little-endian, so bytes and words agree.)
//! `scales` and `biases` are (R, C/G): R rows, G weights a group.
//!
//! The product with an input x never unpacks a row:
//! `sum over groups of scale * sum(q * x) + bias * sum(x)`, where `sum(x)` is one for all rows.

use safetensors::tensor::Dtype;

use super::Inputs;
use super::floats::Floats;
use super::simd::{self, Kernel, LANES, MultiplyAdd};
use crate::config::{AffineFormat, Format, ModuleFormat};
use crate::error::InferError;
use crate::scope::Scope;
use crate::weights::{Span, Stored};

/// A packed matrix (R, C).
pub(super) struct Affine {
    format: AffineFormat,
    cols: usize,
    packed: Span,
    scales: Floats,
    biases: Floats,
}

impl Affine {
    /// Loads `weight`, `scales` and `biases` of a module of the shape (rows, cols).
    ///
    /// Bits and group size follow from the shapes, as in mlx-lm; a word of config.json for this module must agree.
    pub(super) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Self, InferError> {
        let (weight, scales) =
            (at.weights().take(&at.named("weight"))?, at.weights().take(&at.named("scales"))?);
        let format = format(at, weight, scales, cols)?;
        let groups = cols / format.group_size();
        let shaped = |part, shape: [usize; 2]| at.weights().take_shaped(&at.named(part), &shape);
        let packed = shaped("weight", [rows, cols * format.bits() / 32])?.bytes.clone();
        let scales = Floats::of(&at.named("scales"), shaped("scales", [rows, groups])?)?;
        let biases = Floats::of(&at.named("biases"), shaped("biases", [rows, groups])?)?;
        Ok(Self { format, cols, packed, scales, biases })
    }

    /// Writes the weights of `row` to `out`, (C).
    pub(super) fn unpack(&self, row: usize, out: &mut [f32]) {
        simd::run(Unpack { matrix: self, row, out });
    }

    /// Orders (T, C) inputs as the packed weights lie, and sums them by groups.
    pub(super) fn prepare(&self, inputs: &[f32]) -> Inputs {
        let group_size = self.format.group_size();
        let sums = inputs.chunks_exact(group_size).map(|group| group.iter().sum()).collect();
        let values = if self.format.bits() == 4 { halves_apart(inputs) } else { inputs.to_vec() };
        Inputs { tokens: inputs.len() / self.cols, values, sums }
    }

    /// Writes the products of the rows from `first` on with all inputs to `out`, (rows, T).
    pub(super) fn products(&self, first: usize, inputs: &Inputs, out: &mut [f32]) {
        simd::run(Products { matrix: self, first, inputs, out });
    }

    /// The bytes of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &[u8] {
        let length = self.cols * self.format.bits() / 8;
        &self.packed[row * length..(row + 1) * length]
    }
}

/// Bits and group size by the shapes of `weight` and `scales`.
fn format(at: &Scope<'_>, weight: &Stored, scales: &Stored, cols: usize) -> Result<AffineFormat, InferError> {
    let unsupported =
        |format: String| InferError::UnsupportedQuantization { path: at.path().to_owned(), format };
    if scales.dtype == Dtype::U8 {
        return Err(unsupported("floats with scales of 8 bits (mxfp4, nvfp4 or mxfp8)".to_owned()));
    }
    if weight.dtype != Dtype::U32 {
        let (tensor, actual) = (at.named("weight"), weight.dtype.to_string());
        return Err(InferError::TensorDtype { tensor, expected: "u32, as packed weights are", actual });
    }
    let last = |stored: &Stored| stored.shape.last().copied().unwrap_or(0);
    let shapes = || format!("{:?} with scales {:?} for {cols} inputs", weight.shape, scales.shape);
    let found = Format::of_rows(cols, last(weight), last(scales), true);
    let found = found.ok_or_else(|| unsupported(shapes()))?;
    match at.format_override() {
        Some(ModuleFormat::Packed(stated)) if stated != found => {
            return Err(unsupported(format!("{found}, where config.json says {stated}")));
        }
        Some(ModuleFormat::Plain) => {
            return Err(unsupported(format!("{found}, where config.json says that it is not")));
        }
        _ => {}
    }
    match found {
        Format::Affine(affine) if matches!(affine.bits(), 4 | 8) => Ok(affine),
        other => Err(unsupported(other.to_string())),
    }
}

/// In each block of 32 inputs, the 16 even ones before the 16 odd ones: as low and high halves of 16 bytes meet them.
fn halves_apart(inputs: &[f32]) -> Vec<f32> {
    let (blocks, _) = inputs.as_chunks::<{ 2 * LANES }>();
    blocks
        .iter()
        .flat_map(|block| std::array::from_fn::<f32, { 2 * LANES }, _>(|i| block[natural(i)]))
        .collect()
}

/// Where the `i`th input of a block with its halves apart stands by nature.
const fn natural(i: usize) -> usize {
    2 * (i % LANES) + i / LANES
}

struct Products<'a> {
    matrix: &'a Affine,
    first: usize,
    inputs: &'a Inputs,
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let format = self.matrix.format;
        match (format.bits(), format.group_size()) {
            (4, 32) => self.rows::<M, 4, 32>(),
            (4, 64) => self.rows::<M, 4, 64>(),
            (4, 128) => self.rows::<M, 4, 128>(),
            (8, 32) => self.rows::<M, 8, 32>(),
            (8, 64) => self.rows::<M, 8, 64>(),
            (8, 128) => self.rows::<M, 8, 128>(),
            _ => unreachable!("Affine holds no other format"),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn rows<M: MultiplyAdd, const BITS: usize, const GROUP: usize>(self) {
        let Self { matrix, first, inputs, out } = self;
        let groups = matrix.cols / GROUP;
        let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
        for (row, out) in (first..).zip(out.chunks_exact_mut(inputs.tokens)) {
            matrix.scales.read(row * groups, &mut scales);
            matrix.biases.read(row * groups, &mut biases);
            let packed = matrix.row(row);
            let tokens = inputs.values.chunks_exact(matrix.cols).zip(inputs.sums.chunks_exact(groups));
            for (out, (values, sums)) in out.iter_mut().zip(tokens) {
                *out = scaled::<M, BITS, GROUP>(packed, &scales, values) + simd::dot::<M>(&biases, sums);
            }
        }
    }
}

/// The sum over groups of `scale * sum(q * x)`.
#[inline(always)]
fn scaled<M: MultiplyAdd, const BITS: usize, const GROUP: usize>(
    packed: &[u8],
    scales: &[f32],
    values: &[f32],
) -> f32 {
    let groups = packed.chunks_exact(GROUP * BITS / 8).zip(values.chunks_exact(GROUP));
    let mut sums = [0.0; LANES];
    for ((packed, values), scale) in groups.zip(scales) {
        let group = if BITS == 4 {
            group_of_4_bits::<M>(packed, values)
        } else {
            group_of_8_bits::<M>(packed, values)
        };
        simd::add_products::<M>(&group, &[*scale; LANES], &mut sums);
    }
    simd::total(&sums)
}

#[inline(always)]
fn group_of_4_bits<M: MultiplyAdd>(packed: &[u8], values: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    let blocks = values.as_chunks::<{ 2 * LANES }>().0;
    for (packed, values) in packed.as_chunks::<LANES>().0.iter().zip(blocks) {
        for lane in 0..LANES {
            sums[lane] = M::madd(f32::from(packed[lane] & 15), values[lane], sums[lane]);
        }
        for lane in 0..LANES {
            sums[lane] = M::madd(f32::from(packed[lane] >> 4), values[LANES + lane], sums[lane]);
        }
    }
    sums
}

#[inline(always)]
fn group_of_8_bits<M: MultiplyAdd>(packed: &[u8], values: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for (packed, values) in packed.as_chunks::<LANES>().0.iter().zip(values.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] = M::madd(f32::from(packed[lane]), values[lane], sums[lane]);
        }
    }
    sums
}

struct Unpack<'a> {
    matrix: &'a Affine,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let Self { matrix, row, out } = self;
        let (bits, group_size) = (matrix.format.bits(), matrix.format.group_size());
        let groups = matrix.cols / group_size;
        let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
        matrix.scales.read(row * groups, &mut scales);
        matrix.biases.read(row * groups, &mut biases);
        let packed = matrix.row(row).chunks_exact(group_size * bits / 8);
        let groups = packed.zip(out.chunks_exact_mut(group_size));
        for ((packed, out), (scale, bias)) in groups.zip(scales.into_iter().zip(biases)) {
            if bits == 4 {
                for (byte, out) in packed.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = [byte & 15, byte >> 4].map(|q| M::madd(f32::from(q), scale, bias));
                }
            } else {
                for (byte, out) in packed.iter().zip(out) {
                    *out = M::madd(f32::from(*byte), scale, bias);
                }
            }
        }
    }
}
