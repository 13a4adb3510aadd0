//! Mistral: Llama's block; the first versions see only a window of the past (`sliding_window`), later ones, Mistral
//! Large among them, all of it.

use crate::nn::attention::Recipe;
use crate::nn::linear::Bias;

/// How its layers attend.
pub(super) const fn attention() -> Recipe {
    Recipe { qkv: Bias::None, o: Bias::None, qk_norm: false, gated: false }
}
