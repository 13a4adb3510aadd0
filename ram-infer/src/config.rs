//! What `config.json` says of a model, checked before anything is allocated by it.
//!
//! The fields keep the names of the checkpoint where Rust has no better one. A number outside of its limits is
//! refused by name ([`InferError::BadField`]); a wish that this engine cannot fulfil too
//! ([`InferError::Unsupported`]), for a model computed otherwise than it was trained gives quiet nonsense.

mod fields;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::path::Path;

use ram_core::units::{Bytes, TokenCount};
use serde_json::Value;

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
    /// Width inside of the MLP.
    pub intermediate_size: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`); divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
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
}

impl fmt::Display for Architecture {
    /// The `model_type` of config.json.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        })
    }
}

/// Rotary position encoding (Su et al. 2021): the base of its wavelengths, and how they are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base (`rope_theta`).
    pub theta: f64,
    /// How the wavelengths are stretched for a longer context.
    pub scaling: RopeScaling,
}

/// How the wavelengths of a rotary encoding are stretched for a context longer than the first training's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: the long waves by `factor`, the short ones not at all, those between by a smooth step.
    Llama3 {
        /// The factor for the long waves.
        factor: f64,
        /// A wave longer than `original_context / low_freq_factor` is long.
        low_freq_factor: f64,
        /// A wave shorter than `original_context / high_freq_factor` is short.
        high_freq_factor: f64,
        /// The context of the first training (`original_max_position_embeddings`).
        original_context: f64,
    },
}

/// How a model's weights are packed: MLX's affine quantisation, with a word for single modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// The format that most modules have. What a module's own shapes say goes before it, as in mlx-lm.
    pub format: AffineFormat,
    /// Modules with a format of their own, by path (`model.layers.0.mlp.down_proj`).
    pub overrides: BTreeMap<String, ModuleFormat>,
}

/// How one module is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleFormat {
    /// Not packed.
    Plain,
    /// Packed so.
    Affine(AffineFormat),
}

/// `bits` per weight in groups of `group_size` that share a scale and a bias: `w = scale * q + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffineFormat {
    bits: usize,
    group_size: usize,
}

impl AffineFormat {
    /// A format of 4 or 8 bits in groups of 32, 64 or 128; `None` for any other.
    #[must_use]
    pub const fn new(bits: usize, group_size: usize) -> Option<Self> {
        match (bits, group_size) {
            (4 | 8, 32 | 64 | 128) => Some(Self { bits, group_size }),
            _ => None,
        }
    }

    /// Bits per weight: 4 or 8.
    #[must_use]
    pub const fn bits(self) -> usize {
        self.bits
    }

    /// Weights that share a scale: 32, 64 or 128.
    #[must_use]
    pub const fn group_size(self) -> usize {
        self.group_size
    }
}

impl fmt::Display for AffineFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "affine, {} bits in groups of {}", self.bits, self.group_size)
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
        let fields = Fields::of(CONFIG, config)?;
        let architecture = architecture(&fields)?;
        refuse_variants(&fields, architecture)?;
        let hidden_size = fields.required("hidden_size", |f, name| f.count(name, WIDTH_MAX))?;
        let heads = fields.required("num_attention_heads", |f, name| f.count(name, HEADS_MAX))?;
        let context = fields.required("max_position_embeddings", |f, name| f.count(name, CONTEXT_MAX))?;
        let read = Self {
            architecture,
            vocab_size: fields.required("vocab_size", |f, name| f.count(name, VOCABULARY_MAX))?,
            layers: fields.required("num_hidden_layers", |f, name| f.layers(name, LAYERS_MAX))?,
            hidden_size,
            intermediate_size: fields.required("intermediate_size", |f, name| f.count(name, WIDTH_MAX))?,
            heads,
            kv_heads: kv_heads(&fields, heads)?,
            head_dim: head_dim(&fields, hidden_size, heads)?,
            rms_norm_eps: fields.required("rms_norm_eps", |f, name| f.small(name, EPS))?,
            rope: RopeConfig::parse(&fields, architecture)?,
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            sliding_window: sliding_window(&fields, architecture, context)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            context: TokenCount::new(context as u64),
            eos_token_ids: eos_token_ids(&fields, generation)?,
            quantization: QuantizationConfig::parse(&fields)?,
        };
        read.check_size()?;
        Ok(read)
    }

    /// Refuses a model of more weights than any machine holds.
    fn check_size(&self) -> Result<(), InferError> {
        let [hidden, inner, heads, kv_heads, head_dim] =
            [self.hidden_size, self.intermediate_size, self.heads, self.kv_heads, self.head_dim]
                .map(|width| width as u128);
        let attention = 2 * hidden * (heads + kv_heads) * head_dim;
        let layer = attention + 3 * hidden * inner;
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
        other => Err(InferError::UnsupportedArchitecture { model_type: shortened(other) }),
    }
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
    refuse_partial_rotation(fields)?;
    let qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
    if qwen && fields.flag("use_sliding_window")? == Some(true) {
        return Err(fields.unsupported("use_sliding_window", "true"));
    }
    let kinds = fields.find("layer_types").and_then(Value::as_array);
    let other = kinds.into_iter().flatten().find(|kind| *kind != "full_attention");
    other.map_or(Ok(()), |kind| Err(fields.unsupported("layer_types", &kind.to_string())))
}

/// Refuses heads that are turned in part only.
fn refuse_partial_rotation(fields: &Fields<'_>) -> Result<(), InferError> {
    match fields.number("partial_rotary_factor", 0.0..=1.0)? {
        Some(factor) if factor < 1.0 => Err(fields.unsupported("partial_rotary_factor", &factor.to_string())),
        _ => Ok(()),
    }
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

impl RopeConfig {
    /// Reads transformers 5's `rope_parameters`, or else `rope_theta` and `rope_scaling`.
    fn parse(fields: &Fields<'_>, architecture: Architecture) -> Result<Self, InferError> {
        let nested = match fields.nested("rope_parameters")? {
            Some(nested) => Some(nested),
            None => fields.nested("rope_scaling")?,
        };
        let stated = match fields.number("rope_theta", THETA)? {
            Some(theta) => Some(theta),
            None => nested.as_ref().map(|nested| nested.number("rope_theta", THETA)).transpose()?.flatten(),
        };
        let theta = match (stated, architecture) {
            (Some(theta), _) => theta,
            // The first Llama and Mistral had one base and did not write it down.
            (None, Architecture::Llama | Architecture::Mistral) => 10_000.0,
            (None, Architecture::Qwen2 | Architecture::Qwen3) => return Err(fields.missing("rope_theta")),
        };
        let scaling = nested.as_ref().map_or(Ok(RopeScaling::None), RopeScaling::parse)?;
        Ok(Self { theta, scaling })
    }
}

impl RopeScaling {
    /// Reads the inside of `rope_scaling` or `rope_parameters`.
    fn parse(fields: &Fields<'_>) -> Result<Self, InferError> {
        refuse_partial_rotation(fields)?;
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        let factor = |name| fields.required(name, |f, name| f.number(name, FACTOR));
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor("factor")? }),
            "llama3" => Self::parse_llama3(fields, factor("factor")?),
            other => Err(fields.unsupported("rope_type", other)),
        }
    }

    /// Llama 3's step, with the figures of Llama 3.1 for those left out (as in mlx-lm).
    fn parse_llama3(fields: &Fields<'_>, factor: f64) -> Result<Self, InferError> {
        let low_freq_factor = fields.number("low_freq_factor", FACTOR)?.unwrap_or(1.0);
        let high_freq_factor = fields.number("high_freq_factor", FACTOR)?.unwrap_or(4.0);
        if high_freq_factor <= low_freq_factor {
            return Err(
                fields.bad("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}"))
            );
        }
        let name = "original_max_position_embeddings";
        let original_context = fields.number(name, 1.0..=CONTEXT_MAX as f64)?.unwrap_or(8192.0);
        Ok(Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context })
    }
}

impl QuantizationConfig {
    /// Reads `quantization`, or else the `quantization_config` that mlx-lm writes beside it.
    fn parse(fields: &Fields<'_>) -> Result<Option<Self>, InferError> {
        let found = match fields.nested("quantization")? {
            Some(found) => Some(found),
            None => fields.nested("quantization_config")?,
        };
        let Some(found) = found else { return Ok(None) };
        if let Some(method) = found.text("quant_method")? {
            return Err(found.unsupported_packing(method));
        }
        let format = affine(&found, None)?;
        let mut overrides = BTreeMap::new();
        for (path, value) in found.map {
            match value {
                Value::Bool(false) => _ = overrides.insert(path.clone(), ModuleFormat::Plain),
                Value::Bool(true) => _ = overrides.insert(path.clone(), ModuleFormat::Affine(format)),
                Value::Object(map) => {
                    let inner = found.inner(path, map);
                    overrides.insert(path.clone(), ModuleFormat::Affine(affine(&inner, Some(format))?));
                }
                _ => {}
            }
        }
        Ok(Some(Self { format, overrides }))
    }
}

/// Reads `mode`, `bits` and `group_size`; what is left out is as in `default`, or as MLX has it.
fn affine(fields: &Fields<'_>, default: Option<AffineFormat>) -> Result<AffineFormat, InferError> {
    if let Some(mode) = fields.text("mode")?
        && mode != "affine"
    {
        return Err(fields.unsupported_packing(mode));
    }
    let default = default.unwrap_or(AffineFormat { bits: 4, group_size: 64 });
    let bits = fields.count("bits", 64)?.unwrap_or(default.bits);
    let group_size = fields.count("group_size", WIDTH_MAX)?.unwrap_or(default.group_size);
    let format = || format!("affine, {bits} bits in groups of {group_size}");
    AffineFormat::new(bits, group_size).ok_or_else(|| fields.unsupported_packing(&format()))
}

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// A config of the largest model, with a packing of its own for each module, is under 1 MiB.
const JSON_BYTES_MAX: Bytes = Bytes::new(16 << 20);
/// Four times the deepest model known (126 layers).
const LAYERS_MAX: u16 = 512;
/// Ten times the widest MLP known (53 248).
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
/// Bases known lie between 10 000 and 5 000 000.
const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e12;
const FACTOR: std::ops::RangeInclusive<f64> = 1e-3..=1e6;
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
        assert_eq!(config.quantization.unwrap().format, AffineFormat::new(4, 64).unwrap());
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
    fn a_module_may_have_a_packing_of_its_own() {
        let quantization = json!({"group_size": 64, "bits": 4, "mode": "affine",
            "a": {"bits": 8}, "b": {"group_size": 32, "bits": 8}, "c": false, "d": true});
        let found = read(&json!({"quantization": quantization})).unwrap().quantization.unwrap();
        let affine = |bits, group_size| ModuleFormat::Affine(AffineFormat::new(bits, group_size).unwrap());
        let expected =
            [("a", affine(8, 64)), ("b", affine(8, 32)), ("c", ModuleFormat::Plain), ("d", affine(4, 64))];
        assert_eq!(found.overrides, expected.map(|(path, format)| (path.to_owned(), format)).into());
    }

    #[test]
    fn a_strangers_text_is_cut_in_errors() {
        let error = read(&json!({"model_type": "x".repeat(1_000_000)})).unwrap_err();
        assert!(error.to_string().len() < 500);
        let error = read(&json!({"hidden_size": "x".repeat(1_000_000)})).unwrap_err();
        assert!(error.to_string().len() < 500);
    }
}
