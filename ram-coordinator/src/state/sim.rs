//! A network's worst nights, each under one seed: providers die, repeat themselves, say things too late and too much;
//! users leave; the store answers when it likes. After each night every job has ended once, every hold is resolved
//! once, and nobody was paid for more than was held.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use ram_core::catalog;
use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::id::{Attempt, JobId, NodeKey, ProviderId};
use ram_core::job::{Failure, FinishReason, GenerationParams, Outcome, Sampling, Usage};
use ram_core::provider::{Hardware, Load, ModelOffer, ModelState, ProviderSpec, Thermal};
use ram_core::units::{Bytes, Timestamp, TokenCount, XRam};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::statement::Statement;
use ram_proto::control::{
    Capabilities, Chunk, E2eKey, NodeStatement, Nonce, Register, Signature, ToCoordinator, ToProvider,
};

use super::event::{ConnId, Effect, Event, HoldError, Payer, Reply, Submission};
use super::{Coordinator, JobError, Limits, StateConfig};

const MODEL: &str = "ram-demo";

/// SplitMix64 (Steele, Lea, Flood 2014): the night's only source of chance.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// A provider of the simulation: honest in form, unreliable in everything else.
struct FakeNode {
    identity: NodeIdentity,
    conn: Option<ConnId>,
    jobs: Vec<(JobId, Attempt, FakeRun)>,
}

#[derive(Default)]
struct FakeRun {
    accepted: bool,
    seq: u32,
    tokens: u64,
}

/// What became of one job's money and words.
#[derive(Debug, Default)]
struct Fate {
    held: Option<XRam>,
    settled: Vec<XRam>,
    voided: u32,
    ends: u32,
    words_after_the_end: u32,
    abandoned: bool,
    refused_at_the_door: bool,
}

struct Night {
    dice: Dice,
    now: Timestamp,
    coordinator: Coordinator,
    nodes: Vec<FakeNode>,
    /// Messages on their way to the coordinator, per socket in order.
    wire: BTreeMap<ConnId, VecDeque<ToCoordinator>>,
    /// Answers of the store that have not arrived.
    store: VecDeque<Event>,
    fates: BTreeMap<JobId, Fate>,
    next_conn: u64,
    next_job: u128,
    tally: Tally,
}

/// How often something happened, so that a night in which nothing does is noticed.
#[derive(Debug, Default)]
struct Tally {
    whole: u32,
    cut: u32,
    voided: u32,
    second_tries: u32,
    checkpoints: u32,
    ghosts: u32,
    abandoned: u32,
}

impl Night {
    fn new(seed: u64, nodes: usize) -> Self {
        let limits = Limits {
            queue_per_model: 8,
            jobs: 64,
            queue_wait: Duration::from_secs(5),
            first_token: Duration::from_secs(3),
            between_tokens: Duration::from_secs(3),
            ..Limits::default()
        };
        let config = StateConfig { network: 84530, name: "night".to_owned(), limits };
        let identity = |n: usize| NodeIdentity::from_seeds([u8::try_from(n + 1).unwrap(); 32], [7; 32]);
        Self {
            dice: Dice(seed),
            now: Timestamp::from_millis(1_000_000),
            coordinator: Coordinator::new(config),
            nodes: (0..nodes)
                .map(|n| FakeNode { identity: identity(n), conn: None, jobs: Vec::new() })
                .collect(),
            wire: BTreeMap::new(),
            store: VecDeque::new(),
            fates: BTreeMap::new(),
            next_conn: 0,
            next_job: 0,
            tally: Tally::default(),
        }
    }

    fn run(mut self, steps: u32) -> Tally {
        for _ in 0..steps {
            self.step();
        }
        self.morning();
        for (job, fate) in &self.fates {
            check_fate(*job, fate);
        }
        self.tally
    }

    fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(self.dice.roll(200)));
        match self.dice.roll(100) {
            0..10 => self.submit(),
            10..14 => self.abandon(),
            14..20 => self.connect(),
            20..22 => self.kill(),
            22..30 => self.happen(Event::Tick),
            30..45 => self.store_answers(),
            45..75 => self.provider_works(),
            _ => self.deliver(),
        }
    }

    /// Lets everything run out: the store answers, all time limits pass.
    fn morning(&mut self) {
        for _ in 0..400 {
            self.now = self.now.after(Duration::from_millis(500));
            while !self.store.is_empty() {
                self.store_answers();
            }
            self.happen(Event::Tick);
        }
        assert_eq!(self.coordinator.open_jobs(), 0, "a job outlived every limit");
    }

    fn happen(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.coordinator.handle(event, self.now, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => self.hear(conn, *message),
            Effect::Close { conn } => self.cut(conn),
            Effect::Hold(order) => {
                let broke = self.dice.one_in(20);
                let fate = self.fates.get_mut(&order.job).expect("only submitted jobs are held");
                assert!(fate.held.is_none(), "{}: held twice", order.job);
                fate.held = (!broke).then_some(order.amount);
                let refusal = HoldError::Insufficient { balance: XRam::ZERO, needed: order.amount };
                let result = if broke { Err(refusal) } else { Ok(()) };
                self.store.push_back(Event::Held { job: order.job, result });
            }
            Effect::Settle(order) => {
                self.fates.get_mut(&order.job).unwrap().settled.push(order.charge);
                self.store.push_back(Event::Settled { job: order.job, remaining: None });
            }
            Effect::Checkpoint(order) => {
                let fate = &self.fates[&order.job];
                assert!(Some(order.charge) <= fate.held, "{}: a checkpoint above its hold", order.job);
                assert!(fate.settled.is_empty() && fate.voided == 0, "{}: a checkpoint too late", order.job);
                self.tally.checkpoints += 1;
            }
            Effect::Void { job } => {
                self.fates.get_mut(&job).unwrap().voided += 1;
                self.tally.voided += 1;
            }
            Effect::Reply { job, reply } => {
                let fate = self.fates.get_mut(&job).unwrap();
                fate.words_after_the_end += u32::from(fate.ends > 0);
                match reply {
                    Reply::Done { .. } => {
                        fate.ends += 1;
                        self.tally.whole += 1;
                    }
                    Reply::Failed { error, receipt } => {
                        fate.ends += 1;
                        self.tally.cut += u32::from(receipt.is_some());
                        fate.refused_at_the_door = fate.held.is_none()
                            && !matches!(error, JobError::Provider { .. } | JobError::NoCapacity(_));
                    }
                    Reply::Started { .. } | Reply::Delta { .. } => {}
                }
            }
        }
    }

    fn hear(&mut self, conn: ConnId, message: ToProvider) {
        let Some(n) = self.nodes.iter().position(|node| node.conn == Some(conn)) else { return };
        match message {
            ToProvider::Challenge { nonce, .. } => {
                let register = self.register(n, nonce);
                self.wire.entry(conn).or_default().push_back(register);
            }
            ToProvider::Run { attempt, job } => {
                self.tally.second_tries += u32::from(attempt > Attempt::FIRST);
                self.nodes[n].jobs.push((job.id, attempt, FakeRun::default()));
            }
            ToProvider::Cancel { job, attempt } if !self.dice.one_in(3) => {
                self.nodes[n].jobs.retain(|(id, try_, _)| (*id, *try_) != (job, attempt));
                let outcome = Outcome::Failed { failure: Failure::Cancelled };
                let finished = ToCoordinator::Finished { job, attempt, outcome };
                self.wire.entry(conn).or_default().push_back(finished);
            }
            _ => {}
        }
    }

    fn register(&self, n: usize, nonce: Nonce) -> ToCoordinator {
        let identity = &self.nodes[n].identity;
        let statement = NodeStatement {
            network: 84530,
            coordinator: "night".to_owned(),
            nonce,
            node_key: NodeKey::from_bytes(identity.node_public()),
            e2e_key: E2eKey::from_bytes(identity.e2e_public()),
            wallet: None,
            name: format!("node {n}").parse().unwrap(),
            expires_at: self.now.after(Duration::from_secs(60)),
        };
        let signed = Statement {
            network: statement.network,
            coordinator: statement.coordinator.clone(),
            nonce: *nonce.as_bytes(),
            node_key: identity.node_public(),
            e2e_key: identity.e2e_public(),
            wallet: None,
            name: statement.name.to_string(),
            expires_ms: statement.expires_at.as_millis(),
        };
        ToCoordinator::Register(Box::new(Register {
            signature: Signature::from_bytes(identity.sign_statement(&signed)),
            spec: spec(&statement),
            statement,
            load: load(),
            capabilities: Capabilities::ours(),
        }))
    }

    fn submit(&mut self) {
        self.next_job += 1;
        let job = JobId::from_bits(self.next_job);
        self.fates.insert(job, Fate::default());
        let payer = match self.dice.roll(3) {
            0 => Payer::Demo("10.0.0.1".parse().unwrap()),
            _ => Payer::Key("key".to_owned()),
        };
        self.happen(Event::Submit(Box::new(submission(job, payer))));
    }

    fn abandon(&mut self) {
        if self.next_job == 0 {
            return;
        }
        let job = JobId::from_bits(1 + u128::from(self.dice.roll(u64::try_from(self.next_job).unwrap())));
        let fate = self.fates.get_mut(&job).unwrap();
        if fate.ends == 0 {
            fate.abandoned = true;
            self.tally.abandoned += 1;
            self.happen(Event::Abandon { job });
        }
    }

    /// A node opens a socket, at times while it still has one: its older session becomes a ghost.
    fn connect(&mut self) {
        let n = self.pick_node();
        if self.nodes[n].conn.is_some() && !self.dice.one_in(6) {
            return;
        }
        self.next_conn += 1;
        self.tally.ghosts += u32::from(self.nodes[n].conn.is_some());
        let conn = ConnId(self.next_conn);
        self.nodes[n].conn = Some(conn);
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&self.dice.roll(u64::MAX).to_be_bytes());
        self.happen(Event::SocketOpened { conn, nonce: Nonce::from_bytes(nonce) });
    }

    fn kill(&mut self) {
        let n = self.pick_node();
        if let Some(conn) = self.nodes[n].conn {
            self.cut(conn);
            self.happen(Event::SocketClosed { conn });
        }
    }

    fn cut(&mut self, conn: ConnId) {
        self.wire.remove(&conn);
        for node in self.nodes.iter_mut().filter(|node| node.conn == Some(conn)) {
            node.conn = None;
            node.jobs.clear();
        }
    }

    fn store_answers(&mut self) {
        if let Some(event) = self.store.pop_front() {
            self.happen(event);
        }
    }

    /// One socket delivers one message; now and then twice, now and then never.
    fn deliver(&mut self) {
        let busy: Vec<ConnId> =
            self.wire.iter().filter(|(_, queue)| !queue.is_empty()).map(|(&conn, _)| conn).collect();
        if busy.is_empty() {
            return;
        }
        let conn = busy[usize::try_from(self.dice.roll(busy.len() as u64)).unwrap()];
        let Some(message) = self.wire.get_mut(&conn).and_then(VecDeque::pop_front) else { return };
        let times = if self.dice.one_in(10) { 2 } else { u64::from(!self.dice.one_in(50)) };
        for _ in 0..times {
            self.happen(Event::FromProvider { conn, message: Box::new(message.clone()) });
        }
    }

    fn provider_works(&mut self) {
        let n = self.pick_node();
        let (ending, stalled) = (self.dice.roll(12), self.dice.one_in(8));
        let node = &mut self.nodes[n];
        let Some(conn) = node.conn else { return };
        let queue = self.wire.entry(conn).or_default();
        if node.jobs.is_empty() || stalled {
            let offers = offers();
            queue.push_back(ToCoordinator::Heartbeat {
                load: load(),
                memory_cap: Bytes::from_gib(4),
                offers,
            });
            return;
        }
        let (job, attempt, run) = &mut node.jobs[0];
        let (job, attempt) = (*job, *attempt);
        if !run.accepted {
            run.accepted = true;
            queue.push_back(ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
            return;
        }
        let usage = Usage {
            prompt: TokenCount::new(12),
            completion: TokenCount::new(run.tokens + u64::from(ending == 3)), // at times a lie
            reasoning: TokenCount::ZERO,
        };
        let outcome = match ending {
            0 => Some(Outcome::Failed { failure: Failure::Internal }),
            1 => Some(Outcome::Failed { failure: Failure::InvalidPrompt }),
            2 | 3 => Some(Outcome::Done { finish: FinishReason::Stop, usage }),
            _ => None,
        };
        if let Some(outcome) = outcome {
            node.jobs.remove(0);
            queue.push_back(ToCoordinator::Finished { job, attempt, outcome });
            return;
        }
        let tokens = TokenCount::new(1 + u64::from(ending == 4) * 5);
        queue.push_back(ToCoordinator::Chunk(Chunk {
            job,
            attempt,
            seq: run.seq,
            tokens,
            content: PromptText::from("word "),
            reasoning: PromptText::default(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }));
        run.seq += 1;
        run.tokens += tokens.get();
    }

    fn pick_node(&mut self) -> usize {
        usize::try_from(self.dice.roll(self.nodes.len() as u64)).unwrap()
    }
}

fn check_fate(job: JobId, fate: &Fate) {
    let resolved = fate.settled.len() + usize::try_from(fate.voided).unwrap();
    assert_eq!(resolved, usize::from(fate.held.is_some()), "{job}: {fate:?}");
    for charge in &fate.settled {
        assert!(Some(*charge) <= fate.held, "{job}: paid more than was held: {fate:?}");
    }
    assert!(fate.ends <= 1, "{job}: ended more than once: {fate:?}");
    assert!(fate.ends == 1 || fate.abandoned, "{job}: never ended: {fate:?}");
    assert_eq!(fate.words_after_the_end, 0, "{job}: {fate:?}");
}

fn submission(job: JobId, payer: Payer) -> Submission {
    Submission {
        job,
        payer,
        model: MODEL.parse().unwrap(),
        messages: vec![ChatMessage::new(Role::User, "hello")],
        tools: Vec::new(),
        chat_template_kwargs: Default::default(),
        params: GenerationParams {
            max_tokens: TokenCount::new(8),
            stop: Vec::new(),
            sampling: Sampling::default(),
        },
        preferred: None,
    }
}

fn offers() -> Vec<ModelOffer> {
    let model = catalog::resolve(MODEL).unwrap().model_id();
    vec![ModelOffer { model, state: ModelState::Loaded, speed: None }]
}

fn load() -> Load {
    Load { running: 0, queued: 0, slots: 2, memory_free: Bytes::from_gib(4), thermal: Thermal::Nominal }
}

fn spec(statement: &NodeStatement) -> ProviderSpec {
    ProviderSpec {
        name: statement.name.clone(),
        wallet: None,
        version: "0.1.0".to_owned(),
        hardware: Hardware {
            chip: "sim".to_owned(),
            os: "sim".to_owned(),
            memory: Bytes::from_gib(8),
            usable_memory: Bytes::from_gib(6),
            cpus: 2,
        },
        memory_cap: Bytes::from_gib(4),
        offers: offers(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn on_any_night_each_job_ends_once_and_each_hold_is_resolved_once(seed: u64, nodes in 1usize..5) {
        Night::new(seed, nodes).run(400);
    }
}

#[test]
fn the_nights_are_wild_enough_to_prove_anything() {
    let add = |sum: Tally, night: Tally| Tally {
        whole: sum.whole + night.whole,
        cut: sum.cut + night.cut,
        voided: sum.voided + night.voided,
        second_tries: sum.second_tries + night.second_tries,
        checkpoints: sum.checkpoints + night.checkpoints,
        ghosts: sum.ghosts + night.ghosts,
        abandoned: sum.abandoned + night.abandoned,
    };
    let tally = (0..50).map(|seed| Night::new(seed, 3).run(400)).fold(Tally::default(), add);
    let Tally { whole, cut, voided, second_tries, checkpoints, ghosts, abandoned } = tally;
    let all = [whole, cut, voided, second_tries, checkpoints, ghosts, abandoned];
    assert!(all.iter().all(|&times| times >= 20), "{tally:?}");
}

/// A quiet night with one node: what the user sees, in order.
#[test]
fn a_job_is_held_run_paid_and_answered() {
    let mut night = Night::new(1, 1);
    let (conn, job) = (ConnId(1), JobId::from_bits(9));
    let mut effects = Vec::new();
    let mut handle = |night: &mut Night, event| {
        effects.clear();
        night.coordinator.handle(event, night.now, &mut effects);
        std::mem::take(&mut effects)
    };
    handle(&mut night, Event::SocketOpened { conn, nonce: Nonce::from_bytes([3; 32]) });
    let register = night.register(0, Nonce::from_bytes([3; 32]));
    let registered = handle(&mut night, Event::FromProvider { conn, message: Box::new(register) });
    assert!(matches!(&registered[..], [Effect::Send { message, .. }]
        if matches!(**message, ToProvider::Registered { .. })));

    let submission = submission(job, Payer::Key("key".to_owned()));
    let held = handle(&mut night, Event::Submit(Box::new(submission)));
    assert!(matches!(&held[..], [Effect::Hold(order)] if order.job == job));
    let sent = handle(&mut night, Event::Held { job, result: Ok(()) });
    assert!(
        matches!(&sent[..], [Effect::Send { message, .. }] if matches!(**message, ToProvider::Run { .. }))
    );

    let attempt = Attempt::FIRST;
    let say = |message| Event::FromProvider { conn, message: Box::new(message) };
    let prompt = TokenCount::new(5);
    let started = handle(&mut night, say(ToCoordinator::Accepted { job, attempt, prompt }));
    assert!(matches!(&started[..], [Effect::Reply { reply: Reply::Started { .. }, .. }]));
    let chunk = Chunk {
        job,
        attempt,
        seq: 0,
        tokens: TokenCount::new(2),
        content: PromptText::from("Hi!"),
        reasoning: PromptText::default(),
        tool_calls: Vec::new(),
        logprobs: Vec::new(),
    };
    let delta = handle(&mut night, say(ToCoordinator::Chunk(chunk.clone())));
    assert!(matches!(&delta[..], [Effect::Reply { reply: Reply::Delta { .. }, .. }]));
    assert_eq!(handle(&mut night, say(ToCoordinator::Chunk(chunk))), [], "what comes twice counts once");
    let usage = Usage { prompt, completion: TokenCount::new(2), reasoning: TokenCount::ZERO };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let paid = handle(&mut night, say(ToCoordinator::Finished { job, attempt, outcome }));
    assert!(matches!(&paid[..], [Effect::Settle(order)] if order.usage == usage));
    let done = handle(&mut night, Event::Settled { job, remaining: Some(XRam::from_xram(1)) });
    assert!(matches!(&done[..], [Effect::Reply { reply: Reply::Done { .. }, .. }]));
    assert_eq!(night.coordinator.open_jobs(), 0);
}

/// A network of honest nodes, driven step by step.
struct Day {
    night: Night,
    effects: Vec<Effect>,
}

impl Day {
    /// `nodes` providers, on sockets 0, 1, …, each with two slots.
    fn new(nodes: usize) -> Self {
        let mut day = Self { night: Night::new(1, nodes), effects: Vec::new() };
        for n in 0..nodes {
            let (conn, nonce) = (ConnId(n as u64), Nonce::from_bytes([u8::try_from(n).unwrap(); 32]));
            day.happen(Event::SocketOpened { conn, nonce });
            let register = day.night.register(n, nonce);
            day.say(conn, register);
        }
        day
    }

    fn happen(&mut self, event: Event) -> &[Effect] {
        self.effects.clear();
        self.night.coordinator.handle(event, self.night.now, &mut self.effects);
        &self.effects
    }

    fn say(&mut self, conn: ConnId, message: ToCoordinator) -> &[Effect] {
        self.happen(Event::FromProvider { conn, message: Box::new(message) })
    }

    /// Submits a job; answers the socket that it goes to, if it goes anywhere.
    fn submit(&mut self, job: JobId) -> Option<ConnId> {
        self.happen(Event::Submit(Box::new(submission(job, Payer::Key("key".to_owned())))));
        runs_on(self.happen(Event::Held { job, result: Ok(()) }))
    }

    fn later(&mut self, time: Duration) -> &[Effect] {
        self.night.now = self.night.now.after(time);
        self.happen(Event::Tick)
    }
}

/// The socket to which a `run` is sent.
fn runs_on(effects: &[Effect]) -> Option<ConnId> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { conn, message } if matches!(**message, ToProvider::Run { .. }) => Some(*conn),
        _ => None,
    })
}

fn failed(job: JobId, failure: Failure) -> ToCoordinator {
    ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome: Outcome::Failed { failure } }
}

#[test]
fn a_provider_that_hangs_and_dies_takes_nothing_from_the_one_that_took_over() {
    let (mut day, job) = (Day::new(2), JobId::from_bits(1));
    let hangs = day.submit(job).unwrap();
    let helps = runs_on(day.later(Duration::from_secs(4))).unwrap();
    assert_ne!(hangs, helps);
    let second = Attempt::FIRST.next();
    day.say(helps, ToCoordinator::Accepted { job, attempt: second, prompt: TokenCount::new(5) });
    assert_eq!(day.happen(Event::SocketClosed { conn: hangs }), []);
    let usage = Usage { prompt: TokenCount::new(5), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let paid = day.say(helps, ToCoordinator::Finished { job, attempt: second, outcome });
    assert!(matches!(paid, [Effect::Settle(order)] if order.attempt == second));
}

#[test]
fn a_job_that_nobody_else_can_try_ends_at_once_and_blocks_nobody() {
    let mut day = Day::new(1);
    let (first, second, third) = (JobId::from_bits(1), JobId::from_bits(2), JobId::from_bits(3));
    let conn = day.submit(first).unwrap();
    day.submit(second).unwrap();
    assert_eq!(day.submit(third), None, "both slots are taken");
    let effects = day.say(conn, failed(first, Failure::Overloaded));
    let error = JobError::Provider { failure: Failure::Overloaded };
    assert!(effects.contains(&Effect::Reply { job: first, reply: Reply::Failed { error, receipt: None } }));
    assert_eq!(runs_on(effects), Some(conn), "the third job has the slot");
}

#[test]
fn an_answer_to_a_prompt_that_nobody_counted_is_not_paid() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let usage = Usage { prompt: TokenCount::new(1_000_000), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome });
    assert!(effects.contains(&Effect::Void { job }), "{effects:?}");
}

#[test]
fn a_prompt_is_counted_once_and_paid_as_it_was_told() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let attempt = Attempt::FIRST;
    let accepted = |prompt| ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(prompt) };
    day.say(conn, accepted(3));
    assert_eq!(day.say(conn, accepted(16)), []);
    let usage = Usage { prompt: TokenCount::new(16), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt, outcome });
    assert!(matches!(effects, [Effect::Settle(order)] if order.usage.prompt == TokenCount::new(3)));
}

#[test]
fn a_provider_that_only_fails_gets_no_more_jobs() {
    let mut day = Day::new(1);
    for number in 1..=3 {
        let job = JobId::from_bits(number);
        let conn = day.submit(job).unwrap();
        day.say(conn, failed(job, Failure::Internal));
    }
    assert_eq!(day.submit(JobId::from_bits(4)), None);
}

#[test]
fn a_machine_that_slept_loses_nobody() {
    let mut day = Day::new(1);
    day.later(Duration::from_secs(1));
    assert_eq!(day.later(Duration::from_secs(3600)), []);
    assert_eq!(day.later(Duration::from_secs(1)), []);
}

#[test]
fn who_leaves_before_the_money_is_held_gets_it_back_and_no_provider_hears_of_it() {
    let mut night = Night::new(1, 1);
    let (conn, job, mut effects) = (ConnId(1), JobId::from_bits(1), Vec::new());
    let nonce = Nonce::from_bytes([3; 32]);
    let register = Box::new(night.register(0, nonce));
    for event in [
        Event::SocketOpened { conn, nonce },
        Event::FromProvider { conn, message: register },
        Event::Submit(Box::new(submission(job, Payer::Key("key".to_owned())))),
        Event::Abandon { job },
    ] {
        night.coordinator.handle(event, night.now, &mut effects);
    }
    effects.clear();
    night.coordinator.handle(Event::Held { job, result: Ok(()) }, night.now, &mut effects);
    assert_eq!(effects, [Effect::Void { job }]);
}

/// Money follows identity: the same key on a second socket ends the first session.
#[test]
fn a_ghost_is_fenced_off() {
    let mut night = Night::new(1, 1);
    let open = |night: &mut Night, conn, nonce| {
        let mut effects = Vec::new();
        night.coordinator.handle(Event::SocketOpened { conn, nonce }, night.now, &mut effects);
        let message = Box::new(night.register(0, nonce));
        night.coordinator.handle(Event::FromProvider { conn, message }, night.now, &mut effects);
        effects
    };
    open(&mut night, ConnId(1), Nonce::from_bytes([1; 32]));
    let effects = open(&mut night, ConnId(2), Nonce::from_bytes([2; 32]));
    assert!(effects.contains(&Effect::Close { conn: ConnId(1) }));
    let mut effects = Vec::new();
    let draining = Event::FromProvider { conn: ConnId(1), message: Box::new(ToCoordinator::Draining) };
    night.coordinator.handle(draining, night.now, &mut effects);
    let id: ProviderId = NodeKey::from_bytes(night.nodes[0].identity.node_public()).provider_id();
    assert!(!night.coordinator.registry.node(id).unwrap().draining, "a ghost was heard");
}
