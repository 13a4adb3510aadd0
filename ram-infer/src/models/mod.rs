//! A model: the weights of a folder or of a run of its layers, and the passes over them. One architecture a file.
//!
//! ```text
//! tokens -> embedding -> layers -> norm -> head -> logits
//!           `--------- any run of these is a shard ---'
//! ```
//!
//! On the processor a pass takes parts of many sequences at once ([`Model::forward_batch`]); what a sequence gets does
//! not depend on the others, to the bit, in every way of computing ([`Numerics`]).
//!
//! Letters of shapes: T tokens of a pass, E model width, V vocabulary; the room `nn` says those inside of a layer.

mod decoder;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod qwen3_next;
mod shard;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use ram_core::checkpoint::Role;
use ram_core::units::{Bytes, TokenCount};

use self::decoder::Decoder;
pub use self::shard::Shard;
use crate::batch::{BlockId, Part, Rows, Wanted};
use crate::cache::KvCache;
use crate::config::{Architecture, ModelConfig};
use crate::device::Device;
use crate::error::InferError;
use crate::gpu::{DeviceKv, DeviceModel};
pub use crate::kernel::Numerics;
use crate::kv::{Kind, KvDtype, KvPool, PagedKv};
use crate::logits::Logits;
use crate::nn::attention::Recipe;
use crate::nn::decoder::LayerRecipe;
use crate::scope::Scope;
use crate::weights::Weights;

/// A model, loaded and ready; shared freely between threads.
pub struct Model {
    config: ModelConfig,
    device: Device,
    shard: Shard,
    weight_bytes: Bytes,
    body: Body,
}

enum Body {
    Host(Box<Decoder>),
    Device(Box<DeviceModel>),
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where its mathematics runs.
    pub device: Device,
    /// How products are computed on the processor.
    pub numerics: Numerics,
    /// Threads on the processor; as many as it runs at once by default.
    pub threads: Option<NonZeroUsize>,
    /// How keys and values are kept on the processor.
    pub kv: KvDtype,
    /// Which part of the model; all of it by default.
    pub shard: Option<Shard>,
}

impl LoadOptions {
    /// A whole model on this device, in what is fastest there without a loss that shows.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, numerics: Numerics::best(), threads: None, kv: KvDtype::Bf16, shard: None }
    }

    /// A whole model on the processor, computed in f32 throughout.
    #[must_use]
    pub const fn exact() -> Self {
        Self { device: Device::Cpu, numerics: Numerics::F32, threads: None, kv: KvDtype::F32, shard: None }
    }
}

/// What a pass puts out.
#[derive(Clone, PartialEq)]
pub enum Output {
    /// A row of V logits for each wanted token, in the order of the parts.
    Logits(Vec<Logits>),
    /// (T, E): the last layer's output for all tokens, from a shard without a head.
    Hidden(Vec<f32>),
}

impl Model {
    /// Loads a whole folder in the format of `mlx-community`: `config.json` and safetensors.
    ///
    /// On the processor everything is computed in f32, which is what agrees best with other software;
    /// [`Self::load_with`] has the faster ways.
    ///
    /// # Errors
    /// Those of [`Self::load_with`].
    pub fn load(dir: &Path, device: &Device) -> Result<Self, InferError> {
        Self::load_with(dir, &LoadOptions { device: *device, ..LoadOptions::exact() })
    }

    /// Loads a folder, or the tensors of a part of it.
    ///
    /// The files must not be written to meanwhile; replacing them by renaming, as downloaders do, is fine. Afterwards
    /// they are not needed.
    ///
    /// # Errors
    /// Says which file, field or tensor of the folder is wrong, by any variant of [`InferError`] about those;
    /// [`InferError::NoSuchLayers`] for a shard that the model does not have;
    /// [`InferError::DeviceUnavailable`] or [`InferError::Device`] when the device fails.
    pub fn load_with(dir: &Path, options: &LoadOptions) -> Result<Self, InferError> {
        let config = ModelConfig::read(dir)?;
        let whole = Shard::whole(&config);
        let shard = options.shard.unwrap_or(whole);
        if shard.layers.end() > config.layers.get() {
            return Err(InferError::NoSuchLayers { end: shard.layers.end(), layers: config.layers.get() });
        }
        let (weights, opened) = (Weights::open(dir)?, options.device.open()?);
        let root = text(&Scope::root(&weights, &config, options.device, &opened));
        let tied = config.tie_word_embeddings.unwrap_or_else(|| !root.has("lm_head.weight"));
        let body = match options.device {
            Device::Cpu => Body::Host(Box::new(Decoder::load(&root, options, shard, tied)?)),
            Device::Metal | Device::Cuda if shard != whole => {
                return Err(InferError::WholeOnly { device: options.device });
            }
            Device::Metal | Device::Cuda => {
                Body::Device(Box::new(DeviceModel::load(&root, recipe(&config)?, tied)?))
            }
        };
        weights.check_all_taken(|name| is_left_over(name, &config, tied) || !is_of(name, shard, tied))?;
        let weight_bytes = weights.taken_bytes();
        Ok(Self { config, device: options.device, shard, weight_bytes, body })
    }

    /// What `config.json` says of the model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the weights that were loaded, as the files have them.
    #[must_use]
    pub const fn weight_bytes(&self) -> Bytes {
        self.weight_bytes
    }

    /// Where its mathematics runs.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// What was loaded of it.
    #[must_use]
    pub const fn shard(&self) -> Shard {
        self.shard
    }

    /// Memory of a block: keys and values of [`BLOCK_TOKENS`](crate::batch::BLOCK_TOKENS) positions.
    #[must_use]
    pub fn block_bytes(&self) -> Bytes {
        match &self.body {
            Body::Host(decoder) => decoder.shape().block_bytes(),
            Body::Device(model) => model.block_bytes(),
        }
    }

    /// Whether sequences keep a state that cannot go back or be shared: then a sequence's tokens are computed once, in
    /// order, in a slot of its own. So it is on devices, too.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        match &self.body {
            Body::Host(decoder) => decoder.shape().is_recurrent(),
            Body::Device(_) => true,
        }
    }

    /// An empty pool for keys and values, with room for the states of `slots` sequences.
    #[must_use]
    pub fn new_kv(&self, slots: usize) -> KvPool {
        KvPool(match &self.body {
            Body::Host(decoder) => Kind::Paged(PagedKv::new(decoder.shape().clone(), slots)),
            Body::Device(_) => Kind::Device(DeviceKv::new(slots)),
        })
    }

    /// Computes parts of many sequences at once; returns a row of logits (V) for each wanted token, in order of the
    /// parts. Memory for a pass grows with its tokens: whoever takes long prompts cuts them.
    ///
    /// # Errors
    /// [`InferError::NoTokens`], [`InferError::TokenOutOfRange`], [`InferError::CacheOverrun`],
    /// [`InferError::CacheOfAnotherModel`] and [`InferError::ShardInput`] before anything is computed;
    /// [`InferError::Device`].
    pub fn forward_batch(&self, parts: &[Part<'_>], kv: &mut KvPool) -> Result<Vec<Logits>, InferError> {
        match self.pass(parts, None, kv)? {
            Output::Logits(logits) => Ok(logits),
            Output::Hidden(_) => Err(InferError::NoHead),
        }
    }

    /// Computes parts of many sequences through this shard. `hidden`, (T, E) for the tokens of all parts in order, is
    /// what the shard before put out; a shard with the embedding takes none.
    ///
    /// # Errors
    /// Those of [`Self::forward_batch`].
    pub fn pass(
        &self,
        parts: &[Part<'_>],
        hidden: Option<&[f32]>,
        kv: &mut KvPool,
    ) -> Result<Output, InferError> {
        parts.iter().try_for_each(|part| self.check(part.tokens))?;
        match (&self.body, &mut kv.0) {
            (Body::Host(decoder), Kind::Paged(kv)) => decoder.pass(parts, hidden, kv),
            (Body::Device(model), Kind::Device(kv)) => Ok(Output::Logits(model.forward(parts, kv)?)),
            _ => Err(InferError::CacheOfAnotherModel),
        }
    }

    /// An empty cache for one sequence of at most `capacity` tokens.
    ///
    /// # Errors
    /// [`InferError::ContextExceeded`] past the model's context.
    pub fn new_cache(&self, capacity: TokenCount) -> Result<KvCache, InferError> {
        let context = self.config.context;
        let refused = InferError::ContextExceeded { capacity, context };
        let positions =
            usize::try_from(capacity.get()).ok().filter(|_| capacity <= context).ok_or(refused)?;
        Ok(KvCache::new(self.new_kv(1), positions))
    }

    /// Appends `tokens` to the sequence of `cache`; returns the logits (V) after the last of them.
    ///
    /// # Errors
    /// Those of [`Self::forward_batch`]; the cache's sequence stays as it was, but for [`InferError::Device`].
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, InferError> {
        self.append(tokens, Wanted::Last, cache)?.pop().map(Vec::from).ok_or(InferError::NoTokens)
    }

    /// Appends `tokens` to the sequence of `cache`; returns the logits (V) after each of them. For tests and scoring:
    /// [`Self::forward`] computes the head for the last token alone.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn forward_all(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<Vec<f32>>, InferError> {
        Ok(self.append(tokens, Wanted::All, cache)?.into_iter().map(Vec::from).collect())
    }

    fn append(&self, tokens: &[u32], wanted: Wanted, cache: &mut KvCache) -> Result<Vec<Logits>, InferError> {
        self.check(tokens)?;
        cache.reserve(tokens.len())?;
        let (mut rows, mut left) = (Vec::new(), tokens.len());
        for tokens in tokens.chunks(PASS_TOKENS_MAX) {
            left -= tokens.len();
            let logits = if left > 0 && wanted == Wanted::Last { Wanted::None } else { wanted };
            let KvCache { kv, blocks, position, .. } = cache;
            let part = Part { tokens, position: *position, blocks, slot: 0, logits };
            rows.extend(self.forward_batch(&[part], kv)?);
            *position += tokens.len();
        }
        Ok(rows)
    }

    /// That there are tokens, and that the vocabulary has them.
    fn check(&self, tokens: &[u32]) -> Result<(), InferError> {
        let vocab_size = self.config.vocab_size;
        if tokens.is_empty() {
            return Err(InferError::NoTokens);
        }
        match tokens.iter().find(|token| **token as usize >= vocab_size) {
            Some(&token) => Err(InferError::TokenOutOfRange { token, vocab_size }),
            None => Ok(()),
        }
    }
}

impl Rows for Model {
    type Kv = KvPool;

    fn block_bytes(&self) -> Bytes {
        Self::block_bytes(self)
    }

    fn is_recurrent(&self) -> bool {
        Self::is_recurrent(self)
    }

    fn new_kv(&self, slots: usize) -> KvPool {
        Self::new_kv(self, slots)
    }

    fn forward(&self, parts: &[Part<'_>], kv: &mut KvPool) -> Result<Vec<Logits>, InferError> {
        self.forward_batch(parts, kv)
    }

    fn release(&self, block: BlockId, kv: &mut KvPool) {
        kv.release(block);
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("device", &self.device)
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Output {
    /// Sizes alone: what is computed from words tells of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logits(rows) => write!(f, "Logits({} rows)", rows.len()),
            Self::Hidden(numbers) => write!(f, "Hidden({} numbers)", numbers.len()),
        }
    }
}

/// How the `layer`th layer of a model mixes tokens.
fn layer_recipe(config: &ModelConfig, layer: usize) -> Result<LayerRecipe, InferError> {
    match config.architecture {
        Architecture::Qwen3Next | Architecture::Qwen35 | Architecture::Qwen35Moe => {
            Ok(qwen3_next::layer(config, layer))
        }
        Architecture::DeepseekV3 => Ok(LayerRecipe::Latent),
        _ => recipe(config).map(LayerRecipe::Attention),
    }
}

/// The place where a model's own tensors are: Qwen3.5, which may see, has what speaks inside.
fn text<'a>(root: &Scope<'a>) -> Scope<'a> {
    match root.config().architecture {
        Architecture::Qwen35 | Architecture::Qwen35Moe => root.enter("language_model"),
        _ => root.clone(),
    }
}

/// How the layers of a family attend whose layers all attend in the ordinary way: these are the families that devices
/// compute.
///
/// # Errors
/// [`InferError::UnsupportedArchitecture`] for a family whose layers are of another kind.
pub(crate) fn recipe(config: &ModelConfig) -> Result<Recipe, InferError> {
    match config.architecture {
        Architecture::Llama => Ok(llama::attention(config)),
        Architecture::Mistral => Ok(mistral::attention()),
        Architecture::Qwen2 => Ok(qwen2::attention()),
        Architecture::Qwen3 | Architecture::Qwen3Moe => Ok(qwen3::attention(config)),
        other => Err(InferError::UnsupportedArchitecture { model_type: other.to_string() }),
    }
}

/// Whether a checkpoint may hold this tensor to no use: old ones store the angles of the rotary encoding, and some
/// that are tied store the head all the same; DeepSeek's layers past the last one guess tokens ahead.
fn is_left_over(tensor: &str, config: &ModelConfig, tied: bool) -> bool {
    let of_family = match config.architecture {
        Architecture::Qwen3Next | Architecture::Qwen35 | Architecture::Qwen35Moe => {
            qwen3_next::is_left_over(tensor)
        }
        Architecture::DeepseekV3 => layer_of(tensor).is_some_and(|layer| layer >= config.layers.get()),
        _ => false,
    };
    of_family || tensor.ends_with(".rotary_emb.inv_freq") || (tied && inside(tensor).starts_with("lm_head."))
}

/// A tensor's name without the place of [`text`].
fn inside(tensor: &str) -> &str {
    tensor.strip_prefix("language_model.").unwrap_or(tensor)
}

/// The layer that a tensor is of.
fn layer_of(tensor: &str) -> Option<u16> {
    inside(tensor).strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

/// Whether a tensor belongs to a shard, or to no shard in particular.
fn is_of(tensor: &str, shard: Shard, tied: bool) -> bool {
    match Role::of(tensor) {
        Role::Other => true,
        role => shard.needs(role, tied),
    }
}

/// Tokens of one pass of [`Model::forward`]: more are cut, so that the memory of a pass stays small.
const PASS_TOKENS_MAX: usize = 512;
