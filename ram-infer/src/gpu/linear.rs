//! Weight matrices on a device, and the linear layers and embeddings made of them.
//!
//! Packed weights are unpacked into the type of the activations, bf16 on a GPU, when they are loaded.

use candle_core::Tensor;

use crate::error::InferError;
use crate::nn::linear::Bias;
use crate::quant;
use crate::scope::Scope;

/// A weight matrix (R, C).
pub(crate) struct Matrix(Tensor);

impl Matrix {
    /// Loads the matrix of the module at this place.
    ///
    /// # Errors
    /// Those of [`quant::load`], and [`InferError::Device`].
    pub(crate) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Self, InferError> {
        let packed = quant::load(at, rows, cols)?;
        let mut unpacked = vec![0.0; rows * cols];
        for (row, out) in unpacked.chunks_exact_mut(cols).enumerate() {
            packed.row(row, out);
        }
        Ok(Self(at.upload(unpacked, &[rows, cols])?))
    }

    /// The product of inputs (T, C) with every row: (T, R).
    pub(crate) fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        // (T, C) x (C, R) -> (T, R)
        inputs.matmul(&self.0.t()?)
    }

    /// The rows of these numbers, which there are: (T, C).
    pub(crate) fn rows(&self, numbers: &[u32]) -> candle_core::Result<Tensor> {
        self.0.index_select(&Tensor::new(numbers, self.0.device())?, 0)
    }
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
