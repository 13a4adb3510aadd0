//! Packed matrices that a GPU multiplies as they are packed: what its kinds have in common.
//!
//! | file | owns |
//! |---|---|
//! | `kernels.metal` | the kernels, in Metal's language; CUDA's compiler takes the same text |
//! | [`source`] | their text for a format, and how they are launched |
//!
//! `metal` and `cuda` compile the kernels, hold the weights and launch. Start at [`Parts::find`].

pub(crate) mod source;

use candle_core::{DType, Layout};
use safetensors::tensor::Dtype;

use self::source::{Float, Order, Packing};
use crate::config::ModuleFormat;
use crate::error::InferError;
use crate::scope::Scope;
use crate::weights::Stored;

/// A packed matrix (R, C) in its file, or several, one behind the other.
pub(crate) struct Parts<'a> {
    pub(crate) packing: Packing,
    /// The codes, in words of 32 bits.
    pub(crate) words: &'a Stored,
    pub(crate) scales: &'a Stored,
    /// Of the affine formats.
    pub(crate) biases: Option<&'a Stored>,
}

impl<'a> Parts<'a> {
    /// The matrices (R, C) of the module at this place, which are stacked as `stack` says: not at all, or (X, R, C).
    /// `None` when they are not packed in a way that the kernels know.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`].
    pub(crate) fn find(
        at: &Scope<'a>,
        stack: &[usize],
        rows: usize,
        cols: usize,
    ) -> Result<Option<Self>, InferError> {
        if !at.has("scales") {
            return Ok(None);
        }
        let (weight, scales) =
            (at.weights().take(&at.named("weight"))?, at.weights().take(&at.named("scales"))?);
        let found = packing(weight, scales, cols).filter(|packing| packing.takes(cols));
        let Some(packing) = found.filter(|packing| agrees(at.format_override(), *packing)) else {
            return Ok(None);
        };
        let groups = cols / packing.group_size();
        let shaped = |part, width| {
            let shape: Vec<usize> = stack.iter().copied().chain([rows, width]).collect();
            at.weights().take_shaped(&at.named(part), &shape)
        };
        let words = shaped("weight", cols * packing.bits() / 32)?;
        let scales = shaped("scales", groups)?;
        let biases = match packing {
            Packing::Affine { .. } => Some(shaped("biases", groups)?),
            _ => None,
        };
        if biases.is_some_and(|biases| biases.dtype != scales.dtype) {
            return Ok(None);
        }
        Ok(Some(Self { packing, words, scales, biases }))
    }
}

/// How a tensor is packed, by its shapes as in mlx-lm; `None` when the kernels do not know it.
fn packing(weight: &Stored, scales: &Stored, cols: usize) -> Option<Packing> {
    let last = |stored: &Stored| stored.shape.last().copied();
    let words = last(weight).filter(|_| weight.dtype == Dtype::U32)?;
    let bits = words.checked_mul(32).filter(|bits| bits.is_multiple_of(cols))?.checked_div(cols)?;
    let group_size = cols.checked_div(last(scales)?)?;
    let scales = match scales.dtype {
        Dtype::F32 => Float::F32,
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::Bf16,
        Dtype::U8 => {
            return match (bits, group_size) {
                (4, 32) => Some(Packing::Mxfp4),
                (4, 16) => Some(Packing::Nvfp4),
                (8, 32) => Some(Packing::Mxfp8),
                _ => None,
            };
        }
        _ => return None,
    };
    let known = matches!((bits, group_size), (2..=6 | 8, 32 | 64 | 128));
    known.then_some(Packing::Affine { bits, group_size, scales })
}

/// Whether what config.json says of a module is what was found.
fn agrees(stated: Option<ModuleFormat>, found: Packing) -> bool {
    match stated {
        Some(ModuleFormat::Packed(stated)) => {
            (stated.bits(), stated.group_size()) == (found.bits(), found.group_size())
        }
        Some(ModuleFormat::Plain) => false,
        None => true,
    }
}

/// How many outputs are asked for by numbers of matrices, (N), and how many of them share one of the inputs,
/// (N / share, C).
///
/// # Errors
/// That these do not fit each other, the columns or the order, or that they have gaps.
pub(crate) fn shared(
    inputs: &Layout,
    numbers: &Layout,
    cols: usize,
    order: Order,
) -> candle_core::Result<[usize; 2]> {
    let ((given, width), outputs) = (inputs.shape().dims2()?, numbers.shape().dims1()?);
    let fit = width == cols && given > 0 && outputs > 0 && outputs.is_multiple_of(given);
    if !fit || (order == Order::Runs && given != outputs) {
        candle_core::bail!("inputs {:?} for {outputs} products with {cols} columns", inputs.shape())
    }
    if !inputs.is_contiguous() || !numbers.is_contiguous() {
        candle_core::bail!("inputs {inputs:?} and numbers {numbers:?} with gaps")
    }
    Ok([outputs, outputs / given])
}

/// The kernels' name for a type.
///
/// # Errors
/// That there is none.
pub(crate) fn float(dtype: DType) -> candle_core::Result<Float> {
    match dtype {
        DType::F32 => Ok(Float::F32),
        DType::F16 => Ok(Float::F16),
        DType::BF16 => Ok(Float::Bf16),
        other => candle_core::bail!("no kernel for inputs of type {other:?}"),
    }
}

/// A size as the kernels are told it.
///
/// # Errors
/// That it does not fit.
pub(crate) fn narrow(size: usize) -> candle_core::Result<u32> {
    u32::try_from(size).map_err(candle_core::Error::wrap)
}
