//! A model, and sequences that grow pass by pass: what the examples that measure and compare have in common.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;

use ram_infer::batch::{BlockId, Part, Wanted, blocks_for};
use ram_infer::device::Device;
use ram_infer::error::InferError;
use ram_infer::kv::{KvDtype, KvPool};
use ram_infer::logits::Logits;
use ram_infer::models::{LoadOptions, Model, Numerics, Output, Shard};

/// Tokens of a pass: more are cut.
pub(crate) const PASS: usize = 512;

/// `f32`, `bf16` or `int8`: how products are computed.
pub(crate) fn numerics(name: &str) -> Result<Numerics, String> {
    match name {
        "f32" => Ok(Numerics::F32),
        "bf16" => Ok(Numerics::Bf16),
        "int8" => Ok(Numerics::Int8),
        _ => Err(format!("the mode {name} is unknown: f32, bf16 and int8 are known")),
    }
}

/// The name that [`numerics`] reads.
#[allow(dead_code, reason = "not every example tells it")]
pub(crate) const fn name(numerics: Numerics) -> &'static str {
    match numerics {
        Numerics::F32 => "f32",
        Numerics::Bf16 => "bf16",
        Numerics::Int8 => "int8",
    }
}

/// Loads a model, or a shard of it.
pub(crate) fn load(
    dir: &Path,
    numerics: Numerics,
    threads: usize,
    shard: Option<Shard>,
) -> Result<Model, Box<dyn Error>> {
    Ok(Model::load_with(dir, &LoadOptions { shard, ..load_options(numerics, threads) })?)
}

/// How a whole model is loaded. In f32 its keys and values are f32 as well, so that nothing is rounded anywhere.
pub(crate) fn load_options(numerics: Numerics, threads: usize) -> LoadOptions {
    let kv = if numerics == Numerics::F32 { KvDtype::F32 } else { KvDtype::Bf16 };
    let (device, threads) = (Device::best(), NonZeroUsize::new(threads));
    LoadOptions { device, numerics, threads, kv, shard: None }
}

/// Sequences over one model, empty at first.
pub(crate) struct Sequences<'a> {
    model: &'a Model,
    kv: KvPool,
    blocks: Vec<Vec<BlockId>>,
    positions: Vec<usize>,
}

impl<'a> Sequences<'a> {
    /// `count` sequences of at most `capacity` tokens.
    pub(crate) fn new(model: &'a Model, count: usize, capacity: usize) -> Self {
        let mut ids = (0..).map(BlockId);
        let blocks = (0..count).map(|_| ids.by_ref().take(blocks_for(capacity)).collect()).collect();
        Self { model, kv: model.new_kv(count), blocks, positions: vec![0; count] }
    }

    /// Appends `tokens` to one sequence; the logits (V) after the last of them.
    #[allow(dead_code, reason = "not every example asks for the last logits alone")]
    pub(crate) fn extend(&mut self, sequence: usize, tokens: &[u32]) -> Result<Logits, InferError> {
        let mut logits = Logits::of(Vec::new());
        let mut chunks = tokens.chunks(PASS).peekable();
        while let Some(tokens) = chunks.next() {
            let wanted = if chunks.peek().is_some() { Wanted::None } else { Wanted::Last };
            if let Output::Logits(rows) = self.pass(&[(sequence, tokens)], wanted, None)? {
                logits = rows.into_iter().next_back().unwrap_or(logits);
            }
        }
        Ok(logits)
    }

    /// Appends a token to each sequence, all in one pass; the logits (V) of each.
    #[allow(dead_code, reason = "not every example has more than one sequence")]
    pub(crate) fn step(&mut self, tokens: &[u32]) -> Result<Vec<Logits>, InferError> {
        let parts: Vec<_> = tokens.chunks(1).enumerate().collect();
        match self.pass(&parts, Wanted::Last, None)? {
            Output::Logits(rows) => Ok(rows),
            Output::Hidden(_) => Err(InferError::NoHead),
        }
    }

    /// Appends tokens to some sequences in one pass. `hidden`, (T, E), takes the place of the embedding in a shard that
    /// has none.
    pub(crate) fn pass(
        &mut self,
        more: &[(usize, &[u32])],
        logits: Wanted,
        hidden: Option<&[f32]>,
    ) -> Result<Output, InferError> {
        let part = |&(slot, tokens): &(usize, _)| {
            let (position, blocks) = (self.positions[slot], self.blocks[slot].as_slice());
            Part { tokens, position, blocks, slot, logits }
        };
        let parts: Vec<Part<'_>> = more.iter().map(part).collect();
        let output = self.model.pass(&parts, hidden, &mut self.kv)?;
        for (sequence, tokens) in more {
            self.positions[*sequence] += tokens.len();
        }
        Ok(output)
    }

    /// Memory of all keys and values now.
    #[allow(dead_code, reason = "not every example measures")]
    pub(crate) fn kv_bytes(&self) -> u64 {
        self.kv.bytes().get()
    }
}
