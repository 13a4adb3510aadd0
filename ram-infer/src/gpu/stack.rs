//! Weight matrices of one shape, one behind the other: of experts. Each input goes through one of them.
//!
//! They stay packed as single ones do (`linear`), and the GPU reads those that are asked for.

use candle_core::Tensor;

use super::linear;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::InferError;
#[cfg(feature = "metal")]
use crate::metal;
use crate::scope::Scope;

/// Matrices (X, R, C).
///
/// Letters of shapes: X matrices, R rows (outputs), C columns (inputs), N outputs asked for.
pub(crate) enum Stack {
    /// In the type of the activations.
    Unpacked(Tensor),
    /// On Apple's GPU, as their file packs them.
    #[cfg(feature = "metal")]
    Metal(metal::PackedStack),
    /// On NVIDIA's GPU, as their file packs them.
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::PackedStack>),
}

impl Stack {
    /// Loads the `count` matrices of the module at this place.
    ///
    /// # Errors
    /// Those of [`linear::unpacked`], and [`InferError::Device`].
    pub(crate) fn load(at: &Scope<'_>, count: usize, rows: usize, cols: usize) -> Result<Self, InferError> {
        #[cfg(feature = "metal")]
        if let Some(packed) = metal::PackedStack::load(at, count, rows, cols)? {
            return Ok(Self::Metal(packed));
        }
        #[cfg(feature = "cuda")]
        if let Some(packed) = cuda::PackedStack::load(at, count, rows, cols)? {
            return Ok(Self::Cuda(Box::new(packed)));
        }
        let unpacked = linear::unpacked(at, &[count], rows, cols)?;
        Ok(Self::Unpacked(at.upload(unpacked, &[count, rows, cols])?))
    }

    /// The product of inputs (N / share, C), each taken `share` times in turn, with the matrices of these numbers, (N):
    /// (N, R).
    pub(crate) fn forward(&self, inputs: &Tensor, numbers: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Unpacked(matrices) => one_by_one(matrices, inputs, numbers),
            #[cfg(feature = "metal")]
            Self::Metal(stack) => stack.forward(inputs, numbers),
            #[cfg(feature = "cuda")]
            Self::Cuda(stack) => stack.forward(inputs, numbers),
        }
    }

    /// [`Self::forward`] of inputs (N, C), where the same number often follows itself: its matrix is read once for
    /// several outputs.
    pub(crate) fn forward_runs(&self, inputs: &Tensor, numbers: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Unpacked(matrices) => one_by_one(matrices, inputs, numbers),
            #[cfg(feature = "metal")]
            Self::Metal(stack) => stack.forward_runs(inputs, numbers),
            #[cfg(feature = "cuda")]
            Self::Cuda(stack) => stack.forward_runs(inputs, numbers),
        }
    }
}

/// By matrices that are copied beside each other, as many at a time as memory is set aside for. Right, and slow for
/// many inputs: candle does not multiply with a matrix that only the device knows.
fn one_by_one(matrices: &Tensor, inputs: &Tensor, numbers: &Tensor) -> candle_core::Result<Tensor> {
    let (_, rows, cols) = matrices.dims3()?;
    let (given, outputs) = (inputs.dim(0)?, numbers.dim(0)?);
    // (N / share, C) -> (N, 1, C)
    let inputs = inputs.unsqueeze(1)?.broadcast_as((given, outputs / given, cols))?;
    let inputs = inputs.contiguous()?.reshape((outputs, 1, cols))?;
    let at_once = (COPIED_NUMBERS_MAX / (rows * cols)).max(1);
    let product = |first: usize| {
        let count = at_once.min(outputs - first);
        let matrices = matrices.index_select(&numbers.narrow(0, first, count)?, 0)?;
        // (n, 1, C) x (n, C, R) -> (n, 1, R)
        inputs.narrow(0, first, count)?.matmul(&matrices.t()?)
    };
    let products: candle_core::Result<Vec<Tensor>> = (0..outputs).step_by(at_once).map(product).collect();
    Tensor::cat(&products?, 0)?.squeeze(1)
}

/// Weights that are copied at a time: 128 MiB in bf16.
const COPIED_NUMBERS_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_input_goes_through_the_matrix_that_is_named(
            [count, rows, cols, given, share] in [1..5_usize, 1..6, 1..6, 1..5, 1..4],
            numbers in prop::collection::vec(0..20_usize, 12),
            seed in prop::collection::vec(-2.0_f32..2.0, 97),
        ) {
            let floats = |len: usize, skip: usize| -> Vec<f32> {
                seed.iter().cycle().skip(skip).take(len).copied().collect()
            };
            let numbers: Vec<usize> = numbers.iter().take(given * share).map(|number| number % count).collect();
            let ids: Vec<u32> = numbers.iter().map(|number| u32::try_from(*number).unwrap()).collect();
            let (matrices, inputs) = (floats(count * rows * cols, 0), floats(given * cols, 31));
            let tensor = |data: &[f32], shape: &[usize]| Tensor::from_slice(data, shape, &Device::Cpu).unwrap();
            let stack = Stack::Unpacked(tensor(&matrices, &[count, rows, cols]));
            let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
            let found = stack.forward(&tensor(&inputs, &[given, cols]), &ids).unwrap();
            prop_assert_eq!(found.dims(), [numbers.len(), rows]);
            for (n, found) in found.to_vec2::<f32>().unwrap().into_iter().enumerate() {
                let input = &inputs[n / share * cols..][..cols];
                for (row, found) in found.into_iter().enumerate() {
                    let weights = &matrices[(numbers[n] * rows + row) * cols..][..cols];
                    let expected: f32 = weights.iter().zip(input).map(|(w, x)| w * x).sum();
                    prop_assert!((found - expected).abs() < 1e-5, "{} for {}", found, expected);
                }
            }
        }
    }
}
