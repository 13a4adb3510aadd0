//! Matrices of weights, packed for the processor: products with many tokens' inputs at once, in three kinds of numbers.
//!
//! | file | owns |
//! |---|---|
//! | [`layout`] | how weights lie in memory, and the way there from a file |
//! | [`inputs`] | inputs in the numbers and the order that kernels read |
//! | [`product`] | the kernels, written once |
//! | [`codes`] | what a kernel makes of each kind of weight |
//! | [`isa`] | what a kernel asks of a processor; one file for each kind: `avx2`, `avx512`, `neon` |
//! | [`dense`] | products of matrices that are not packed |
//! | [`arena`] | memory in huge pages |
//! | [`floats`] | bf16, f16 and the floats of 8 bits |
//!
//! ```text
//! let packed = Packed::pack(format, rows, cols, &source)?;
//! packed.prepare(x, Numerics::Int8, &mut inputs);               // x: (T, C); once for all matrices of the format
//! packed.tile(tile, &inputs, 0..tokens, &mut out);              // out: (T, 16), rows 16 * tile and on
//! ```
//!
//! A token's results do not depend on which tokens are computed beside it, to the last bit.
//!
//! The module uses nothing else of this crate. Letters of shapes: T tokens, R rows (outputs), C columns (inputs).

mod arena;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod codes;
mod dense;
mod floats;
mod inputs;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "pairs of bf16 are multiplied where a processor is built for that does")
)]
mod isa;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "pairs of bf16 are multiplied where a processor is built for that does")
)]
mod product;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::Range;

use rayon::prelude::*;

pub(crate) use self::arena::Memory;
pub(crate) use self::dense::{Floats, Strided, add_products};
pub(crate) use self::floats::{Float, from_bf16, to_bf16};
pub(crate) use self::inputs::Inputs;
pub(crate) use self::layout::{ROWS, Scales};

use self::inputs::Form;
use self::isa::Processor;
use self::layout::{Kind, Layout};
use self::product::Product;

/// How a file packs weights; MLX's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `w = scale * q + bias`, with codes of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
    Affine {
        /// Bits of a code.
        bits: u8,
        /// Weights that share a scale and a bias.
        group: u16,
    },
    /// e2m1 floats in groups of 32 with e8m0 scales.
    Mxfp4,
    /// e2m1 floats in groups of 16 with e4m3 scales, and perhaps a scale for all.
    Nvfp4,
    /// e4m3 floats in groups of 32 with e8m0 scales.
    Mxfp8,
    /// Floats.
    Plain(Float),
}

/// A matrix as a file has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The codes, or the floats: rows one after the other, each a little-endian stream of bits.
    pub(crate) codes: &'a [u8],
    /// Their scales.
    pub(crate) scales: Scales<'a>,
}

/// The numbers of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// Inputs and sums in f32.
    F32,
    /// Inputs rounded to bf16, sums in f32; codes are exact.
    Bf16,
    /// Inputs as integers of 8 bits with a scale for each group of weights; sums of a group are exact, those over
    /// groups in f32. Weights without an integer form (mxfp8 and plain bf16) are computed as with `Bf16`, plain f16 and
    /// f32 as with `F32`.
    Int8,
}

impl Numerics {
    /// What is fastest on this processor without a loss that shows: `Bf16` where it multiplies such numbers, else
    /// `Int8`.
    #[must_use]
    pub fn best() -> Self {
        if Processor::best().has_dots() { Self::Bf16 } else { Self::Int8 }
    }

    /// What is multiplied with weights of a kind on a processor.
    fn form(self, kind: Kind, processor: Processor) -> Form {
        let plain = matches!(kind, Kind::F16 | Kind::F32);
        match self {
            Self::F32 => Form::Floats { rounded: false },
            Self::Int8 if kind.is_integer() => Form::Integers,
            Self::Int8 if plain => Form::Floats { rounded: false },
            _ if !plain && kind != Kind::E4m3 && processor.has_dots() => Form::Pairs,
            Self::Bf16 | Self::Int8 => Form::Floats { rounded: true },
        }
    }
}

/// Why a matrix cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PackError {
    /// There is no such affine format.
    #[error("no affine format has {bits} bits in groups of {group}")]
    Format {
        /// Bits of a code.
        bits: u8,
        /// Weights of a group.
        group: u16,
    },
    /// Rows are not whole groups.
    #[error("rows of {cols} weights are not whole groups of {group}")]
    Columns {
        /// Weights of a row.
        cols: usize,
        /// Weights of a group.
        group: usize,
    },
    /// A part is not as long as the shape says.
    #[error("{part} have {actual} bytes for {expected}")]
    Length {
        /// Codes, scales or biases.
        part: &'static str,
        /// The shape's bytes.
        expected: usize,
        /// The bytes there are.
        actual: usize,
    },
    /// The scales are not of the format's kind.
    #[error("scales that do not belong to the format")]
    Scales,
    /// The system has no memory for it.
    #[error("no memory for {bytes} bytes of weights: {kind}")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// What the system said.
        kind: io::ErrorKind,
    },
}

/// A matrix of weights (R, C), packed: the same weights in another order, to the last bit.
pub(crate) struct Packed {
    format: Format,
    rows: usize,
    cols: usize,
    layout: Layout,
    factor: f32,
    memory: Memory,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, rows, cols, .. } = self;
        write!(f, "Packed({format:?}, {rows} x {cols})")
    }
}

impl Packed {
    /// Packs a matrix of (rows, cols), on all threads of the pool of rayon that it is called in.
    ///
    /// # Errors
    /// [`PackError`].
    pub(crate) fn pack(
        format: Format,
        rows: usize,
        cols: usize,
        source: &Source<'_>,
    ) -> Result<Self, PackError> {
        let float = match source.scales {
            Scales::Floats { float, .. } => float,
            Scales::Bytes { .. } | Scales::None => Float::Bf16,
        };
        let factor = if let Scales::Bytes { factor, .. } = source.scales { factor } else { 1.0 };
        let layout = Layout::of(format, cols, float)?;
        check(format, &layout, [rows, cols], source)?;
        let row_tile_bytes = layout.row_tile_bytes();
        // No slice is longer than half of the address space, and packing adds less than that but for tiny matrices.
        let bytes = rows.div_ceil(ROWS).saturating_mul(row_tile_bytes);
        let memory = Memory::zeroed(bytes);
        let mut memory = memory.map_err(|error| PackError::Memory { bytes, kind: error.kind() })?;
        memory
            .bytes_mut()
            .par_chunks_exact_mut(row_tile_bytes)
            .enumerate()
            .for_each(|(tile, out)| layout.pack([rows, cols], source, tile * ROWS, out));
        Ok(Self { format, rows, cols, layout, factor, memory })
    }

    /// How the file packed it.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// R, the outputs.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// C, the inputs.
    pub(crate) const fn cols(&self) -> usize {
        self.cols
    }

    /// Tiles of 16 rows; the last may have fewer, and then zeros.
    pub(crate) const fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Makes inputs (T, C) ready, on this thread. [`Inputs::fill`] shares the work.
    ///
    /// # Panics
    /// When `x` is not whole rows of C.
    #[cfg(test)]
    pub(crate) fn prepare(&self, x: &[f32], numerics: Numerics, inputs: &mut Inputs) {
        assert!(x.len().is_multiple_of(self.cols), "whole rows of inputs");
        inputs.fill(self, x.len() / self.cols, numerics).work(x);
    }

    /// Writes the products of the 16 rows of a tile with some tokens' inputs to `out`, (tokens, 16).
    ///
    /// Many tokens at once are best: 32 to 128 let the weights be read once for all and leave the inputs in the cache.
    ///
    /// # Panics
    /// When the inputs are not for this format and width, or there is no such tile or token, or `out` is of another
    /// size.
    pub(crate) fn tile(&self, tile: usize, inputs: &Inputs, tokens: Range<usize>, out: &mut [f32]) {
        let (rows, layout) = (self.row_tile(tile), &self.layout);
        // Kernels see e2m1 floats doubled.
        let factor = if layout.kind == Kind::E2m1 { self.factor * 0.5 } else { self.factor };
        Product { rows, layout, factor, inputs, tokens, out }.run();
    }

    /// Writes the weights of a row to `out`, (C).
    ///
    /// # Panics
    /// When there is no such row, or `out` is of another size.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of the matrix");
        self.layout.unpack(self.row_tile(row / ROWS), row % ROWS, self.factor, out);
    }

    fn row_tile(&self, tile: usize) -> &[u8] {
        let bytes = self.layout.row_tile_bytes();
        &self.memory.bytes()[tile * bytes..][..bytes]
    }
}

/// Refuses a source that is not of the format and shape.
fn check(
    format: Format,
    layout: &Layout,
    [rows, cols]: [usize; 2],
    source: &Source<'_>,
) -> Result<(), PackError> {
    let length = |part, expected: usize, bytes: &[u8]| match bytes.len() {
        actual if actual == expected => Ok(()),
        actual => Err(PackError::Length { part, expected, actual }),
    };
    length("codes", rows.saturating_mul(layout.stored_row_bytes(cols)), source.codes)?;
    let scales_count = rows.saturating_mul(layout.groups);
    match (format, source.scales) {
        (Format::Affine { .. }, Scales::Floats { float, scales, biases }) => {
            let expected = scales_count.saturating_mul(float.bytes());
            length("scales", expected, scales)?;
            length("biases", expected, biases)
        }
        (Format::Mxfp4 | Format::Nvfp4 | Format::Mxfp8, Scales::Bytes { scales, .. }) => {
            length("scales", scales_count, scales)
        }
        (Format::Plain(_), Scales::None) => Ok(()),
        _ => Err(PackError::Scales),
    }
}
