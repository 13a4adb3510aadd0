//! What `config.json` says of a model, checked before anything is allocated by it.
//!
//! The fields keep the names of the checkpoint where Rust has no better one. A number outside of its limits is
//! refused by name ([`InferError::BadField`]); a wish that this engine cannot fulfil too
//! ([`InferError::Unsupported`]), for a model computed otherwise than it was trained gives quiet nonsense.

mod experts;
mod fields;
mod packing;
mod rope;
mod sequence;

use std::fmt;
use std::num::NonZeroU16;
use std::path::Path;

use ram_core::units::{Bytes, TokenCount};
use serde_json::Value;

pub use self::experts::{MoeConfig, Scoring, SharedExpert};
pub use self::packing::{AffineFormat, Format, ModuleFormat, QuantizationConfig};
pub use self::rope::{RopeConfig, RopeScaling};
pub use self::sequence::{DeltaConfig, MlaConfig};

use self::fields::{Fields, shortened};
use crate::error::InferError;
use crate::folder;

/// What a model is: its family, widths, position encoding and packing.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, by `model_type`.
    pub architecture: Architecture,
    /// Tokens of the vocabulary: rows of the embedding, and length of the logits.
    pub vocab_size: usize,
    /// Transformer layers (`num_hidden_layers`).
    pub layers: NonZeroU16,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside of the MLP of a layer without experts; zero when all layers have them.
    pub intermediate_size: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`); divides `heads`.
    pub kv_heads: usize,
    /// Width of one head's queries and keys; even.
    pub head_dim: usize,
    /// How many of a head's numbers are turned by their position: the first ones, or with `mla` the last ones; even.
    pub rotary_dim: usize,
    /// What is added to the mean square under the root.
    pub rms_norm_eps: f32,
    /// Rotary position encoding.
    pub rope: RopeConfig,
    /// Whether the projections of the attention add a bias. Qwen2 has biases whatever this says.
    pub attention_bias: bool,
    /// Whether the projections of the MLP add a bias.
    pub mlp_bias: bool,
    /// How far back a token sees, itself included; `None` when that is the whole context.
    pub sliding_window: Option<TokenCount>,
    /// Whether the embedding is the output head too. `None` when the file does not say: then a checkpoint without
    /// `lm_head` is tied.
    pub tie_word_embeddings: Option<bool>,
    /// Positions that the model was trained for (`max_position_embeddings`).
    pub context: TokenCount,
    /// Tokens that end an answer: those of `generation_config.json`, or else of `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// How the weights are packed; `None` when they are plain.
    pub quantization: Option<QuantizationConfig>,
    /// Experts in place of the MLP, in some layers or all.
    pub moe: Option<MoeConfig>,
    /// Latent attention in place of the plain one, in all layers.
    pub mla: Option<MlaConfig>,
    /// DeltaNets in place of attention, in most layers.
    pub delta: Option<DeltaConfig>,
}

/// A family of models that this engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Qwen3 with a mixture of experts.
    Qwen3Moe,
    /// Qwen3-Next: DeltaNets and gated attention, with a mixture of experts.
    Qwen3Next,
    /// Qwen3.5, dense: DeltaNets and gated attention.
    Qwen35,
    /// Qwen3.5 with a mixture of experts.
    Qwen35Moe,
    /// DeepSeek V3 and R1: latent attention and a mixture of experts.
    DeepseekV3,
}

impl Architecture {
    /// Whether most layers are DeltaNets.
    #[must_use]
    pub const fn is_hybrid(self) -> bool {
        matches!(self, Self::Qwen3Next | Self::Qwen35 | Self::Qwen35Moe)
    }
}

impl fmt::Display for Architecture {
    /// The `model_type` of config.json.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Qwen3Next => "qwen3_next",
            Self::Qwen35 => "qwen3_5",
            Self::Qwen35Moe => "qwen3_5_moe",
            Self::DeepseekV3 => "deepseek_v3",
        })
    }
}

impl ModelConfig {
    /// Reads `config.json`, and `generation_config.json` when there is one.
    ///
    /// # Errors
    /// [`InferError::MissingFile`], [`InferError::MalformedJson`], [`InferError::MissingField`],
    /// [`InferError::BadField`], [`InferError::Unsupported`], [`InferError::UnsupportedArchitecture`] or
    /// [`InferError::UnsupportedQuantization`].
    pub fn read(dir: &Path) -> Result<Self, InferError> {
        let config = folder::required(folder::read_json(dir, CONFIG, JSON_BYTES_MAX)?, CONFIG)?;
        let generation = folder::read_json(dir, GENERATION_CONFIG, JSON_BYTES_MAX)?;
        Self::parse(&config, generation.as_ref())
    }

    /// Reads the two files' contents.
    pub(crate) fn parse(config: &Value, generation: Option<&Value>) -> Result<Self, InferError> {
        let root = Fields::of(CONFIG, config)?;
        let architecture = architecture(&root)?;
        // A model that sees has the part that speaks inside.
        let fields = &text_fields(&root, architecture)?;
        refuse_variants(fields, architecture)?;
        let hidden_size = fields.required("hidden_size", |f, name| f.count(name, WIDTH_MAX))?;
        let heads = fields.required("num_attention_heads", |f, name| f.count(name, HEADS_MAX))?;
        let context = fields.required("max_position_embeddings", |f, name| f.count(name, CONTEXT_MAX))?;
        let layers = fields.required("num_hidden_layers", |f, name| f.layers(name, LAYERS_MAX))?;
        let moe = MoeConfig::parse(fields, architecture, layers.get().into())?;
        let mla = MlaConfig::parse(fields, architecture)?;
        let head_dim = match &mla {
            Some(mla) => mla.qk_head_dim(),
            None => head_dim(fields, hidden_size, heads)?,
        };
        let read = Self {
            architecture,
            vocab_size: fields.required("vocab_size", |f, name| f.count(name, VOCABULARY_MAX))?,
            layers,
            hidden_size,
            intermediate_size: intermediate_size(fields, moe.as_ref())?,
            heads,
            kv_heads: if mla.is_some() { heads } else { kv_heads(fields, heads)? },
            head_dim,
            rotary_dim: match &mla {
                Some(mla) => mla.qk_rope,
                None => rotary_dim(fields, architecture, head_dim)?,
            },
            rms_norm_eps: fields.required("rms_norm_eps", |f, name| f.small(name, EPS))?,
            rope: RopeConfig::parse(fields, architecture)?,
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            sliding_window: sliding_window(fields, architecture, context)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            context: TokenCount::new(context as u64),
            eos_token_ids: eos_token_ids(fields, generation)?,
            quantization: QuantizationConfig::parse(&root)?,
            moe,
            mla,
            delta: DeltaConfig::parse(fields, architecture, layers.get().into())?,
        };
        read.check_size()?;
        Ok(read)
    }

    /// Numbers that one position takes in the caches of all layers.
    #[must_use]
    pub fn cached_numbers(&self) -> usize {
        let attending = match &self.delta {
            Some(delta) => delta.linear.iter().filter(|linear| !**linear).count(),
            None => self.layers.get().into(),
        };
        attending
            * match &self.mla {
                Some(mla) => mla.kv_lora_rank + mla.qk_rope,
                None => 2 * self.kv_heads * self.head_dim,
            }
    }

    /// Numbers of the states that all layers keep of one sequence, however long it is.
    #[must_use]
    pub fn state_numbers(&self) -> usize {
        let linear = |delta: &DeltaConfig| delta.linear.iter().filter(|linear| **linear).count();
        self.delta.as_ref().map_or(0, |delta| linear(delta) * delta.state_numbers())
    }

    /// Numbers of the widest activations of one token inside of a layer, beside the residual stream: what attention
    /// makes, or both arms of the MLPs that a token takes.
    #[must_use]
    pub fn activation_numbers(&self) -> usize {
        let attention = match &self.mla {
            // Absorbed, a head's query is as wide as what is cached.
            Some(mla) => self.heads * (self.head_dim + 2 * mla.kv_lora_rank + mla.v_head_dim),
            // Hybrids make a gate beside the queries.
            None if self.delta.is_some() => 2 * (self.heads + self.kv_heads) * self.head_dim,
            None => (self.heads + 2 * self.kv_heads) * self.head_dim,
        };
        let delta = self.delta.as_ref().map_or(0, |delta| 2 * delta.channels());
        let experts = self.moe.as_ref().map_or(0, |moe| {
            let shared = moe.shared.map_or(0, |shared| shared.width);
            2 * (moe.experts_per_token * moe.expert_width + shared) + moe.experts
        });
        (2 * self.intermediate_size).max(experts).max(attention).max(delta)
    }

    /// Refuses a model of more weights than any machine holds.
    fn check_size(&self) -> Result<(), InferError> {
        let [hidden, inner, heads, kv_heads, head_dim] =
            [self.hidden_size, self.intermediate_size, self.heads, self.kv_heads, self.head_dim]
                .map(|width| width as u128);
        let attention = match &self.mla {
            Some(mla) => mla.weights(hidden, heads),
            // Queries twice, for the gate that hybrids have.
            None => hidden * (3 * heads + 2 * kv_heads) * head_dim,
        };
        let delta = self.delta.as_ref().map_or(0, |delta| delta.weights(hidden));
        let experts = self.moe.as_ref().map_or(0, |moe| moe.weights(hidden));
        // By the heaviest layer that there might be.
        let layer = attention.max(delta) + experts.max(3 * hidden * inner);
        let weights = u128::from(self.layers.get()) * layer + 2 * self.vocab_size as u128 * hidden;
        if weights > WEIGHTS_MAX {
            return Err(InferError::BadField {
                file: CONFIG.to_owned(),
                field: "hidden_size".to_owned(),
                value: self.hidden_size.to_string(),
                expected: format!("a model of at most {WEIGHTS_MAX} weights instead of {weights}"),
            });
        }
        Ok(())
    }
}

/// The family, by `model_type`.
fn architecture(fields: &Fields<'_>) -> Result<Architecture, InferError> {
    match fields.required("model_type", Fields::text)? {
        "llama" => Ok(Architecture::Llama),
        "mistral" => Ok(Architecture::Mistral),
        "qwen2" => Ok(Architecture::Qwen2),
        "qwen3" => Ok(Architecture::Qwen3),
        "qwen3_moe" => Ok(Architecture::Qwen3Moe),
        "qwen3_next" => Ok(Architecture::Qwen3Next),
        "qwen3_5" => Ok(Architecture::Qwen35),
        "qwen3_5_moe" => Ok(Architecture::Qwen35Moe),
        "deepseek_v3" => Ok(Architecture::DeepseekV3),
        other => Err(InferError::UnsupportedArchitecture { model_type: shortened(other) }),
    }
}

/// Where the model's own fields are: Qwen3.5 has them in `text_config`.
fn text_fields<'a>(root: &Fields<'a>, architecture: Architecture) -> Result<Fields<'a>, InferError> {
    let nested = match architecture {
        Architecture::Qwen35 | Architecture::Qwen35Moe => root.nested("text_config")?,
        _ => None,
    };
    Ok(nested.unwrap_or_else(|| root.clone()))
}

/// Refuses, by name, the variants of the families that compute otherwise.
fn refuse_variants(fields: &Fields<'_>, architecture: Architecture) -> Result<(), InferError> {
    if let Some(activation) = fields.text("hidden_act")?
        && activation != "silu"
    {
        return Err(fields.unsupported("hidden_act", activation));
    }
    if fields.flag("rope_traditional")? == Some(true) {
        return Err(fields.unsupported("rope_traditional", "true"));
    }
    if architecture != Architecture::Mistral && fields.flag("use_sliding_window")? == Some(true) {
        return Err(fields.unsupported("use_sliding_window", "true"));
    }
    if architecture.is_hybrid() {
        return match fields.flag("attn_output_gate")? {
            Some(false) => Err(fields.unsupported("attn_output_gate", "false")),
            _ => Ok(()),
        };
    }
    rope::refuse_partial_rotation(fields)?;
    let kinds = fields.find("layer_types").and_then(Value::as_array);
    let other = kinds.into_iter().flatten().find(|kind| *kind != "full_attention");
    other.map_or(Ok(()), |kind| Err(fields.unsupported("layer_types", &kind.to_string())))
}

/// Width of the MLP; a model with experts in all layers has none.
fn intermediate_size(fields: &Fields<'_>, moe: Option<&MoeConfig>) -> Result<usize, InferError> {
    if moe.is_some_and(|moe| moe.sparse.iter().all(|sparse| *sparse)) {
        return Ok(0);
    }
    fields.required("intermediate_size", |f, name| f.count(name, WIDTH_MAX))
}

/// How many numbers of a head are turned: all, or in hybrids as many as the file says.
fn rotary_dim(fields: &Fields<'_>, architecture: Architecture, head_dim: usize) -> Result<usize, InferError> {
    let stated = if architecture.is_hybrid() { rope::partial_rotation(fields)? } else { Some(1.0) };
    let factor = stated.ok_or_else(|| fields.missing("partial_rotary_factor"))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a factor from 0 to 1")]
    let rotary_dim = (head_dim as f64 * factor) as usize;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(fields.bad("partial_rotary_factor", format!("an even part of {head_dim} numbers")));
    }
    Ok(rotary_dim)
}

/// Key and value heads: as many as query heads when the file does not say.
fn kv_heads(fields: &Fields<'_>, heads: usize) -> Result<usize, InferError> {
    let kv_heads = fields.count("num_key_value_heads", HEADS_MAX)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.bad("num_key_value_heads", format!("a divisor of {heads}, the query heads")));
    }
    Ok(kv_heads)
}

/// Width of a head: the hidden size shared by the heads when the file does not say.
fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize, InferError> {
    let stated = fields.count("head_dim", HEAD_DIM_MAX)?;
    if stated.is_none() && !hidden_size.is_multiple_of(heads) {
        return Err(fields.bad("num_attention_heads", format!("a divisor of {hidden_size}, the hidden size")));
    }
    let head_dim = stated.unwrap_or(hidden_size / heads);
    if !head_dim.is_multiple_of(2) {
        let named = if stated.is_some() { "head_dim" } else { "hidden_size" };
        return Err(fields.bad(named, "an even width of a head, for the rotation of its halves".to_owned()));
    }
    Ok(head_dim)
}

/// Mistral's window, when it is smaller than the context. The Qwens name one that `use_sliding_window` turns off.
fn sliding_window(
    fields: &Fields<'_>,
    architecture: Architecture,
    context: usize,
) -> Result<Option<TokenCount>, InferError> {
    if architecture != Architecture::Mistral {
        return Ok(None);
    }
    let window = fields.count("sliding_window", CONTEXT_MAX)?.filter(|&window| window < context);
    Ok(window.map(|window| TokenCount::new(window as u64)))
}

/// Tokens that end an answer; the generation config's win, for that is what the model's makers generate with.
fn eos_token_ids(fields: &Fields<'_>, generation: Option<&Value>) -> Result<Vec<u32>, InferError> {
    let generation = generation.map(|value| Fields::of(GENERATION_CONFIG, value)).transpose()?;
    let own = generation.as_ref().map(|fields| fields.token_ids("eos_token_id")).transpose()?;
    match own.flatten() {
        Some(ids) => Ok(ids),
        None => Ok(fields.token_ids("eos_token_id")?.unwrap_or_default()),
    }
}

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// A config of the largest model, with a packing of its own for each module, is under 1 MiB.
const JSON_BYTES_MAX: Bytes = Bytes::new(16 << 20);
/// Four times the deepest model known (126 layers).
const LAYERS_MAX: u16 = 512;
/// Ten times the widest dense MLP known (53 248).
const WIDTH_MAX: usize = 1 << 19;
/// Four times the most heads known (128), with room.
const HEADS_MAX: usize = 1 << 10;
/// Twice the widest head known (256), with room.
const HEAD_DIM_MAX: usize = 1 << 10;
/// Sixteen times the largest vocabulary known (262 144).
const VOCABULARY_MAX: usize = 1 << 22;
/// Ten times the longest context known (10 million).
const CONTEXT_MAX: usize = 100_000_000;
/// 2^42: four times the largest model known; at 4 bits it would be 2 TiB.
const WEIGHTS_MAX: u128 = 1 << 42;
/// Known: 1e-6 and 1e-5.
const EPS: std::ops::RangeInclusive<f64> = 1e-12..=1e-1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Qwen2.5 0.5B, as mlx-community has it, but for what `changes` says.
    fn read(changes: &Value) -> Result<ModelConfig, InferError> {
        let mut config = json!({
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
            "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
            "intermediate_size": 4864, "max_position_embeddings": 32_768, "max_window_layers": 21,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "quantization": {"group_size": 64, "bits": 4}, "rms_norm_eps": 1e-06, "rope_theta": 1_000_000.0,
            "sliding_window": 32_768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "use_sliding_window": false, "vocab_size": 151_936,
        });
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        ModelConfig::parse(&config, None)
    }

    #[test]
    fn a_real_config_reads() {
        let config = read(&json!({})).unwrap();
        assert_eq!((config.architecture, config.layers.get()), (Architecture::Qwen2, 24));
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (14, 2, 64));
        assert_eq!(config.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::None });
        assert_eq!((config.sliding_window, config.tie_word_embeddings), (None, Some(true)));
        assert_eq!(config.eos_token_ids, [151_645]);
        assert_eq!(config.quantization.unwrap().format, Format::Affine(AffineFormat::new(4, 64).unwrap()));
    }

    #[test]
    fn both_ways_to_write_the_rotation_read_alike() {
        let scaling = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"});
        let older = read(&json!({"rope_theta": 5e5, "rope_scaling": scaling})).unwrap().rope;
        let mut parameters = scaling;
        parameters["rope_theta"] = json!(5e5);
        let newer = read(&json!({"rope_theta": null, "rope_parameters": parameters})).unwrap().rope;
        assert_eq!(older, newer);
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(older, RopeConfig { theta: 5e5, scaling });
        let linear = read(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap().rope;
        assert_eq!(linear.scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn only_mistral_has_a_window_and_only_one_shorter_than_its_context() {
        let window = |architecture: &str, window: Value| {
            read(&json!({"model_type": architecture, "sliding_window": window})).unwrap().sliding_window
        };
        assert_eq!(window("mistral", json!(4096)), Some(TokenCount::new(4096)));
        assert_eq!(window("mistral", json!(32_768)), None);
        assert_eq!(window("mistral", json!(null)), None);
        assert_eq!(window("qwen2", json!(4096)), None);
        let used = read(&json!({"use_sliding_window": true})).unwrap_err();
        assert!(matches!(used, InferError::Unsupported { field, .. } if field == "use_sliding_window"));
    }

    #[test]
    fn yarn_reads_with_what_its_paper_says_of_the_rest() {
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768});
        let rope = read(&json!({"rope_scaling": yarn})).unwrap().rope;
        let RopeScaling::Yarn { factor, beta_fast, beta_slow, .. } = rope.scaling else { panic!("{rope:?}") };
        assert_eq!((factor, beta_fast, beta_slow), (4.0, 32.0, 1.0));
        assert!((rope.magnitude() - (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-12);
        let plain = RopeConfig { scaling: RopeScaling::None, ..rope }.frequencies(128);
        let found = rope.frequencies(128);
        assert_eq!(found[..10], plain[..10]);
        assert!((found[63] - plain[63] / 4.0).abs() < 1e-15);
        assert!(found.is_sorted_by(|a, b| a > b));
        for (field, value) in [("attention_factor", json!(2.0)), ("truncate", json!(false))] {
            let mut yarn = yarn.clone();
            yarn[field] = value;
            let error = read(&json!({"rope_scaling": yarn})).unwrap_err();
            assert!(matches!(error, InferError::Unsupported { field: named, .. } if named.ends_with(field)));
        }
    }

    /// The `config.json` of a fixture, but for what `changes` says of its own or its text's fields.
    fn fixture(name: &str, changes: &Value) -> Result<ModelConfig, InferError> {
        let path = format!("{}/tests/fixtures/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let inner = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
        for (name, value) in changes.as_object().unwrap() {
            inner[name] = value.clone();
        }
        ModelConfig::parse(&config, None)
    }

    #[test]
    fn qwens_experts_read_and_say_in_which_layers_they_are() {
        let config = fixture("qwen3-moe-4bit-g64", &json!({})).unwrap();
        let moe = config.moe.unwrap();
        assert_eq!(moe.sparse, [true, false, true]);
        assert_eq!((moe.experts, moe.experts_per_token, moe.expert_width), (8, 3, 64));
        assert_eq!((moe.shared, moe.scoring, moe.norm_topk_prob), (None, Scoring::Softmax, true));
        assert_eq!(config.intermediate_size, 128);
        let changes = json!({"mlp_only_layers": [], "intermediate_size": null});
        let config = fixture("qwen3-moe-4bit-g64", &changes).unwrap();
        assert_eq!((config.moe.unwrap().sparse, config.intermediate_size), (vec![true; 3], 0));
        let stepped = json!({"mlp_only_layers": [], "decoder_sparse_step": 2});
        assert_eq!(
            fixture("qwen3-moe-4bit-g64", &stepped).unwrap().moe.unwrap().sparse,
            [false, true, false]
        );
    }

    #[test]
    fn hybrids_read_wherever_their_fields_stand() {
        for name in ["qwen3-next-4bit-g64", "qwen3-5-4bit-g64", "qwen3-5-moe-nvfp4"] {
            let config = fixture(name, &json!({})).unwrap();
            let delta = config.delta.as_ref().unwrap();
            assert_eq!(delta.linear, [true, true, true, false], "{name}");
            assert_eq!((delta.key_heads, delta.value_heads, delta.kernel), (2, 4, 4));
            assert_eq!((delta.key_dim, delta.value_dim, delta.channels()), (32, 16, 192));
            assert_eq!((config.head_dim, config.rotary_dim), (32, 8));
            assert_eq!(config.cached_numbers(), 2 * 2 * 32);
            assert_eq!(config.state_numbers(), 3 * (4 * 16 * 32 + 3 * 192));
            let shared = config.moe.map(|moe| moe.shared.unwrap());
            let expected = (name != "qwen3-5-4bit-g64").then_some(SharedExpert { width: 64, gated: true });
            assert_eq!(shared, expected, "{name}");
        }
    }

    #[test]
    fn deepseek_reads_with_its_groups_and_ranks() {
        let config = fixture("deepseek-4bit-g32-yarn", &json!({})).unwrap();
        let (moe, mla) = (config.moe.as_ref().unwrap(), config.mla.unwrap());
        assert_eq!(moe.sparse, [false, true, true]);
        assert_eq!(moe.scoring, Scoring::Sigmoid { groups: 4, groups_per_token: 2 });
        assert_eq!(moe.shared, Some(SharedExpert { width: 64, gated: false }));
        assert_eq!((mla.q_lora_rank, mla.kv_lora_rank, mla.qk_head_dim()), (Some(64), 64, 48));
        assert_eq!((config.head_dim, config.rotary_dim), (48, 16));
        assert_eq!(config.cached_numbers(), 3 * (64 + 16));
        let dense = fixture("deepseek-4bit-g32-yarn", &json!({"n_routed_experts": null})).unwrap();
        assert_eq!(dense.moe, None);
    }

    #[test]
    fn the_richer_families_refuse_by_name_what_they_cannot_mean() {
        let (moe, next, deepseek) = ("qwen3-moe-4bit-g64", "qwen3-next-4bit-g64", "deepseek-4bit-g32-yarn");
        for (name, field, value) in [
            (moe, "num_experts", json!(0)),
            (moe, "num_experts", json!(1 << 20)),
            (moe, "num_experts_per_tok", json!(9)),
            (moe, "moe_intermediate_size", json!(1u64 << 40)),
            (moe, "mlp_only_layers", json!(["a"])),
            (moe, "decoder_sparse_step", json!(0)),
            (next, "linear_num_value_heads", json!(3)),
            (next, "linear_conv_kernel_dim", json!(1000)),
            (next, "linear_key_head_dim", json!(1 << 20)),
            (next, "partial_rotary_factor", json!(0.0)),
            (next, "layer_types", json!(["full_attention"])),
            (
                "qwen3-5-4bit-g64",
                "layer_types",
                json!(["linear_attention", "linear_attention", "linear_attention", "linear_attention"]),
            ),
            (deepseek, "n_group", json!(5)),
            (deepseek, "n_group", json!(12)),
            (deepseek, "topk_group", json!(5)),
            (deepseek, "num_experts_per_tok", json!(7)),
            (deepseek, "qk_rope_head_dim", json!(15)),
            (deepseek, "kv_lora_rank", json!(0)),
            (deepseek, "n_shared_experts", json!(65)),
        ] {
            let error = fixture(name, &json!({field: value})).unwrap_err();
            let named = matches!(&error, InferError::BadField { field: named, .. } if named.ends_with(field));
            assert!(named, "{field} = {value}: {error:?}");
        }
        for (name, field, value) in [
            (deepseek, "scoring_func", json!("softmax")),
            (deepseek, "topk_method", json!("greedy")),
            (deepseek, "rope_interleave", json!(false)),
            (next, "attn_output_gate", json!(false)),
            (moe, "partial_rotary_factor", json!(0.5)),
            (moe, "use_sliding_window", json!(true)),
        ] {
            let error = fixture(name, &json!({field: value})).unwrap_err();
            let named = matches!(&error, InferError::Unsupported { field: named, .. } if named == field);
            assert!(named, "{field} = {value}: {error:?}");
        }
    }

    #[test]
    fn experts_and_states_count_as_size() {
        let many = json!({"num_experts": 4096, "moe_intermediate_size": 1 << 19, "hidden_size": 1 << 13});
        let error = fixture("qwen3-moe-4bit-g64", &many).unwrap_err();
        assert!(matches!(error, InferError::BadField { field, .. } if field == "hidden_size"));
        let wide = json!({"linear_num_key_heads": 1024, "linear_num_value_heads": 1024,
            "linear_key_head_dim": 1024, "linear_value_head_dim": 1024});
        let error = fixture("qwen3-next-4bit-g64", &wide).unwrap_err();
        assert!(matches!(error, InferError::BadField { field, .. } if field == "linear_value_head_dim"));
    }

    #[test]
    fn a_strangers_text_is_cut_in_errors() {
        let error = read(&json!({"model_type": "x".repeat(1_000_000)})).unwrap_err();
        assert!(error.to_string().len() < 500);
        let error = read(&json!({"hidden_size": "x".repeat(1_000_000)})).unwrap_err();
        assert!(error.to_string().len() < 500);
    }
}
