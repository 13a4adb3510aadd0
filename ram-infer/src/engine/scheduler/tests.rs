//! The scheduler over a model that shows any mix-up: what it computes, in which order, and what it promises.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use ram_core::job::Sampling;

use super::*;
use crate::batch::BLOCK_TOKENS;
use crate::engine::blocks::BlockLimits;
use crate::engine::fake::FakeModel;
use crate::engine::text::Text;
use crate::tokenize::Tokenizer;
use crate::tokenize::tests::byte_level;

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(byte_level(&[])));

/// So many slots, and memory for all that they could want; nothing clever.
fn limits(slots: u16) -> Limits {
    Limits {
        slots: NonZeroU16::new(slots).unwrap(),
        prefill_chunk: NonZeroUsize::new(4).unwrap(),
        speculation: false,
        blocks: BlockLimits { blocks_max: 1000, idle_max: 0 },
    }
}

/// The same with all that is clever.
fn clever(slots: u16) -> Limits {
    Limits { speculation: true, blocks: BlockLimits { blocks_max: 1000, idle_max: 1000 }, ..limits(slots) }
}

fn answer(prompt: &[u32], tokens_max: u64, sampling: Sampling) -> Answer {
    let tokens_max = TokenCount::new(tokens_max);
    let text = Text::new(Arc::clone(&TOKENIZER), Arc::new([]), &[], tokens_max);
    Answer::new(text, sampling, prompt)
}

fn submit<M: Rows>(scheduler: &mut Scheduler<'_, M>, id: u64, prompt: &[u32], tokens_max: u64) {
    let sampling = Sampling { seed: id, ..Sampling::default() };
    scheduler.submit(SequenceId(id), prompt.to_vec(), answer(prompt, tokens_max, sampling));
}

type Events = BTreeMap<u64, Vec<Event>>;

/// Sorts effects by the sequence that they happened to.
fn sort(effects: Vec<Effect>, events: &mut Events) {
    for effect in effects {
        if let Effect::Event(SequenceId(id), event) = effect {
            events.entry(id).or_default().push(event);
        }
    }
}

/// Steps until there is nothing to do; what happened to each sequence, in order.
fn run<M: Rows>(scheduler: &mut Scheduler<'_, M>) -> Events {
    let (mut effects, mut events) = (Vec::new(), Events::new());
    while !scheduler.is_idle() {
        scheduler.step(&mut effects);
    }
    sort(effects, &mut events);
    events
}

fn text(events: &[Event]) -> String {
    let said = |event: &Event| match event {
        Event::Delta { text, .. } => text.as_str().to_owned(),
        _ => String::new(),
    };
    events.iter().map(said).collect()
}

/// Tokens that were not computed again.
fn cached(events: &[Event]) -> u64 {
    match events[0] {
        Event::Started { cached, .. } => cached.get(),
        ref event => panic!("{event:?} before a start"),
    }
}

fn started(prompt: u64) -> Event {
    Event::Started { prompt: TokenCount::new(prompt), cached: TokenCount::ZERO }
}

fn failed(failure: Failure) -> Event {
    Event::End { outcome: Outcome::Failed { failure } }
}

/// A prompt of so many small letters.
fn letters(count: usize) -> Vec<u32> {
    (0_u32..).take(count).map(|index| 97 + (index * index + index / 7) % 26).collect()
}

#[test]
fn a_long_prompt_is_read_in_chunks_beside_the_tokens_of_others() {
    let model = FakeModel::default();
    let mut scheduler = Scheduler::new(&model, limits(3));
    submit(&mut scheduler, 1, &[1; 2], 5);
    submit(&mut scheduler, 2, &[2; 2], 5);
    submit(&mut scheduler, 3, &[3; 10], 1);
    run(&mut scheduler);
    // (first token of the prompt, tokens in the part)
    let expected: [&[(u32, usize)]; 5] = [
        &[(1, 2), (2, 2)],
        &[(1, 1), (2, 1), (3, 4)],
        &[(1, 1), (2, 1), (3, 4)],
        &[(1, 1), (2, 1), (3, 2)],
        &[(1, 1), (2, 1)],
    ];
    assert_eq!(model.passes(), expected);
}

#[test]
fn prompts_are_read_in_turn() {
    let model = FakeModel::default();
    let mut scheduler = Scheduler::new(&model, limits(4));
    for (id, length) in [(1, 8), (2, 5), (3, 1), (4, 3)] {
        submit(&mut scheduler, id.into(), &vec![id; length], 1);
    }
    run(&mut scheduler);
    let expected: [&[(u32, usize)]; 4] = [&[(1, 4)], &[(2, 4)], &[(3, 1), (4, 3)], &[(1, 4)]];
    assert_eq!(model.passes()[..4], expected, "{:?}", model.passes());
    assert_eq!(model.passes()[4..], [[(2, 1)]]);
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
    let expected = [[(1, 1)], [(1, 1)], [(2, 1)], [(2, 1)], [(3, 1)], [(3, 1)]];
    assert_eq!(model.passes(), expected);
}

#[test]
fn sequences_wait_for_memory_and_are_refused_when_it_can_never_do() {
    let model = FakeModel::default();
    let blocks = BlockLimits { blocks_max: 3, idle_max: 3 };
    let mut scheduler = Scheduler::new(&model, Limits { blocks, ..limits(3) });
    submit(&mut scheduler, 1, &[1; 4], 60); // 2 blocks
    submit(&mut scheduler, 2, &[2; 4], 60); // 2 more: waits
    submit(&mut scheduler, 3, &[3; 9], 90); // 4: never
    submit(&mut scheduler, 4, &[4; 1], 1); // 1: would fit beside 1, overtakes nobody
    scheduler.step(&mut Vec::new());
    let block = model.block_bytes();
    assert_eq!((scheduler.running(), scheduler.kv_bytes()), (1, block.saturating_mul(2)));
    let events = run(&mut scheduler);
    assert_eq!(events[&3], [failed(Failure::OutOfMemory)]);
    assert_eq!(model.passes()[60..62], [vec![(2, 4)], vec![(2, 1), (4, 1)]]);
    assert_eq!(scheduler.kv_bytes(), Bytes::ZERO);
    assert!(scheduler.kv_bytes_idle() > Bytes::ZERO && scheduler.kv.blocks() <= 3);
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
    assert_eq!(model.passes(), [vec![(1, 1), (2, 1)], vec![(2, 1)], vec![(2, 1)]]);
    assert_eq!(events.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(scheduler.kv.blocks(), 0, "memory is given back");
}

#[test]
fn a_failure_of_one_sequence_ends_only_that_one() {
    for model in [FakeModel::failing_on(7), FakeModel::failing_on(7).recurrent()] {
        let alone = {
            let model = FakeModel::default();
            let mut scheduler = Scheduler::new(&model, limits(1));
            submit(&mut scheduler, 2, &[2; 6], 9);
            run(&mut scheduler).remove(&2).unwrap()
        };
        let mut scheduler = Scheduler::new(&model, limits(3));
        submit(&mut scheduler, 2, &[2; 6], 9);
        submit(&mut scheduler, 1, &[1, 1, 1, 1, 1, 7], 3);
        submit(&mut scheduler, 3, &[3; 2], 1);
        let (mut effects, mut events) = (Vec::new(), Events::new());
        while !scheduler.is_idle() {
            scheduler.step(&mut effects);
        }
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Fault(_))).count(), 1);
        sort(effects, &mut events);
        assert_eq!(events[&1], [started(6), failed(Failure::Internal)]);
        assert!(matches!(events[&3].last(), Some(Event::End { outcome: Outcome::Done { .. } })));
        assert!(matches!(events[&2].last(), Some(Event::End { outcome: Outcome::Done { .. } })));
        if !model.is_recurrent() {
            assert_eq!(events[&2], alone, "as if nothing had been");
        }
    }
}

#[test]
fn a_pass_that_fails_as_a_whole_is_computed_part_by_part() {
    for model in [FakeModel::default(), FakeModel::default().recurrent()] {
        let expected = {
            let mut scheduler = Scheduler::new(&model, limits(1));
            (1..=3).for_each(|id| submit(&mut scheduler, id, &letters(9), 7));
            run(&mut scheduler)
        };
        let model = model.failing_together();
        let mut scheduler = Scheduler::new(&model, limits(3));
        (1..=3).for_each(|id| submit(&mut scheduler, id, &letters(9), 7));
        assert_eq!(run(&mut scheduler), expected);
    }
}

#[test]
fn an_answer_of_no_tokens_computes_nothing() {
    let model = FakeModel::default();
    let mut scheduler = Scheduler::new(&model, limits(1));
    submit(&mut scheduler, 1, &[1; 5], 0);
    let usage = Usage { prompt: TokenCount::new(5), ..Usage::default() };
    let done = Outcome::Done { finish: FinishReason::Length, usage };
    assert_eq!(run(&mut scheduler)[&1], [started(5), Event::End { outcome: done }]);
    assert_eq!(model.computed(), 0);
}

#[test]
fn usage_counts_prompt_and_answer() {
    let model = FakeModel::default();
    let mut scheduler = Scheduler::new(&model, clever(1));
    submit(&mut scheduler, 1, &[1; 9], 7);
    let events = run(&mut scheduler).remove(&1).unwrap();
    let (prompt, completion) = (TokenCount::new(9), TokenCount::new(7));
    let done = Outcome::Done {
        finish: FinishReason::Length,
        usage: Usage { prompt, completion, reasoning: TokenCount::ZERO },
    };
    assert_eq!(events.last(), Some(&Event::End { outcome: done }));
    assert_eq!(events.first(), Some(&started(9)));
}

#[test]
fn a_conversation_that_goes_on_computes_only_what_is_new() {
    let model = FakeModel::default();
    let mut scheduler = Scheduler::new(&model, clever(1));
    submit(&mut scheduler, 1, &letters(100), 60);
    let first = run(&mut scheduler).remove(&1).unwrap();
    let computed = model.computed();
    // All 159 computed tokens fill four blocks; the last token of the answer is the 160th.
    let said = text(&first);
    let mut prompt: Vec<u32> = letters(100).into_iter().chain(said.bytes().map(u32::from)).collect();
    prompt.extend(letters(20));
    submit(&mut scheduler, 2, &prompt, 1);
    let second = run(&mut scheduler).remove(&2).unwrap();
    assert_eq!((cached(&second), model.computed() - computed), (128, 180 - 128));
    // The same prompt, not one token longer than its blocks: the last token is computed all the same.
    submit(&mut scheduler, 2, &prompt[..128], 1);
    assert_eq!(cached(&run(&mut scheduler)[&2]), 96);
    let mut cold = Scheduler::new(&model, limits(1));
    submit(&mut cold, 2, &prompt, 1);
    assert_eq!(text(&run(&mut cold)[&2]), text(&second));
}

#[test]
fn strangers_that_ask_at_once_with_one_beginning_compute_it_once() {
    let model = FakeModel::default();
    let chunk = NonZeroUsize::new(BLOCK_TOKENS).unwrap();
    let mut scheduler = Scheduler::new(&model, Limits { prefill_chunk: chunk, ..clever(8) });
    let beginning = letters(10 * BLOCK_TOKENS);
    for id in 0..8_u32 {
        submit(&mut scheduler, id.into(), &[beginning.clone(), vec![97 + id]].concat(), 1);
    }
    run(&mut scheduler);
    assert_eq!(model.computed(), 10 * BLOCK_TOKENS + 8);
}

#[test]
fn what_was_idle_for_longest_gives_way() {
    let model = FakeModel::default();
    let blocks = BlockLimits { blocks_max: 8, idle_max: 8 };
    let mut scheduler = Scheduler::new(&model, Limits { blocks, ..limits(1) });
    let mut ask = |first: u32| {
        submit(&mut scheduler, 1, &[vec![first], letters(3 * BLOCK_TOKENS)].concat(), 1);
        let cached = cached(&run(&mut scheduler)[&1]);
        assert!(scheduler.kv.blocks() <= 8);
        cached
    };
    assert_eq!([ask(1), ask(2), ask(1), ask(3), ask(1), ask(2)], [0, 0, 96, 0, 96, 32]);
}

#[test]
fn a_text_that_repeats_takes_fewer_passes() {
    let passes = |limits: Limits| {
        let model = FakeModel::repeating();
        let mut scheduler = Scheduler::new(&model, limits);
        let prompt = letters(40);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        scheduler.submit(SequenceId(1), prompt.clone(), answer(&prompt, 200, greedy));
        let events = run(&mut scheduler).remove(&1).unwrap();
        (model.passes().len(), text(&events))
    };
    let ((plain, expected), (guessed, text)) = (passes(limits(1)), passes(clever(1)));
    assert_eq!(text, expected);
    assert!(guessed * 4 < plain, "{guessed} passes of {plain}");
}

#[test]
fn a_recurrent_model_never_goes_back() {
    let model = FakeModel::repeating().recurrent();
    let mut scheduler = Scheduler::new(&model, Limits { blocks: limits(2).blocks, ..clever(2) });
    for id in 0..4 {
        submit(&mut scheduler, id, &letters(70), 40); // The model itself panics where a state is not the last one.
    }
    let events = run(&mut scheduler);
    assert!(events.values().all(|events| cached(events) == 0 && text(events).len() == 40));
}

/// What a stranger does to a scheduler.
#[derive(Clone, Debug)]
enum Act {
    Submit { beginning: usize, prompt: Vec<u32>, tokens_max: u64, temperature: f32 },
    Cancel(u64),
    Steps(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let prompt = prop::collection::vec(97_u32..100, 1..50);
    let submit = (0_usize..150, prompt, 0_u64..50, prop::sample::select(vec![0.0_f32, 0.3, 1.0]));
    let submit = submit.prop_map(|(beginning, prompt, tokens_max, temperature)| Act::Submit {
        beginning,
        prompt,
        tokens_max,
        temperature,
    });
    let act = prop_oneof![4 => submit, 1 => (0_u64..12).prop_map(Act::Cancel), 3 => (1_usize..30).prop_map(Act::Steps)];
    prop::collection::vec(act, 1..14)
}

/// What happens to each sequence. After each step the sums of the ledger are checked.
fn act<M: Rows>(model: &M, limits: Limits, acts: &[Act]) -> Events {
    let mut scheduler = Scheduler::new(model, limits);
    let (mut effects, mut next) = (Vec::new(), 0);
    let step = |scheduler: &mut Scheduler<'_, M>, effects: &mut Vec<Effect>| {
        scheduler.step(effects);
        scheduler.ledger.check(scheduler.running.iter().map(|sequence| &sequence.lease));
    };
    for act in acts {
        match act {
            Act::Submit { beginning, prompt, tokens_max, temperature } => {
                let prompt = [&letters(*beginning), prompt.as_slice()].concat();
                let sampling = Sampling { seed: next, temperature: *temperature, ..Sampling::default() };
                scheduler.submit(SequenceId(next), prompt.clone(), answer(&prompt, *tokens_max, sampling));
                next += 1;
            }
            Act::Cancel(id) => scheduler.cancel(SequenceId(*id)),
            Act::Steps(count) => (0..*count).for_each(|_| step(&mut scheduler, &mut effects)),
        }
    }
    while !scheduler.is_idle() {
        step(&mut scheduler, &mut effects);
    }
    assert_eq!((scheduler.kv_bytes(), scheduler.free_slots.len()), (Bytes::ZERO, limits.slots.get().into()));
    let mut events = Events::new();
    sort(effects, &mut events);
    events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_says_the_same_alone_and_beside_strangers_with_all_that_is_clever_and_without(
        acts in acts(),
        slots in 1_u16..5,
        blocks_max in 5_usize..20,
        chunk in 1_usize..70,
        repeats: bool,
        fails_together: bool,
    ) {
        let model = || if repeats { FakeModel::repeating() } else { FakeModel::default() };
        let strange = if fails_together { model().failing_together() } else { model() };
        let blocks = BlockLimits { blocks_max, idle_max: blocks_max };
        let prefill_chunk = NonZeroUsize::new(chunk).unwrap();
        let together = act(&strange, Limits { blocks, prefill_chunk, ..clever(slots) }, &acts);
        let plain = Limits { blocks: BlockLimits { blocks_max, idle_max: 0 }, ..limits(1) };
        let never_cancelled: Vec<Act> =
            acts.iter().filter(|act| matches!(act, Act::Submit { .. })).cloned().collect();
        let alone = act(&model(), plain, &never_cancelled);
        for (id, events) in &together {
            if matches!(events.last(), Some(Event::End { .. })) {
                prop_assert_eq!(text(events), text(&alone[id]));
                prop_assert_eq!(events.last(), alone[id].last());
            } else {
                let cancelled = acts.iter().any(|act| matches!(act, Act::Cancel(cancel) if cancel == id));
                prop_assert!(cancelled && text(&alone[id]).starts_with(&text(events)));
            }
        }
    }

    #[test]
    fn every_sequence_starts_and_ends_once(
        sizes in prop::collection::vec((1_usize..80, 0_u64..40), 1..10),
        slots in 1_u16..4,
        blocks_max in 1_usize..6,
    ) {
        let model = FakeModel::default();
        let blocks = BlockLimits { blocks_max, idle_max: blocks_max };
        let mut scheduler = Scheduler::new(&model, Limits { blocks, ..clever(slots) });
        for (id, (prompt, tokens_max)) in (0..).zip(&sizes) {
            submit(&mut scheduler, id, &letters(*prompt), *tokens_max);
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
