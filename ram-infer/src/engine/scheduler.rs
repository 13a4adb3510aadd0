//! Which sequence takes the next step, as a pure machine: no thread, no clock, no channel.
//!
//! Sequences wait in order of arrival, and run once a slot and the memory for their keys and values are free. Then
//! they take turns. A turn is one chunk of the prompt of whoever has waited for it longest, so that a long prompt
//! stalls nobody for longer than a chunk takes, and one token for each sequence that writes:
//!
//! ```text
//! A writes, B writes, C reads    ->  C:chunk A:token B:token | C:chunk A:token B:token | …
//! ```
//!
//! Each sequence is a row of its own in each forward pass, and its chunks are cut at fixed places of its own prompt:
//! what it computes does not depend on who else is there.
//!
//! [`Scheduler::step`] does at most one forward pass, so that a shell can look for news between any two.

use std::collections::VecDeque;

use ram_core::job::{Failure, FinishReason, Outcome, Usage};
use ram_core::units::{Bytes, TokenCount};

use super::answer::{Answer, Next, Step};
use super::{Event, Limits};
use crate::error::InferError;

/// What the scheduler needs of a model.
pub(super) trait Rows {
    /// Keys and values of one sequence.
    type Cache;

    /// An empty cache for `capacity` tokens.
    fn new_cache(&self, capacity: TokenCount) -> Result<Self::Cache, InferError>;

    /// What a full cache of `capacity` tokens takes.
    fn cache_bytes(&self, capacity: TokenCount) -> Bytes;

    /// Appends `tokens` to the cache; returns the logits (V) after the last of them.
    fn forward(&self, tokens: &[u32], cache: &mut Self::Cache) -> Result<Vec<f32>, InferError>;
}

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
    waiting: VecDeque<Waiting>,
    running: Vec<Running<M::Cache>>,
    /// Who steps next in this turn.
    turn: VecDeque<SequenceId>,
}

/// A sequence without a slot.
struct Waiting {
    id: SequenceId,
    prompt: Vec<u32>,
    answer: Answer,
}

/// A sequence with a slot and a cache.
struct Running<C> {
    id: SequenceId,
    prompt: Vec<u32>,
    answer: Answer,
    cache: C,
    /// Memory set aside for the cache when it is full.
    reserved: Bytes,
    state: State,
}

/// How far a sequence is.
#[derive(Clone, Copy, Debug)]
enum State {
    /// So many tokens of its prompt are computed, and not all.
    Reading(usize),
    /// This token of its answer is to be computed next.
    Writing(u32),
}

impl<'m, M: Rows> Scheduler<'m, M> {
    /// A scheduler with nothing to do.
    pub(super) const fn new(model: &'m M, limits: Limits) -> Self {
        Self { model, limits, waiting: VecDeque::new(), running: Vec::new(), turn: VecDeque::new() }
    }

    /// Takes a sequence: `prompt` is not empty, and fits the model's context with the answer.
    pub(super) fn submit(&mut self, id: SequenceId, prompt: Vec<u32>, answer: Answer) {
        self.waiting.push_back(Waiting { id, prompt, answer });
    }

    /// Forgets a sequence, wherever it is.
    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        self.running.retain(|sequence| sequence.id != id);
        self.turn.retain(|turn| *turn != id);
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that have a slot.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Memory set aside for keys and values.
    pub(super) fn kv_bytes(&self) -> Bytes {
        self.running.iter().map(|sequence| sequence.reserved).sum()
    }

    /// Takes the next step, and appends what came of it: sequences that start, or else one forward pass.
    pub(super) fn step(&mut self, effects: &mut Vec<Effect>) {
        if self.turn.is_empty() {
            let before = effects.len();
            self.admit(effects);
            self.begin_turn();
            if effects.len() > before {
                return; // That a sequence starts is known before its prompt is computed.
            }
        }
        let Some(id) = self.turn.pop_front() else { return };
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let outcome = match advance(self.model, self.limits, &mut self.running[index]) {
            Ok(None) => return,
            Ok(Some(step)) => match say(id, step, effects) {
                None => return,
                Some(finish) => Outcome::Done { finish, usage: self.running[index].usage() },
            },
            Err(error) => {
                let failure = error.failure();
                effects.push(Effect::Fault(error));
                Outcome::Failed { failure }
            }
        };
        self.running.remove(index);
        effects.push(Effect::Event(id, Event::End { outcome }));
    }

    /// Gives free slots and memory to those who wait, in order: nobody is overtaken, so nobody starves.
    fn admit(&mut self, effects: &mut Vec<Effect>) {
        while self.running.len() < usize::from(self.limits.slots.get())
            && let Some(next) = self.waiting.front()
        {
            let capacity = count(&next.prompt) + next.answer.tokens_max();
            let reserved = self.model.cache_bytes(capacity);
            let kv_bytes_max = self.limits.kv_bytes_max.unwrap_or(Bytes::MAX);
            if reserved <= kv_bytes_max && self.kv_bytes() + reserved > kv_bytes_max {
                return; // It fits once others have ended.
            }
            let Some(next) = self.waiting.pop_front() else { return };
            match self.start(next, capacity, reserved, kv_bytes_max) {
                Ok((running, started)) => {
                    effects.push(Effect::Event(running.id, started));
                    self.running.push(running);
                }
                Err(ended) => effects.extend(ended),
            }
        }
    }

    /// Gives a sequence its cache, or ends it.
    fn start(
        &self,
        Waiting { id, prompt, answer }: Waiting,
        capacity: TokenCount,
        reserved: Bytes,
        kv_bytes_max: Bytes,
    ) -> Result<(Running<M::Cache>, Event), Vec<Effect>> {
        let end = |outcome| Effect::Event(id, Event::End { outcome });
        let started = Event::Started { prompt: count(&prompt) };
        if answer.tokens_max() == TokenCount::ZERO {
            let usage = Usage { prompt: count(&prompt), ..Usage::default() };
            let done = Outcome::Done { finish: FinishReason::Length, usage };
            return Err(vec![Effect::Event(id, started), end(done)]);
        }
        let no_memory = Outcome::Failed { failure: Failure::OutOfMemory };
        if reserved > kv_bytes_max {
            return Err(vec![end(no_memory)]);
        }
        match self.model.new_cache(capacity) {
            Ok(cache) => {
                let state = State::Reading(0);
                Ok((Running { id, prompt, answer, cache, reserved, state }, started))
            }
            Err(error) => Err(vec![Effect::Fault(error), end(no_memory)]),
        }
    }

    /// Plans a turn: a chunk for the first who reads, a token for each who writes.
    fn begin_turn(&mut self) {
        let reads = |sequence: &&Running<M::Cache>| matches!(sequence.state, State::Reading(_));
        let reader = self.running.iter().find(reads);
        let writers = self.running.iter().filter(|sequence| !reads(sequence));
        self.turn = reader.into_iter().chain(writers).map(|sequence| sequence.id).collect();
    }
}

impl<C> Running<C> {
    fn usage(&self) -> Usage {
        Usage {
            prompt: count(&self.prompt),
            completion: self.answer.written(),
            reasoning: TokenCount::ZERO, // Counted where the reasoning is told from the answer.
        }
    }
}

/// Computes a chunk of the prompt or a token of the answer; with the prompt's last chunk and with each token of the
/// answer another one is written.
fn advance<M: Rows>(
    model: &M,
    limits: Limits,
    sequence: &mut Running<M::Cache>,
) -> Result<Option<Step>, InferError> {
    let logits = match sequence.state {
        State::Reading(read) => {
            let rest = &sequence.prompt[read..];
            let chunk = &rest[..rest.len().min(limits.prefill_chunk.get())];
            let logits = model.forward(chunk, &mut sequence.cache)?;
            if chunk.len() < rest.len() {
                sequence.state = State::Reading(read + chunk.len());
                return Ok(None);
            }
            logits
        }
        State::Writing(token) => model.forward(&[token], &mut sequence.cache)?,
    };
    let step = sequence.answer.write(&logits)?;
    if let Next::Token(token) = step.next {
        sequence.state = State::Writing(token);
    }
    Ok(Some(step))
}

/// Says what a token brought; returns why the answer is over, if it is.
fn say(id: SequenceId, step: Step, effects: &mut Vec<Effect>) -> Option<FinishReason> {
    if let Some(delta) = step.delta {
        effects.push(Effect::Event(id, delta.into()));
    }
    match step.next {
        Next::Token(_) => None,
        Next::End(finish) => Some(finish),
    }
}

/// How many tokens.
fn count(tokens: &[u32]) -> TokenCount {
    TokenCount::new(tokens.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::FakeModel;
    use crate::tokenize::Tokenizer;
    use crate::tokenize::tests::byte_level;
    use proptest::prelude::*;
    use ram_core::job::{GenerationParams, Sampling};
    use std::collections::BTreeMap;
    use std::num::{NonZeroU16, NonZeroUsize};
    use std::sync::{Arc, LazyLock};

    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(byte_level(&[])));

    fn limits(slots: u16) -> Limits {
        Limits {
            slots: NonZeroU16::new(slots).unwrap(),
            kv_bytes_max: None,
            prefill_chunk: NonZeroUsize::new(4).unwrap(),
        }
    }

    fn answer(prompt: &[u32], tokens_max: u64, seed: u64) -> Answer {
        let tokens_max = TokenCount::new(tokens_max);
        let sampling = Sampling { seed, ..Sampling::default() };
        let params = GenerationParams::new(tokens_max, sampling);
        Answer::new(Arc::clone(&TOKENIZER), Arc::new([]), prompt, params, tokens_max)
    }

    fn submit<M: Rows>(scheduler: &mut Scheduler<'_, M>, id: u64, prompt: &[u32], tokens_max: u64) {
        scheduler.submit(SequenceId(id), prompt.to_vec(), answer(prompt, tokens_max, id));
    }

    /// Steps until there is nothing to do; what happened to each sequence, in order.
    fn run<M: Rows>(scheduler: &mut Scheduler<'_, M>) -> BTreeMap<u64, Vec<Event>> {
        let mut effects = Vec::new();
        while !scheduler.is_idle() {
            scheduler.step(&mut effects);
        }
        let mut events: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
        for effect in effects {
            if let Effect::Event(SequenceId(id), event) = effect {
                events.entry(id).or_default().push(event);
            }
        }
        events
    }

    fn text(events: &[Event]) -> String {
        events
            .iter()
            .map(|event| if let Event::Delta { text, .. } = event { text.as_str() } else { "" })
            .collect()
    }

    fn failed(failure: Failure) -> Event {
        Event::End { outcome: Outcome::Failed { failure } }
    }

    #[test]
    fn a_long_prompt_is_read_in_chunks_between_the_tokens_of_others() {
        let model = FakeModel::default();
        let mut scheduler = Scheduler::new(&model, limits(3));
        submit(&mut scheduler, 1, &[1; 3], 5);
        submit(&mut scheduler, 2, &[2; 2], 5);
        submit(&mut scheduler, 3, &[3; 10], 1);
        run(&mut scheduler);
        // (first token of the prompt, tokens in the pass)
        let expected = [
            (1, 3),
            (2, 2),
            (1, 1),
            (3, 4),
            (1, 1),
            (2, 1),
            (3, 4),
            (1, 1),
            (2, 1),
            (3, 2),
            (1, 1),
            (2, 1),
            (2, 1),
        ];
        assert_eq!(model.passes(), expected);
    }

    #[test]
    fn sequences_wait_for_slots_in_order() {
        let model = FakeModel::default();
        let mut scheduler = Scheduler::new(&model, limits(1));
        for id in 1_u32..=3 {
            submit(&mut scheduler, id.into(), &[id], 2);
        }
        scheduler.step(&mut Vec::new());
        assert_eq!((scheduler.running(), scheduler.waiting.len()), (1, 2));
        run(&mut scheduler);
        assert_eq!(model.passes(), [(1, 1), (1, 1), (2, 1), (2, 1), (3, 1), (3, 1)]);
    }

    #[test]
    fn sequences_wait_for_memory_and_are_refused_when_it_can_never_do() {
        let model = FakeModel::default();
        let bytes = |tokens| model.cache_bytes(TokenCount::new(tokens));
        let limits = Limits { kv_bytes_max: Some(bytes(10)), ..limits(3) };
        let mut scheduler = Scheduler::new(&model, limits);
        submit(&mut scheduler, 1, &[1; 4], 2); // 6 tokens
        submit(&mut scheduler, 2, &[2; 4], 2); // 6 more: waits
        submit(&mut scheduler, 3, &[3; 9], 2); // 11: never
        submit(&mut scheduler, 4, &[4; 1], 1); // 2: would fit beside 1, overtakes nobody
        scheduler.step(&mut Vec::new());
        assert_eq!((scheduler.running(), scheduler.kv_bytes()), (1, bytes(6)));
        let events = run(&mut scheduler);
        assert_eq!(model.passes(), [(1, 4), (1, 1), (2, 4), (4, 1), (2, 1)]);
        assert_eq!(events[&3], [failed(Failure::OutOfMemory)]);
        assert_eq!(scheduler.kv_bytes(), Bytes::ZERO);
    }

    #[test]
    fn a_cancelled_sequence_computes_no_more() {
        let model = FakeModel::default();
        let mut scheduler = Scheduler::new(&model, limits(2));
        for id in 1_u32..=3 {
            submit(&mut scheduler, id.into(), &[id], 3);
        }
        let mut effects = Vec::new();
        scheduler.step(&mut effects);
        scheduler.step(&mut effects);
        scheduler.cancel(SequenceId(1));
        scheduler.cancel(SequenceId(3));
        let events = run(&mut scheduler);
        assert_eq!(model.passes(), [(1, 1), (2, 1), (2, 1), (2, 1)]);
        assert_eq!(events.keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_failure_of_one_sequence_ends_only_that_one() {
        let model = FakeModel::failing_on(7);
        let mut scheduler = Scheduler::new(&model, limits(2));
        submit(&mut scheduler, 1, &[7; 6], 3);
        submit(&mut scheduler, 2, &[2; 6], 3);
        let mut effects = Vec::new();
        scheduler.step(&mut effects);
        scheduler.step(&mut effects);
        assert!(effects.contains(&Effect::Fault(InferError::NoTokens)), "{effects:?}");
        assert!(effects.contains(&Effect::Event(SequenceId(1), failed(Failure::Internal))));
        let events = run(&mut scheduler);
        assert!(matches!(events[&2].last(), Some(Event::End { outcome: Outcome::Done { .. } })));
    }

    #[test]
    fn an_answer_of_no_tokens_computes_nothing() {
        let model = FakeModel::default();
        let mut scheduler = Scheduler::new(&model, limits(1));
        submit(&mut scheduler, 1, &[1; 5], 0);
        let usage = Usage { prompt: TokenCount::new(5), ..Usage::default() };
        let done = Outcome::Done { finish: FinishReason::Length, usage };
        let expected = [Event::Started { prompt: TokenCount::new(5) }, Event::End { outcome: done }];
        assert_eq!(run(&mut scheduler)[&1], expected);
        assert_eq!(model.passes(), []);
    }

    #[test]
    fn usage_counts_prompt_and_answer() {
        let model = FakeModel::default();
        let mut scheduler = Scheduler::new(&model, limits(1));
        submit(&mut scheduler, 1, &[1; 9], 7);
        let events = run(&mut scheduler).remove(&1).unwrap();
        let usage =
            Usage { prompt: TokenCount::new(9), completion: TokenCount::new(7), reasoning: TokenCount::ZERO };
        let done = Outcome::Done { finish: FinishReason::Length, usage };
        assert_eq!(events.last(), Some(&Event::End { outcome: done }));
        assert_eq!(events.first(), Some(&Event::Started { prompt: TokenCount::new(9) }));
    }

    proptest! {
        #[test]
        fn every_sequence_says_the_same_alone_and_beside_strangers(
            prompts in prop::collection::vec(prop::collection::vec(97_u32..123, 1..20), 1..6),
            slots in 1_u16..5,
        ) {
            let model = FakeModel::default();
            let mut together = Scheduler::new(&model, limits(slots));
            for (id, prompt) in (0..).zip(&prompts) {
                submit(&mut together, id, prompt, 10);
            }
            let together = run(&mut together);
            for (id, prompt) in (0..).zip(&prompts) {
                let mut alone = Scheduler::new(&model, limits(1));
                submit(&mut alone, id, prompt, 10);
                let alone = run(&mut alone);
                prop_assert_eq!(text(&together[&id]), text(&alone[&id]));
                prop_assert_eq!(together[&id].last(), alone[&id].last());
            }
        }

        #[test]
        fn every_sequence_starts_and_ends_once(
            sizes in prop::collection::vec((1_usize..15, 0_u64..6), 1..10),
            slots in 1_u16..4,
            memory in 1_u64..30,
        ) {
            let model = FakeModel::default();
            let kv_bytes_max = Some(model.cache_bytes(TokenCount::new(memory)));
            let mut scheduler = Scheduler::new(&model, Limits { kv_bytes_max, ..limits(slots) });
            for (id, (prompt, tokens_max)) in (0..).zip(&sizes) {
                submit(&mut scheduler, id, &vec![97; *prompt], *tokens_max);
            }
            let events = run(&mut scheduler);
            prop_assert_eq!(events.len(), sizes.len());
            for events in events.values() {
                let ends = events.iter().filter(|event| matches!(event, Event::End { .. })).count();
                let starts = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
                let ended = matches!(events.last(), Some(Event::End { .. }));
                prop_assert!(ends == 1 && ended);
                prop_assert!(starts == 1 || events.len() == 1);
            }
            prop_assert_eq!(scheduler.kv_bytes(), Bytes::ZERO);
        }
    }
}
