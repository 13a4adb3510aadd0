//! A run of a model's layers as a stage of a pipeline: sessions, each with blocks of keys and values and, where the
//! head is, a sampler.

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use ram_core::id::JobId;
use ram_core::units::{Bytes, TokenCount};
use ram_infer::batch::{BLOCK_TOKENS, BlockId, Part, Wanted, blocks_for};
use ram_infer::error::InferError;
use ram_infer::kv::KvPool;
use ram_infer::logits::Logits;
use ram_infer::models::{Model, Output, Shard};
use ram_infer::sample::{Pick, Report, Sampler};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_proto::frame::{Code, Logprob, Want};
use tracing::warn;

/// A [`Stage`] of a model, or of a shard of one.
pub struct ModelStage {
    model: Model,
    kv: KvPool,
    sessions: BTreeMap<JobId, Session>,
    /// Blocks and slots that no session has.
    blocks: Blocks,
    slots: BTreeSet<usize>,
    /// Dropped last, when the memory is free.
    _keeps: Option<Box<dyn Any + Send>>,
}

/// Blocks that no session has. Those that were never used are only counted: of layers without keys and values there may
/// be any number.
struct Blocks {
    /// Those that sessions gave back.
    back: BTreeSet<u32>,
    /// Those that no session had so far.
    fresh: Range<u32>,
}

impl Blocks {
    fn len(&self) -> usize {
        self.back.len() + self.fresh.len()
    }

    /// The lowest one: a table by id stays small.
    fn take(&mut self) -> Option<u32> {
        self.back.pop_first().or_else(|| self.fresh.next())
    }
}

/// What a session has here.
struct Session {
    blocks: Vec<BlockId>,
    slot: usize,
    /// Positions that are computed.
    length: usize,
    opening: Opening,
    /// What picks its tokens, where the head is.
    sampler: Sampler,
    /// What was picked here, and behind how many positions.
    picks: Vec<(usize, u32)>,
}

impl ModelStage {
    /// A stage of these weights, with memory for so many positions of sessions, all of them together, and as many
    /// sessions at once. Positions are counted and not bytes: layers without keys and values have positions, too.
    #[must_use]
    pub fn new(model: Model, positions: TokenCount, sessions: usize) -> Self {
        let count = blocks_for(usize::try_from(positions.get()).unwrap_or(usize::MAX));
        let blocks = Blocks { back: BTreeSet::new(), fresh: 0..u32::try_from(count).unwrap_or(u32::MAX) };
        let kv = model.new_kv(sessions);
        let slots = (0..sessions).collect();
        Self { model, kv, sessions: BTreeMap::new(), blocks, slots, _keeps: None }
    }

    /// The same, and something that lives until its memory is free: what it is lent by, say.
    #[must_use]
    pub fn keeping(self, what: impl Send + 'static) -> Self {
        Self { _keeps: Some(Box::new(what)), ..self }
    }

    /// Positions of sessions that there is memory for.
    #[must_use]
    pub fn room(&self) -> TokenCount {
        let held: usize = self.sessions.values().map(|held| held.blocks.len()).sum();
        TokenCount::new(((self.blocks.len() + held) * BLOCK_TOKENS) as u64)
    }

    /// Memory of keys and values that were written.
    #[must_use]
    pub fn kv_bytes(&self) -> Bytes {
        self.kv.bytes()
    }

    /// The model, or the shard of it.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }
}

impl Stage for ModelStage {
    fn open(&mut self, session: JobId, opening: &Opening) -> Result<(), Code> {
        self.close(session);
        let positions = usize::try_from(opening.positions.get()).map_err(|_| Code::WrongShape)?;
        let count = blocks_for(positions);
        let Some(&slot) = self.slots.first().filter(|_| count <= self.blocks.len()) else {
            return Err(Code::Busy);
        };
        self.slots.remove(&slot);
        let blocks = (0..count).filter_map(|_| self.blocks.take().map(BlockId)).collect();
        let opening = opening.clone();
        let sampler = sampler(&opening, &[]);
        self.sessions
            .insert(session, Session { blocks, slot, length: 0, opening, sampler, picks: Vec::new() });
        Ok(())
    }

    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code> {
        // What goes with a session that is not here, or cannot go back, comes to nothing.
        let mut taken = Vec::with_capacity(steps.len());
        for (number, step) in steps.iter().enumerate() {
            self.trim(step.session, step.position);
            let is_next = |held: &&Session| held.length == step.position as usize;
            if self.sessions.get(&step.session).filter(is_next).is_some() {
                taken.push(number);
            }
        }
        let mut outputs: Vec<StageOutput> = steps.iter().map(|_| StageOutput::Nothing).collect();
        if taken.is_empty() {
            return Ok(outputs);
        }
        let chosen: Vec<&StageStep> = taken.iter().map(|number| &steps[*number]).collect();
        let computed = self.compute(&chosen).map_err(|error| {
            warn!(%error, "a pass failed");
            Code::Internal
        })?;
        for (number, output) in taken.into_iter().zip(computed) {
            outputs[number] = output;
        }
        Ok(outputs)
    }

    fn trim(&mut self, session: JobId, position: u32) {
        let Some(held) = self.sessions.get_mut(&session) else { return };
        let position = position as usize;
        if position >= held.length || (self.model.is_recurrent() && position > 0) {
            return;
        }
        held.length = position;
        let before = held.picks.len();
        held.picks.retain(|(behind, _)| *behind <= position);
        if held.picks.len() < before {
            held.sampler = sampler(&held.opening, &held.picks);
        }
    }

    fn close(&mut self, session: JobId) {
        let Some(held) = self.sessions.remove(&session) else { return };
        for block in held.blocks {
            self.kv.release(block);
            self.blocks.back.insert(block.0);
        }
        self.slots.insert(held.slot);
    }
}

impl ModelStage {
    /// Computes steps of sessions that are where their steps begin.
    fn compute(&mut self, steps: &[&StageStep]) -> Result<Vec<StageOutput>, InferError> {
        let Self { model, kv, sessions, .. } = self;
        let (Shard { embed, head, .. }, width) = (model.shard(), model.config().hidden_size);
        let tokens: Vec<Cow<'_, [u32]>> = steps.iter().map(|step| tokens(&step.input, width)).collect();
        let hidden: Vec<f32> = steps.iter().flat_map(|step| hidden(&step.input)).copied().collect();
        let parts: Vec<Part<'_>> = steps
            .iter()
            .zip(&tokens)
            .map(|(step, tokens)| {
                let Session { blocks, slot, length: position, .. } = &sessions[&step.session];
                let logits = if head { wanted(step.want) } else { Wanted::None };
                Part { tokens, position: *position, blocks, slot: *slot, logits }
            })
            .collect();
        let output = model.pass(&parts, (!embed).then_some(&hidden[..]), kv)?;
        let ends = steps.iter().zip(&tokens).map(|(step, tokens)| (step, tokens.len()));
        let outputs = match output {
            Output::Hidden(numbers) => {
                let mut rest = numbers.into_iter();
                ends.map(|(step, count)| {
                    advance(sessions, step, count);
                    StageOutput::Hidden(rest.by_ref().take(count * width).collect())
                })
                .collect()
            }
            Output::Logits(rows) => {
                let mut rest = rows.into_iter();
                ends.map(|(step, count)| {
                    let Some(held) = advance(sessions, step, count) else { return StageOutput::Nothing };
                    match step.want {
                        Want::Nothing => StageOutput::Nothing,
                        Want::Token => rest.next().map_or(StageOutput::Nothing, |row| held.pick(&row)),
                        Want::Logits => {
                            let rows = rest.by_ref().take(count).flat_map(Vec::from);
                            StageOutput::Logits(rows.collect())
                        }
                    }
                })
                .collect()
            }
        };
        Ok(outputs)
    }
}

impl Session {
    /// Picks a token by the logits after the last position. There is none where the numbers are broken.
    fn pick(&mut self, logits: &Logits) -> StageOutput {
        let Ok(Pick { token, report }) = self.sampler.pick_row(logits, None) else {
            return StageOutput::Nothing;
        };
        self.picks.push((self.length, token));
        let logprob = report.map(|Report { logprob, top }| Logprob { logprob, top });
        StageOutput::Token { token, logprob }
    }
}

/// A session has come further.
fn advance<'a>(
    sessions: &'a mut BTreeMap<JobId, Session>,
    step: &StageStep,
    count: usize,
) -> Option<&'a mut Session> {
    let held = sessions.get_mut(&step.session)?;
    held.length += count;
    Some(held)
}

/// What picks the tokens of a session after these picks.
fn sampler(Opening { sampling, seen, picks, .. }: &Opening, more: &[(usize, u32)]) -> Sampler {
    let seen: Vec<u32> = seen.iter().copied().chain(more.iter().map(|(_, token)| *token)).collect();
    Sampler::resume(sampling.clone(), &seen, picks.get() + more.len() as u64)
}

/// The tokens of an input; of activations, (T, E), as many as there are: a shard without an embedding counts them
/// alone.
fn tokens(input: &Input, width: usize) -> Cow<'_, [u32]> {
    match input {
        Input::Tokens(tokens) => Cow::Borrowed(tokens),
        Input::Hidden(numbers) => Cow::Owned(vec![0; numbers.len() / width]),
    }
}

fn hidden(input: &Input) -> &[f32] {
    match input {
        Input::Tokens(_) => &[],
        Input::Hidden(numbers) => numbers,
    }
}

const fn wanted(want: Want) -> Wanted {
    match want {
        Want::Nothing => Wanted::None,
        Want::Token => Wanted::Last,
        Want::Logits => Wanted::All,
    }
}

impl fmt::Debug for ModelStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shard, sessions) = (self.model.shard(), self.sessions.len());
        f.debug_struct("ModelStage")
            .field("shard", &shard)
            .field("sessions", &sessions)
            .finish_non_exhaustive()
    }
}
