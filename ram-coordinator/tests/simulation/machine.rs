//! A provider's machine: the real [`Agent`], a shell around it, an engine that writes numbers, and what befalls them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ram_core::catalog;
use ram_core::id::{Attempt, JobId, NodeKey, ProviderId};
use ram_core::job::{Failure, FinishReason, Job, Outcome, Usage};
use ram_core::provider::{Hardware, ModelOffer, ModelState, ProviderSpec};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_proto::control::{Decoded, ToCoordinator, ToProvider};
use ram_provider::agent::{Agent, AgentConfig, Effect, Event, Note, Piece, Ticket};

use super::dice::Dice;
use super::liar::{self, Past, VICES, Vice};
use super::wire::{Link, LinkId, Parcel, Way};
use super::world::{Happening, Trouble, World};

/// The model that most jobs are for,
pub const MODEL: &str = "ram-demo";
/// and one that some are for, on some machines.
pub const OTHER_MODEL: &str = "llama-3.2-1b";
/// Longest that a link's own pings let it be silent, and when the next ping comes after that.
const SILENCE_MS: std::ops::RangeInclusive<u64> = 30_000..=45_000;
/// Wakes at one instant that only an agent that does not see time pass needs.
const WAKES_AT_ONCE_MAX: u32 = 1000;

/// One machine, on or off.
#[derive(Debug)]
pub struct Machine {
    number: usize,
    identity: Arc<NodeIdentity>,
    pub provider: ProviderId,
    /// Rises at each start, so that what was planned for an earlier process finds nobody.
    life: u32,
    agent: Option<Agent>,
    link: Option<LinkId>,
    slots: u16,
    /// Milliseconds that its clock is ahead of, and behind, the coordinator's.
    ahead_ms: u64,
    behind_ms: u64,
    wakes_at: Option<Timestamp>,
    wakes_at_once: (Timestamp, u32),
    is_other_model_loaded: bool,
    is_loaded: bool,
    step_ms: u64,
    hangs: bool,
    fails: bool,
    vice: Option<Vice>,
    has_lied: bool,
    past: Past,
    runs: BTreeMap<Ticket, Writing>,
    /// Runs of this link that the agent has to answer, and how many chunks each has.
    owed: BTreeMap<(JobId, Attempt), u32>,
    /// All runs that came over this link.
    came: BTreeSet<(JobId, Attempt)>,
    /// The visible words of each answer that it finished.
    wrote: BTreeMap<JobId, u32>,
}

/// An answer that the engine writes.
#[derive(Debug)]
struct Writing {
    job: JobId,
    prompt: TokenCount,
    has_started: bool,
    tokens: u64,
    tokens_in_all: u64,
    words: u32,
}

impl Machine {
    pub fn new(number: usize, dice: &mut Dice) -> Self {
        let seed = u8::try_from(number + 1).expect("few machines");
        let identity = NodeIdentity::from_seeds([seed; 32], [seed; 32]);
        Self {
            number,
            provider: NodeKey::from_bytes(identity.node_public()).provider_id(),
            identity: Arc::new(identity),
            life: 0,
            agent: None,
            link: None,
            slots: dice.pick(&[1, 2, 4]),
            ahead_ms: dice.pick(&[0, 0, 100_000]),
            behind_ms: dice.pick(&[0, 0, 100_000]),
            wakes_at: None,
            wakes_at_once: (Timestamp::ZERO, 0),
            is_other_model_loaded: dice.one_in(2),
            is_loaded: true,
            step_ms: dice.pick(&[3, 15, 60, 300]),
            hangs: false,
            fails: false,
            vice: None,
            has_lied: false,
            past: Past::default(),
            runs: BTreeMap::new(),
            owed: BTreeMap::new(),
            came: BTreeSet::new(),
            wrote: BTreeMap::new(),
        }
    }

    /// Whether it has kept to the protocol all its days.
    pub fn is_honest(&self) -> bool {
        !self.has_lied
    }

    /// Visible words of the answer that it finished last to this job.
    pub fn wrote(&self, job: JobId) -> u32 {
        self.wrote.get(&job).copied().unwrap_or_default()
    }

    /// What it still has in hand.
    pub fn what_is_open(&self) -> Option<String> {
        let name = format!("machine {}", self.number);
        let Some(agent) = &self.agent else { return Some(format!("{name} is off")) };
        if agent.session().is_none() {
            return Some(format!("{name} is not registered"));
        }
        let (running, queued) = (agent.load().running, agent.load().queued);
        let open = running > 0 || queued > 0 || !self.runs.is_empty() || !self.owed.is_empty();
        open.then(|| format!("{name} has {running} jobs, and owes {:?}", self.owed))
    }

    /// Whether this process runs and stands on this link, as far as it knows.
    pub fn stands_on(&self, link: LinkId, life: u32) -> bool {
        self.is_alive(life) && self.link == Some(link)
    }

    fn is_alive(&self, life: u32) -> bool {
        self.agent.is_some() && self.life == life
    }

    /// Its own clock.
    fn clock(&self, now: Timestamp) -> Timestamp {
        let ahead = now.after(Duration::from_millis(self.ahead_ms));
        Timestamp::from_millis(ahead.as_millis().saturating_sub(self.behind_ms))
    }

    /// When its clock shows `at`.
    fn world_time(&self, at: Timestamp) -> Timestamp {
        let behind = at.after(Duration::from_millis(self.behind_ms));
        Timestamp::from_millis(behind.as_millis().saturating_sub(self.ahead_ms))
    }

    fn offers(&self) -> Vec<ModelOffer> {
        let offer = |(alias, is_loaded): (&str, bool)| ModelOffer {
            model: catalog::resolve(alias).expect("the catalogue has it").model_id(),
            state: if is_loaded { ModelState::Loaded } else { ModelState::OnDisk },
            speed: None,
        };
        [(MODEL, self.is_loaded), (OTHER_MODEL, self.is_other_model_loaded)].map(offer).to_vec()
    }

    fn agent_config(&self, jitter_seed: u64) -> AgentConfig {
        let gib = Bytes::from_gib;
        let hardware = Hardware {
            chip: "sim".to_owned(),
            os: "sim".to_owned(),
            memory: gib(16),
            usable_memory: gib(12),
            cpus: 4,
        };
        let spec = ProviderSpec {
            name: format!("machine {}", self.number).parse().expect("a name"),
            wallet: None,
            version: "0".to_owned(),
            hardware,
            memory_cap: gib(8),
            offers: self.offers(),
        };
        AgentConfig { spec, memory_free: gib(8), slots: self.slots, queue_max: 0, jitter_seed }
    }

    fn forget_the_link(&mut self) {
        self.link = None;
        self.owed.clear();
        self.came.clear();
    }
}

/// Starts, deaths, and the agent's own events.
impl World {
    pub fn machine_starts(&mut self, number: usize, life: u32) {
        let jitter_seed = self.dice.roll(u64::MAX);
        let machine = &mut self.machines[number];
        if machine.agent.is_some() || machine.life != life {
            return;
        }
        machine.life += 1;
        let config = machine.agent_config(jitter_seed);
        machine.agent = Some(Agent::new(config, Arc::clone(&machine.identity)));
        self.note(format_args!("machine {number} starts"));
        self.agent(number, Event::Wake);
    }

    /// Its process is gone: the system closes its socket, unless the system is gone as well.
    fn machine_dies(&mut self, number: usize, has_power: bool) {
        let machine = &mut self.machines[number];
        if machine.agent.take().is_none() {
            return;
        }
        let (life, link) = (machine.life, machine.link);
        machine.wakes_at = None;
        machine.runs.clear();
        machine.forget_the_link();
        if let (Some(link), true) = (link, has_power) {
            self.send_up(link, Parcel::Closed);
        }
        self.count("deaths of machines");
        self.soon(100..=20_000, Happening::MachineStarts(number, life));
    }

    pub fn machine_calms_down(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        (machine.hangs, machine.fails, machine.is_loaded) = (false, false, true);
        if machine.vice.take().is_some() {
            return self.machine_dies(number, true);
        }
        let offers = machine.offers();
        self.agent(number, Event::Offers { offers, memory_free: Bytes::from_gib(8) });
    }

    pub fn trouble_at_a_machine(&mut self, trouble: Trouble) {
        let number = self.dice.index(self.machines.len());
        self.note(format_args!("  at machine {number}"));
        let machine = &mut self.machines[number];
        match trouble {
            Trouble::MachineLosesPower => self.machine_dies(number, false),
            Trouble::MachineDrains => self.agent(number, Event::DrainRequested),
            Trouble::MachineLies => {
                let vice = self.dice.pick(&VICES);
                (machine.vice, machine.has_lied) = (Some(vice), true);
                self.note(format_args!("  {vice:?}"));
                self.count("liars");
            }
            Trouble::ModelUnloads => {
                machine.is_loaded ^= true;
                let offers = machine.offers();
                self.agent(number, Event::Offers { offers, memory_free: Bytes::from_gib(8) });
            }
            Trouble::ClockJumps => {
                machine.ahead_ms = self.dice.roll(100_000);
                machine.behind_ms = self.dice.roll(100_000);
            }
            Trouble::EngineHangs => machine.hangs ^= true,
            Trouble::EngineFails => machine.fails ^= true,
            _ => self.machine_dies(number, true),
        }
    }

    pub fn agent_wakes(&mut self, number: usize, life: u32) {
        let now = self.now;
        let machine = &mut self.machines[number];
        if !machine.is_alive(life) || machine.wakes_at != Some(now) {
            return; // another time was meant since
        }
        machine.wakes_at = None;
        let (at, times) = machine.wakes_at_once;
        machine.wakes_at_once = (now, if at == now { times + 1 } else { 0 });
        assert!(times < WAKES_AT_ONCE_MAX, "machine {number}: its agent wakes and wakes");
        self.agent(number, Event::Wake);
    }

    /// One event for an agent, and all that follows from it.
    fn agent(&mut self, number: usize, event: Event) {
        let now = self.now;
        let machine = &mut self.machines[number];
        let own_time = machine.clock(now);
        let Some(agent) = &mut machine.agent else { return };
        let mut effects = Vec::new();
        agent.handle(event, own_time, &mut effects);
        let mut left_behind = 0;
        for effect in effects {
            match &effect {
                Effect::CloseLink => left_behind = self.machines[number].owed.len(),
                Effect::Note(Note::PeerAtFault { .. } | Note::Rejected { .. }) => left_behind = 0, // it is lost
                Effect::Exit => assert_eq!(left_behind, 0, "machine {number}: leaves with runs unanswered"),
                _ => {}
            }
            self.perform_for(number, effect);
        }
        self.plan_to_wake(number);
        let machine = &self.machines[number];
        let writes_for_nobody = machine.link.is_none() && !machine.runs.is_empty();
        assert!(!writes_for_nobody, "machine {number}: its engine works, and no link stands");
    }

    fn plan_to_wake(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(at) = machine.agent.as_ref().and_then(Agent::wake_at) else {
            machine.wakes_at = None;
            return;
        };
        let at = machine.world_time(at).max(self.now);
        if machine.wakes_at != Some(at) {
            machine.wakes_at = Some(at);
            let life = machine.life;
            self.plan(at, Happening::AgentWakes(number, life));
        }
    }

    fn perform_for(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::Connect => self.dial(number),
            Effect::Send(message) => self.say(number, message),
            Effect::CloseLink => {
                if let Some(link) = self.machines[number].link {
                    self.send_up(link, Parcel::Closed);
                }
                self.machines[number].forget_the_link();
            }
            Effect::Generate { ticket, job, .. } => self.generate(number, ticket, &job),
            Effect::CancelGeneration(ticket) => {
                self.machines[number].runs.remove(&ticket);
                self.count("runs cancelled");
            }
            Effect::Note(_) | Effect::Shard(_) => {} // machines lend nothing
            Effect::Exit => {
                let machine = &mut self.machines[number];
                machine.agent = None;
                machine.wakes_at = None;
                let life = machine.life;
                self.count("machines that left");
                self.soon(500..=20_000, Happening::MachineStarts(number, life));
            }
        }
    }

    /// What an agent says, held against what it promises; and what a liar makes of it.
    fn say(&mut self, number: usize, message: ToCoordinator) {
        let machine = &mut self.machines[number];
        let link = machine.link.unwrap_or_else(|| panic!("machine {number}: talks, and no link stands"));
        match &message {
            ToCoordinator::Accepted { job, attempt, .. } => {
                assert!(
                    machine.owed.contains_key(&(*job, *attempt)),
                    "machine {number}: accepts what is over"
                );
            }
            ToCoordinator::Chunk(chunk) => {
                let next = machine.owed.get_mut(&(chunk.job, chunk.attempt));
                let next = next.unwrap_or_else(|| panic!("machine {number}: a chunk of what is over"));
                assert_eq!(chunk.seq, *next, "machine {number}: chunks are counted one by one");
                *next += 1;
            }
            ToCoordinator::Finished { job, attempt, outcome } => {
                let owed = machine.owed.remove(&(*job, *attempt));
                assert!(owed.is_some(), "machine {number}: finishes job {} twice", job.bits());
                let is_too_much = *outcome == Outcome::Failed { failure: Failure::Overloaded };
                let given_too_much = is_too_much && !machine.has_lied;
                assert!(!given_too_much, "machine {number}: was given more than its {} slots", machine.slots);
            }
            _ => {}
        }
        let Some(vice) = machine.vice else { return self.send_up(link, Parcel::Said(message)) };
        let words = liar::lie(vice, message, &mut machine.past, self.house.jobs(), &mut self.dice);
        for word in words {
            self.send_up(link, Parcel::Said(word));
        }
    }
}

/// The engine.
impl World {
    fn generate(&mut self, number: usize, ticket: Ticket, job: &Job) {
        let most = job.params.max_tokens.get();
        let writing = Writing {
            job: job.id,
            prompt: TokenCount::new(self.dice.within(3..=20)),
            has_started: false,
            tokens: 0,
            tokens_in_all: self.dice.within(1..=most),
            words: 0,
        };
        let machine = &mut self.machines[number];
        let (step_ms, life) = (machine.step_ms, machine.life);
        let before = machine.runs.insert(ticket, writing);
        assert!(before.is_none(), "machine {number}: a ticket is used twice");
        self.soon(1..=step_ms * 8, Happening::EngineWorks(number, life, ticket));
    }

    /// One step of one answer: the prompt, some tokens, or the end.
    pub fn engine_works(&mut self, number: usize, life: u32, ticket: Ticket) {
        let machine = &mut self.machines[number];
        if !machine.is_alive(life) || machine.hangs {
            return; // and never again, for this answer
        }
        let (fails, step_ms) = (machine.fails, machine.step_ms);
        let Some(writing) = machine.runs.get_mut(&ticket) else {
            return self.late_word(number, ticket);
        };
        if fails && self.dice.one_in(3) {
            let failure = self.dice.pick(&[Failure::Internal, Failure::OutOfMemory, Failure::InvalidPrompt]);
            return self.engine_ends(number, ticket, Outcome::Failed { failure });
        }
        if !writing.has_started {
            writing.has_started = true;
            let prompt = writing.prompt;
            self.soon(1..=step_ms * 2, Happening::EngineWorks(number, life, ticket));
            return self.agent(number, Event::Started { ticket, prompt });
        }
        if writing.tokens < writing.tokens_in_all {
            let piece = writing.write(&mut self.dice);
            self.soon(1..=step_ms * 2, Happening::EngineWorks(number, life, ticket));
            return self.agent(number, Event::Piece { ticket, piece });
        }
        let usage =
            Usage { prompt: writing.prompt, completion: TokenCount::new(writing.tokens), ..Usage::default() };
        let (job, words) = (writing.job, writing.words);
        machine.wrote.insert(job, words);
        self.engine_ends(number, ticket, Outcome::Done { finish: FinishReason::Stop, usage });
    }

    fn engine_ends(&mut self, number: usize, ticket: Ticket, outcome: Outcome) {
        self.machines[number].runs.remove(&ticket);
        self.agent(number, Event::Ended { ticket, outcome });
    }

    /// The engine had another step on its way when it was cancelled.
    fn late_word(&mut self, number: usize, ticket: Ticket) {
        let piece = Piece { tokens: TokenCount::new(1), content: "late ".into(), ..Piece::default() };
        let outcome = Outcome::Done { finish: FinishReason::Stop, usage: Usage::default() };
        self.count("late words of engines");
        match self.dice.roll(3) {
            0 => self.agent(number, Event::Piece { ticket, piece }),
            1 => self.agent(number, Event::Ended { ticket, outcome }),
            _ => {}
        }
    }
}

impl Writing {
    /// A few tokens; most spell a word, which is its own number.
    fn write(&mut self, dice: &mut Dice) -> Piece {
        let tokens = dice.within(1..=3).min(self.tokens_in_all - self.tokens);
        self.tokens += tokens;
        let mut content = String::new();
        for _ in 0..tokens {
            if !dice.one_in(8) {
                content.push_str(&format!("{} ", self.words));
                self.words += 1;
            }
        }
        Piece { tokens: TokenCount::new(tokens), content: content.into(), ..Piece::default() }
    }
}

/// The machine's end of its connections.
impl World {
    fn dial(&mut self, number: usize) {
        assert!(self.machines[number].link.is_none(), "machine {number}: dials, and a link stands");
        let life = self.machines[number].life;
        if self.house.sleeps {
            return self.soon(15_000..=15_000, Happening::DialFails(number, life));
        }
        if !self.house.is_up() {
            return self.soon(0..=500, Happening::DialFails(number, life));
        }
        let id = LinkId(u32::try_from(self.links.len()).expect("few links"));
        let conn = self.house_accepts(id);
        let slow = if self.dice.one_in(10) { 500 } else { 0 };
        let pace = (self.plan.pace.0 + slow, self.plan.pace.1);
        self.links.insert(id, Link::new((number, life), self.house.life, conn, pace));
        self.machines[number].link = Some(id);
        self.note(format_args!("machine {number} dials: conn {}", conn.0));
        self.send_down(id, Parcel::Up);
        self.socket_opened(conn);
    }

    pub fn dial_fails(&mut self, number: usize, life: u32) {
        if self.machines[number].is_alive(life) && self.machines[number].link.is_none() {
            self.agent(number, Event::LinkDown);
        }
    }

    pub fn machine_hears(&mut self, id: LinkId, number: u64) {
        let link = self.links.get_mut(&id).expect("links stay known");
        let (at, life) = (link.machine, link.machine_life);
        let Some(parcel) = link.down.arrive(number) else { return };
        let machine = &mut self.machines[at];
        if !machine.is_alive(life) || machine.link != Some(id) {
            return;
        }
        match parcel {
            Parcel::Up => self.agent(at, Event::LinkUp),
            Parcel::Said(message) => {
                if let ToProvider::Run { attempt, job, .. } = &message
                    && machine.came.insert((job.id, *attempt))
                {
                    machine.owed.insert((job.id, *attempt), 0);
                }
                self.agent(at, Event::Message(Decoded::Known(message)));
            }
            Parcel::Closed => self.link_down(at),
        }
    }

    /// The link's own pings went unanswered for too long.
    pub fn ping_fails(&mut self, id: LinkId) {
        let link = &self.links[&id];
        let (at, life) = (link.machine, link.machine_life);
        if self.machines[at].stands_on(id, life) {
            self.count("pings unanswered");
            self.send_up(id, Parcel::Closed);
            self.link_down(at);
        }
    }

    fn link_down(&mut self, number: usize) {
        self.note(format_args!("machine {number}: link down"));
        self.machines[number].forget_the_link();
        self.agent(number, Event::LinkDown);
    }

    pub fn trouble_on_a_line(&mut self, trouble: Trouble) {
        let standing: Vec<LinkId> = self.machines.iter().filter_map(|machine| machine.link).collect();
        if standing.is_empty() {
            return;
        }
        let id = self.dice.pick(&standing);
        let which = self.dice.roll(3);
        let (up, down) = (which != 1, which != 2);
        let link = self.links.get_mut(&id).expect("it stands");
        self.trace.note(self.now, format_args!("  of machine {}: up {up}, down {down}", link.machine));
        match trouble {
            Trouble::LineBreaks => {
                link.break_off(&mut self.dice);
                self.send_up(id, Parcel::Closed);
                self.send_down(id, Parcel::Closed);
                self.count("lines broken");
            }
            Trouble::LineDies => {
                link.die(up, down);
                self.soon(SILENCE_MS, Happening::PingFails(id));
                self.count("lines dead");
            }
            _ => {
                let until = self.now.after(self.dice.millis(1000..=60_000));
                link.hold_up(until, up, down);
                let given_up = self.now.after(self.dice.millis(SILENCE_MS));
                if given_up < until {
                    self.plan(given_up, Happening::PingFails(id));
                }
                self.count("lines held up");
            }
        }
    }

    fn send_up(&mut self, link: LinkId, parcel: Parcel<ToCoordinator>) {
        let sender = self.links.get_mut(&link).expect("links stay known");
        if let Some((number, at)) = sender.send_up(parcel, self.now, &mut self.dice) {
            self.plan(at, Happening::Arrives(link, Way::ToCoordinator, number));
        }
    }
}
