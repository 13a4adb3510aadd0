//! Qwen2 and Qwen2.5: Llama's block with a bias on queries, keys and values.

use crate::nn::attention::Recipe;
use crate::nn::linear::Bias;

/// How its layers attend.
pub(super) const fn attention() -> Recipe {
    Recipe { qkv: Bias::Added, o: Bias::None, qk_norm: false, gated: false }
}
