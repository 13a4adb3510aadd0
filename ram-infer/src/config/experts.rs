//! Mixtures of experts: which layers have one, how many MLPs there are, and how a token's are chosen.

use serde_json::Value;

use super::fields::Fields;
use super::{Architecture, LAYERS_MAX, WIDTH_MAX};
use crate::error::InferError;

/// A mixture of experts (Shazeer et al. 2017): a router picks some of many MLPs for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// For each layer, whether it has experts; the others have one MLP.
    pub sparse: Vec<bool>,
    /// How many experts such a layer has.
    pub experts: usize,
    /// How many of them a token takes; at most `experts`.
    pub experts_per_token: usize,
    /// Width inside of an expert.
    pub expert_width: usize,
    /// The expert that every token takes beside its own; `None` when there is none.
    pub shared: Option<SharedExpert>,
    /// How the router's outputs become scores.
    pub scoring: Scoring,
    /// Whether the scores of the chosen experts are made to sum to one.
    pub norm_topk_prob: bool,
    /// What the scores are multiplied with in the end.
    pub routed_scaling: f32,
}

/// The expert that every token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// Width inside of it.
    pub width: usize,
    /// Whether a gate of its own scales it (`shared_expert_gate`).
    pub gated: bool,
}

/// How a router's outputs become scores, and which experts are eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// A softmax over all experts.
    Softmax,
    /// A sigmoid for each; a learnt correction decides the choice and not the scores (DeepSeek-V3, section 2.1.2).
    Sigmoid {
        /// Into how many equal groups the experts fall (`n_group`).
        groups: usize,
        /// Of how many groups a token takes experts (`topk_group`): those whose two best score highest.
        groups_per_token: usize,
    },
}

impl MoeConfig {
    /// Reads what the family needs; `None` for a dense one.
    pub(super) fn parse(
        fields: &Fields<'_>,
        architecture: Architecture,
        layers: usize,
    ) -> Result<Option<Self>, InferError> {
        let found = match architecture {
            Architecture::Qwen3Moe | Architecture::Qwen3Next | Architecture::Qwen35Moe => {
                Self::parse_qwen(fields, architecture, layers)?
            }
            Architecture::DeepseekV3 => match fields.find("n_routed_experts") {
                Some(_) => Self::parse_deepseek(fields, layers)?,
                None => return Ok(None),
            },
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen35 => return Ok(None),
        };
        Ok(Some(found))
    }

    fn parse_qwen(
        fields: &Fields<'_>,
        architecture: Architecture,
        layers: usize,
    ) -> Result<Self, InferError> {
        let experts = fields.required("num_experts", |f, name| f.count(name, EXPERTS_MAX))?;
        let width = |name| fields.required(name, |f, name| f.count(name, WIDTH_MAX));
        let all_sparse = architecture == Architecture::Qwen35Moe;
        let (sparse, norm_topk_prob) = if all_sparse {
            (vec![true; layers], fields.flag("norm_topk_prob")?.unwrap_or(true))
        } else {
            (qwen_layers(fields, layers)?, fields.required("norm_topk_prob", Fields::flag)?)
        };
        let shared = match architecture {
            Architecture::Qwen3Moe => None,
            _ => Some(SharedExpert { width: width("shared_expert_intermediate_size")?, gated: true }),
        };
        Ok(Self {
            sparse,
            experts,
            experts_per_token: fields.required("num_experts_per_tok", |f, name| f.count(name, experts))?,
            expert_width: width("moe_intermediate_size")?,
            shared,
            scoring: Scoring::Softmax,
            norm_topk_prob,
            routed_scaling: 1.0,
        })
    }

    fn parse_deepseek(fields: &Fields<'_>, layers: usize) -> Result<Self, InferError> {
        for (name, known) in [("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")] {
            if let Some(other) = fields.text(name)?.filter(|stated| *stated != known) {
                return Err(fields.unsupported(name, other));
            }
        }
        let experts = fields.required("n_routed_experts", |f, name| f.count(name, EXPERTS_MAX))?;
        let groups = fields.count("n_group", experts)?.unwrap_or(1);
        if !experts.is_multiple_of(groups) || (groups > 1 && experts / groups < 2) {
            let expected = format!("a divisor of {experts}, the experts, into groups of two or more");
            return Err(fields.bad("n_group", expected));
        }
        let groups_per_token = fields.count("topk_group", groups)?.unwrap_or(1);
        let eligible = groups_per_token * (experts / groups);
        let expert_width = fields.required("moe_intermediate_size", |f, name| f.count(name, WIDTH_MAX))?;
        let shared = fields.count("n_shared_experts", SHARED_MAX)?;
        let shared = shared.map(|count| SharedExpert { width: count * expert_width, gated: false });
        Ok(Self {
            sparse: deepseek_layers(fields, layers)?,
            experts,
            experts_per_token: fields.required("num_experts_per_tok", |f, name| f.count(name, eligible))?,
            expert_width,
            shared,
            scoring: Scoring::Sigmoid { groups, groups_per_token },
            norm_topk_prob: fields.flag("norm_topk_prob")?.unwrap_or(true),
            routed_scaling: fields.small("routed_scaling_factor", SCALING)?.unwrap_or(1.0),
        })
    }

    /// Weights of one layer's experts, its router and what is shared, of a model of `hidden` numbers.
    pub(super) fn weights(&self, hidden: u128) -> u128 {
        let shared = self.shared.map_or(0, |shared| shared.width);
        let [experts, width, shared] = [self.experts, self.expert_width, shared].map(|n| n as u128);
        hidden * (3 * experts * width + experts + 3 * shared + 1)
    }
}

/// Qwen's layers: every `decoder_sparse_step`th has experts, but for those of `mlp_only_layers`.
fn qwen_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>, InferError> {
    let step = fields.count("decoder_sparse_step", LAYERS_MAX.into())?.unwrap_or(1);
    let dense = match fields.find("mlp_only_layers") {
        None => Vec::new(),
        Some(value) => {
            let list = value.as_array().filter(|list| list.len() <= LAYERS_MAX.into());
            let read = list.and_then(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
            read.ok_or_else(|| fields.bad("mlp_only_layers", "a list of layers".to_owned()))?
        }
    };
    let is_sparse = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64));
    Ok((0..layers).map(is_sparse).collect())
}

/// DeepSeek's layers: from `first_k_dense_replace` on, every `moe_layer_freq`th has experts.
fn deepseek_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>, InferError> {
    let first = fields.count_or_none("first_k_dense_replace", LAYERS_MAX.into())?.unwrap_or(0);
    let step = fields.count("moe_layer_freq", LAYERS_MAX.into())?.unwrap_or(1);
    Ok((0..layers).map(|layer| layer >= first && layer.is_multiple_of(step)).collect())
}

/// Eight times the most known (512).
const EXPERTS_MAX: usize = 1 << 12;
/// Known: 1 and 2.
const SHARED_MAX: usize = 64;
/// Known: 1 to 2.5.
const SCALING: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
