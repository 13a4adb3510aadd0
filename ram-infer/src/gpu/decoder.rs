//! One layer of a decoder: attention and MLP, each behind a norm and beside the residual stream.

use candle_core::Tensor;

use super::attention::{Attention, Pass};
use super::cache::LayerCache;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use crate::error::InferError;
use crate::nn::attention::Recipe;
use crate::scope::Scope;

/// `model.layers.N`, as all families of this crate have it; they differ in their attention.
pub(crate) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl DecoderLayer {
    /// Loads the layer at this place.
    ///
    /// # Errors
    /// Those of [`RmsNorm::load`], [`Attention::load`] and [`Mlp::load`].
    pub(crate) fn load(at: &Scope<'_>, recipe: Recipe) -> Result<Self, InferError> {
        let width = at.config().hidden_size;
        Ok(Self {
            input_layernorm: RmsNorm::load(&at.enter("input_layernorm"), width)?,
            self_attn: Attention::load(&at.enter("self_attn"), recipe)?,
            post_attention_layernorm: RmsNorm::load(&at.enter("post_attention_layernorm"), width)?,
            mlp: Mlp::load(&at.enter("mlp"))?,
        })
    }

    /// `x` is (T, E); returns (T, E). Writes T positions to `cache`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        let x = (x + self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, cache)?)?;
        &x + self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?
    }
}
