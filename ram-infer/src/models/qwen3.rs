//! Qwen3, dense or with experts: Llama's block with a norm over each query and key head, and heads of a width of their
//! own.

use crate::config::ModelConfig;
use crate::nn::attention::Recipe;
use crate::nn::linear::Bias;

/// How its layers attend.
pub(super) const fn attention(config: &ModelConfig) -> Recipe {
    let bias = Bias::when(config.attention_bias);
    Recipe { qkv: bias, o: bias, qk_norm: true, gated: false }
}
