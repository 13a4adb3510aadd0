//! How the tokens of a sequence see each other where that is not plain attention: DeepSeek's latent attention, and the
//! DeltaNet layers of Qwen's hybrids.

use super::fields::Fields;
use super::{Architecture, HEAD_DIM_MAX, HEADS_MAX, WIDTH_MAX};
use crate::error::InferError;

/// Multi-head latent attention (DeepSeek-V2, section 2.1): all heads read one compressed vector of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaConfig {
    /// Width that queries are compressed to (`q_lora_rank`); `None` when they are not.
    pub q_lora_rank: Option<usize>,
    /// Width that keys and values are compressed to (`kv_lora_rank`): what is cached, and `qk_rope` more.
    pub kv_lora_rank: usize,
    /// Numbers of a head's queries and keys that know no position (`qk_nope_head_dim`).
    pub qk_nope: usize,
    /// Numbers of a head's queries that are turned by position, and of the one key of all heads (`qk_rope_head_dim`).
    pub qk_rope: usize,
    /// Numbers of a head's values.
    pub v_head_dim: usize,
}

/// Gated DeltaNet (Yang et al. 2024): a layer that keeps a state instead of keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaConfig {
    /// For each layer, whether it is a DeltaNet; the others attend.
    pub linear: Vec<bool>,
    /// Heads of queries and keys (`linear_num_key_heads`).
    pub key_heads: usize,
    /// Heads of values (`linear_num_value_heads`); a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a key (`linear_key_head_dim`).
    pub key_dim: usize,
    /// Width of a value (`linear_value_head_dim`).
    pub value_dim: usize,
    /// Tokens that the convolution sees, the current one included (`linear_conv_kernel_dim`).
    pub kernel: usize,
}

impl MlaConfig {
    /// Reads what DeepSeek needs; `None` for other families.
    pub(super) fn parse(fields: &Fields<'_>, architecture: Architecture) -> Result<Option<Self>, InferError> {
        if architecture != Architecture::DeepseekV3 {
            return Ok(None);
        }
        if fields.flag("rope_interleave")? == Some(false) {
            return Err(fields.unsupported("rope_interleave", "false"));
        }
        let width = |name, most| fields.required(name, |f, name| f.count(name, most));
        let qk_rope = width("qk_rope_head_dim", HEAD_DIM_MAX)?;
        if !qk_rope.is_multiple_of(2) {
            return Err(fields.bad("qk_rope_head_dim", "an even width, for the rotation of pairs".to_owned()));
        }
        Ok(Some(Self {
            q_lora_rank: fields.count("q_lora_rank", WIDTH_MAX)?,
            kv_lora_rank: width("kv_lora_rank", WIDTH_MAX)?,
            qk_nope: width("qk_nope_head_dim", HEAD_DIM_MAX)?,
            qk_rope,
            v_head_dim: width("v_head_dim", HEAD_DIM_MAX)?,
        }))
    }

    /// Numbers of a head's queries and keys.
    #[must_use]
    pub const fn qk_head_dim(&self) -> usize {
        self.qk_nope + self.qk_rope
    }

    /// Weights of one layer, of a model of `hidden` numbers and `heads` heads.
    pub(super) fn weights(&self, hidden: u128, heads: u128) -> u128 {
        let [latent, nope, rope, value] =
            [self.kv_lora_rank, self.qk_nope, self.qk_rope, self.v_head_dim].map(|n| n as u128);
        let head = nope + rope;
        let queries = match self.q_lora_rank {
            Some(rank) => rank as u128 * (hidden + heads * head),
            None => hidden * heads * head,
        };
        queries + hidden * (latent + rope) + heads * latent * (nope + value) + heads * value * hidden
    }
}

impl DeltaConfig {
    /// Reads what Qwen's hybrids need; `None` for other families.
    pub(super) fn parse(
        fields: &Fields<'_>,
        architecture: Architecture,
        layers: usize,
    ) -> Result<Option<Self>, InferError> {
        if !architecture.is_hybrid() {
            return Ok(None);
        }
        let count = |name, most| fields.required(name, |f, name| f.count(name, most));
        let key_heads = count("linear_num_key_heads", HEADS_MAX)?;
        let value_heads = count("linear_num_value_heads", HEADS_MAX)?;
        if !value_heads.is_multiple_of(key_heads) {
            let expected = format!("a multiple of {key_heads}, the heads of keys");
            return Err(fields.bad("linear_num_value_heads", expected));
        }
        let read = Self {
            linear: linear_layers(fields, layers)?,
            key_heads,
            value_heads,
            key_dim: count("linear_key_head_dim", HEAD_DIM_MAX)?,
            value_dim: count("linear_value_head_dim", HEAD_DIM_MAX)?,
            kernel: count("linear_conv_kernel_dim", KERNEL_MAX)?,
        };
        let state = read.state_numbers() as u128 * layers as u128;
        if state > STATE_MAX {
            let expected = format!("a state of at most {STATE_MAX} numbers a sequence instead of {state}");
            return Err(fields.bad("linear_value_head_dim", expected));
        }
        Ok(Some(read))
    }

    /// Channels of the convolution: queries, keys and values of all heads.
    #[must_use]
    pub const fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Numbers of the state that one layer keeps of a sequence: a matrix for each head of values, and the inputs of the
    /// convolution that later tokens still see.
    #[must_use]
    pub const fn state_numbers(&self) -> usize {
        self.value_heads * self.value_dim * self.key_dim + (self.kernel - 1) * self.channels()
    }

    /// Weights of one layer, of a model of `hidden` numbers.
    pub(super) fn weights(&self, hidden: u128) -> u128 {
        let values = (self.value_heads * self.value_dim) as u128;
        let (channels, heads) = (self.channels() as u128, self.value_heads as u128);
        hidden * (channels + 2 * values + 2 * heads) + channels * self.kernel as u128
    }
}

/// Which layers are DeltaNets: all but every `full_attention_interval`th. What `layer_types` says must agree.
fn linear_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>, InferError> {
    let interval = fields.count("full_attention_interval", layers.max(4))?.unwrap_or(4);
    let linear: Vec<bool> = (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect();
    let Some(stated) = fields.find("layer_types") else { return Ok(linear) };
    let kind = |linear: &bool| if *linear { "linear_attention" } else { "full_attention" };
    let agrees = stated.as_array().is_some_and(|stated| {
        stated.len() == layers && stated.iter().zip(&linear).all(|(stated, linear)| *stated == kind(linear))
    });
    let expected = || format!("full_attention in every layer of {interval} and linear_attention between");
    if agrees { Ok(linear) } else { Err(fields.bad("layer_types", expected())) }
}

/// Four times what is known (4).
const KERNEL_MAX: usize = 16;
/// 4 GiB of f32: twenty times what the largest known keeps of a sequence.
const STATE_MAX: u128 = 1 << 30;
