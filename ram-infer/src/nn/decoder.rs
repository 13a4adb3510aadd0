//! One layer of a decoder: attention and MLP, each behind a norm and beside the residual stream.

use super::attention::{Attention, Recipe};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::{Pass, Workspace, sized};
use crate::error::InferError;
use crate::scope::Scope;

/// `model.layers.N`, as all families of this crate have it; they differ in what they attend with.
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
        let (width, inner) = (at.config().hidden_size, at.config().intermediate_size);
        Ok(Self {
            input_layernorm: RmsNorm::load(&at.enter("input_layernorm"), width)?,
            self_attn: Attention::load(&at.enter("self_attn"), recipe)?,
            post_attention_layernorm: RmsNorm::load(&at.enter("post_attention_layernorm"), width)?,
            mlp: Mlp::load(&at.enter("mlp"), inner)?,
        })
    }

    /// The layer, the `layer`th of those that are held here, over `x`, (T, E).
    pub(crate) fn forward(&self, x: &mut [f32], layer: usize, pass: &Pass<'_>, space: &mut Workspace) {
        self.input_layernorm.rows(pass, x, sized(&mut space.normed, x.len()));
        self.self_attn.add_to(x, layer, pass, space);
        self.post_attention_layernorm.rows(pass, x, sized(&mut space.normed, x.len()));
        self.mlp.add_to(x, pass, space);
    }
}
