//! The gated MLP (SwiGLU; Shazeer 2020).

use candle_core::Tensor;

use super::linear::Linear;
use crate::error::InferError;
use crate::nn::linear::Bias;
use crate::scope::Scope;

/// `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Loads the MLP at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`].
    pub(crate) fn load(at: &Scope<'_>) -> Result<Self, InferError> {
        let config = at.config();
        let (width, inner, bias) =
            (config.hidden_size, config.intermediate_size, Bias::when(config.mlp_bias));
        Ok(Self {
            gate_proj: Linear::load(&at.enter("gate_proj"), inner, width, bias)?,
            up_proj: Linear::load(&at.enter("up_proj"), inner, width, bias)?,
            down_proj: Linear::load(&at.enter("down_proj"), width, inner, bias)?,
        })
    }

    /// `x` is (T, E); returns (T, E).
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let gate = self.gate_proj.forward(x)?.silu()?;
        self.down_proj.forward(&(gate * self.up_proj.forward(x)?)?)
    }
}
