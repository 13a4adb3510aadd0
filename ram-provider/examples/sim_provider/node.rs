//! One simulated provider: the real agent on a real socket, an engine that writes nonsense at a pace, and its faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ram_core::chat::PromptText;
use ram_core::id::ModelId;
use ram_core::job::{FinishReason, Job, Outcome, Usage};
use ram_core::provider::{Hardware, ModelOffer, ModelState, ProviderSpec, Speed};
use ram_core::units::{Bytes, Timestamp, TokenCount, TokenRate};
use ram_crypto::identity::NodeIdentity;
use ram_proto::control::ToCoordinator;
use ram_provider::agent::{Agent, AgentConfig, Effect, Event, Note, Piece, Ticket};
use ram_provider::config::CoordinatorUrl;
use ram_provider::link::{Heard, Link};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::dice::Dice;

/// A late answer is this late at most: beyond any patience of a coordinator.
const LATE_MAX: Duration = Duration::from_secs(60);

/// What all nodes of a fleet have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) coordinator: CoordinatorUrl,
    pub(crate) seed: u64,
    pub(crate) model: ModelId,
    pub(crate) slots: u16,
    /// Tokens a second, about.
    pub(crate) prefill: u64,
    pub(crate) decode: u64,
    /// Tokens of an answer that is not cut short, about.
    pub(crate) answer: u64,
    /// Write the time instead of words.
    pub(crate) stamp: bool,
    /// Keep to the figures above.
    pub(crate) steady: bool,
    pub(crate) faults: Faults,
}

impl Plan {
    /// A figure as one node, or one job, has it.
    fn about(&self, figure: u64, dice: &mut Dice) -> u64 {
        if self.steady { figure.max(1) } else { dice.around(figure) }
    }
}

/// How often what goes wrong, in a thousand jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) die: u32,
    pub(crate) stall: u32,
    pub(crate) double: u32,
    pub(crate) late: u32,
    pub(crate) lie: u32,
}

/// What happened to a fleet.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Nodes that are registered now.
    pub(crate) standing: AtomicU64,
    pub(crate) registrations: AtomicU64,
    pub(crate) links_lost: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) heartbeats: AtomicU64,
    pub(crate) jobs: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) deaths: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) doubles: AtomicU64,
    pub(crate) lates: AtomicU64,
    pub(crate) lies: AtomicU64,
}

/// One node.
pub(crate) struct Node {
    plan: Arc<Plan>,
    tally: Arc<Tally>,
    dice: Dice,
    agent: Agent,
    link: Option<Link>,
    answers: BTreeMap<Ticket, Answer>,
    /// Tokens a second that this one reads and writes.
    prefill: u64,
    decode: u64,
    is_standing: bool,
    doubles: bool,
    is_done: bool,
}

/// An answer that is being written.
struct Answer {
    prompt: TokenCount,
    has_started: bool,
    written: u64,
    tokens: u64,
    finish: FinishReason,
    /// When the next token is due; `None` where the engine hangs.
    due: Option<Instant>,
    lies: bool,
    /// After so many tokens it stops for good.
    stalls_at: Option<u64>,
    /// After so many tokens the node falls off the network.
    dies_at: Option<u64>,
}

impl Node {
    pub(crate) fn new(number: u64, plan: Arc<Plan>, tally: Arc<Tally>) -> Self {
        let mut dice = Dice::of(plan.seed, number);
        let identity = NodeIdentity::from_seeds(dice.bytes(), dice.bytes());
        let (prefill, decode) = (plan.about(plan.prefill, &mut dice), plan.about(plan.decode, &mut dice));
        let speed = Speed {
            prefill: TokenRate::new(prefill.saturating_mul(1000)),
            decode: TokenRate::new(decode.saturating_mul(1000)),
        };
        let offer = ModelOffer { model: plan.model.clone(), state: ModelState::Loaded, speed: Some(speed) };
        let gib = Bytes::from_gib;
        let config = AgentConfig {
            spec: ProviderSpec {
                name: format!("sim-{number}").parse().expect("letters and digits are a name"),
                wallet: None,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                hardware: Hardware {
                    chip: "simulated".to_owned(),
                    os: std::env::consts::OS.to_owned(),
                    memory: gib(16),
                    usable_memory: gib(12),
                    cpus: 8,
                },
                memory_cap: gib(8),
                offers: vec![offer],
            },
            memory_free: gib(1 + dice.up_to(7)),
            slots: plan.slots,
            queue_max: 0,
            jitter_seed: dice.next(),
        };
        Self {
            agent: Agent::new(config, Arc::new(identity)),
            plan,
            tally,
            dice,
            link: None,
            answers: BTreeMap::new(),
            prefill,
            decode,
            is_standing: false,
            doubles: false,
            is_done: false,
        }
    }

    /// Serves until told to stop, then drains.
    pub(crate) async fn serve(mut self, mut stopping: watch::Receiver<bool>) {
        let mut effects = Vec::new();
        let mut drains = false;
        while !self.is_done {
            let wake = self.agent.wake_at().map(|at| Instant::now() + at.since(now()));
            let next = self.answers.values().filter_map(|answer| answer.due).chain(wake).min();
            let event = tokio::select! {
                biased;
                heard = heard(&mut self.link) => Some(self.event_of(heard)),
                _ = stopping.wait_for(|stopping| *stopping), if !drains => {
                    drains = true;
                    Some(Event::DrainRequested)
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => None,
            };
            match event {
                Some(event) => self.handle(event, &mut effects),
                None => {
                    self.write(&mut effects);
                    self.handle(Event::Wake, &mut effects);
                }
            }
            let stands = self.agent.session().is_some();
            if stands != std::mem::replace(&mut self.is_standing, stands) {
                let change = if stands { 1 } else { u64::MAX };
                self.tally.standing.fetch_add(change, Ordering::Relaxed); // wraps: one less
            }
        }
    }

    fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) {
        self.agent.handle(event, now(), effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
    }

    fn event_of(&mut self, heard: Heard) -> Event {
        match heard {
            Heard::Up => Event::LinkUp,
            Heard::Message(message) => Event::Message(message),
            Heard::Down(_) => {
                self.link = None;
                Event::LinkDown
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect => self.link = Some(Link::open(self.plan.coordinator.clone())),
            Effect::Send(message) => self.say(message),
            Effect::CloseLink => drop(self.link.take().map(Link::close)),
            Effect::Generate { ticket, job, .. } => self.begin(ticket, &job),
            Effect::CancelGeneration(ticket) => {
                self.answers.remove(&ticket);
                add(&self.tally.cancelled, 1);
            }
            Effect::Note(Note::Registered { .. }) => add(&self.tally.registrations, 1),
            Effect::Note(Note::LinkLost { .. } | Note::PeerAtFault { .. }) => add(&self.tally.links_lost, 1),
            Effect::Note(Note::Rejected { .. }) => add(&self.tally.rejected, 1),
            Effect::Note(_) | Effect::Shard(_) => {} // it lends nothing
            Effect::Exit => self.is_done = true,
        }
    }

    fn say(&mut self, message: ToCoordinator) {
        let Some(link) = &mut self.link else { return };
        match &message {
            ToCoordinator::Heartbeat { .. } => add(&self.tally.heartbeats, 1),
            ToCoordinator::Finished { .. } => add(&self.tally.finished, 1),
            _ => {}
        }
        let is_about_a_job = matches!(message, ToCoordinator::Chunk(_) | ToCoordinator::Finished { .. });
        if self.doubles && is_about_a_job {
            self.doubles = !matches!(message, ToCoordinator::Finished { .. });
            link.send(message.clone());
        }
        link.send(message);
    }

    fn begin(&mut self, ticket: Ticket, job: &Job) {
        let (faults, dice) = (self.plan.faults, &mut self.dice);
        let most = job.params.max_tokens.get().max(1);
        let tokens = self.plan.about(self.plan.answer, dice).min(most);
        let finish = if tokens == most { FinishReason::Length } else { FinishReason::Stop };
        let prompt = job.messages.iter().map(|message| 4 + message.content.as_str().len() as u64 / 4).sum();
        let mut wait = Duration::from_secs_f64(seconds(prompt, self.prefill));
        let mut fault = |times: u32, counter: &AtomicU64| {
            let strikes = dice.in_thousand(times);
            add(counter, u64::from(strikes));
            strikes.then(|| dice.up_to(tokens))
        };
        let dies_at = fault(faults.die, &self.tally.deaths);
        let stalls_at = fault(faults.stall, &self.tally.stalls);
        let is_late = fault(faults.late, &self.tally.lates).is_some();
        self.doubles |= fault(faults.double, &self.tally.doubles).is_some();
        let lies = fault(faults.lie, &self.tally.lies).is_some();
        if is_late {
            wait += dice.moment(LATE_MAX);
        }
        add(&self.tally.jobs, 1);
        let answer = Answer {
            prompt: TokenCount::new(prompt),
            has_started: false,
            written: 0,
            tokens,
            finish,
            due: Some(Instant::now() + wait),
            lies,
            stalls_at,
            dies_at,
        };
        self.answers.insert(ticket, answer);
    }

    /// Writes what is due in every answer.
    fn write(&mut self, effects: &mut Vec<Effect>) {
        let now = Instant::now();
        let is_due = |(&ticket, answer): (&Ticket, &Answer)| {
            answer.due.is_some_and(|due| due <= now).then_some(ticket)
        };
        let due: Vec<Ticket> = self.answers.iter().filter_map(is_due).collect();
        for ticket in due {
            self.step(ticket, now, effects);
        }
    }

    /// One step of one answer: the prompt and its first token, more tokens, or the end.
    fn step(&mut self, ticket: Ticket, now: Instant, effects: &mut Vec<Effect>) {
        let Some(answer) = self.answers.get_mut(&ticket) else { return };
        if !answer.has_started {
            answer.has_started = true;
            let prompt = answer.prompt;
            return self.handle(Event::Started { ticket, prompt }, effects); // and is due again at once
        }
        if answer.dies_at == Some(answer.written) {
            return self.fall_off(effects);
        }
        if answer.stalls_at == Some(answer.written) {
            answer.due = None;
            return;
        }
        if answer.written < answer.tokens {
            answer.written += 1;
            answer.due = Some(now + Duration::from_secs_f64(seconds(1, self.decode)));
            add(&self.tally.tokens, 1);
            let words = if self.plan.stamp { stamp() } else { self.dice.word() };
            let content = PromptText::from(words.as_str());
            let piece = Piece { tokens: TokenCount::new(1), content, ..Piece::default() };
            return self.handle(Event::Piece { ticket, piece }, effects);
        }
        let Some(answer) = self.answers.remove(&ticket) else { return };
        let much = if answer.lies { 1000 } else { 1 };
        let usage = Usage {
            prompt: TokenCount::new(answer.prompt.get() * much),
            completion: TokenCount::new(answer.written * much),
            reasoning: TokenCount::ZERO,
        };
        let outcome = Outcome::Done { finish: answer.finish, usage };
        self.handle(Event::Ended { ticket, outcome }, effects);
    }

    /// Falls off the network without a word, as a killed process does; the agent finds its link lost.
    fn fall_off(&mut self, effects: &mut Vec<Effect>) {
        if let Some(link) = self.link.take() {
            link.close().abort();
        }
        self.handle(Event::LinkDown, effects);
    }
}

/// The next thing that comes of the socket, if there is one.
async fn heard(link: &mut Option<Link>) -> Heard {
    match link {
        Some(link) => link.heard().await,
        None => std::future::pending().await,
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// What so many tokens take at so many a second.
#[expect(clippy::cast_precision_loss, reason = "times, not money")]
fn seconds(tokens: u64, rate: u64) -> f64 {
    tokens as f64 / rate.max(1) as f64
}

/// The time in microseconds, so that a reader on the same machine sees how old a token is.
fn stamp() -> String {
    format!("{} ", since_epoch().as_micros())
}

fn now() -> Timestamp {
    Timestamp::ZERO.after(since_epoch())
}

#[expect(clippy::disallowed_methods, reason = "a shell owns the clock")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
