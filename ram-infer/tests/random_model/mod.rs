//! Models of random weights in MLX's 4-bit format, written tensor by tensor: for benches, examples that measure, and
//! tests of malformed files.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, View};

/// The shape of a Llama with a tied head, packed in 4 bits and groups of 64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocabulary: usize,
}

impl Shape {
    /// Llama 3.2 1B.
    #[allow(dead_code, reason = "the tests of malformed files need no large model")]
    pub(crate) const LLAMA_3_2_1B: Self = Self {
        hidden: 2048,
        inner: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocabulary: 128_256,
    };

    /// The shape of a model that is known by name.
    #[allow(dead_code, reason = "not everyone lets shapes be chosen")]
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            "llama-3.2-1b" => Ok(Self::LLAMA_3_2_1B),
            _ => Err(format!("the shape {name} is unknown: llama-3.2-1b and demo are known")),
        }
    }

    /// Writes `config.json` and `model.safetensors`.
    pub(crate) fn write(self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join("config.json"), self.config().to_string())?;
        let tensors = self.tensors();
        let file = dir.join("model.safetensors");
        safetensors::serialize_to_file(tensors, None, &file).map_err(io::Error::other)
    }

    /// Writes `tokenizer.json` as well, which makes the folder a whole model: token 0 ends an answer, and each of the
    /// others is a space and a word of small letters.
    #[allow(dead_code, reason = "passes need no words")]
    pub(crate) fn write_tokenizer(self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join("tokenizer.json"), self.tokenizer().to_string())
    }

    /// The content of `tokenizer.json`: bytes as GPT-2 spells them, whole words alone.
    fn tokenizer(self) -> serde_json::Value {
        let end = serde_json::json!({
            "id": 0, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        });
        let byte_level = serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        let spelled = |id: usize| if id == 0 { "<|end|>".to_owned() } else { format!("\u{120}{}", word(id)) };
        let vocab: serde_json::Map<_, _> = (0..self.vocabulary).map(|id| (spelled(id), id.into())).collect();
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                "vocab": vocab, "merges": [],
            },
        })
    }

    /// The content of `config.json`.
    pub(crate) fn config(self) -> serde_json::Value {
        serde_json::json!({
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": true,
            "eos_token_id": [0],
            "quantization": { "group_size": 64, "bits": 4 },
        })
    }

    /// All tensors, by name; their bytes are made when they are asked for.
    pub(crate) fn tensors(self) -> Vec<(String, RandomTensor)> {
        let Self { hidden, inner, layers, heads, kv_heads, head_dim, vocabulary } = self;
        let mut tensors = Vec::new();
        let mut packed = |path: String, rows: usize, cols: usize| {
            let part = |kind: Kind, cols| RandomTensor { kind, shape: vec![rows, cols] };
            tensors.push((format!("{path}.weight"), part(Kind::Packed, cols / 8)));
            tensors.push((format!("{path}.scales"), part(Kind::Scales, cols / 64)));
            tensors.push((format!("{path}.biases"), part(Kind::Biases, cols / 64)));
        };
        packed("model.embed_tokens".to_owned(), vocabulary, hidden);
        for layer in 0..layers {
            let modules = [
                ("self_attn.q_proj", heads * head_dim, hidden),
                ("self_attn.k_proj", kv_heads * head_dim, hidden),
                ("self_attn.v_proj", kv_heads * head_dim, hidden),
                ("self_attn.o_proj", hidden, heads * head_dim),
                ("mlp.gate_proj", inner, hidden),
                ("mlp.up_proj", inner, hidden),
                ("mlp.down_proj", hidden, inner),
            ];
            for (module, rows, cols) in modules {
                packed(format!("model.layers.{layer}.{module}"), rows, cols);
            }
        }
        let norm = || RandomTensor { kind: Kind::Ones, shape: vec![hidden] };
        for layer in 0..layers {
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), norm()));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), norm()));
        tensors
    }
}

/// A number as a word of small letters, each number another one.
fn word(number: usize) -> String {
    let digits = std::iter::successors(Some(number), |rest| Some(rest / 26).filter(|rest| *rest > 0));
    digits.filter_map(|rest| ('a'..='z').nth(rest % 26)).collect()
}

/// A tensor of random content.
#[derive(Clone, Debug)]
pub(crate) struct RandomTensor {
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
}

/// What a tensor holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Random bits in `U32`.
    Packed,
    /// One small bf16.
    Scales,
    /// The bf16 that centres the 16 values of 4 bits.
    Biases,
    /// bf16 ones.
    Ones,
}

impl RandomTensor {
    const fn element(&self) -> usize {
        match self.kind {
            Kind::Packed => 4,
            Kind::Scales | Kind::Biases | Kind::Ones => 2,
        }
    }
}

impl View for RandomTensor {
    fn dtype(&self) -> Dtype {
        match self.kind {
            Kind::Packed => Dtype::U32,
            Kind::Scales | Kind::Biases | Kind::Ones => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The upper halves of 2^-8, -7.5 * 2^-8 and 1 as f32.
        let bf16 = |float: f32| float.to_bits().to_be_bytes()[..2].iter().rev().copied().collect::<Vec<u8>>();
        let scale = 0.003_906_25;
        let bytes = match self.kind {
            Kind::Packed => random_bytes(self.data_len()),
            Kind::Scales => bf16(scale).repeat(self.data_len() / 2),
            Kind::Biases => bf16(-7.5 * scale).repeat(self.data_len() / 2),
            Kind::Ones => bf16(1.0).repeat(self.data_len() / 2),
        };
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element()
    }
}

/// Bytes of Marsaglia's xorshift; `count` is a multiple of four.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..count / 4).flat_map(|_| next()).collect()
}
