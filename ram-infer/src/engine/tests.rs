//! The engine's thread, and what its callers see, over a model that is made up.

use super::fake::FakeModel;
use super::text::Text;
use super::*;
use crate::tokenize::tests::byte_level;
use futures::StreamExt;
use ram_core::chat::Role;
use ram_core::chat::reasoning::Start;
use ram_core::job::{FinishReason, Sampling, Usage};

pub(super) fn engine(model: FakeModel, slots: u16, queue_max: u16) -> Engine {
    engine_with(model, slots, queue_max, None)
}

fn engine_with(model: FakeModel, slots: u16, queue_max: u16, kv_bytes_max: Option<Bytes>) -> Engine {
    let slots = NonZeroU16::new(slots).unwrap();
    let prefill_chunk = NonZeroUsize::new(8).unwrap();
    let config = EngineConfig { slots, queue_max, kv_bytes_max, prefill_chunk, ..EngineConfig::default() };
    engine_of(model, config)
}

fn engine_of(model: FakeModel, config: EngineConfig) -> Engine {
    let info = EngineInfo {
        architecture: Architecture::Llama,
        context: TokenCount::new(64),
        vocab_size: 262,
        weight_bytes: Bytes::ZERO,
        has_chat_template: true,
        call_format: None,
    };
    Engine::start(model, byte_level(&[]), vec![257], info, config).unwrap()
}

fn request(words: &str, max_tokens: u64, seed: u64) -> Request {
    let sampling = Sampling { seed, ..Sampling::default() };
    let max_tokens = TokenCount::new(max_tokens);
    let params = GenerationParams::new(max_tokens, sampling);
    Request { prompt: Prompt::Text(words.into()), params }
}

/// The whole text, and the end.
fn read(mut generation: Generation) -> (String, Outcome) {
    let mut text = String::new();
    while let Some(event) = generation.wait_next() {
        match event {
            Event::Started { .. } => assert_eq!(text, ""),
            Event::Delta { text: more, .. } => text += more.as_str(),
            Event::End { outcome } => {
                assert_eq!(generation.wait_next(), None);
                return (text, outcome);
            }
        }
    }
    panic!("a generation ends with an end")
}

fn failure(generation: Generation) -> Option<Failure> {
    match read(generation).1 {
        Outcome::Failed { failure } => Some(failure),
        Outcome::Done { .. } => None,
    }
}

#[test]
fn an_answer_streams_from_start_to_end() {
    let engine = engine(FakeModel::default(), 1, 0);
    let generation = engine.submit(request("abc", 5, 0)).unwrap();
    let events: Vec<Event> = generation.into_blocking().collect();
    assert_eq!(events[0], Event::Started { prompt: TokenCount::new(3), cached: TokenCount::ZERO });
    let tokens: TokenCount = events
        .iter()
        .map(|event| if let Event::Delta { tokens, .. } = event { *tokens } else { TokenCount::ZERO })
        .sum();
    assert_eq!(tokens, TokenCount::new(5));
    let usage = Usage { prompt: TokenCount::new(3), completion: tokens, ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Length, usage };
    assert_eq!(events.last(), Some(&Event::End { outcome }));
}

#[test]
fn the_same_seed_gives_the_same_text_alone_and_beside_strangers() {
    let alone: Vec<_> = {
        let engine = engine(FakeModel::default(), 1, 0);
        (0..5).map(|n| read(engine.submit(request("the same words", 40, n)).unwrap())).collect()
    };
    let engine = engine(FakeModel::default(), 5, 0);
    let together: Vec<_> = (0..5).map(|n| engine.submit(request("the same words", 40, n)).unwrap()).collect();
    let together: Vec<_> = together.into_iter().map(read).collect();
    assert_eq!(together, alone);
    assert_ne!(alone[0].0, alone[1].0, "another seed gives another text");
}

#[test]
fn a_stream_may_be_polled_as_well() {
    let engine = engine(FakeModel::default(), 1, 0);
    let mut generation = engine.submit(request("abc", 5, 0)).unwrap();
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    let mut ends = 0;
    loop {
        match generation.poll_next_unpin(&mut context) {
            std::task::Poll::Pending => thread::yield_now(),
            std::task::Poll::Ready(None) => break,
            std::task::Poll::Ready(Some(event)) => {
                ends += usize::from(matches!(event, Event::End { .. }));
            }
        }
    }
    assert_eq!(ends, 1);
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused_and_one_that_leaves_little_is_cut_short() {
    let engine = engine(FakeModel::default(), 1, 0);
    let (prompt, limit) = (TokenCount::new(64), TokenCount::new(64));
    let too_long = engine.submit(request(&"a".repeat(64), 1, 0)).unwrap();
    assert_eq!(failure(too_long), Some(Failure::ContextLengthExceeded { prompt, limit }));
    let (text, outcome) = read(engine.submit(request(&"a".repeat(60), 1000, 0)).unwrap());
    assert_eq!(text.len(), 4);
    assert!(matches!(outcome, Outcome::Done { finish: FinishReason::Length, .. }));
}

#[test]
fn a_prompt_that_cannot_be_written_is_refused() {
    let engine = engine(FakeModel::default(), 1, 0);
    let empty = engine.submit(request("", 1, 0)).unwrap();
    assert_eq!(failure(empty), Some(Failure::InvalidPrompt));
    // Every character that could break up the forged token stands in the text.
    let all: String = ('\u{fdd0}'..='\u{fdef}').chain("<s>".chars()).collect();
    let prompt = Prompt::Chat(vec![ChatMessage::new(Role::User, all)].into());
    let refused = engine.submit(Request { prompt, ..request("", 1, 0) }).unwrap();
    assert_eq!(failure(refused), Some(Failure::InvalidPrompt));
    assert_eq!(engine.occupancy().queued, 0, "the places are given back");
}

#[test]
fn functions_are_refused_where_the_template_has_no_place_for_them() {
    let engine = engine(FakeModel::default(), 1, 0);
    assert_eq!(engine.info().call_format, None);
    let tools = vec![serde_json::from_str::<Tool>(r#"{"name": "now"}"#).unwrap()];
    let messages = vec![ChatMessage::new(Role::User, "hi")];
    let prompt = Prompt::Chat(Chat { messages, tools, ..Chat::default() });
    let refused = engine.submit(Request { prompt, ..request("", 1, 0) }).unwrap();
    assert_eq!(failure(refused), Some(Failure::ToolsUnsupported));
}

#[test]
fn a_generation_knows_whether_its_prompt_has_begun_the_thought() {
    let engine = engine(FakeModel::default(), 2, 0);
    let start = |words: &str| engine.submit(request(words, 1, 0)).unwrap().answer_start();
    assert_eq!(start("say <think>\n"), Start::Reasoning);
    assert_eq!(start("<think>\n\n</think>\n\n"), Start::Answer);
}

#[test]
fn a_full_engine_refuses_and_takes_again_when_one_has_ended() {
    let (model, gate) = FakeModel::gated();
    let engine = engine(model, 1, 1);
    let mut first = engine.submit(request("a", 1, 0)).unwrap();
    assert!(matches!(first.wait_next(), Some(Event::Started { .. })));
    let second = engine.submit(request("b", 1, 0)).unwrap();
    assert_eq!(engine.submit(request("c", 1, 0)).err(), Some(Failure::Overloaded));
    let (kv, kv_idle) = (Bytes::new(3200), Bytes::ZERO);
    assert_eq!(engine.occupancy(), Occupancy { running: 1, queued: 1, slots: 1, kv, kv_idle });
    gate.send(()).unwrap();
    assert_eq!(failure(first), None);
    let third = engine.submit(request("c", 1, 0)).unwrap();
    drop(gate);
    assert_eq!((failure(second), failure(third)), (None, None));
    assert_eq!(engine.occupancy(), Occupancy { slots: 1, ..Occupancy::default() });
}

#[test]
fn dropping_a_generation_cancels_it_between_tokens() {
    let (model, gate) = FakeModel::gated();
    let engine = engine(model, 1, 0);
    let mut generation = engine.submit(request("a", 50, 0)).unwrap();
    assert!(matches!(generation.wait_next(), Some(Event::Started { .. })));
    gate.send(()).unwrap();
    assert!(matches!(generation.wait_next(), Some(Event::Delta { .. })));
    drop(generation);
    gate.send(()).unwrap(); // The token that is under way.
    while engine.occupancy() != (Occupancy { slots: 1, ..Occupancy::default() }) {
        thread::yield_now(); // Would never end if a third token were computed: the gate is shut.
    }
}

#[test]
fn a_panic_ends_all_that_runs_and_nothing_hangs() {
    let engine = engine(FakeModel::panicking_on(u32::from(b'!')), 2, 2);
    let open: Vec<_> = ["!", "!", "!", "!"].map(|words| engine.submit(request(words, 50, 0)).unwrap()).into();
    for generation in open {
        assert_eq!(failure(generation), Some(Failure::Internal));
    }
    assert_eq!(failure(engine.submit(request("a", 5, 0)).unwrap()), None, "the engine goes on");
    assert_eq!(engine.occupancy(), Occupancy { slots: 2, ..Occupancy::default() });
}

#[test]
fn an_answer_is_as_long_as_memory_allows_and_a_prompt_without_room_is_refused() {
    let model = FakeModel::default();
    let room = Some(model.block_bytes());
    let engine = engine_with(model, 1, 1, room);
    let (_, outcome) = read(engine.submit(request("ab", 50, 0)).unwrap());
    assert!(
        matches!(outcome, Outcome::Done { usage, .. } if usage.completion == TokenCount::new(30)),
        "{outcome:?}"
    );
    let too_long = engine.submit(request(&"a".repeat(40), 5, 0)).unwrap();
    assert_eq!(failure(too_long), Some(Failure::OutOfMemory));
}

#[test]
fn a_request_without_room_is_refused_at_once_and_another_goes_on() {
    let (model, gate) = FakeModel::gated();
    let room = Some(model.block_bytes());
    let engine = engine_with(model, 1, 1, room);
    let mut goes_on = engine.submit(request("ab", 20, 0)).unwrap();
    assert!(matches!(goes_on.wait_next(), Some(Event::Started { .. })));
    let too_large = engine.submit(request(&"a".repeat(40), 5, 0)).unwrap();
    assert_eq!(failure(too_large), Some(Failure::OutOfMemory));
    drop(gate); // Until here no pass has ended.
    let (text, outcome) = read(goes_on);
    assert_eq!(text.len(), 20);
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
}

#[test]
fn a_beginning_is_kept_for_the_next_request_unless_switched_off() {
    let ask = |prefix_reuse: bool| {
        let config = EngineConfig { prefix_reuse, ..EngineConfig::default() };
        let engine = engine_of(FakeModel::default(), config);
        let words = "the same words to begin with, and then some";
        let cached = |generation: Generation| match generation.into_blocking().next() {
            Some(Event::Started { cached, .. }) => cached.get(),
            event => panic!("{event:?}"),
        };
        let first = read(engine.submit(request(words, 9, 0)).unwrap());
        let idle = engine.occupancy().kv_idle;
        let again = read(engine.submit(request(words, 9, 0)).unwrap());
        assert_eq!(again, first);
        (idle, cached(engine.submit(request(words, 9, 0)).unwrap()))
    };
    assert_eq!(ask(true), (Bytes::new(3200), 32));
    assert_eq!(ask(false), (Bytes::ZERO, 0));
}

#[test]
fn a_failure_of_the_model_is_kept_for_its_operator() {
    let engine = engine(FakeModel::failing_on(u32::from(b'!')), 2, 2);
    assert_eq!(engine.last_fault(), None);
    assert_eq!(failure(engine.submit(request("!", 5, 0)).unwrap()), Some(Failure::Internal));
    assert_eq!(engine.last_fault(), Some(InferError::NoTokens));
}

#[test]
fn what_runs_and_waits_ends_when_the_last_handle_is_gone() {
    let shared = Arc::new(Shared::new(NonZeroU16::MIN, 1));
    let limits = Limits {
        slots: NonZeroU16::MIN,
        prefill_chunk: NonZeroUsize::new(8).unwrap(),
        speculation: true,
        blocks: BlockLimits { blocks_max: 9, idle_max: 9 },
    };
    let (jobs, inbox) = channel();
    let mut generations = Vec::new();
    for _ in 0..2 {
        let (reply, generation) = generation::pair(Shared::take_place(&shared).unwrap());
        let (tokenizer, tokens_max) = (Arc::new(byte_level(&[])), TokenCount::new(5));
        let text = Text::new(tokenizer, Arc::new([]), &[], tokens_max);
        let answer = Answer::new(text, Sampling::default(), &[97]);
        jobs.send(Job { prompt: vec![97], answer, reply }).unwrap();
        generations.push(generation);
    }
    drop(jobs);
    run(&FakeModel::default(), limits, &inbox, &shared);
    for generation in generations {
        assert_eq!(failure(generation), Some(Failure::ModelUnavailable));
    }
}

#[test]
fn an_engine_lives_as_long_as_one_of_its_handles() {
    let first = engine(FakeModel::default(), 1, 1);
    let second = first.clone();
    drop(first);
    assert_eq!(failure(second.submit(request("a", 5, 0)).unwrap()), None);
    let board = Arc::downgrade(&second.0.shared);
    drop(second);
    assert_eq!(board.strong_count(), 0, "the thread has ended");
}

#[test]
fn debug_shows_no_word_of_a_request() {
    let request = request("the secret plan", 5, 0);
    assert!(!format!("{request:?}").contains("secret"));
    let token = TokenLogprob { token: "s".into(), bytes: vec![115], logprob: 0.0, top: Vec::new() };
    let (text, tokens, logprobs) = ("s".into(), TokenCount::new(1), vec![token]);
    let event = format!("{:?}", Event::Delta { text, tokens, logprobs });
    assert!(!event.contains("\"s\"") && !event.contains("115"), "{event}");
}
