//! A model for tests: its logits are a hash of what it finds in the blocks that it is given, so that any mix-up of
//! blocks, positions, slots or sequences shows in the text.
//!
//! As in a real model, what is kept at a position depends on the token there and on all before it; and whatever is
//! read without having been written, or written where another reads, is an error of the caller and panics.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use ram_core::units::Bytes;

use crate::batch::{BLOCK_TOKENS, BlockId, Part, Rows, Wanted};
use crate::error::InferError;
use crate::logits::Logits;

/// A model over the vocabulary of the tests' byte-level tokenizer.
#[derive(Debug, Default)]
pub(super) struct FakeModel {
    /// A part that holds this token is an error.
    fails_on: Option<u32>,
    /// A part that holds this token is a panic.
    panics_on: Option<u32>,
    /// Passes of more than one part are an error.
    fails_together: bool,
    /// Each pass waits here for leave, until the sender is gone.
    gate: Option<Mutex<Receiver<()>>>,
    /// It keeps a state for each slot, and cannot go back.
    recurrent: bool,
    /// It likes to go on as the text did after the last two tokens before.
    repeats: bool,
    /// Each pass: for each part the first token of the sequence, and how many were computed.
    passes: Mutex<Vec<Vec<(u32, usize)>>>,
}

/// What is kept of all sequences.
#[derive(Debug, Default)]
pub(super) struct FakeKv {
    blocks: BTreeMap<BlockId, [Option<Kept>; BLOCK_TOKENS]>,
    states: Vec<Kept>,
}

/// What is kept of a position: the token, and a hash of it, its position and all before.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Kept {
    token: u32,
    past: u64,
    position: usize,
}

impl FakeModel {
    pub(super) fn failing_on(token: u32) -> Self {
        Self { fails_on: Some(token), ..Self::default() }
    }

    pub(super) fn panicking_on(token: u32) -> Self {
        Self { panics_on: Some(token), ..Self::default() }
    }

    /// A model that computes a pass for each message to the sender, and freely once that is dropped.
    pub(super) fn gated() -> (Self, Sender<()>) {
        let (sender, gate) = channel();
        (Self { gate: Some(Mutex::new(gate)), ..Self::default() }, sender)
    }

    pub(super) fn failing_together(self) -> Self {
        Self { fails_together: true, ..self }
    }

    pub(super) fn recurrent(self) -> Self {
        Self { recurrent: true, ..self }
    }

    pub(super) fn repeating() -> Self {
        Self { repeats: true, ..Self::default() }
    }

    /// The parts of the passes so far.
    pub(super) fn passes(&self) -> Vec<Vec<(u32, usize)>> {
        self.passes.lock().unwrap().clone()
    }

    /// Tokens computed so far.
    pub(super) fn computed(&self) -> usize {
        self.passes().iter().flatten().map(|(_, tokens)| tokens).sum()
    }

    /// That each block is written by one part, and read by no other beside it.
    fn check(parts: &[Part<'_>]) {
        let mut written = BTreeSet::new();
        for part in parts {
            assert!(part.blocks.len() * BLOCK_TOKENS >= part.position + part.tokens.len(), "enough blocks");
            let own = &part.blocks[part.position / BLOCK_TOKENS..];
            assert!(own.iter().all(|block| written.insert(*block)), "a block is written by one part");
        }
        for part in parts {
            let read = &part.blocks[..part.position / BLOCK_TOKENS];
            assert!(read.iter().all(|block| !written.contains(block)), "a full block is not written");
        }
        let slots: BTreeSet<usize> = parts.iter().map(|part| part.slot).collect();
        assert_eq!(slots.len(), parts.len(), "a slot is one sequence's");
    }

    /// Writes a part and returns its logits.
    fn part(&self, part: &Part<'_>, kv: &mut FakeKv) -> Vec<Logits> {
        let mut rows = Vec::new();
        for (index, &token) in part.tokens.iter().enumerate() {
            let position = part.position + index;
            let mut seen: Vec<Kept> = (0..position).map(|position| kv.at(part.blocks, position)).collect();
            let before = if self.recurrent { kv.state(part.slot, position) } else { seen.last().copied() };
            let past = hash(&(before, token, position));
            let kept = Kept { token, past, position };
            kv.write(part, position, kept);
            seen.push(kept);
            let last = index + 1 == part.tokens.len();
            if part.logits == Wanted::All || (part.logits == Wanted::Last && last) {
                rows.push(Logits::of(self.logits(&seen)));
            }
        }
        rows
    }

    /// Small letters alone, so that answers are easy to read.
    fn logits(&self, seen: &[Kept]) -> Vec<f32> {
        let past = hash(&seen);
        let logit = |token: u32| (hash(&(past, token)) % 1000) as f32 / 200.0;
        let letter = |token| if matches!(token, 97..=122) { logit(token) } else { -40.0 };
        let mut logits: Vec<f32> = (0..262).map(letter).collect();
        if let (true, [before @ .., a, b]) = (self.repeats, seen) {
            let again =
                before.windows(3).rev().find(|run| run[0].token == a.token && run[1].token == b.token);
            if let Some(run) = again {
                logits[run[2].token as usize] += 7.0;
            }
        }
        logits
    }
}

impl FakeKv {
    /// Blocks in memory.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn at(&self, blocks: &[BlockId], position: usize) -> Kept {
        let block = self.blocks.get(&blocks[position / BLOCK_TOKENS]).expect("what is read was written");
        let kept = block[position % BLOCK_TOKENS].expect("what is read was written");
        assert_eq!(kept.position, position, "a block is read where it was written");
        kept
    }

    /// The state after the token before `position`.
    fn state(&self, slot: usize, position: usize) -> Option<Kept> {
        let before = position.checked_sub(1)?;
        assert_eq!(self.states[slot].position, before, "a state goes on from where it is");
        Some(self.states[slot])
    }

    fn write(&mut self, part: &Part<'_>, position: usize, kept: Kept) {
        let block = self.blocks.entry(part.blocks[position / BLOCK_TOKENS]).or_default();
        block[position % BLOCK_TOKENS] = Some(kept);
        block[position % BLOCK_TOKENS + 1..].fill(None);
        self.states[part.slot] = kept;
    }
}

impl Rows for FakeModel {
    type Kv = FakeKv;

    fn block_bytes(&self) -> Bytes {
        Bytes::new(100 * BLOCK_TOKENS as u64)
    }

    fn is_recurrent(&self) -> bool {
        self.recurrent
    }

    fn new_kv(&self, slots: usize) -> FakeKv {
        FakeKv { blocks: BTreeMap::new(), states: vec![Kept::default(); slots] }
    }

    fn forward(&self, parts: &[Part<'_>], kv: &mut FakeKv) -> Result<Vec<Logits>, InferError> {
        if let Some(gate) = &self.gate {
            let _ = gate.lock().unwrap().recv();
        }
        Self::check(parts);
        let holds = |token: Option<u32>| {
            token.is_some_and(|token| parts.iter().any(|part| part.tokens.contains(&token)))
        };
        assert!(!holds(self.panics_on), "the model panics, as asked");
        let mut rows = Vec::new();
        for part in parts {
            rows.extend(self.part(part, kv));
        }
        let first = |part: &Part<'_>| (kv.at(part.blocks, 0).token, part.tokens.len());
        self.passes.lock().unwrap().push(parts.iter().map(first).collect());
        if holds(self.fails_on) || (self.fails_together && parts.len() > 1) {
            return Err(InferError::NoTokens); // With all parts computed: so that the states have moved.
        }
        Ok(rows)
    }

    fn release(&self, block: BlockId, kv: &mut FakeKv) {
        kv.blocks.remove(&block);
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
