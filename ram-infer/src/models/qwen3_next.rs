//! Qwen3-Next and Qwen3.5: DeltaNets, and in every fourth layer attention with a gate before its output. They name and
//! order the projections of their DeltaNets differently; Qwen3.5 stands in `language_model`, for it may see, too.

use super::qwen3;
use crate::config::{Architecture, ModelConfig};
use crate::nn::attention;
use crate::nn::decoder::LayerRecipe;
use crate::nn::delta::Projections;

/// How its `layer`th layer mixes tokens.
pub(super) fn layer(config: &ModelConfig, layer: usize) -> LayerRecipe {
    let is_linear = config.delta.as_ref().is_some_and(|delta| delta.linear[layer]);
    match config.architecture {
        _ if !is_linear => {
            LayerRecipe::Attention(attention::Recipe { gated: true, ..qwen3::attention(config) })
        }
        Architecture::Qwen3Next => LayerRecipe::Delta(Projections::ByHeads),
        _ => LayerRecipe::Delta(Projections::Apart),
    }
}

/// Whether a checkpoint may hold this tensor of Qwen3.5 to no use: what sees, and what guesses tokens ahead.
pub(super) fn is_left_over(tensor: &str) -> bool {
    ["vision_tower.", "model.visual.", "mtp.", "language_model.mtp."]
        .iter()
        .any(|prefix| tensor.starts_with(prefix))
}
