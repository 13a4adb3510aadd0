//! Models on a device, through candle's tensors: Metal and CUDA.
//!
//! The same parts as in the room `nn`, each a file, for families whose layers attend in the ordinary way, with one MLP
//! or with experts. DeltaNets, latent attention, and experts that all tokens share are the processor's. One sequence is
//! computed at a time, over a cache of its own.
//!
//! All of it is tested on candle's processor, against the room `nn`; on a GPU, where weights stay packed, it has not
//! been run.
//!
//! Letters of shapes: T tokens of this pass, S positions so far (these tokens included), H query heads, K key and
//! value heads, G = H / K query heads that share one, D head width, E model width, V vocabulary.

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod decoder;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod stack;

use candle_core::{DType, Device, Tensor};
use ram_core::units::Bytes;

use self::attention::{Pass, Sees};
use self::cache::{CacheShape, DeviceCache};
use self::decoder::DecoderLayer;
use self::linear::{Linear, Matrix};
use self::norm::RmsNorm;
use self::rope::Turns;
use self::route::Sorter;
use crate::batch::{BLOCK_TOKENS, Part, Wanted};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::InferError;
use crate::logits::Logits;
use crate::nn::attention::Recipe;
use crate::nn::linear::Bias;
use crate::nn::rope::Rope;
use crate::scope::Scope;

/// The weights of a whole model on a device.
pub(crate) struct DeviceModel {
    device: Device,
    shape: CacheShape,
    window: Option<usize>,
    context: usize,
    rope: Rope,
    /// Of a model with experts.
    moe: Option<MoeConfig>,
    embed_tokens: Matrix,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    /// `None` when the embedding is the head too.
    lm_head: Option<Linear>,
}

/// The caches of all sequences, by slot.
pub(crate) struct DeviceKv(Vec<Option<DeviceCache>>);

impl DeviceKv {
    pub(crate) fn new(slots: usize) -> Self {
        Self((0..slots).map(|_| None).collect())
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.0.iter().flatten().map(DeviceCache::bytes).sum()
    }
}

impl DeviceModel {
    /// Loads a checkpoint whose layers attend by `recipe`.
    ///
    /// # Errors
    /// Those of the parts.
    pub(crate) fn load(root: &Scope<'_>, recipe: Recipe, tied: bool) -> Result<Self, InferError> {
        let (config, model) = (root.config(), root.enter("model"));
        let &ModelConfig { kv_heads, head_dim, vocab_size, hidden_size, .. } = config;
        let dtype = root.activations();
        let layer = |number: u16| {
            DecoderLayer::load(&model.enter(&format!("layers.{number}")), number.into(), recipe)
        };
        let layers = (0..config.layers.get()).map(layer);
        let head = || Linear::load(&root.enter("lm_head"), vocab_size, hidden_size, Bias::None);
        Ok(Self {
            device: root.opened().clone(),
            shape: CacheShape { layers: usize::from(config.layers.get()), kv_heads, head_dim, dtype },
            window: config.sliding_window.and_then(|window| usize::try_from(window.get()).ok()),
            context: usize::try_from(config.context.get()).unwrap_or(usize::MAX),
            rope: Rope::new(&config.rope, head_dim),
            moe: config.moe.clone(),
            embed_tokens: Matrix::load(&model.enter("embed_tokens"), vocab_size, hidden_size)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: RmsNorm::load(&model.enter("norm"), hidden_size)?,
            lm_head: (!tied).then(head).transpose()?,
        })
    }

    /// What the keys and values of a block's positions take.
    pub(crate) fn block_bytes(&self) -> Bytes {
        let CacheShape { layers, kv_heads, head_dim, dtype } = self.shape;
        Bytes::new((2 * layers * kv_heads * head_dim * dtype.size_in_bytes() * BLOCK_TOKENS) as u64)
    }

    /// Computes each part; returns a row of logits (V) for each wanted token.
    ///
    /// # Errors
    /// [`InferError::CacheOfAnotherModel`], [`InferError::CacheOverrun`], [`InferError::Device`].
    pub(crate) fn forward(&self, parts: &[Part<'_>], kv: &mut DeviceKv) -> Result<Vec<Logits>, InferError> {
        let mut rows = Vec::new();
        for part in parts {
            let held = kv.0.get_mut(part.slot).ok_or(InferError::CacheOfAnotherModel)?;
            if held.is_none() || part.position == 0 {
                *held = Some(DeviceCache::new(self.shape, self.context, &self.device)?);
            }
            let Some(cache) = held else { continue };
            cache.rewind(part.position);
            cache.reserve(self.shape, part.tokens.len())?;
            self.part(part, cache, &mut rows).map_err(InferError::device)?;
        }
        Ok(rows)
    }

    fn part(
        &self,
        part: &Part<'_>,
        cache: &mut DeviceCache,
        rows: &mut Vec<Logits>,
    ) -> candle_core::Result<()> {
        let mut left = part.tokens.len();
        for tokens in part.tokens.chunks(PASS_TOKENS_MAX) {
            let x = self.pass(tokens, cache)?;
            left -= tokens.len();
            let wanted = match part.logits {
                Wanted::All => x,
                Wanted::Last if left == 0 => x.narrow(0, tokens.len() - 1, 1)?,
                Wanted::Last | Wanted::None => continue,
            };
            rows.extend(self.logits(&wanted)?.to_vec2()?.into_iter().map(Logits::of));
        }
        Ok(())
    }

    /// One pass through all layers, over tokens that were admitted: (T, E).
    fn pass(&self, tokens: &[u32], cache: &mut DeviceCache) -> candle_core::Result<Tensor> {
        let (layers, position) = cache.layers_mut();
        let (count, dtype, device) = (tokens.len(), self.shape.dtype, &self.device);
        let sorter = self.moe.as_ref().map(|moe| Sorter::when_many(moe, count, device)).transpose()?;
        let pass = Pass {
            turns: Turns::new(&self.rope, position, count, dtype, device)?,
            sees: Sees::new(position, count, self.window, dtype, device)?,
            sorter: sorter.flatten(),
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
}

/// Tokens of one pass: more are cut, so that the scores of a long prompt (H, T, S) stay small.
const PASS_TOKENS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ram_core::units::TokenCount;

    use super::*;
    use crate::batch::BlockId;
    use crate::models::{self, LoadOptions, Model};
    use crate::weights::Weights;

    /// The device's way, on candle's own processor, in f32.
    fn by_tensors(dir: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
        let (config, weights) = (ModelConfig::read(dir).unwrap(), Weights::open(dir).unwrap());
        let root = Scope::root(&weights, &config, crate::device::Device::Cpu, &Device::Cpu);
        let tied = config.tie_word_embeddings.unwrap_or_else(|| !root.has("lm_head.weight"));
        let model = DeviceModel::load(&root, models::recipe(&config).unwrap(), tied).unwrap();
        let mut kv = DeviceKv::new(1);
        let part =
            |tokens, position, logits| Part { tokens, position, blocks: &[BlockId(0)], slot: 0, logits };
        // The choices of many tokens are sorted by expert, those of few are not.
        let (first, rest) = tokens.split_at(tokens.len() - 5);
        let mut rows = model.forward(&[part(first, 0, Wanted::All)], &mut kv).unwrap();
        // Guessed wrongly, and computed again.
        model.forward(&[part(first, first.len(), Wanted::None)], &mut kv).unwrap();
        rows.extend(model.forward(&[part(rest, first.len(), Wanted::All)], &mut kv).unwrap());
        rows.into_iter().map(Vec::from).collect()
    }

    /// So many that even one expert each is sorted, of eight.
    const TOKENS: u32 = 8 * 8 + 6;

    #[test]
    fn tensors_and_kernels_agree() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for name in [
            "llama-4bit-g64",
            "mistral-4bit-g64",
            "qwen2-4bit-g32",
            "qwen3-4bit-g64-mixed",
            "qwen3-moe-4bit-g64",
            "qwen3-moe-mxfp4",
        ] {
            let dir = fixtures.join(name);
            let tokens: Vec<u32> = (0..TOKENS).map(|token| token * 7 % 64).collect();
            let model = Model::load_with(&dir, &LoadOptions::exact()).unwrap();
            let mut cache = model.new_cache(TokenCount::new(TOKENS.into())).unwrap();
            let host = model.forward_all(&tokens, &mut cache).unwrap();
            for (host, device) in host.iter().flatten().zip(by_tensors(&dir, &tokens).iter().flatten()) {
                assert!((host - device).abs() < 2e-4 * (1.0 + host.abs()), "{name}: {host} and {device}");
            }
        }
    }

    #[test]
    fn families_with_layers_of_other_kinds_are_refused() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for name in ["qwen3-next-4bit-g64", "qwen3-5-4bit-g64", "qwen3-5-moe-nvfp4", "deepseek-4bit-g64"] {
            let config = ModelConfig::read(&fixtures.join(name)).unwrap();
            let model_type = config.architecture.to_string();
            assert_eq!(models::recipe(&config), Err(InferError::UnsupportedArchitecture { model_type }));
        }
    }
}
