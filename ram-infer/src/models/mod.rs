//! A model: the weights of a folder, and the forward pass over them. One architecture a file.
//!
//! Letters of shapes: T tokens, E model width, V vocabulary; the room `nn` says those inside of a layer.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use std::fmt;
use std::path::Path;

use candle_core::{DType, Tensor};
use ram_core::units::{Bytes, TokenCount};

use crate::cache::{CacheShape, KvCache};
use crate::config::{Architecture, ModelConfig};
use crate::device::Device;
use crate::error::InferError;
use crate::nn::attention::{Pass, causal_mask};
use crate::nn::decoder::DecoderLayer;
use crate::nn::norm::RmsNorm;
use crate::nn::rope::Rope;
use crate::quant::{Bias, Linear, Matrix};
use crate::scope::Scope;
use crate::weights::Weights;

/// A model, loaded and ready; shared freely between threads, each with caches of its own.
pub struct Model {
    config: ModelConfig,
    device: Device,
    opened: candle_core::Device,
    weight_bytes: Bytes,
    rope: Rope,
    embed_tokens: Matrix,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    /// `None` when the embedding is the head too.
    lm_head: Option<Linear>,
}

impl Model {
    /// Loads a folder in the format of `mlx-community`: `config.json` and safetensors.
    ///
    /// On the processor the weights stay in the mapped files, which must not be written to as long as the model lives;
    /// replacing them by renaming, as downloaders do, is fine.
    ///
    /// # Errors
    /// Says which file, field or tensor of the folder is wrong, by any variant of [`InferError`] about those;
    /// [`InferError::DeviceUnavailable`] or [`InferError::Device`] when the device fails.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, InferError> {
        let config = ModelConfig::read(dir)?;
        let (weights, opened) = (Weights::open(dir)?, device.open()?);
        let root = Scope::root(&weights, &config, *device, &opened);
        let (model, width) = (root.enter("model"), config.hidden_size);
        let tied = config.tie_word_embeddings.unwrap_or_else(|| !root.has("lm_head.weight"));
        let head = || Linear::load(&root.enter("lm_head"), config.vocab_size, width, Bias::None);
        let embed_tokens = Matrix::load(&model.enter("embed_tokens"), config.vocab_size, width)?;
        let layers = (0..config.layers.get()).map(|n| layer(&model.enter(&format!("layers.{n}"))));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = RmsNorm::load(&model.enter("norm"), width)?;
        let lm_head = (!tied).then(head).transpose()?;
        weights.check_all_taken(|name| is_left_over(name, tied))?;
        let (rope, weight_bytes) = (Rope::new(&config.rope, config.head_dim), weights.taken_bytes());
        Ok(Self { config, device: *device, opened, weight_bytes, rope, embed_tokens, layers, norm, lm_head })
    }

    /// What `config.json` says of the model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of its weights, as the files have them.
    #[must_use]
    pub const fn weight_bytes(&self) -> Bytes {
        self.weight_bytes
    }

    /// Where its mathematics runs.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// An empty cache for one sequence of at most `capacity` tokens.
    ///
    /// # Errors
    /// [`InferError::ContextExceeded`] past the model's context, [`InferError::Device`] without memory.
    pub fn new_cache(&self, capacity: TokenCount) -> Result<KvCache, InferError> {
        let context = self.config.context;
        let refused = InferError::ContextExceeded { capacity, context };
        let positions =
            usize::try_from(capacity.get()).ok().filter(|_| capacity <= context).ok_or(refused)?;
        KvCache::new(self.cache_shape(), positions, &self.opened)
    }

    /// Appends `tokens` to the sequence of `cache`; returns the logits (V) after the last of them.
    ///
    /// # Errors
    /// [`InferError::NoTokens`], [`InferError::TokenOutOfRange`], [`InferError::CacheOverrun`] and
    /// [`InferError::CacheOfAnotherModel`] leave the cache's sequence as it was; after [`InferError::Device`] it may
    /// hold a part of the tokens.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, InferError> {
        self.admit(tokens, cache)?;
        in_pool(|| {
            let (before, last) = tokens.split_at((tokens.len() - 1) / PASS_TOKENS_MAX * PASS_TOKENS_MAX);
            for tokens in before.chunks(PASS_TOKENS_MAX) {
                self.pass(tokens, cache)?;
            }
            let x = self.pass(last, cache)?;
            // (T, E) -> (1, E) -> (1, V) -> (V)
            self.logits(&x.narrow(0, last.len() - 1, 1)?)?.squeeze(0)?.to_vec1()
        })
    }

    /// Appends `tokens` to the sequence of `cache`; returns the logits (V) after each of them. For tests and scoring:
    /// [`Self::forward`] computes the head for the last token alone.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn forward_all(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<Vec<f32>>, InferError> {
        self.admit(tokens, cache)?;
        in_pool(|| {
            let mut logits = Vec::with_capacity(tokens.len());
            for tokens in tokens.chunks(PASS_TOKENS_MAX) {
                let x = self.pass(tokens, cache)?;
                logits.extend(self.logits(&x)?.to_vec2()?);
            }
            Ok(logits)
        })
    }

    /// Checks the tokens and makes room for them.
    fn admit(&self, tokens: &[u32], cache: &mut KvCache) -> Result<(), InferError> {
        let vocab_size = self.config.vocab_size;
        if tokens.is_empty() {
            return Err(InferError::NoTokens);
        }
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(InferError::TokenOutOfRange { token, vocab_size });
        }
        cache.reserve(self.cache_shape(), tokens.len())
    }

    /// One pass through all layers, over tokens that were admitted: (T, E).
    fn pass(&self, tokens: &[u32], cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let (layers, position) = cache.layers_mut();
        let (count, dtype, device) = (tokens.len(), self.device.activations(), &self.opened);
        let window = self.config.sliding_window.and_then(|window| usize::try_from(window.get()).ok());
        let pass = Pass {
            turns: self.rope.turns(position, count, dtype, device)?,
            mask: causal_mask(position, count, window, dtype, device)?,
            position,
        };
        let mut x = self.embed_tokens.rows(tokens)?;
        for (layer, cache) in self.layers.iter().zip(layers) {
            x = layer.forward(&x, &pass, cache)?;
        }
        cache.advance(count);
        Ok(x)
    }

    /// `x` is (T, E); returns (T, V), in f32.
    fn logits(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.norm.forward(x)?;
        let logits = match &self.lm_head {
            Some(lm_head) => lm_head.forward(&x)?,
            None => self.embed_tokens.forward(&x)?,
        };
        logits.to_dtype(DType::F32)
    }

    fn cache_shape(&self) -> CacheShape {
        let &ModelConfig { kv_heads, head_dim, .. } = &self.config;
        CacheShape { layers: self.layers.len(), kv_heads, head_dim, dtype: self.device.activations() }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Loads `model.layers.N` of whichever family it is.
fn layer(at: &Scope<'_>) -> Result<DecoderLayer, InferError> {
    match at.config().architecture {
        Architecture::Llama => llama::layer(at),
        Architecture::Mistral => mistral::layer(at),
        Architecture::Qwen2 => qwen2::layer(at),
        Architecture::Qwen3 => qwen3::layer(at),
        other => Err(InferError::UnsupportedArchitecture { model_type: other.to_string() }),
    }
}

/// Whether a checkpoint may hold this tensor to no use: old ones store the angles of the rotary encoding, and some
/// that are tied store the head all the same.
fn is_left_over(tensor: &str, tied: bool) -> bool {
    tensor.ends_with(".rotary_emb.inv_freq") || (tied && tensor.starts_with("lm_head."))
}

/// Runs a pass on one of the pool's own threads: from there its many small operations share their work with the other
/// threads without waking the caller's each time.
fn in_pool<T: Send>(work: impl FnOnce() -> candle_core::Result<T> + Send) -> Result<T, InferError> {
    rayon::scope(|_| work()).map_err(InferError::device)
}

/// Tokens of one pass: more are cut, so that the scores of a long prompt (H, T, S) stay small.
const PASS_TOKENS_MAX: usize = 512;
