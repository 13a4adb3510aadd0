//! Weight matrices of a checkpoint, packed as MLX packs them or plain, in the form of the kernels.
//!
//! A module with `scales` is packed: bits and group follow from the shapes, as in mlx-lm, and a word of config.json for
//! the module must agree. (The file says `U32`: its words are little-endian, so bytes and words agree.)

use safetensors::tensor::Dtype;

use crate::config::{Format, ModuleFormat};
use crate::error::InferError;
use crate::kernel::{self, Float, Packed, Scales, Source};
use crate::scope::Scope;
use crate::weights::Stored;

/// Loads the matrix (rows, cols) of the module at this place.
///
/// # Errors
/// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`],
/// [`InferError::UnsupportedQuantization`].
pub(crate) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Packed, InferError> {
    let mut matrices = load_stacked(at, &[], rows, cols)?;
    matrices.pop().ok_or_else(|| InferError::MissingTensor { tensor: at.named("weight") })
}

/// Loads the matrices (rows, cols) of the module at this place that are stacked as `stack` says: (experts, rows, cols),
/// for one.
///
/// # Errors
/// Those of [`load`].
pub(crate) fn load_stacked(
    at: &Scope<'_>,
    stack: &[usize],
    rows: usize,
    cols: usize,
) -> Result<Vec<Packed>, InferError> {
    let count: usize = stack.iter().product();
    let shaped = |part: &str, width: usize| {
        let shape: Vec<usize> = stack.iter().copied().chain([rows, width]).collect();
        at.weights().take_shaped(&at.named(part), &shape)
    };
    let stated_packed = matches!(at.format_override(), Some(ModuleFormat::Packed(_)));
    if !at.has("scales") && !stated_packed {
        let weight = shaped("weight", cols)?;
        let float = float_of(weight).ok_or_else(|| wrong(at, "weight", "bf16, f16 or f32", weight))?;
        let plain = |weight: &[u8]| {
            let source = Source { codes: weight, scales: Scales::None };
            Packed::pack(kernel::Format::Plain(float), rows, cols, &source)
        };
        let bytes = weight.bytes.chunks_exact((weight.bytes.len() / count).max(1));
        let packed = bytes.map(plain).collect::<Result<_, _>>().map_err(|error| refused(at, &error));
        weight.bytes.forget();
        return packed;
    }
    let (weight, scales) = (at.weights().take(&at.named("weight"))?, at.weights().take(&at.named("scales"))?);
    let format = format(at, weight, scales, cols)?;
    let (bits, groups) = (format.bits(), cols / format.group_size());
    let weight = shaped("weight", cols * bits / 32)?;
    let scales = shaped("scales", groups)?;
    let biases = matches!(format, Format::Affine(_)).then(|| shaped("biases", groups)).transpose()?;
    if let Some(biases) = biases.filter(|biases| biases.dtype != scales.dtype) {
        return Err(wrong(at, "biases", "the type of the scales", biases));
    }
    let part = |stored: &'_ Stored, number: usize| {
        let length = stored.bytes.len() / count;
        number * length..(number + 1) * length
    };
    let pack = |number: usize| {
        let of_scales = &scales.bytes[part(scales, number)];
        let scales = match (biases, float_of(scales)) {
            (Some(biases), Some(float)) => {
                Scales::Floats { float, scales: of_scales, biases: &biases.bytes[part(biases, number)] }
            }
            _ => Scales::Bytes { scales: of_scales, factor: 1.0 },
        };
        let source = Source { codes: &weight.bytes[part(weight, number)], scales };
        Packed::pack(kernel_format(format), rows, cols, &source)
    };
    let packed = (0..count).map(pack).collect::<Result<_, _>>().map_err(|error| refused(at, &error));
    [Some(weight), Some(scales), biases].into_iter().flatten().for_each(|stored| stored.bytes.forget());
    packed
}

/// These numbers as the matrix (rows, cols) of the module at this place.
///
/// # Errors
/// [`InferError::UnsupportedQuantization`] when there is no memory for it.
pub(crate) fn plain(at: &Scope<'_>, rows: usize, cols: usize, floats: &[f32]) -> Result<Packed, InferError> {
    let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    let source = Source { codes: &bytes, scales: Scales::None };
    Packed::pack(kernel::Format::Plain(Float::F32), rows, cols, &source).map_err(|error| refused(at, &error))
}

/// Bits and group size by the shapes of `weight` and `scales`.
fn format(at: &Scope<'_>, weight: &Stored, scales: &Stored, cols: usize) -> Result<Format, InferError> {
    let unsupported = |format| InferError::UnsupportedQuantization { path: at.path().to_owned(), format };
    if weight.dtype != Dtype::U32 {
        return Err(wrong(at, "weight", "u32, as packed weights are", weight));
    }
    if scales.dtype != Dtype::U8 && float_of(scales).is_none() {
        return Err(wrong(at, "scales", "bf16, f16, f32 or u8", scales));
    }
    let last = |stored: &Stored| stored.shape.last().copied().unwrap_or(0);
    let found =
        Format::of_rows(cols, last(weight), last(scales), scales.dtype != Dtype::U8).ok_or_else(|| {
            unsupported(format!("{:?} with scales {:?} for {cols} inputs", weight.shape, scales.shape))
        })?;
    match at.format_override() {
        Some(ModuleFormat::Packed(stated)) if stated != found => {
            Err(unsupported(format!("{found}, where config.json says {stated}")))
        }
        Some(ModuleFormat::Plain) => {
            Err(unsupported(format!("{found}, where config.json says that it is not")))
        }
        _ => Ok(found),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bits up to 8 and groups up to 128")]
const fn kernel_format(format: Format) -> kernel::Format {
    match format {
        Format::Affine(affine) => {
            kernel::Format::Affine { bits: affine.bits() as u8, group: affine.group_size() as u16 }
        }
        Format::Mxfp4 => kernel::Format::Mxfp4,
        Format::Nvfp4 => kernel::Format::Nvfp4,
        Format::Mxfp8 => kernel::Format::Mxfp8,
    }
}

fn float_of(stored: &Stored) -> Option<Float> {
    match stored.dtype {
        Dtype::BF16 => Some(Float::Bf16),
        Dtype::F16 => Some(Float::F16),
        Dtype::F32 => Some(Float::F32),
        _ => None,
    }
}

fn wrong(at: &Scope<'_>, part: &str, expected: &'static str, stored: &Stored) -> InferError {
    InferError::TensorDtype { tensor: at.named(part), expected, actual: stored.dtype.to_string() }
}

fn refused(at: &Scope<'_>, error: &kernel::PackError) -> InferError {
    InferError::UnsupportedQuantization { path: at.path().to_owned(), format: error.to_string() }
}
