//! Llama 2 and 3: the block that the other families vary. What sets Llama 3 apart is its rotary encoding.

use crate::config::ModelConfig;
use crate::nn::attention::Recipe;
use crate::nn::linear::Bias;

/// How its layers attend.
pub(super) const fn attention(config: &ModelConfig) -> Recipe {
    let bias = Bias::when(config.attention_bias);
    Recipe { qkv: bias, o: bias, qk_norm: false, gated: false }
}
