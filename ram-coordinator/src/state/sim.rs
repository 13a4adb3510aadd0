//! A network's worst nights, each under one seed: providers die, lie, repeat themselves, say things too late and too
//! much; users leave; the store answers when it likes. After each night every job has ended once, every hold is
//! resolved once, nobody was paid for more than was held, no lie was paid, and no honest node was called a liar.
//!
//! `RAM_SIM_SEEDS=10000 cargo test -p ram-coordinator nights` plays more of them, `RAM_SIM_SEED` says where to begin. A
//! night that fails tells its seed; once mended it is kept as a test of its own. Single steps stand in `day`, those
//! with boxes in `boxes`.

mod boxes;
mod day;
mod gather;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ram_core::catalog;
use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::id::{Attempt, JobId, NodeKey, ProviderId};
use ram_core::job::{Failure, FinishReason, GenerationParams, Outcome, Sampling, Usage};
use ram_core::provider::{Hardware, Load, ModelOffer, ModelState, ProviderSpec, Thermal};
use ram_core::reputation::{self, Reputation};
use ram_core::units::{Bytes, Timestamp, TokenCount, XRam};
use ram_core::validate::{Unrewarded, Verdict};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::statement::Statement;
use ram_proto::control::{
    Capabilities, Chunk, E2eKey, NodeStatement, Nonce, Register, Signature, ToCoordinator, ToProvider,
};

use super::event::{
    ConnId, Effect, Event, HoldError, Payer, Plain, Reply, Request, SettleOrder, Standing, Submission,
};
use super::{Coordinator, JobError, Limits, StateConfig};

const MODEL: &str = "ram-demo";
/// A model that no machine runs fast.
const HEAVY_MODEL: &str = "llama-3.3-70b";
/// Tokens that every job asks for.
const TOKENS: u64 = 64;
/// Nights that are played where nobody says how many.
const SEEDS: u64 = 1000;

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

/// How a node earns its living.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// Honest in form, unreliable in everything else.
    Honest,
    /// Says a word and claims sixty tokens.
    Inflates,
    /// Claims forty tokens and says nothing.
    Empty,
    /// Answers in the very moment in which it is asked.
    Hasty,
    /// Says the same to everyone.
    Repeats,
}

/// A provider of the simulation.
struct FakeNode {
    identity: NodeIdentity,
    nature: Nature,
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
    settled: Vec<SettleOrder>,
    refused: Vec<SettleOrder>,
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
    /// Messages that arrive before anything else happens.
    at_once: VecDeque<(ConnId, ToCoordinator)>,
    /// Answers of the store that have not arrived.
    store: VecDeque<Event>,
    /// What the store was told of nodes.
    noted: BTreeMap<ProviderId, Reputation>,
    fates: BTreeMap<JobId, Fate>,
    next_conn: u64,
    next_job: u128,
    tally: Tally,
}

/// How often something happened, so that a night in which nothing does is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    whole: u32,
    cut: u32,
    voided: u32,
    second_tries: u32,
    checkpoints: u32,
    ghosts: u32,
    abandoned: u32,
    empty_answers: u32,
    inflated: u32,
    hasty_lies: u32,
    duplicates: u32,
    turned_away: u32,
    untrusted: u32,
}

impl Tally {
    fn counts(self) -> [u32; 13] {
        let Self { whole, cut, voided, second_tries, checkpoints, ghosts, abandoned, .. } = self;
        let Self { empty_answers, inflated, hasty_lies, duplicates, turned_away, untrusted, .. } = self;
        let honest = [whole, cut, voided, second_tries, checkpoints, ghosts, abandoned];
        let bent = [empty_answers, inflated, hasty_lies, duplicates, turned_away, untrusted];
        std::array::from_fn(|n| if n < 7 { honest[n] } else { bent[n - 7] })
    }
}

impl Night {
    fn new(seed: u64, nodes: usize) -> Self {
        let limits = Limits {
            queue_per_model: 8,
            jobs: 64,
            jobs_per_key: 24,
            jobs_per_address: 8,
            queue_wait: Duration::from_secs(5),
            first_token: Duration::from_secs(3),
            between_tokens: Duration::from_secs(3),
            ..Limits::default()
        };
        let config = StateConfig { network: 84530, name: "night".to_owned(), limits };
        let identity = |n: usize| NodeIdentity::from_seeds([u8::try_from(n + 1).unwrap(); 32], [7; 32]);
        let node =
            |n| FakeNode { identity: identity(n), nature: Nature::Honest, conn: None, jobs: Vec::new() };
        Self {
            dice: Dice(seed),
            now: Timestamp::from_millis(1_000_000),
            coordinator: Coordinator::new(config),
            nodes: (0..nodes).map(node).collect(),
            wire: BTreeMap::new(),
            at_once: VecDeque::new(),
            store: VecDeque::new(),
            noted: BTreeMap::new(),
            fates: BTreeMap::new(),
            next_conn: 0,
            next_job: 0,
            tally: Tally::default(),
        }
    }

    /// A night in which half of the nodes are liars, each of its own kind.
    fn with_liars(seed: u64, nodes: usize) -> Self {
        let mut night = Self::new(seed, nodes);
        for n in 0..nodes {
            night.nodes[n].nature = match night.dice.roll(8) {
                0 => Nature::Inflates,
                1 => Nature::Empty,
                2 => Nature::Hasty,
                3 => Nature::Repeats,
                _ => Nature::Honest,
            };
        }
        night
    }

    fn run(mut self, steps: u32) -> Tally {
        for _ in 0..steps {
            self.step();
        }
        self.morning();
        for (job, fate) in &self.fates {
            check_fate(*job, fate);
            fate.settled.iter().chain(&fate.refused).for_each(|order| self.check_order(order));
        }
        self.check_standings();
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
        assert_eq!(self.coordinator.jobs.prompt_bytes(), Bytes::ZERO, "a prompt outlived its job");
        assert_eq!(self.coordinator.jobs.open_of(&Payer::Key("key".to_owned())), 0);
    }

    fn happen(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            let mut effects = Vec::new();
            self.coordinator.handle(event, self.now, &mut effects);
            for effect in effects {
                self.perform(effect);
            }
            next = self
                .at_once
                .pop_front()
                .map(|(conn, message)| Event::FromProvider { conn, message: Box::new(message) });
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
                match order.verdict {
                    Verdict::Unrewarded(Unrewarded::Empty) => self.tally.empty_answers += 1,
                    Verdict::Unrewarded(Unrewarded::Inflated { .. }) => self.tally.inflated += 1,
                    Verdict::Unrewarded(Unrewarded::Duplicate) => self.tally.duplicates += 1,
                    _ => {}
                }
                self.store.push_back(Event::Settled { job: order.job, remaining: None });
                self.fates.get_mut(&order.job).unwrap().settled.push(order);
            }
            Effect::Refuse(order) => {
                match order.verdict.code() {
                    "refused_too_fast" => self.tally.hasty_lies += 1,
                    other => panic!("{}: refused as {other}", order.job),
                }
                self.fates.get_mut(&order.job).unwrap().refused.push(order);
            }
            Effect::NoteStandings(standings) => {
                let noted =
                    standings.into_iter().map(|Standing { provider, reputation }| (provider, reputation));
                self.noted.extend(noted);
            }
            Effect::Checkpoint(order) => {
                let fate = &self.fates[&order.job];
                assert!(Some(order.charge) <= fate.held, "{}: a checkpoint above its hold", order.job);
                assert!(fate.settled.is_empty() && fate.voided == 0, "{}: a checkpoint too late", order.job);
                self.check_order(&order);
                self.tally.checkpoints += 1;
            }
            Effect::Void { job } => {
                self.fates.get_mut(&job).unwrap().voided += 1;
                self.tally.voided += 1;
            }
            Effect::Reply { job, reply } => self.reply(job, reply),
        }
    }

    fn reply(&mut self, job: JobId, reply: Reply) {
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
                self.tally.turned_away += u32::from(matches!(error, JobError::TooManyOpen { .. }));
                fate.refused_at_the_door = fate.held.is_none()
                    && !matches!(error, JobError::Provider { .. } | JobError::NoCapacity(_));
            }
            Reply::Started { .. } | Reply::Delta { .. } | Reply::Sealed { .. } => {}
        }
    }

    fn hear(&mut self, conn: ConnId, message: ToProvider) {
        let Some(n) = self.nodes.iter().position(|node| node.conn == Some(conn)) else { return };
        match message {
            ToProvider::Challenge { nonce, .. } => {
                let register = self.register(n, nonce);
                self.wire.entry(conn).or_default().push_back(register);
            }
            ToProvider::Run { attempt, job, .. } => {
                self.tally.second_tries += u32::from(attempt > Attempt::FIRST);
                self.nodes[n].jobs.push((job.id, attempt, FakeRun::default()));
                if self.nodes[n].nature == Nature::Hasty {
                    while self.nodes[n].jobs.iter().any(|(id, ..)| *id == job.id) {
                        let (message, _) = self.nodes[n].cheat();
                        self.at_once.push_back((conn, message));
                    }
                }
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
        let mut submission = submission(job, payer);
        if self.dice.one_in(2) {
            submission.model = HEAVY_MODEL.parse().unwrap();
        }
        self.happen(Event::Submit(Box::new(submission)));
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
        self.at_once.retain(|(other, _)| *other != conn);
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
            queue.push_back(ToCoordinator::Heartbeat {
                load: load(),
                memory_cap: Bytes::from_gib(4),
                offers: offers(),
            });
        } else if node.nature == Nature::Honest {
            queue.push_back(node.work(ending));
        } else {
            queue.push_back(node.cheat().0);
        }
    }

    fn pick_node(&mut self) -> usize {
        usize::try_from(self.dice.roll(self.nodes.len() as u64)).unwrap()
    }

    fn nature_of(&self, provider: ProviderId) -> Nature {
        self.nodes.iter().find(|node| node.id() == provider).expect("only our nodes serve").nature
    }

    /// Whether an order is what its provider deserves.
    fn check_order(&self, order: &SettleOrder) {
        let (nature, written) = (self.nature_of(order.provider), order.usage.completion);
        if let Verdict::Refused(refused) = order.verdict {
            assert_eq!(nature, Nature::Hasty, "{}: an honest node was called a liar: {refused}", order.job);
        } else {
            match nature {
                Nature::Empty => assert_eq!(order.charge, XRam::ZERO, "{}: silence was paid", order.job),
                Nature::Inflates => assert!(written < TokenCount::new(20), "{}: {written}", order.job),
                Nature::Honest | Nature::Hasty | Nature::Repeats => {}
            }
        }
    }

    /// What the store was told of nodes is what is thought of them, and liars are thought of as they should be.
    fn check_standings(&mut self) {
        let mut effects = Vec::new();
        self.coordinator.handle(Event::Drain, self.now, &mut effects);
        effects.into_iter().for_each(|effect| self.perform(effect));
        for node in &self.nodes {
            let known = self.coordinator.standings.of(node.id(), self.now);
            let noted = self.noted.get(&node.id()).map(|reputation| reputation.score(self.now));
            assert_eq!(noted.unwrap_or(reputation::NEUTRAL), known);
            if known < reputation::FLOOR {
                assert_ne!(node.nature, Nature::Honest, "an honest node is locked out");
                self.tally.untrusted += 1;
            }
        }
    }
}

impl FakeNode {
    fn id(&self) -> ProviderId {
        NodeKey::from_bytes(self.identity.node_public()).provider_id()
    }

    /// The next word of an honest node on its first job, or its last.
    fn work(&mut self, ending: u64) -> ToCoordinator {
        let (job, attempt, run) = &mut self.jobs[0];
        let (job, attempt) = (*job, *attempt);
        if !run.accepted {
            run.accepted = true;
            return ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) };
        }
        let tokens = run.tokens + u64::from(ending == 3 && run.tokens > 0); // at times it counts one too many
        let outcome = match ending {
            0 => Some(Outcome::Failed { failure: Failure::Internal }),
            1 => Some(Outcome::Failed { failure: Failure::InvalidPrompt }),
            2 | 3 => Some(done(tokens)),
            _ => None,
        };
        if let Some(outcome) = outcome {
            self.jobs.remove(0);
            return ToCoordinator::Finished { job, attempt, outcome };
        }
        let tokens = 1 + u64::from(ending == 4) * 5;
        run.chunk(job, attempt, tokens, "some words of it ")
    }

    /// The next word of a liar on its first job, and whether it was the last.
    fn cheat(&mut self) -> (ToCoordinator, bool) {
        let nature = self.nature;
        let (job, attempt, run) = &mut self.jobs[0];
        let (job, attempt) = (*job, *attempt);
        if !run.accepted {
            run.accepted = true;
            return (ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) }, false);
        }
        if run.seq == 0 {
            let (tokens, text) = match nature {
                Nature::Inflates => (60, "no".to_owned()),
                Nature::Empty => (40, String::new()),
                Nature::Hasty | Nature::Honest => {
                    (TOKENS, format!("the answer to {job} is forty two, as ever"))
                }
                Nature::Repeats => (TOKENS, "what everybody hears from me, whoever asks; ".repeat(20)),
            };
            return (run.chunk(job, attempt, tokens, &text), false);
        }
        let outcome = done(run.tokens);
        self.jobs.remove(0);
        (ToCoordinator::Finished { job, attempt, outcome }, true)
    }
}

impl FakeRun {
    fn chunk(&mut self, job: JobId, attempt: Attempt, tokens: u64, text: &str) -> ToCoordinator {
        let seq = self.seq;
        self.seq += 1;
        self.tokens += tokens;
        ToCoordinator::Chunk(Chunk {
            job,
            attempt,
            seq,
            tokens: TokenCount::new(tokens),
            content: PromptText::from(text),
            reasoning: PromptText::default(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        })
    }
}

fn done(tokens: u64) -> Outcome {
    let (prompt, completion) = (TokenCount::new(12), TokenCount::new(tokens));
    Outcome::Done { finish: FinishReason::Stop, usage: Usage { prompt, completion, ..Usage::default() } }
}

fn check_fate(job: JobId, fate: &Fate) {
    let resolved = fate.settled.len() + usize::try_from(fate.voided).unwrap();
    assert_eq!(resolved, usize::from(fate.held.is_some()), "{job}: {fate:?}");
    for order in &fate.settled {
        assert!(Some(order.charge) <= fate.held, "{job}: paid more than was held: {fate:?}");
        assert!(!matches!(order.verdict, Verdict::Refused(_)), "{job}: a lie was paid: {fate:?}");
        let is_it = |refused: &SettleOrder| refused.attempt == order.attempt;
        assert!(!fate.refused.iter().any(is_it), "{job}: refused and paid: {fate:?}");
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
        request: Request::Plain(Box::new(Plain {
            messages: vec![ChatMessage::new(Role::User, format!("hello, {job}"))],
            tools: Vec::new(),
            chat_template_kwargs: Default::default(),
            params: GenerationParams::new(TokenCount::new(TOKENS), Sampling::default()),
        })),
        preferred: None,
    }
}

/// What a submission asks in words.
fn plain(submission: &mut Submission) -> &mut Plain {
    match &mut submission.request {
        Request::Plain(plain) => plain,
        Request::Sealed(_) => panic!("in a box"),
    }
}

fn offers() -> Vec<ModelOffer> {
    let offer = |alias| ModelOffer {
        model: catalog::resolve(alias).unwrap().model_id(),
        state: ModelState::Loaded,
        speed: None,
    };
    [MODEL, HEAVY_MODEL].map(offer).to_vec()
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

/// Says which night it was when one fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("play this night alone: RAM_SIM_SEED={} RAM_SIM_SEEDS=1", self.0);
        }
    }
}

fn night(seed: u64) -> Tally {
    let _seed = Seed(seed);
    Night::with_liars(seed, 1 + usize::try_from(seed / 4 % 5).unwrap()).run(400)
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// A quarter of the nights, so that four threads share them.
fn nights(quarter: u64) {
    let first = number("RAM_SIM_SEED", 0);
    let seeds = first..first + number("RAM_SIM_SEEDS", SEEDS);
    for seed in seeds.filter(|seed| seed % 4 == quarter) {
        night(seed);
    }
}

#[test]
fn on_all_nights_each_job_ends_once_and_no_lie_is_paid_first_quarter() {
    nights(0);
}

#[test]
fn on_all_nights_each_job_ends_once_and_no_lie_is_paid_second_quarter() {
    nights(1);
}

#[test]
fn on_all_nights_each_job_ends_once_and_no_lie_is_paid_third_quarter() {
    nights(2);
}

#[test]
fn on_all_nights_each_job_ends_once_and_no_lie_is_paid_last_quarter() {
    nights(3);
}

#[test]
fn the_nights_are_wild_enough_to_prove_anything() {
    let mut sum = [0; 13];
    for seed in 0..200 {
        let counts = night(seed).counts();
        sum = std::array::from_fn(|n| sum[n] + counts[n]);
    }
    assert!(sum.iter().all(|&times| times >= 20), "{sum:?} in the order of the tally's fields");
}
