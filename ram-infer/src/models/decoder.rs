//! A run of layers on the processor, with the embedding before it and the head behind it where it holds them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use super::{LoadOptions, Output, Shard, layer_recipe};
use crate::batch::{Part, Wanted};
use crate::config::ModelConfig;
use crate::error::InferError;
use crate::kernel::Numerics;
use crate::kv::{KvShape, PagedKv};
use crate::logits::Logits;
use crate::nn::decoder::DecoderLayer;
use crate::nn::linear::{self, Bias, Linear};
use crate::nn::norm::RmsNorm;
use crate::nn::rope::Rope;
use crate::nn::{Pass, Workspace, sized};
use crate::pool::Pool;
use crate::scope::Scope;

/// The weights of a run of layers, and the threads that compute with them.
pub(super) struct Decoder {
    pool: Arc<Pool>,
    numerics: Numerics,
    shape: KvShape,
    width: usize,
    rope: Rope,
    /// Whether tokens come in, and not what layers before put out.
    takes_tokens: bool,
    embed_tokens: Option<Linear>,
    layers: Vec<DecoderLayer>,
    head: Option<Head>,
    /// One pass at a time; each finds the memory of the one before.
    space: Mutex<(Workspace, Vec<f32>)>,
}

/// What turns the last layer's output into logits.
struct Head {
    norm: RmsNorm,
    /// `None` when the embedding is the head too.
    lm_head: Option<Linear>,
}

impl Decoder {
    /// Loads the tensors of a shard, and no others.
    ///
    /// # Errors
    /// Those of the parts.
    pub(super) fn load(
        root: &Scope<'_>,
        options: &LoadOptions,
        shard: Shard,
        tied: bool,
    ) -> Result<Self, InferError> {
        let (config, model) = (root.config(), root.enter("model"));
        let &ModelConfig { hidden_size: width, vocab_size, .. } = config;
        let matrix = |at: &Scope<'_>| Linear::load(at, vocab_size, width, Bias::None);
        // The largest first: while it is repacked its file's pages and the packed form are both in memory.
        let embeds = shard.embed || (shard.head && tied);
        let embed_tokens = embeds.then(|| matrix(&model.enter("embed_tokens"))).transpose()?;
        let head = || -> Result<Head, InferError> {
            Ok(Head {
                norm: RmsNorm::load(&model.enter("norm"), width)?,
                lm_head: (!tied).then(|| matrix(&root.enter("lm_head"))).transpose()?,
            })
        };
        let head = shard.head.then(head).transpose()?;
        let numbers = shard.layers.first()..shard.layers.end();
        let (mut layers, mut keeps) = (Vec::new(), Vec::new());
        for number in numbers {
            let recipe = layer_recipe(config, number.into())?;
            layers.push(DecoderLayer::load(
                &model.enter(&format!("layers.{number}")),
                number.into(),
                recipe,
            )?);
            keeps.push(recipe.keeps(config));
        }
        Ok(Self {
            pool: Pool::of(options.threads.unwrap_or_else(threads_of_machine)),
            numerics: options.numerics,
            shape: KvShape { layers: keeps, dtype: options.kv },
            width,
            rope: Rope::new(&config.rope, config.rotary_dim),
            takes_tokens: shard.embed,
            embed_tokens,
            layers,
            head,
            space: Mutex::default(),
        })
    }

    pub(super) const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Computes all parts; `hidden`, (T, E), is what the layers before put out, where there are such.
    ///
    /// # Errors
    /// [`InferError::ShardInput`] unless `hidden` is there exactly when the shard holds no embedding, in its size;
    /// those of [`PagedKv::admit`].
    pub(super) fn pass(
        &self,
        parts: &[Part<'_>],
        hidden: Option<&[f32]>,
        kv: &mut PagedKv,
    ) -> Result<Output, InferError> {
        if kv.shape() != &self.shape {
            return Err(InferError::CacheOfAnotherModel);
        }
        let starts: Vec<usize> = std::iter::once(0)
            .chain(parts.iter().scan(0, |end, part| {
                *end += part.tokens.len();
                Some(*end)
            }))
            .collect();
        let size = starts.last().copied().unwrap_or(0) * self.width;
        let expected = (!self.takes_tokens).then_some(size);
        if hidden.map(<[f32]>::len) != expected {
            return Err(InferError::ShardInput { expected, actual: hidden.map(<[f32]>::len) });
        }
        kv.admit(parts)?;
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let (space, x) = &mut *space;
        let x = sized(x, size);
        match hidden {
            Some(hidden) => x.copy_from_slice(hidden),
            None => self.embed(parts, x),
        }
        let pass = Pass {
            pool: &self.pool,
            numerics: self.numerics,
            parts,
            starts,
            turns: self.rope.turns(parts),
            blocks: kv.view(),
        };
        for (number, layer) in self.layers.iter().enumerate() {
            layer.forward(x, number, &pass, space);
        }
        match &self.head {
            Some(head) => Ok(Output::Logits(self.logits(head, x, &pass, space))),
            None => Ok(Output::Hidden(x.to_vec())),
        }
    }

    /// The rows of the embedding: (T, E).
    fn embed(&self, parts: &[Part<'_>], x: &mut [f32]) {
        let tokens = parts.iter().flat_map(|part| part.tokens);
        if let Some(embed_tokens) = &self.embed_tokens {
            for (token, row) in tokens.zip(x.chunks_exact_mut(self.width)) {
                embed_tokens.weight().row(*token as usize, row);
            }
        }
    }

    /// The logits after each token where they are wanted: rows of V. `x` is (T, E).
    fn logits(&self, head: &Head, x: &[f32], pass: &Pass<'_>, space: &mut Workspace) -> Vec<Logits> {
        let wanted =
            pass.parts.iter().zip(pass.starts.windows(2)).flat_map(|(part, rows)| match part.logits {
                Wanted::None => rows[1]..rows[1],
                Wanted::Last => rows[1] - 1..rows[1],
                Wanted::All => rows[0]..rows[1],
            });
        let rows = wanted.map(|row| &x[row * self.width..(row + 1) * self.width]);
        let x: Vec<f32> = rows.flatten().copied().collect();
        let Some(lm_head) = head.lm_head.as_ref().or(self.embed_tokens.as_ref()) else {
            unreachable!("a head is loaded with its weights")
        };
        if x.is_empty() {
            return Vec::new();
        }
        linear::prepare_normed(pass, &x, &head.norm, &[lm_head], &mut space.inputs).logits(pass)
    }
}

/// As many threads as the machine runs at once.
fn threads_of_machine() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
