//! Root-mean-square normalisation (Zhang and Sennrich 2019).

use candle_core::Tensor;

use crate::error::InferError;
use crate::scope::Scope;

/// `y = x / sqrt(mean(x^2) + eps) * weight`, over the last dimension.
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads the norm at this place, over `width` numbers.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`].
    pub(crate) fn load(at: &Scope<'_>, width: usize) -> Result<Self, InferError> {
        Ok(Self { weight: at.vector("weight", width)?, eps: at.config().rms_norm_eps })
    }

    /// `x` is (.., width); returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_norm_agrees_with_its_formula(
            rows in proptest::collection::vec(proptest::collection::vec(-9.0f32..9.0, 6), 1..4),
            weight in proptest::collection::vec(-2.0f32..2.0, 6),
        ) {
            let eps = 1e-5;
            let norm = RmsNorm { weight: Tensor::new(weight.as_slice(), &Device::Cpu).unwrap(), eps };
            let found = norm.forward(&Tensor::new(rows.clone(), &Device::Cpu).unwrap()).unwrap();
            for (x, y) in rows.iter().zip(found.to_vec2::<f32>().unwrap()) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 6.0;
                for ((x, weight), y) in x.iter().zip(&weight).zip(y) {
                    let expected = f64::from(*x) / (mean + f64::from(eps)).sqrt() * f64::from(*weight);
                    prop_assert!((f64::from(y) - expected).abs() <= 1e-5 * (1.0 + expected.abs()));
                }
            }
        }
    }
}
