//! One layer of a decoder: what mixes tokens, and an MLP or experts, each behind a norm and beside the residual stream.

use super::attention::{self, Attention};
use super::delta::{DeltaNet, Projections};
use super::latent::LatentAttention;
use super::mlp::Mlp;
use super::moe::Experts;
use super::norm::RmsNorm;
use super::{Pass, Workspace};
use crate::config::ModelConfig;
use crate::error::InferError;
use crate::kv::LayerKv;
use crate::scope::Scope;

/// `model.layers.N`, as all families of this crate have it; they differ in what mixes tokens.
pub(crate) struct DecoderLayer {
    input_layernorm: RmsNorm,
    mixer: Mixer,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

/// How the tokens of a sequence see each other in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerRecipe {
    /// By attention.
    Attention(attention::Recipe),
    /// By latent attention.
    Latent,
    /// By the state of a DeltaNet, which is made of these.
    Delta(Projections),
}

enum Mixer {
    Attention(Attention),
    Latent(LatentAttention),
    Delta(DeltaNet),
}

#[expect(clippy::large_enum_variant, reason = "made once for each layer")]
enum FeedForward {
    Dense(Mlp),
    Sparse(Experts),
}

impl LayerRecipe {
    /// What such a layer keeps of a sequence.
    pub(crate) fn keeps(self, config: &ModelConfig) -> LayerKv {
        let &ModelConfig { kv_heads, head_dim, .. } = config;
        match (self, &config.mla, &config.delta) {
            (Self::Latent, Some(mla), _) => {
                LayerKv::Positions { heads: 1, keys: mla.kv_lora_rank + mla.qk_rope, values: 0 }
            }
            (Self::Delta(_), _, Some(delta)) => LayerKv::State { floats: delta.state_numbers() },
            _ => LayerKv::Positions { heads: kv_heads, keys: head_dim, values: head_dim },
        }
    }
}

impl DecoderLayer {
    /// Loads the model's `number`th layer, which is at this place.
    ///
    /// # Errors
    /// Those of the parts.
    pub(crate) fn load(at: &Scope<'_>, number: usize, recipe: LayerRecipe) -> Result<Self, InferError> {
        let config = at.config();
        let mixer = match (recipe, &config.mla, &config.delta) {
            (LayerRecipe::Latent, Some(mla), _) => {
                Mixer::Latent(LatentAttention::load(&at.enter("self_attn"), *mla)?)
            }
            (LayerRecipe::Delta(projections), _, Some(delta)) => {
                Mixer::Delta(DeltaNet::load(&at.enter("linear_attn"), delta, projections)?)
            }
            (LayerRecipe::Attention(recipe), ..) => {
                Mixer::Attention(Attention::load(&at.enter("self_attn"), recipe)?)
            }
            _ => unreachable!("a family's configuration has what its recipes name"),
        };
        let mlp = match &config.moe {
            Some(moe) if moe.sparse[number] => FeedForward::Sparse(Experts::load(&at.enter("mlp"), moe)?),
            _ => FeedForward::Dense(Mlp::load(&at.enter("mlp"), config.intermediate_size)?),
        };
        let norm = |name| RmsNorm::load(&at.enter(name), config.hidden_size);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            mixer,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
        })
    }

    /// The layer, the `layer`th of those that are held here, over `x`, (T, E).
    pub(crate) fn forward(&self, x: &mut [f32], layer: usize, pass: &Pass<'_>, space: &mut Workspace) {
        let norm = &self.input_layernorm;
        match &self.mixer {
            Mixer::Attention(attention) => attention.add_to(x, norm, layer, pass, space),
            Mixer::Latent(attention) => attention.add_to(x, norm, layer, pass, space),
            Mixer::Delta(delta) => delta.add_to(x, norm, layer, pass, space),
        }
        let norm = &self.post_attention_layernorm;
        match &self.mlp {
            FeedForward::Dense(mlp) => mlp.add_to(x, norm, pass, space),
            FeedForward::Sparse(experts) => experts.add_to(x, norm, pass, space),
        }
    }
}
