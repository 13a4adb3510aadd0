//! Normalisation by the root mean square (Zhang and Sennrich 2019).

use super::Pass;
use crate::error::InferError;
use crate::scope::Scope;
use crate::simd::{self, Kernel, LANES, MultiplyAdd};

/// `x / sqrt(mean(x^2) + eps) * weight`.
pub(crate) struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// Loads the norm at this place.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`].
    pub(crate) fn load(at: &Scope<'_>, width: usize) -> Result<Self, InferError> {
        Ok(Self { weight: at.floats("weight", width)?, eps: at.config().rms_norm_eps })
    }

    /// A norm with this weight.
    pub(crate) const fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Norms each row of `x`, (T, width), into `out`.
    pub(crate) fn rows(&self, pass: &Pass<'_>, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        pass.each_row(out, width, |row, out| {
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
            self.row(out);
        });
    }

    /// Norms one row where it stands.
    pub(crate) fn row(&self, x: &mut [f32]) {
        simd::run(Norm { x, weight: &self.weight, eps: self.eps });
    }
}

struct Norm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let Self { x, weight, eps } = self;
        let (lanes, rest) = x.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for lanes in lanes {
            simd::add_products::<M>(lanes, lanes, &mut sums);
        }
        let total = rest.iter().fold(simd::total(&sums), |sum, x| M::madd(*x, *x, sum));
        let scale = (total / x.len() as f32 + eps).sqrt().recip();
        for (x, weight) in x.iter_mut().zip(weight) {
            *x *= scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_norm_agrees_with_its_formula(
            x in proptest::collection::vec(-9.0f32..9.0, 1..70),
            seed in 0_u32..100,
        ) {
            let eps = 1e-5;
            let weight: Vec<f32> = (0..x.len()).map(|i| (i as f32 + seed as f32).sin()).collect();
            let mut found = x.clone();
            RmsNorm::new(weight.clone(), eps).row(&mut found);
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
            for ((x, weight), y) in x.iter().zip(&weight).zip(found) {
                let expected = f64::from(*x) / (mean + f64::from(eps)).sqrt() * f64::from(*weight);
                prop_assert!((f64::from(y) - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
            }
        }
    }
}
