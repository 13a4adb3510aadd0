//! One layer of a decoder: attention, and an MLP or experts, each behind a norm and beside the residual stream.

use candle_core::Tensor;

use super::attention::{Attention, Pass};
use super::cache::LayerCache;
use super::mlp::Mlp;
use super::moe::Experts;
use super::norm::RmsNorm;
use crate::error::InferError;
use crate::nn::attention::Recipe;
use crate::scope::Scope;

/// `model.layers.N`, as all families of this crate have it; they differ in their attention.
pub(crate) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

enum FeedForward {
    Dense(Mlp),
    Sparse(Experts),
}

impl DecoderLayer {
    /// Loads the model's `number`th layer, which is at this place.
    ///
    /// # Errors
    /// Those of [`RmsNorm::load`], [`Attention::load`], [`Mlp::load`] and [`Experts::load`].
    pub(crate) fn load(at: &Scope<'_>, number: usize, recipe: Recipe) -> Result<Self, InferError> {
        let (place, width) = (at.enter("mlp"), at.config().hidden_size);
        let mlp = match &at.config().moe {
            Some(moe) if moe.sparse[number] => FeedForward::Sparse(Experts::load(&place, moe)?),
            _ => FeedForward::Dense(Mlp::load(&place)?),
        };
        Ok(Self {
            input_layernorm: RmsNorm::load(&at.enter("input_layernorm"), width)?,
            self_attn: Attention::load(&at.enter("self_attn"), recipe)?,
            post_attention_layernorm: RmsNorm::load(&at.enter("post_attention_layernorm"), width)?,
            mlp,
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
        let normed = self.post_attention_layernorm.forward(&x)?;
        match &self.mlp {
            FeedForward::Dense(mlp) => x + mlp.forward(&normed)?,
            FeedForward::Sparse(experts) => x + experts.forward(&normed, pass)?,
        }
    }
}
