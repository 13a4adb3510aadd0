//! A shard alone: what it does with steps, credit, losses and other people's mistakes.

use ram_core::job::Sampling;
use ram_proto::frame::{PrefixHash, Want};

use super::*;

fn of(session: u128) -> Of {
    Of { session: JobId::from_bits(session), epoch: Epoch::new(1) }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn arrived(head: Head, payload: &[u8]) -> Event {
    Event::Arrived { from: Side::Up, frame: Frame { head, payload: Bytes::copy_from_slice(payload) } }
}

/// A step of so many tokens that begins its session, in an event.
fn first(session: u128, rows: u32) -> Event {
    let step = Step {
        of: of(session),
        position: 0,
        shape: Shape { rows, cols: 1 },
        dtype: Dtype::Bf16,
        prefix: PrefixHash::EMPTY,
        after: PrefixHash::EMPTY.with(&[1]),
        want: Want::Token,
        deadline_ms: 1000,
        spent: Spent::default(),
    };
    arrived(Head::ForwardPass(step), &vec![0; 2 * rows as usize])
}

/// A shard with some sessions.
fn worker(is_last: bool, sessions: u128) -> Worker {
    let room = TokenCount::new(10_000);
    let config = WorkerConfig {
        room,
        width: 1,
        dtype: Dtype::Bf16,
        is_first: false,
        is_last,
        idle: Duration::from_secs(60),
        shards: NonZeroU16::MIN,
        goes_back: true,
        log: units::Bytes::from_mib(1),
        replay: Replay::Exact,
    };
    let mut worker = Worker::new(config);
    for session in 1..=sessions {
        let (positions, picks) = (TokenCount::new(1000), TokenCount::ZERO);
        let init =
            KvCacheInit { of: of(session), positions, sampling: Sampling::default(), picks, resume: None };
        worker.handle(arrived(Head::KvCacheInit(init), &[]), at(0), &mut Vec::new());
    }
    worker
}

/// What is done when something happens.
fn handle(worker: &mut Worker, event: Event, now: Timestamp) -> Vec<Effect> {
    let mut effects = Vec::new();
    worker.handle(event, now, &mut effects);
    effects
}

/// The sessions and sizes of the batches that are begun.
fn begun(effects: &[Effect]) -> Vec<Vec<(u128, usize)>> {
    let size = |step: &StageStep| match &step.input {
        Input::Hidden(numbers) => (step.session.bits(), numbers.len()),
        Input::Tokens(_) => panic!("the head alone has tokens"),
    };
    let batch = |effect: &Effect| match effect {
        Effect::Stage(Call::Forward(steps)) => Some(steps.iter().map(size).collect()),
        _ => None,
    };
    effects.iter().filter_map(batch).collect()
}

fn computed(count: usize) -> Event {
    let output = |_| StageOutput::Hidden(vec![0.0]);
    Event::Computed { outcome: Ok((0..count).map(output).collect()), took: Duration::from_millis(2) }
}

fn refusals(effects: &[Effect]) -> Vec<Code> {
    let code = |effect: &Effect| match effect {
        Effect::Send { to: Side::Up, frame: Frame { head: Head::Error(refusal), .. } } => Some(refusal.code),
        _ => None,
    };
    effects.iter().filter_map(code).collect()
}

#[test]
fn a_batch_is_what_is_ready_with_answers_first_and_one_piece_of_a_prompt() {
    let mut worker = worker(false, 6);
    worker.credit = 9;
    assert_eq!(begun(&handle(&mut worker, first(1, 500), at(0))), [[(1, 500)]]);
    for (session, rows) in [(2, 700), (3, 1), (4, 600), (5, 16), (6, 400)] {
        assert!(begun(&handle(&mut worker, first(session, rows), at(0))).is_empty(), "the stage is busy");
    }
    assert_eq!(begun(&handle(&mut worker, computed(1), at(2))), [[(3, 1), (5, 16), (2, 700)]]);
    assert_eq!(begun(&handle(&mut worker, computed(3), at(4))), [[(4, 600)]]);
    assert_eq!(begun(&handle(&mut worker, computed(1), at(6))), [[(6, 400)]]);
}

#[test]
fn what_was_computed_before_a_session_began_anew_is_not_its_own() {
    let mut worker = worker(true, 1);
    assert_eq!(begun(&handle(&mut worker, first(1, 4), at(0))), [[(1, 4)]]);
    handle(&mut worker, arrived(Head::Close(of(1)), &[]), at(1));
    let (positions, picks) = (TokenCount::new(1000), TokenCount::ZERO);
    let init = KvCacheInit { of: of(1), positions, sampling: Sampling::default(), picks, resume: None };
    handle(&mut worker, arrived(Head::KvCacheInit(init), &[]), at(1));
    handle(&mut worker, first(1, 4), at(1));
    let effects = handle(&mut worker, computed(1), at(2));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send { to: Side::Results, .. })));
    assert_eq!(begun(&effects), [[(1, 4)]], "its own step is computed yet");
}

#[test]
fn every_shard_is_to_have_something_before_a_batch_grows() {
    let check = |shards, sessions: u32, expected: &[usize]| {
        let mut worker = worker(false, sessions.into());
        (worker.credit, worker.config.shards) = (99, NonZeroU16::new(shards).unwrap());
        let mut begins: Vec<usize> = Vec::new();
        for session in 1..=sessions {
            begins.extend(begun(&handle(&mut worker, first(session.into(), 1), at(0))).iter().map(Vec::len));
        }
        for turn in 0.. {
            let Some(count) = begins.get(turn) else { break };
            let batches = begun(&handle(&mut worker, computed(*count), at(2)));
            begins.extend(batches.iter().map(Vec::len));
        }
        assert_eq!(begins, expected, "{sessions} sessions over {shards} shards");
    };
    check(1, 5, &[1, 4]);
    check(4, 5, &[1, 1, 1, 1, 1]);
    check(4, 6, &[1, 2, 2, 1]);
    check(4, 10, &[1, 2, 2, 2, 2, 1]);
    check(2, 9, &[1, 3, 3, 2]);
}

#[test]
fn nothing_is_computed_that_the_shard_behind_would_not_take() {
    let mut worker = worker(false, 3);
    handle(&mut worker, first(1, 1), at(0));
    handle(&mut worker, first(2, 1), at(0));
    assert_eq!(
        handle(&mut worker, computed(1), at(2)),
        [],
        "no credit, so nothing is sent and nothing begun"
    );
    let effects = handle(&mut worker, credit(1), at(9));
    assert!(matches!(effects[0], Effect::Send { to: Side::Down, .. }));
    assert_eq!(begun(&effects), [[(2, 1)]]);
}

fn credit(steps: u32) -> Event {
    Event::Arrived { from: Side::Down, frame: Head::Credit { steps }.into() }
}

#[test]
fn what_was_computed_before_the_shard_behind_is_there_goes_when_it_is() {
    let mut worker = worker(false, 2);
    handle(&mut worker, first(1, 1), at(0));
    handle(&mut worker, first(2, 1), at(0));
    assert_eq!(handle(&mut worker, computed(1), at(2)), []);
    let welcome = Welcome { version: 1, credits: 4, kv_free: TokenCount::ZERO, sessions: 0 };
    let effects = handle(&mut worker, Event::Welcomed(welcome), at(9));
    assert!(matches!(effects[0], Effect::Send { to: Side::Down, .. }));
    assert_eq!(begun(&effects), [[(2, 1)]]);
}

#[test]
fn a_close_of_an_epoch_before_ends_nothing() {
    let mut worker = worker(true, 1);
    let trim = Trim { of: Of { epoch: Epoch::new(2), ..of(1) }, position: 0, prefix: PrefixHash::EMPTY };
    handle(&mut worker, arrived(Head::Trim(trim), &[]), at(0));
    assert_eq!(handle(&mut worker, arrived(Head::Close(of(1)), &[]), at(0)), []);
    let ended = handle(&mut worker, arrived(Head::Close(trim.of), &[]), at(0));
    assert_eq!(ended, [Effect::Stage(Call::Close(JobId::from_bits(1)))]);
}

#[test]
fn a_replay_is_computed_and_sent_on_to_nobody() {
    let mut worker = worker(false, 1);
    worker.credit = 9;
    let Event::Arrived { from, frame: Frame { head: Head::ForwardPass(step), payload } } = first(1, 3) else {
        panic!("a step")
    };
    let after = step.after;
    let replay = Event::Arrived { from, frame: Frame { head: Head::Replay(step), payload } };
    assert_eq!(begun(&handle(&mut worker, replay, at(0))), [[(1, 3)]]);
    assert_eq!(handle(&mut worker, computed(1), at(2)), []);
    let computed = worker.ledger.computed(JobId::from_bits(1)).unwrap();
    assert_eq!((computed.position, computed.prefix), (3, after));
}

#[test]
fn a_step_that_nobody_waits_for_is_not_computed() {
    let mut worker = worker(false, 2);
    worker.credit = 9;
    handle(&mut worker, first(1, 1), at(0));
    handle(&mut worker, first(2, 1), at(0));
    let effects = handle(&mut worker, computed(1), at(1000));
    assert_eq!((begun(&effects).len(), refusals(&effects)), (0, vec![Code::DeadlineExceeded]));
    assert!(worker.queue.is_empty());
}

#[test]
fn what_waits_of_a_session_goes_when_nobody_wants_it() {
    let trim = Trim { of: of(2), position: 0, prefix: PrefixHash::EMPTY };
    for head in [Head::Cancel(of(2)), Head::Close(of(2)), Head::Trim(trim)] {
        let mut worker = worker(false, 2);
        handle(&mut worker, first(1, 1), at(0));
        handle(&mut worker, first(2, 1), at(0));
        assert_eq!(worker.queue.len(), 1);
        let effects = handle(&mut worker, arrived(head.clone(), &[]), at(1));
        assert!(worker.queue.is_empty(), "{head:?}");
        let credit = Effect::Send { to: Side::Up, frame: Head::Credit { steps: 1 }.into() };
        let passed = Effect::Send { to: Side::Down, frame: head.into() };
        assert!(effects.contains(&credit) && effects.contains(&passed));
    }
}

#[test]
fn a_pass_that_fails_is_told_of_and_leaves_its_sessions_where_they_were() {
    let mut worker = worker(false, 2);
    worker.credit = 9;
    handle(&mut worker, first(1, 4), at(0));
    let failed = |code| Event::Computed { outcome: Err(code), took: Duration::ZERO };
    assert_eq!(refusals(&handle(&mut worker, failed(Code::Internal), at(1))), [Code::Internal]);
    assert_eq!(begun(&handle(&mut worker, first(1, 4), at(2))), [[(1, 4)]], "it may be tried again");
    let effects = handle(&mut worker, computed(2), at(3));
    assert_eq!(refusals(&effects), [Code::Internal], "two answers for one step");
}

#[test]
fn a_session_of_which_nothing_is_heard_ends_and_says_so_to_nobody() {
    let mut worker = worker(true, 1);
    assert!(
        handle(&mut worker, Event::Tick, at(59_999)).iter().all(|effect| !matches!(effect, Effect::Stage(_)))
    );
    let effects = handle(&mut worker, Event::Tick, at(60_000));
    assert_eq!(effects[0], Effect::Stage(Call::Close(JobId::from_bits(1))));
    assert!(matches!(
        effects[1..],
        [Effect::Send { to: Side::Up, .. }, Effect::Send { to: Side::Results, .. }]
    ));
}

#[test]
fn who_says_what_is_not_his_to_say_is_hung_up_on() {
    let mut worker = worker(false, 1);
    let check = |worker: &mut Worker, from, head: Head| {
        let event = Event::Arrived { from, frame: head.into() };
        assert_eq!(handle(worker, event, at(0)), [Effect::HangUp(from)]);
    };
    check(&mut worker, Side::Up, Head::Credit { steps: 1 });
    check(&mut worker, Side::Down, Head::Close(of(1)));
    check(&mut worker, Side::Results, Head::Close(of(1)));
}
