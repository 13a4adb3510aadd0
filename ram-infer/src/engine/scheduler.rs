//! Which sequences take part in the next pass, as a pure machine: no thread, no clock, no channel.
//!
//! Sequences wait in order of arrival, and run once a slot and the blocks for their keys and values are free. From then
//! on every pass takes along one token of each sequence that writes (with guesses, [`Drafter`]), and chunks of the
//! prompts of those who read, in turn, as long as they fit the budget of [`Limits::prefill_chunk`] tokens. So a long
//! prompt stalls nobody for longer than a chunk takes:
//!
//! ```text
//! A and B write, C reads    ->  A:token B:token C:chunk | A:token B:token C:chunk | …
//! ```
//!
//! Chunks are cut at fixed places of each prompt: what a sequence computes does not depend on who else is there.
//! Beginnings that were computed before, for the same sequence or another, are not computed again ([`Ledger`]).
//!
//! A pass that fails is repeated part by part, and ends only the sequence whose part fails alone.
//!
//! [`Scheduler::step`] does at most one forward pass, so that a shell can look for news between any two.

use std::collections::{BTreeSet, VecDeque};

use ram_core::job::{Failure, FinishReason, Outcome, Usage};
use ram_core::units::{Bytes, TokenCount};

use super::answer::Answer;
use super::blocks::{Admission, Lease, Ledger};
use super::speculate::Drafter;
use super::text::{Next, Step};
use super::{Event, Limits};
use crate::batch::{Part, Rows, Wanted};
use crate::error::InferError;
use crate::logits::Logits;

/// Names a sequence; given by whoever submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SequenceId(pub(super) u64);

/// What a step says to the outside.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// This happened to a sequence; after an [`Event::End`] nothing more does.
    Event(SequenceId, Event),
    /// The model failed a sequence for this reason.
    Fault(InferError),
}

/// The sequences of one model and their turns.
pub(super) struct Scheduler<'m, M: Rows> {
    model: &'m M,
    limits: Limits,
    kv: M::Kv,
    ledger: Ledger,
    free_slots: BTreeSet<usize>,
    waiting: VecDeque<Waiting>,
    /// In order of arrival.
    running: Vec<Running>,
    /// Those who read, in the order of their turns.
    readers: VecDeque<SequenceId>,
    /// Those of a pass that failed, each to be tried alone until it has computed so many positions.
    suspects: VecDeque<(SequenceId, usize)>,
}

/// A sequence without a slot.
struct Waiting {
    id: SequenceId,
    prompt: Vec<u32>,
    answer: Answer,
}

/// A sequence with a slot and blocks.
struct Running {
    id: SequenceId,
    /// Its prompt and its answer so far.
    tokens: Vec<u32>,
    /// How many of them are the prompt.
    prompt: usize,
    /// How many of them have been computed; never all, for the last one's logits are still wanted.
    computed: usize,
    answer: Answer,
    lease: Lease,
    slot: usize,
    drafter: Drafter,
}

/// One sequence's part of the next pass.
struct Planned {
    id: SequenceId,
    /// Tokens that follow the computed ones.
    tokens: Vec<u32>,
    /// How many of them, at the end, are guesses.
    guessed: usize,
    logits: Wanted,
}

impl<'m, M: Rows> Scheduler<'m, M> {
    /// A scheduler with nothing to do.
    pub(super) fn new(model: &'m M, limits: Limits) -> Self {
        let slots = usize::from(limits.slots.get());
        Self {
            model,
            limits,
            kv: model.new_kv(slots),
            ledger: Ledger::new(limits.blocks),
            free_slots: (0..slots).collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            readers: VecDeque::new(),
            suspects: VecDeque::new(),
        }
    }

    /// Takes a sequence: `prompt` is not empty, and fits the model's context with the answer.
    pub(super) fn submit(&mut self, id: SequenceId, prompt: Vec<u32>, answer: Answer) {
        self.waiting.push_back(Waiting { id, prompt, answer });
    }

    /// Forgets a sequence, wherever it is.
    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        self.remove(id);
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that have a slot.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Memory set aside for keys and values of those that run.
    pub(super) fn kv_bytes(&self) -> Bytes {
        self.model.block_bytes().saturating_mul(self.ledger.set_aside() as u64)
    }

    /// Memory with the keys and values of beginnings that may come again; it gives way where it is needed.
    pub(super) fn kv_bytes_idle(&self) -> Bytes {
        self.model.block_bytes().saturating_mul(self.ledger.idle() as u64)
    }

    /// Takes the next step, and appends what came of it: sequences that start, or else one forward pass.
    pub(super) fn step(&mut self, effects: &mut Vec<Effect>) {
        let before = effects.len();
        self.admit(effects);
        self.give_back();
        if effects.len() > before {
            return; // That a sequence starts is known before its prompt is computed.
        }
        let plan = self.plan();
        if !plan.is_empty() {
            self.pass(&plan, effects);
            self.give_back();
        }
    }

    /// Gives free slots and blocks to those who wait, in order: nobody is overtaken, so nobody starves.
    fn admit(&mut self, effects: &mut Vec<Effect>) {
        while let Some(&slot) = self.free_slots.first()
            && let Some(Waiting { id, prompt, answer }) = self.waiting.pop_front()
        {
            let mut say = |event| effects.push(Effect::Event(id, event));
            let read = TokenCount::new(prompt.len() as u64);
            if answer.tokens_max() == TokenCount::ZERO {
                say(Event::Started { prompt: read, cached: TokenCount::ZERO });
                let usage = Usage { prompt: read, ..Usage::default() };
                say(Event::End { outcome: Outcome::Done { finish: FinishReason::Length, usage } });
                continue;
            }
            let tokens_max = usize::try_from(answer.tokens_max().get()).unwrap_or(usize::MAX);
            match self.ledger.admit(&prompt, prompt.len().saturating_add(tokens_max)) {
                Admission::Later => {
                    self.waiting.push_front(Waiting { id, prompt, answer });
                    return;
                }
                Admission::Never => {
                    say(Event::End { outcome: Outcome::Failed { failure: Failure::OutOfMemory } });
                }
                Admission::Now(lease) => {
                    let computed = lease.shared_positions();
                    say(Event::Started { prompt: read, cached: TokenCount::new(computed as u64) });
                    self.free_slots.remove(&slot);
                    self.readers.push_back(id);
                    let (prompt, tokens, drafter) = (prompt.len(), prompt, Drafter::new());
                    self.running.push(Running { id, tokens, prompt, computed, answer, lease, slot, drafter });
                }
            }
        }
    }

    /// The parts of the next pass, and their blocks.
    fn plan(&mut self) -> Vec<Planned> {
        let mut plan = match self.suspect() {
            Some(index) => vec![self.running[index].chunk(self.limits.prefill_chunk.get())],
            None => self.plan_tokens().into_iter().chain(self.plan_chunks()).collect(),
        };
        for planned in &mut plan {
            if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == planned.id) {
                self.ledger.extend(&mut sequence.lease, sequence.computed + planned.tokens.len());
            }
        }
        plan
    }

    /// Where the sequence is that is to be tried alone, if any.
    fn suspect(&mut self) -> Option<usize> {
        while let Some((id, until)) = self.suspects.front() {
            let index = self.running.iter().position(|sequence| sequence.id == *id);
            if let Some(index) = index.filter(|index| self.running[*index].computed < *until) {
                return Some(index);
            }
            self.suspects.pop_front();
        }
        None
    }

    /// The next token of each who writes, with guesses.
    fn plan_tokens(&mut self) -> Vec<Planned> {
        let speculates = self.limits.speculation && !self.model.is_recurrent();
        let writers = self.running.iter().filter(|sequence| !sequence.reads()).count();
        let room = if speculates { PASS_GUESSES_MAX.saturating_sub(writers) } else { 0 };
        let room = room.checked_div(writers).unwrap_or(0);
        let writers = self.running.iter_mut().filter(|sequence| !sequence.reads());
        writers.map(|sequence| sequence.token(room)).collect()
    }

    /// Chunks of prompts as far as the budget goes; one at least, if anybody reads.
    fn plan_chunks(&mut self) -> Vec<Planned> {
        let chunk_max = self.limits.prefill_chunk.get();
        let (mut plan, mut room) = (Vec::new(), chunk_max);
        for _ in 0..self.readers.len() {
            let Some(&id) = self.readers.front() else { break };
            let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) else { break };
            self.ledger.adopt(&mut sequence.lease, &sequence.tokens);
            sequence.computed = sequence.computed.max(sequence.lease.shared_positions());
            let chunk = sequence.chunk(chunk_max);
            let Some(left) = room.checked_sub(chunk.tokens.len()) else { break };
            room = left;
            self.readers.rotate_left(1);
            plan.push(chunk);
        }
        plan
    }

    /// Computes the parts, and writes what comes of them.
    fn pass(&mut self, plan: &[Planned], effects: &mut Vec<Effect>) {
        let mut parts = Vec::with_capacity(plan.len());
        for Planned { id, tokens, logits, .. } in plan {
            let Some(sequence) = self.running.iter().find(|sequence| sequence.id == *id) else { continue };
            let Running { computed: position, lease, slot, .. } = sequence;
            let (blocks, logits) = (lease.blocks(), *logits);
            parts.push(Part { tokens, position: *position, blocks, slot: *slot, logits });
        }
        match self.model.forward(&parts, &mut self.kv) {
            Ok(rows) => {
                let mut rows = rows.as_slice();
                for planned in plan {
                    let (own, others) = rows.split_at(planned.rows().min(rows.len()));
                    rows = others;
                    self.advance(planned, own, effects);
                }
            }
            Err(error) => self.failed(plan, error, effects),
        }
    }

    /// Counts a part as computed, and writes the answer's tokens by its logits.
    fn advance(&mut self, planned: &Planned, rows: &[Logits], effects: &mut Vec<Effect>) {
        let id = planned.id;
        let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) else { return };
        let (sure, guesses) = planned.tokens.split_at(planned.tokens.len() - planned.guessed);
        sequence.computed += sure.len();
        let before = sequence.computed;
        let outcome = sequence.write(rows, guesses, effects);
        sequence.drafter.learn(guesses.len(), sequence.computed - before);
        self.ledger.share(&mut sequence.lease, &sequence.tokens, sequence.computed);
        if !sequence.reads() {
            self.readers.retain(|reader| *reader != id);
        }
        if let Some(outcome) = outcome {
            self.remove(id);
            effects.push(Effect::Event(id, Event::End { outcome }));
        }
    }

    /// Ends the sequence whose part failed alone; of several, each is to be tried alone.
    fn failed(&mut self, plan: &[Planned], error: InferError, effects: &mut Vec<Effect>) {
        if let [only] = plan {
            self.remove(only.id);
            effects.push(Effect::Fault(error));
            let outcome = Outcome::Failed { failure: Failure::Internal };
            effects.push(Effect::Event(only.id, Event::End { outcome }));
            return;
        }
        for Planned { id, .. } in plan {
            let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == *id) else {
                continue;
            };
            self.suspects.push_back((*id, sequence.computed + 1));
            if self.model.is_recurrent() {
                sequence.computed = 0;
            }
        }
    }

    /// Takes a sequence out of the running ones, and its blocks and its slot back.
    fn remove(&mut self, id: SequenceId) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let Running { lease, slot, .. } = self.running.remove(index);
        self.ledger.end(lease);
        self.free_slots.insert(slot);
        self.readers.retain(|reader| *reader != id);
    }

    /// Gives back the memory of blocks that were freed.
    fn give_back(&mut self) {
        for block in self.ledger.released() {
            self.model.release(block, &mut self.kv);
        }
    }
}

impl Running {
    /// Whether more than its last token is to be computed.
    const fn reads(&self) -> bool {
        self.computed < self.prompt || self.computed + 1 < self.tokens.len()
    }

    /// Its tokens up to the next fixed place, `chunk_max` tokens apart.
    fn chunk(&self, chunk_max: usize) -> Planned {
        let end = ((self.computed / chunk_max + 1) * chunk_max).min(self.tokens.len());
        let logits = if end == self.tokens.len() { Wanted::Last } else { Wanted::None };
        Planned { id: self.id, tokens: self.tokens[self.computed..end].to_vec(), guessed: 0, logits }
    }

    /// Its last token, and at most `room` guesses that may follow it.
    fn token(&mut self, room: usize) -> Planned {
        // The last token of the answer is not computed: nothing is wanted after it.
        let left = self.answer.tokens_max().saturating_sub(self.answer.written() + TokenCount::new(1));
        let room = usize::try_from(left.get()).map_or(room, |left| room.min(left));
        let guesses = if room > 0 { self.drafter.guess(&self.tokens, room) } else { Vec::new() };
        let (guessed, logits) = (guesses.len(), if guesses.is_empty() { Wanted::Last } else { Wanted::All });
        let tokens = self.tokens[self.computed..].iter().copied().chain(guesses).collect();
        Planned { id: self.id, tokens, guessed, logits }
    }

    /// Writes a token by each row of logits, as long as it is what was guessed. Returns how the answer ended, if so.
    fn write(&mut self, rows: &[Logits], guesses: &[u32], effects: &mut Vec<Effect>) -> Option<Outcome> {
        let guesses = guesses.iter().copied().map(Some).chain([None]);
        for (logits, guess) in rows.iter().zip(guesses) {
            let Step { delta, next } = match self.answer.write(logits) {
                Ok(step) => step,
                Err(error) => {
                    let failure = error.failure();
                    effects.push(Effect::Fault(error));
                    return Some(Outcome::Failed { failure });
                }
            };
            effects.extend(delta.map(|delta| Effect::Event(self.id, delta.into())));
            match next {
                Next::End(finish) => return Some(Outcome::Done { finish, usage: self.usage() }),
                Next::Token(token) => self.tokens.push(token),
            }
            if guess != self.tokens.last().copied() {
                break;
            }
            self.computed += 1;
        }
        None
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt: TokenCount::new(self.prompt as u64),
            completion: self.answer.written(),
            reasoning: TokenCount::ZERO, // Counted where the reasoning is told from the answer.
        }
    }
}

impl Planned {
    /// Rows of logits that it gets.
    const fn rows(&self) -> usize {
        match self.logits {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }
}

/// Tokens of those who write in one pass, guesses included: with more, a pass is no longer bound by memory.
const PASS_GUESSES_MAX: usize = 16;

#[cfg(test)]
mod tests;
