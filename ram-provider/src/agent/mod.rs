//! The agent: what a provider says and does, decided without a socket, a clock, a thread or a die.
//!
//! ```text
//!              Connect            challenge             registered
//!   Waiting ------------> Dialing ----------> Registering --------> Standing
//!      ^                     |                    |                    |
//!      +---------------------+--------------------+--------------------+
//!        link down, refused, or the peer broke the rules: back-off with full jitter
//! ```
//!
//! The shell owns socket, engines and timer: it hands each thing that happens to [`Agent::handle`] with the time,
//! carries out the [`Effect`]s in their order, and sends [`Event::Wake`] at [`Agent::wake_at`]. What the agent keeps
//! to:
//!
//! - nothing is said while no socket stands;
//! - every `run` is answered with exactly one `finished`, unless the socket was lost: then the coordinator gives the
//!   job to another and every run here is cancelled;
//! - the chunks of a run are numbered 0, 1, 2, … and all stand before its `finished`.

mod backoff;
mod batch;
mod event;
mod register;
mod shards;
mod wait;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ram_core::id::{Attempt, Epoch, GroupId, JobId, ModelId, NodeKey, ProviderId};
use ram_core::job::{Failure, Job, Outcome};
use ram_core::provider::{Load, ModelOffer, ProviderSpec, Thermal};
use ram_core::units::{Bytes, Timestamp};
use ram_crypto::identity::NodeIdentity;
use ram_proto::control::{Capabilities, Capability, Decoded, RejectReason, ToCoordinator, ToProvider};

pub use event::{DrainedBy, Effect, Event, Note, Piece, ShardOrder, ShardWord, Ticket};
pub use shards::{AWAY_MAX, UNASKED_MAX};
pub(crate) use wait::Wait;

use crate::sealed::{self, Sealer};

use backoff::Backoff;
use batch::Run;
use register::Challenge;
use shards::Shards;

/// Longest wait for the coordinator's next word of the handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// A session that stood this long was a success: the next loss is answered with the shortest back-off.
pub const STOOD_WELL: Duration = Duration::from_secs(60);
/// Longest that running jobs may go on once the operator wants to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);
/// The wait after a refusal that only a change of software or settings ends.
pub const REFUSED_WAIT: Duration = Duration::from_secs(300);
/// Longest wait that a coordinator may ask for: an hour, so that one wrong number does not lose a node for good.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Shortest and longest beat that a coordinator may ask for.
const BEAT_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// How many finished runs are remembered, so that a doubled `run` is not run again.
const ENDED_MAX: usize = 256;

/// What an agent is made of.
#[derive(Debug)]
pub struct AgentConfig {
    /// The node as it registers; its offers follow [`Event::Offers`] from then on.
    pub spec: ProviderSpec,
    /// Memory under the cap that nothing uses yet.
    pub memory_free: Bytes,
    /// Jobs that run at once.
    pub slots: u16,
    /// Jobs that may wait here for a slot.
    pub queue_max: u16,
    /// Seed of the back-off's jitter: random, so that nodes differ.
    pub jitter_seed: u64,
}

/// The provider's side of one connection to one coordinator, and of all that come after it.
pub struct Agent {
    config: AgentConfig,
    identity: Arc<NodeIdentity>,
    phase: Phase,
    runs: BTreeMap<Ticket, Run>,
    ended: VecDeque<(JobId, Attempt)>,
    tickets: u64,
    backoff: Backoff,
    drain: Option<Wait>,
    thermal: Thermal,
    shards: Shards,
}

/// Where the agent stands with the coordinator.
#[derive(Debug)]
enum Phase {
    /// No socket, until the wait is over.
    Waiting(Wait),
    /// A socket was asked for.
    Dialing,
    /// The socket stands; the coordinator shall challenge.
    Greeting(Wait),
    /// We registered; the coordinator shall let us in.
    Registering(Wait),
    /// We are in.
    Standing(Session),
    /// All is done.
    Left,
}

/// One session with the coordinator.
#[derive(Debug)]
struct Session {
    provider: ProviderId,
    epoch: Epoch,
    stood: Wait,
    beat: Wait,
    draining: bool,
    /// Whether the coordinator knows of shards.
    groups: bool,
}

/// Why a socket is given up.
#[derive(Clone, Copy)]
enum Loss {
    Down,
    PeerAtFault(&'static str),
    Rejected { reason: RejectReason, retry_after: Option<Duration> },
}

impl Agent {
    /// An agent that connects at its first [`Event::Wake`].
    #[must_use]
    pub fn new(config: AgentConfig, identity: Arc<NodeIdentity>) -> Self {
        Self {
            phase: Phase::Waiting(Wait::new(Timestamp::ZERO, Duration::ZERO)),
            backoff: Backoff::new(config.jitter_seed),
            config,
            identity,
            runs: BTreeMap::new(),
            ended: VecDeque::new(),
            tickets: 0,
            drain: None,
            thermal: Thermal::Nominal,
            shards: Shards::default(),
        }
    }

    /// Takes in what happened at `now` and appends what is to be done.
    pub fn handle(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Left) {
            return;
        }
        match event {
            Event::Wake => {}
            Event::LinkUp => {
                if matches!(self.phase, Phase::Dialing) {
                    self.phase = Phase::Greeting(Wait::new(now, HANDSHAKE_MAX));
                }
            }
            Event::LinkDown => self.lose_link(Loss::Down, now, effects),
            Event::Message(message) => self.hear(message, now, effects),
            Event::Started { ticket, prompt } => {
                if let Some(&Run { job, attempt, .. }) = self.runs.get(&ticket) {
                    effects.push(Effect::Send(ToCoordinator::Accepted { job, attempt, prompt }));
                }
            }
            Event::Piece { ticket, piece } => {
                if let Some(run) = self.runs.get_mut(&ticket) {
                    run.push(piece, now);
                }
            }
            Event::Ended { ticket, outcome } => self.finish(ticket, outcome, effects),
            Event::Offers { offers, memory_free } => self.offer(offers, memory_free, now, effects),
            Event::Thermal(thermal) => self.thermal = thermal, // told with the next beat
            Event::Shard(word) => self.say_of_shard(word, effects),
            Event::ShardReport(report) => self.shards.take_report(report), // told with the next beat
            Event::DrainRequested => self.drain(now, effects),
        }
        self.act_on_time(now, effects);
    }

    /// When to send [`Event::Wake`]; `None` when only something else can wake the agent.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        let phase = match &self.phase {
            Phase::Waiting(wait) | Phase::Greeting(wait) | Phase::Registering(wait) => Some(wait.end()),
            Phase::Standing(session) => Some(session.beat.end()),
            Phase::Dialing => None,
            Phase::Left => return None,
        };
        let batches = self.runs.values().filter_map(Run::due_at);
        let shards = self.shards.wake_at();
        phase.into_iter().chain(self.drain.map(Wait::end)).chain(batches).chain(shards).min()
    }

    /// Who this node is to the coordinator, and in which session; `None` while it is not registered.
    #[must_use]
    pub const fn session(&self) -> Option<(ProviderId, Epoch)> {
        match &self.phase {
            Phase::Standing(session) => Some((session.provider, session.epoch)),
            _ => None,
        }
    }

    /// How busy the node's whole models are.
    #[must_use]
    pub fn load(&self) -> Load {
        let active = u16::try_from(self.runs_of(None)).unwrap_or(u16::MAX);
        let running = active.min(self.config.slots);
        Load {
            running,
            queued: active - running,
            slots: self.config.slots,
            memory_free: self.config.memory_free,
            thermal: self.thermal,
        }
    }

    // ---- what the coordinator says ----

    fn hear(&mut self, message: Decoded<ToProvider>, now: Timestamp, effects: &mut Vec<Effect>) {
        let message = match (&self.phase, message) {
            (Phase::Waiting(_) | Phase::Dialing | Phase::Left, _) => return, // the shell closed that socket
            (_, Decoded::Unknown { of }) => {
                return effects.push(Effect::Send(ToCoordinator::Unsupported { of }));
            }
            (_, Decoded::Known(message)) => message,
        };
        match (&mut self.phase, message) {
            (_, ToProvider::Unsupported { of }) => effects.push(Effect::Note(Note::Unsupported { of })),
            (_, ToProvider::Rejected { reason, retry_after_ms }) => {
                let retry_after = retry_after_ms.map(Duration::from_millis);
                self.lose_link(Loss::Rejected { reason, retry_after }, now, effects);
            }
            (Phase::Greeting(_), ToProvider::Challenge { network, coordinator, nonce, capabilities }) => {
                let challenge = Challenge { network, coordinator, nonce };
                self.register(challenge, &capabilities, now, effects);
            }
            (
                Phase::Registering(_),
                ToProvider::Registered { provider, epoch, heartbeat_ms, capabilities },
            ) => {
                let every = Duration::from_millis(heartbeat_ms.clamp(*BEAT_MS.start(), *BEAT_MS.end()));
                let (stood, beat) = (Wait::new(now, STOOD_WELL), Wait::new(now, every));
                let groups = capabilities.has(Capability::SHARD_V1);
                self.phase =
                    Phase::Standing(Session { provider, epoch, stood, beat, draining: false, groups });
                effects.push(Effect::Note(Note::Registered { provider, epoch }));
                self.shards.stand(now);
                self.report_shards(effects);
            }
            (Phase::Standing(_), ToProvider::Run { attempt, job, group }) => {
                let (id, model) = ((job.id, attempt), job.model.clone());
                self.admit(id, &model, group, |_| Ok((*job, None)), effects);
            }
            (Phase::Standing(_), ToProvider::RunSealed { attempt, job, group }) => {
                let open = |identity: &NodeIdentity| {
                    sealed::open(identity, &job).map(|(job, sealer)| (job, Some(sealer)))
                };
                self.admit((job.id, attempt), &job.model, group, open, effects);
            }
            (Phase::Standing(_), ToProvider::Cancel { job, attempt }) => self.cancel(job, attempt, effects),
            (Phase::Standing(session), ToProvider::Drain) => {
                session.draining = true;
                let running = self.runs.len();
                effects.push(Effect::Note(Note::Draining { running, by: DrainedBy::Coordinator }));
            }
            (Phase::Standing(_), ToProvider::LoadShard(load)) => {
                self.shards.load(load, self.drain.is_some(), effects);
            }
            (Phase::Standing(_), ToProvider::LinkShard(link)) => {
                let node = NodeKey::from_bytes(self.identity.node_public());
                self.shards.link(link, node, effects);
            }
            (Phase::Standing(_), ToProvider::UnloadShard(unload)) => self.shards.unload(unload, effects),
            _ => self.lose_link(Loss::PeerAtFault("a message came out of turn"), now, effects),
        }
    }

    fn register(
        &mut self,
        challenge: Challenge,
        theirs: &Capabilities,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let common = Capabilities::ours().common(theirs);
        if theirs.is_over_limit() || challenge.is_over_limit() {
            return self.lose_link(Loss::PeerAtFault("its challenge is over the limits"), now, effects);
        }
        if !common.has(Capability::CHAT_V1) {
            let reason = RejectReason::NoCommonCapability;
            return self.lose_link(Loss::Rejected { reason, retry_after: None }, now, effects);
        }
        let message = challenge.answer(&self.identity, self.config.spec.clone(), self.load(), now);
        self.phase = Phase::Registering(Wait::new(now, HANDSHAKE_MAX));
        effects.push(Effect::Send(ToCoordinator::Register(Box::new(message))));
    }

    /// Begins a job, once per attempt; one that is sealed is opened only when there is room for it.
    fn admit(
        &mut self,
        id: (JobId, Attempt),
        model: &ModelId,
        group: Option<GroupId>,
        open: impl FnOnce(&NodeIdentity) -> Result<(Job, Option<Sealer>), Failure>,
        effects: &mut Vec<Effect>,
    ) {
        if self.ended.contains(&id) || self.ticket_of(id).is_some() {
            return;
        }
        let opened = match self.refusal(model, group) {
            Some(failure) => Err(failure),
            None => open(&self.identity),
        };
        let (job, sealer) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                self.remember(id);
                return effects.push(Effect::Send(finished(id, Outcome::Failed { failure })));
            }
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.runs.insert(ticket, Run::new(id.0, id.1, group, sealer));
        effects.push(Effect::Generate { ticket, job, group });
    }

    /// Why a job for `model`, or for the group that holds it, cannot be taken now, if it cannot.
    fn refusal(&self, model: &ModelId, group: Option<GroupId>) -> Option<Failure> {
        let drained = matches!(&self.phase, Phase::Standing(session) if session.draining);
        let offered = |offer: &ModelOffer| offer.model == *model; // one that is not loaded yet, its first job loads
        let at_once = match group {
            None => self.config.spec.offers.iter().any(offered).then_some(self.config.slots),
            Some(group) => {
                self.shards.head(group).filter(|head| head.model == *model).map(|head| head.sessions)
            }
        };
        if self.drain.is_some() || drained {
            return Some(Failure::Draining);
        }
        let Some(at_once) = at_once else { return Some(Failure::ModelUnavailable) };
        let room = usize::from(at_once) + usize::from(self.config.queue_max);
        (self.runs_of(group) >= room).then_some(Failure::Overloaded)
    }

    /// How many runs a group answers, or the whole models do.
    fn runs_of(&self, group: Option<GroupId>) -> usize {
        self.runs.values().filter(|run| run.group == group).count()
    }

    /// The run's slot is free at once; a `cancel` that crossed our `finished` on the wire finds no run.
    fn cancel(&mut self, job: JobId, attempt: Attempt, effects: &mut Vec<Effect>) {
        if let Some(ticket) = self.ticket_of((job, attempt)) {
            effects.push(Effect::CancelGeneration(ticket));
            self.finish(ticket, Outcome::Failed { failure: Failure::Cancelled }, effects);
        }
    }

    // ---- what the engines say ----

    fn finish(&mut self, ticket: Ticket, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Some(mut run) = self.runs.remove(&ticket) else { return };
        let id = (run.job, run.attempt);
        let outcome = match tell_rest(&mut run, outcome, effects) {
            Ok(()) => outcome,
            Err(failure) => Outcome::Failed { failure },
        };
        self.remember(id);
        effects.push(Effect::Send(finished(id, outcome)));
    }

    fn offer(
        &mut self,
        offers: Vec<ModelOffer>,
        memory_free: Bytes,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let readiness = |offers: &[ModelOffer]| {
            offers.iter().map(|offer| (offer.model.clone(), offer.state)).collect::<Vec<_>>()
        };
        let news = readiness(&offers) != readiness(&self.config.spec.offers);
        self.config.spec.offers = offers;
        self.config.memory_free = memory_free;
        if news {
            self.beat(now, effects); // a new speed can wait for the next beat, a new model not
        }
    }

    // ---- what the shards say ----

    /// What is said while no session stands is lost: who comes back is asked again.
    fn say_of_shard(&mut self, word: ShardWord, effects: &mut Vec<Effect>) {
        if self.shards.hear(&word) && matches!(self.phase, Phase::Standing(_)) {
            effects.push(Effect::Send(word.into()));
        }
    }

    fn report_shards(&self, effects: &mut Vec<Effect>) {
        if matches!(&self.phase, Phase::Standing(session) if session.groups) {
            effects.extend(self.shards.report());
        }
    }

    // ---- time, and the end ----

    fn act_on_time(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Waiting(wait) if wait.is_over(now) && self.drain.is_none() => {
                self.phase = Phase::Dialing;
                effects.push(Effect::Connect);
            }
            Phase::Greeting(wait) | Phase::Registering(wait) if wait.is_over(now) => {
                self.lose_link(Loss::PeerAtFault("no answer to the handshake"), now, effects);
            }
            Phase::Standing(session) => {
                let beat_is_due = session.beat.is_over(now);
                self.tell_due(now, effects);
                if beat_is_due {
                    self.beat(now, effects);
                }
            }
            _ => {}
        }
        self.shards.act_on_time(now, effects);
        self.leave_if_drained(now, effects);
    }

    /// Sends what is due of each run; one that does not go into its box ends.
    fn tell_due(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut failed = Vec::new();
        for (&ticket, run) in &mut self.runs {
            match run.take_due(now).map(|batch| run.told(batch)) {
                None => {}
                Some(Ok(message)) => effects.push(Effect::Send(message)),
                Some(Err(failure)) => failed.push((ticket, failure)),
            }
        }
        for (ticket, failure) in failed {
            effects.push(Effect::CancelGeneration(ticket));
            self.finish(ticket, Outcome::Failed { failure }, effects);
        }
    }

    fn beat(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let load = self.load();
        if let Phase::Standing(session) = &mut self.phase {
            session.beat = session.beat.again(now);
            effects.push(Effect::Send(ToCoordinator::Heartbeat {
                load,
                memory_cap: self.config.spec.memory_cap,
                offers: self.config.spec.offers.clone(),
            }));
            self.report_shards(effects);
        }
    }

    fn drain(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(Wait::new(now, DRAIN_MAX));
        let running = self.runs.len();
        effects.push(Effect::Note(Note::Draining { running, by: DrainedBy::Operator }));
        if matches!(self.phase, Phase::Standing(_)) {
            effects.push(Effect::Send(ToCoordinator::Draining));
        }
    }

    fn leave_if_drained(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(wait) = self.drain else { return };
        if !self.runs.is_empty() && !wait.is_over(now) {
            return;
        }
        let late: Vec<Ticket> = self.runs.keys().copied().collect();
        if !late.is_empty() {
            effects.push(Effect::Note(Note::DrainTimedOut { cancelled: late.len() }));
        }
        for ticket in late {
            effects.push(Effect::CancelGeneration(ticket));
            self.finish(ticket, Outcome::Failed { failure: Failure::Draining }, effects);
        }
        if !matches!(self.phase, Phase::Waiting(_)) {
            effects.push(Effect::CloseLink);
        }
        self.phase = Phase::Left;
        effects.push(Effect::Exit);
    }

    /// Gives the socket up, and with it every run: the coordinator gives their jobs to others.
    fn lose_link(&mut self, loss: Loss, now: Timestamp, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Waiting(_)) {
            return;
        }
        if !matches!(loss, Loss::Down) {
            effects.push(Effect::CloseLink);
        }
        if matches!(&self.phase, Phase::Standing(session) if session.stood.elapsed(now) >= STOOD_WELL) {
            self.backoff.reset();
        }
        self.shards.fall(now);
        let cancelled = self.runs.len();
        effects.extend(std::mem::take(&mut self.runs).into_keys().map(Effect::CancelGeneration));
        self.ended.clear();
        let retry_in = self.retry_in(loss);
        self.phase = Phase::Waiting(Wait::new(now, retry_in));
        effects.push(Effect::Note(match loss {
            Loss::Down => Note::LinkLost { cancelled, retry_in },
            Loss::PeerAtFault(what) => Note::PeerAtFault { what, retry_in },
            Loss::Rejected { reason, .. } => Note::Rejected { reason, retry_in },
        }));
    }

    fn retry_in(&mut self, loss: Loss) -> Duration {
        let usual = self.backoff.next_wait();
        match loss {
            Loss::Down | Loss::PeerAtFault(_) => usual,
            Loss::Rejected { retry_after: Some(wait), .. } => {
                self.backoff.spread(wait.min(RETRY_AFTER_MAX)).max(usual)
            }
            Loss::Rejected { reason, retry_after: None } if is_lasting(reason) => {
                self.backoff.spread(REFUSED_WAIT)
            }
            Loss::Rejected { .. } => usual,
        }
    }

    fn ticket_of(&self, (job, attempt): (JobId, Attempt)) -> Option<Ticket> {
        let same = |run: &Run| run.job == job && run.attempt == attempt;
        self.runs.iter().find(|(_, run)| same(run)).map(|(&ticket, _)| ticket)
    }

    fn remember(&mut self, id: (JobId, Attempt)) {
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(id);
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("phase", &self.phase)
            .field("runs", &self.runs.len())
            .finish_non_exhaustive()
    }
}

/// Sends what is left to be said of a run that ends; of a whole answer in boxes, the last one.
fn tell_rest(run: &mut Run, outcome: Outcome, effects: &mut Vec<Effect>) -> Result<(), Failure> {
    if let Some(rest) = run.take_rest() {
        effects.push(Effect::Send(run.told(rest)?));
    }
    if let Outcome::Done { finish, .. } = outcome {
        effects.extend(run.last_box(finish)?.map(Effect::Send));
    }
    Ok(())
}

const fn finished((job, attempt): (JobId, Attempt), outcome: Outcome) -> ToCoordinator {
    ToCoordinator::Finished { job, attempt, outcome }
}

/// Whether only a change of software or settings, here or there, can end this refusal.
const fn is_lasting(reason: RejectReason) -> bool {
    match reason {
        RejectReason::WrongNetwork
        | RejectReason::WrongCoordinator
        | RejectReason::BadSignature
        | RejectReason::BadSpec
        | RejectReason::NoCommonCapability
        | RejectReason::NotRegistered => true,
        RejectReason::BadNonce | RejectReason::Expired | RejectReason::Full | RejectReason::Draining => false,
    }
}

#[cfg(test)]
mod tests;
