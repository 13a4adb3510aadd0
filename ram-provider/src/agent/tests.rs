//! What the agent keeps to: told case by case, then under random events.

mod boxes;
mod shards;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{FinishReason, GenerationParams, Sampling, Usage};
use ram_core::provider::{Hardware, ModelState};
use ram_core::units::TokenCount;
use ram_proto::control::{Chunk, Nonce};

use super::*;

const NETWORK: u64 = 84_530;
const MODEL: &str = "ram-aggregator/ram-demo-4bit";

/// An agent, its clock, and what it last did.
struct Rig {
    agent: Agent,
    now: Timestamp,
}

impl Rig {
    fn new() -> Self {
        Self::with_room(2, 1)
    }

    fn with_room(slots: u16, queue_max: u16) -> Self {
        let hardware = Hardware {
            chip: "test".to_owned(),
            os: "test".to_owned(),
            memory: Bytes::from_gib(8),
            usable_memory: Bytes::from_gib(8),
            cpus: 2,
        };
        let spec = ProviderSpec {
            name: "rig".parse().unwrap(),
            wallet: Some("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap()),
            version: "0".to_owned(),
            hardware,
            memory_cap: Bytes::from_gib(4),
            offers: vec![offer(ModelState::Loaded)],
        };
        let config = AgentConfig { spec, memory_free: Bytes::from_gib(3), slots, queue_max, jitter_seed: 7 };
        let identity = Arc::new(NodeIdentity::from_seeds([1; 32], [2; 32]));
        Self { agent: Agent::new(config, identity), now: Timestamp::from_millis(1_000_000) }
    }

    /// A rig whose agent is registered.
    fn standing() -> Self {
        let mut rig = Self::new();
        rig.stand();
        rig
    }

    fn stand(&mut self) {
        self.tick_until(|effects| effects.contains(&Effect::Connect));
        assert_eq!(self.on(Event::LinkUp), []);
        assert!(matches!(self.say(challenge(9)).as_slice(), [Effect::Send(ToCoordinator::Register(_))]));
        assert!(matches!(self.say(registered()).as_slice(), [Effect::Note(Note::Registered { .. })]));
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.agent.handle(event, self.now, &mut effects);
        effects
    }

    fn say(&mut self, message: ToProvider) -> Vec<Effect> {
        self.on(Event::Message(Decoded::Known(message)))
    }

    fn wait(&mut self, millis: u64) -> Vec<Effect> {
        self.now = self.now.after(Duration::from_millis(millis));
        self.on(Event::Wake)
    }

    /// Jumps from wake to wake until one has the effects wanted.
    fn tick_until(&mut self, wanted: impl Fn(&[Effect]) -> bool) -> Vec<Effect> {
        for _ in 0..100 {
            self.now = self.now.max(self.agent.wake_at().expect("something is due"));
            let effects = self.on(Event::Wake);
            if wanted(&effects) {
                return effects;
            }
        }
        panic!("it never came");
    }

    /// Hands the agent a job and answers with its ticket.
    fn run(&mut self, number: u128) -> Ticket {
        match self.say(run(number, MODEL)).as_slice() {
            [Effect::Generate { ticket, .. }] => *ticket,
            other => panic!("not run: {other:?}"),
        }
    }

    fn piece(&mut self, ticket: Ticket, content: &str) -> Vec<Effect> {
        let piece = Piece { tokens: TokenCount::new(1), content: content.into(), ..Piece::default() };
        self.on(Event::Piece { ticket, piece })
    }
}

fn offer(state: ModelState) -> ModelOffer {
    ModelOffer { model: MODEL.parse().unwrap(), state, speed: None }
}

fn challenge(nonce: u8) -> ToProvider {
    ToProvider::Challenge {
        network: NETWORK,
        coordinator: "here".to_owned(),
        nonce: Nonce::from_bytes([nonce; 32]),
        capabilities: Capabilities::ours(),
    }
}

fn registered() -> ToProvider {
    ToProvider::Registered {
        provider: "p_00000000000000000000000000000000".parse().unwrap(),
        epoch: Epoch::new(3),
        heartbeat_ms: 10_000,
        capabilities: Capabilities::ours(),
    }
}

fn rejected(reason: RejectReason, retry_after_ms: Option<u64>) -> ToProvider {
    ToProvider::Rejected { reason, retry_after_ms }
}

fn run(number: u128, model: &str) -> ToProvider {
    let params = GenerationParams::new(TokenCount::new(8), Sampling::default());
    let job = Job::new(
        JobId::from_bits(number),
        model.parse().unwrap(),
        vec![ChatMessage::new(Role::User, "hello")],
        params,
    );
    ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group: None }
}

fn cancel(number: u128) -> ToProvider {
    ToProvider::Cancel { job: JobId::from_bits(number), attempt: Attempt::FIRST }
}

fn failed(number: u128, failure: Failure) -> Effect {
    Effect::Send(finished((JobId::from_bits(number), Attempt::FIRST), Outcome::Failed { failure }))
}

fn done() -> Outcome {
    Outcome::Done { finish: FinishReason::Stop, usage: Usage::default() }
}

fn retry_in(effects: &[Effect]) -> Duration {
    let mut waits = effects.iter().rev().filter_map(|effect| match effect {
        Effect::Note(
            Note::LinkLost { retry_in, .. }
            | Note::PeerAtFault { retry_in, .. }
            | Note::Rejected { retry_in, .. },
        ) => Some(*retry_in),
        _ => None,
    });
    waits.next().expect("a loss was noted")
}

#[test]
fn a_registration_is_signed_over_the_challenge() {
    let mut rig = Rig::new();
    assert_eq!(rig.on(Event::Wake), [Effect::Connect]);
    rig.on(Event::LinkUp);
    let effects = rig.say(challenge(9));
    let [Effect::Send(ToCoordinator::Register(register))] = effects.as_slice() else {
        panic!("no registration: {effects:?}");
    };
    let is_sound = register::tests::is_sound;
    assert!(is_sound(register, NETWORK, "here", [9; 32], rig.now));
    assert!(!is_sound(register, NETWORK, "here", [8; 32], rig.now), "another nonce");
    assert!(!is_sound(register, NETWORK, "there", [9; 32], rig.now), "another coordinator");
    assert!(!is_sound(register, 8453, "here", [9; 32], rig.now), "another network");
}

#[test]
fn the_session_is_remembered_until_the_link_is_lost() {
    let mut rig = Rig::standing();
    assert_eq!(rig.agent.session().map(|(_, epoch)| epoch), Some(Epoch::new(3)));
    rig.on(Event::LinkDown);
    assert_eq!(rig.agent.session(), None);
}

#[test]
fn a_heartbeat_goes_out_at_each_beat() {
    let mut rig = Rig::standing();
    assert_eq!(rig.wait(9_999), []);
    for _ in 0..3 {
        let effects = rig.tick_until(|effects| !effects.is_empty());
        assert!(matches!(effects.as_slice(), [Effect::Send(ToCoordinator::Heartbeat { .. })]));
    }
    assert_eq!(rig.wait(9_999), []);
}

#[test]
fn a_clock_that_is_set_back_does_not_silence_the_heartbeat() {
    let mut rig = Rig::standing();
    rig.now = Timestamp::from_millis(500);
    assert!(matches!(rig.on(Event::Wake).as_slice(), [Effect::Send(ToCoordinator::Heartbeat { .. })]));
}

#[test]
fn a_model_that_becomes_ready_is_told_at_once_and_a_speed_at_the_next_beat() {
    let mut rig = Rig::standing();
    let mut fast = offer(ModelState::Loaded);
    fast.speed = Some(ram_core::provider::Speed { prefill: Default::default(), decode: Default::default() });
    let memory_free = Bytes::from_gib(3);
    assert_eq!(rig.on(Event::Offers { offers: vec![fast], memory_free }), []);
    let effects = rig.on(Event::Offers { offers: vec![offer(ModelState::OnDisk)], memory_free });
    assert!(matches!(effects.as_slice(), [Effect::Send(ToCoordinator::Heartbeat { .. })]));
}

#[test]
fn a_model_on_disk_is_run_and_one_that_is_offered_no_more_is_refused() {
    let mut rig = Rig::standing();
    let memory_free = Bytes::from_gib(3);
    rig.on(Event::Offers { offers: vec![offer(ModelState::OnDisk)], memory_free });
    let ticket = rig.run(1); // its shell loads the model first
    let effects = rig.on(Event::Offers { offers: Vec::new(), memory_free });
    assert!(matches!(effects.as_slice(), [Effect::Send(ToCoordinator::Heartbeat { .. })]), "told at once");
    let outcome = Outcome::Failed { failure: Failure::ModelUnavailable };
    assert_eq!(rig.on(Event::Ended { ticket, outcome }), [failed(1, Failure::ModelUnavailable)]);
    assert_eq!(rig.say(run(2, MODEL)), [failed(2, Failure::ModelUnavailable)]);
    rig.on(Event::Offers { offers: vec![offer(ModelState::OnDisk)], memory_free });
    rig.run(3);
}

#[test]
fn heat_is_told_with_the_next_beat() {
    let mut rig = Rig::standing();
    assert_eq!(rig.on(Event::Thermal(Thermal::Serious)), []);
    let effects = rig.tick_until(|effects| !effects.is_empty());
    let [Effect::Send(ToCoordinator::Heartbeat { load, .. })] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(load.thermal, Thermal::Serious);
}

#[test]
fn a_job_runs_from_accepted_to_finished() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    let effects = rig.on(Event::Started { ticket, prompt: TokenCount::new(5) });
    assert!(matches!(effects.as_slice(), [Effect::Send(ToCoordinator::Accepted { .. })]));
    let chunk = |effects: &[Effect]| match effects {
        [Effect::Send(ToCoordinator::Chunk(Chunk { seq, content, .. })), ..] => {
            Some((*seq, content.as_str().to_owned()))
        }
        _ => None,
    };
    assert_eq!(chunk(&rig.piece(ticket, "Par")), Some((0, "Par".to_owned())));
    assert_eq!(rig.piece(ticket, "is"), []);
    assert_eq!(rig.piece(ticket, "."), []);
    let effects = rig.on(Event::Ended { ticket, outcome: done() });
    assert_eq!(chunk(&effects), Some((1, "is.".to_owned())), "what was held back goes first");
    assert!(matches!(effects.as_slice(), [_, Effect::Send(ToCoordinator::Finished { .. })]));
    assert_eq!(rig.agent.load().running, 0);
}

#[test]
fn a_doubled_run_is_run_once() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    assert_eq!(rig.say(run(1, MODEL)), []);
    rig.on(Event::Ended { ticket, outcome: done() });
    assert_eq!(rig.say(run(1, MODEL)), [], "nor after it has finished");
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let mut rig = Rig::standing();
    assert_eq!(rig.say(run(1, "somebody/else")), [failed(1, Failure::ModelUnavailable)]);
    for number in 2..5 {
        rig.run(number); // two slots and a place to wait
    }
    assert_eq!(rig.say(run(5, MODEL)), [failed(5, Failure::Overloaded)]);
    let Load { running, queued, .. } = rig.agent.load();
    assert_eq!((running, queued), (2, 1));
}

#[test]
fn a_cancel_frees_the_slot_within_one_turn() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    assert_eq!(rig.say(cancel(1)), [Effect::CancelGeneration(ticket), failed(1, Failure::Cancelled)]);
    assert_eq!(rig.agent.load().running, 0);
    assert_eq!(rig.piece(ticket, "late"), []);
    assert_eq!(rig.on(Event::Ended { ticket, outcome: done() }), []);
    assert_eq!(rig.say(cancel(1)), [], "a cancel that crossed the end finds nothing");
}

#[test]
fn a_lost_link_cancels_every_run_and_comes_back() {
    let mut rig = Rig::standing();
    let (first, second) = (rig.run(1), rig.run(2));
    let effects = rig.on(Event::LinkDown);
    assert_eq!(effects[..2], [Effect::CancelGeneration(first), Effect::CancelGeneration(second)]);
    assert_eq!(rig.on(Event::Ended { ticket: first, outcome: done() }), []);
    rig.stand();
    rig.run(1); // the same attempt in another session is another run
}

#[test]
fn the_back_off_grows_and_is_reset_by_a_session_that_stood() {
    let mut rig = Rig::new();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        rig.tick_until(|effects| effects.contains(&Effect::Connect));
        longest = longest.max(retry_in(&rig.on(Event::LinkDown)));
    }
    assert!(longest > Duration::from_secs(5) && longest <= Duration::from_secs(30), "{longest:?}");
    rig.stand();
    rig.wait(60_000);
    assert!(retry_in(&rig.on(Event::LinkDown)) <= Duration::from_millis(500));
}

#[test]
fn a_refusal_says_how_long_to_wait() {
    let check = |reason, retry_after_ms, expected: std::ops::RangeInclusive<u64>| {
        let mut rig = Rig::new();
        rig.tick_until(|effects| effects.contains(&Effect::Connect));
        rig.on(Event::LinkUp);
        rig.say(challenge(1));
        let effects = rig.say(rejected(reason, retry_after_ms));
        assert_eq!(effects[0], Effect::CloseLink);
        let wait = u64::try_from(retry_in(&effects).as_millis()).unwrap();
        assert!(expected.contains(&wait), "{reason:?}: {wait} ms");
    };
    check(RejectReason::Full, None, 0..=500);
    check(RejectReason::BadNonce, None, 0..=500);
    check(RejectReason::Full, Some(20_000), 20_000..=25_000);
    check(RejectReason::Draining, Some(u64::MAX), 3_600_000..=4_500_000);
    check(RejectReason::BadSignature, None, 300_000..=375_000);
    check(RejectReason::NoCommonCapability, None, 300_000..=375_000);
    check(RejectReason::BadSpec, Some(1_000), 1_000..=1_250);
}

#[test]
fn a_coordinator_that_cannot_chat_is_left_alone_for_long() {
    let mut rig = Rig::new();
    rig.on(Event::Wake);
    rig.on(Event::LinkUp);
    let effects = rig.say(ToProvider::Challenge {
        network: NETWORK,
        coordinator: "here".to_owned(),
        nonce: Nonce::from_bytes([0; 32]),
        capabilities: Capabilities::default(),
    });
    assert_eq!(effects[0], Effect::CloseLink);
    assert!(retry_in(&effects) >= REFUSED_WAIT);
}

#[test]
fn a_message_out_of_turn_closes_the_link() {
    for message in [registered(), run(1, MODEL), cancel(1), ToProvider::Drain] {
        let mut rig = Rig::new();
        rig.on(Event::Wake);
        rig.on(Event::LinkUp);
        let effects = rig.say(message);
        assert!(
            matches!(effects.as_slice(), [Effect::CloseLink, Effect::Note(Note::PeerAtFault { .. })]),
            "{effects:?}"
        );
    }
    let mut rig = Rig::standing();
    assert_eq!(rig.say(challenge(1))[0], Effect::CloseLink, "challenged in a session that stands");
}

#[test]
fn a_coordinator_that_does_not_answer_is_given_up() {
    let mut rig = Rig::new();
    rig.on(Event::Wake);
    rig.on(Event::LinkUp);
    assert_eq!(rig.wait(14_999), []);
    assert_eq!(rig.wait(1)[0], Effect::CloseLink);
}

#[test]
fn an_unknown_message_is_answered_and_does_no_harm() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    let of = "warp_drive".to_owned();
    let effects = rig.on(Event::Message(Decoded::Unknown { of: of.clone() }));
    assert_eq!(effects, [Effect::Send(ToCoordinator::Unsupported { of })]);
    assert!(!rig.piece(ticket, "on").is_empty());
}

#[test]
fn a_node_without_jobs_drains_at_once() {
    let mut rig = Rig::standing();
    let effects = rig.on(Event::DrainRequested);
    assert_eq!(effects[1..], [Effect::Send(ToCoordinator::Draining), Effect::CloseLink, Effect::Exit]);
    assert_eq!(rig.agent.wake_at(), None);
    assert_eq!(rig.on(Event::LinkDown), []);
}

#[test]
fn draining_finishes_what_runs_and_takes_no_more() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    let effects = rig.on(Event::DrainRequested);
    assert_eq!(effects[1..], [Effect::Send(ToCoordinator::Draining)]);
    assert_eq!(rig.say(run(2, MODEL)), [failed(2, Failure::Draining)]);
    let effects = rig.on(Event::Ended { ticket, outcome: done() });
    assert!(matches!(effects[0], Effect::Send(ToCoordinator::Finished { .. })));
    assert_eq!(effects[1..], [Effect::CloseLink, Effect::Exit]);
}

#[test]
fn draining_is_over_after_half_a_minute() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    rig.on(Event::DrainRequested);
    let effects = rig.tick_until(|effects| effects.contains(&Effect::Exit));
    let at_last = [
        Effect::Note(Note::DrainTimedOut { cancelled: 1 }),
        Effect::CancelGeneration(ticket),
        failed(1, Failure::Draining),
        Effect::CloseLink,
        Effect::Exit,
    ];
    assert!(effects.ends_with(&at_last), "{effects:?}");
}

#[test]
fn a_node_that_is_not_connected_drains_at_once() {
    let mut rig = Rig::new();
    let effects = rig.on(Event::DrainRequested);
    assert_eq!(effects[1..], [Effect::Exit]);
}

#[test]
fn a_draining_coordinator_gets_what_runs_and_nothing_new() {
    let mut rig = Rig::standing();
    let ticket = rig.run(1);
    rig.say(ToProvider::Drain);
    assert_eq!(rig.say(run(2, MODEL)), [failed(2, Failure::Draining)]);
    assert!(!rig.piece(ticket, "on").is_empty());
    rig.on(Event::LinkDown);
    rig.stand();
    rig.run(3);
}

/// One step of the simulated world.
#[derive(Clone, Debug)]
enum Step {
    Sleep(u16),
    ClockBack(u16),
    /// Whatever the handshake waits for.
    Advance,
    LinkDown,
    OutOfTurn,
    Rejected(bool),
    Run(u8, bool),
    Cancel(u8),
    Drain,
    Unknown,
    Start(u8),
    Piece(u8, u8),
    End(u8),
    DrainRequested,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => any::<u16>().prop_map(Step::Sleep),
        10 => any::<u16>().prop_map(Step::ClockBack),
        120 => Just(Step::Advance),
        10 => Just(Step::LinkDown),
        2 => Just(Step::OutOfTurn),
        4 => any::<bool>().prop_map(Step::Rejected),
        80 => (any::<u8>(), any::<bool>()).prop_map(|(job, known)| Step::Run(job % 16, known)),
        20 => any::<u8>().prop_map(|job| Step::Cancel(job % 16)),
        2 => Just(Step::Drain),
        10 => Just(Step::Unknown),
        40 => any::<u8>().prop_map(Step::Start),
        120 => any::<(u8, u8)>().prop_map(|(run, tokens)| Step::Piece(run, tokens)),
        40 => any::<u8>().prop_map(Step::End),
        2 => Just(Step::DrainRequested),
    ]
}

/// What the coordinator and the engines saw, held against what the agent promises.
#[derive(Default)]
struct Witness {
    dialing: bool,
    up: bool,
    registering: bool,
    standing: bool,
    exited: bool,
    /// Runs that the coordinator still waits for.
    open: BTreeSet<JobId>,
    /// Runs that were sent in this session at all.
    sent: BTreeSet<JobId>,
    seqs: BTreeMap<JobId, u32>,
    engines: Vec<Ticket>,
}

impl Witness {
    fn see(&mut self, effects: &[Effect]) {
        for effect in effects {
            assert!(!self.exited, "{effect:?} after the end");
            match effect {
                Effect::Connect => {
                    assert!(!self.up && !self.dialing);
                    self.dialing = true;
                }
                Effect::Send(message) => self.see_message(message),
                Effect::CloseLink => {
                    assert!(self.up || self.dialing, "closed what was not open");
                    self.lose();
                }
                Effect::Generate { ticket, .. } => self.engines.push(*ticket),
                Effect::CancelGeneration(ticket) => self.engines.retain(|running| running != ticket),
                Effect::Note(_) => {}
                Effect::Shard(_) => panic!("this node holds no shards"),
                Effect::Exit => self.exited = true,
            }
        }
        if !self.up {
            assert!(self.engines.is_empty(), "an engine runs for nobody");
        }
    }

    fn see_message(&mut self, message: &ToCoordinator) {
        assert!(self.up, "said with no link: {message:?}");
        match message {
            ToCoordinator::Chunk(chunk) => {
                assert!(self.open.contains(&chunk.job), "a chunk of a job that nobody waits for");
                let next = self.seqs.entry(chunk.job).or_default();
                assert_eq!(chunk.seq, *next, "chunks are numbered without a gap");
                *next += 1;
            }
            ToCoordinator::SealedChunk(_) => panic!("words were asked for"),
            ToCoordinator::Accepted { job, .. } => assert!(self.open.contains(job)),
            ToCoordinator::Finished { job, .. } => assert!(self.open.remove(job), "finished twice"),
            ToCoordinator::Heartbeat { .. } | ToCoordinator::Draining => assert!(self.standing),
            ToCoordinator::Register(_) => self.registering = true,
            ToCoordinator::Unsupported { .. } => {}
            ToCoordinator::ShardReady(_)
            | ToCoordinator::ShardFailed(_)
            | ToCoordinator::ShardLinked(_)
            | ToCoordinator::ShardLost(_)
            | ToCoordinator::ShardReport(_) => panic!("this node holds no shards"),
        }
    }

    fn lose(&mut self) {
        *self = Self { exited: self.exited, engines: std::mem::take(&mut self.engines), ..Self::default() };
    }
}

/// The event of a step, if the world could produce it now.
fn event_of(step: &Step, witness: &mut Witness) -> Option<Event> {
    let known = |message| Some(Event::Message(Decoded::Known(message)));
    let pick = |witness: &Witness, n: u8| {
        let running = &witness.engines;
        (!running.is_empty()).then(|| running[usize::from(n) % running.len()])
    };
    match *step {
        Step::Sleep(_) | Step::ClockBack(_) => Some(Event::Wake),
        Step::Advance if witness.dialing => {
            (witness.dialing, witness.up) = (false, true);
            Some(Event::LinkUp)
        }
        Step::Advance if witness.registering => {
            (witness.registering, witness.standing) = (false, true);
            known(registered())
        }
        Step::Advance if witness.up && !witness.standing => known(challenge(1)),
        Step::LinkDown if witness.dialing || witness.up => {
            witness.lose();
            Some(Event::LinkDown)
        }
        Step::OutOfTurn if witness.standing => known(challenge(1)),
        Step::OutOfTurn if witness.up => known(ToProvider::Drain),
        Step::Rejected(lasting) if witness.up => {
            known(rejected(if lasting { RejectReason::BadSpec } else { RejectReason::Full }, None))
        }
        Step::Run(number, is_known) if witness.standing => {
            let job = JobId::from_bits(number.into());
            if witness.sent.insert(job) {
                witness.open.insert(job);
            }
            known(run(number.into(), if is_known { MODEL } else { "somebody/else" }))
        }
        Step::Cancel(number) if witness.standing => known(cancel(number.into())),
        Step::Drain if witness.standing => known(ToProvider::Drain),
        Step::Unknown if witness.up => Some(Event::Message(Decoded::Unknown { of: "warp_drive".to_owned() })),
        Step::Start(n) => {
            let ticket = pick(witness, n)?;
            Some(Event::Started { ticket, prompt: TokenCount::new(3) })
        }
        Step::Piece(n, tokens) => {
            let ticket = pick(witness, n)?;
            let content = "x".repeat(tokens.into()).into();
            let piece = Piece { tokens: TokenCount::new(tokens.into()), content, ..Piece::default() };
            Some(Event::Piece { ticket, piece })
        }
        Step::End(n) => {
            let ticket = pick(witness, n)?;
            witness.engines.retain(|running| *running != ticket);
            Some(Event::Ended { ticket, outcome: done() })
        }
        Step::DrainRequested => Some(Event::DrainRequested),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_happens_each_run_ends_once_and_nothing_is_said_without_a_link(
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut rig = Rig::new();
        let mut witness = Witness::default();
        for step in steps {
            match step {
                Step::Sleep(millis) => rig.now = rig.now.after(Duration::from_millis(millis.into())),
                Step::ClockBack(millis) => {
                    rig.now = Timestamp::from_millis(rig.now.as_millis().saturating_sub(millis.into()));
                }
                _ => {}
            }
            let Some(event) = event_of(&step, &mut witness) else { continue };
            let effects = rig.on(event);
            witness.see(&effects);
        }
        // Let the engines end: every run that the coordinator still waits for is answered.
        for ticket in std::mem::take(&mut witness.engines) {
            let effects = rig.on(Event::Ended { ticket, outcome: done() });
            witness.see(&effects);
        }
        prop_assert!(!witness.standing || witness.open.is_empty(), "unanswered: {:?}", witness.open);
    }
}
