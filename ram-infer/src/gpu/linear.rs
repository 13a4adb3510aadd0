//! Weight matrices on a device, and the linear layers and embeddings made of them.
//!
//! Packed weights stay packed in the formats that the GPU's kernels know (`packed`); others are unpacked into the
//! type of the activations, bf16 on a GPU, when they are loaded.

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::InferError;
#[cfg(feature = "metal")]
use crate::metal;
use crate::nn::linear::Bias;
use crate::quant;
use crate::scope::Scope;

/// A weight matrix (R, C).
pub(crate) enum Matrix {
    /// In the type of the activations.
    Unpacked(Tensor),
    /// On Apple's GPU, as its file packs it.
    #[cfg(feature = "metal")]
    Metal(metal::PackedMatrix),
    /// On NVIDIA's GPU, as its file packs it.
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::PackedMatrix>),
}

impl Matrix {
    /// Loads the matrix of the module at this place.
    ///
    /// # Errors
    /// Those of [`unpacked`], and [`InferError::Device`].
    pub(crate) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Self, InferError> {
        #[cfg(feature = "metal")]
        if let Some(packed) = metal::PackedMatrix::load(at, rows, cols)? {
            return Ok(Self::Metal(packed));
        }
        #[cfg(feature = "cuda")]
        if let Some(packed) = cuda::PackedMatrix::load(at, rows, cols)? {
            return Ok(Self::Cuda(Box::new(packed)));
        }
        Ok(Self::Unpacked(at.upload(unpacked(at, &[], rows, cols)?, &[rows, cols])?))
    }

    /// The product of inputs (T, C) with every row: (T, R).
    pub(crate) fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            // (T, C) x (C, R) -> (T, R)
            Self::Unpacked(weight) => inputs.matmul(&weight.t()?),
            #[cfg(feature = "metal")]
            Self::Metal(matrix) => matrix.forward(inputs),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => matrix.forward(inputs),
        }
    }

    /// The rows of these numbers, which there are: (T, C).
    pub(crate) fn rows(&self, numbers: &[u32]) -> candle_core::Result<Tensor> {
        match self {
            Self::Unpacked(weight) => weight.index_select(&Tensor::new(numbers, weight.device())?, 0),
            #[cfg(feature = "metal")]
            Self::Metal(matrix) => matrix.rows(numbers),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => matrix.rows(numbers),
        }
    }
}

/// The numbers of the matrices (rows, cols) of the module at this place, which are stacked as `stack` says.
///
/// # Errors
/// Those of [`quant::load_stacked`].
pub(super) fn unpacked(
    at: &Scope<'_>,
    stack: &[usize],
    rows: usize,
    cols: usize,
) -> Result<Vec<f32>, InferError> {
    let matrices = quant::load_stacked(at, stack, rows, cols)?;
    let mut unpacked = vec![0.0; matrices.len() * rows * cols];
    for (matrix, out) in matrices.iter().zip(unpacked.chunks_exact_mut(rows * cols)) {
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            matrix.row(row, out);
        }
    }
    Ok(unpacked)
}

/// A linear layer: `y = x W^T + b`.
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads the layer at this place: `outputs` by `inputs`.
    ///
    /// # Errors
    /// Those of [`Matrix::load`].
    pub(crate) fn load(
        at: &Scope<'_>,
        outputs: usize,
        inputs: usize,
        bias: Bias,
    ) -> Result<Self, InferError> {
        let bias = (bias == Bias::Added).then(|| at.vector("bias", outputs)).transpose()?;
        Ok(Self { weight: Matrix::load(at, outputs, inputs)?, bias })
    }

    /// `x` is (T, inputs); returns (T, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}
