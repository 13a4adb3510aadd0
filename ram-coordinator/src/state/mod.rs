//! The coordinator's mind: a state machine without sockets, clocks, disks or chance.
//!
//! Everything that happens comes in as an [`Event`] with the time; everything to be done goes out as an [`Effect`].
//! The shells ([`crate::run`], [`crate::ws`], [`crate::http`], [`crate::store`]) do nothing but carry the two. That is
//! what lets the tests in `sim` play a network's worst night in a second.
//!
//! Start at [`Coordinator::handle`]. Nodes live in `registry`, jobs in `jobs`; what nodes are believed is decided in
//! `trust`; this file is what connects them.

mod budget;
mod dispatch;
mod event;
mod groups;
mod heard;
mod jobs;
mod operator;
mod registry;
mod sealed;
#[cfg(test)]
mod sim;
mod standing;
mod trust;
mod view;

use std::time::Duration;

use ram_chain::pricing::{self, Multiplier};
use ram_core::catalog;
use ram_core::id::{Attempt, JobId, ModelId, ProviderId};
use ram_core::job::{Failure, Outcome};
use ram_core::reputation::Deed;
use ram_core::units::{Bytes, Permille, Timestamp, TokenCount, XRam};
use ram_pipeline::group;
use ram_proto::control::{Chunk, HEARTBEAT_MS, Register, RejectReason, ToCoordinator, ToProvider};

use budget::DemoBudget;
use groups::Groups;
use heard::News;
use jobs::{End, JobRecord, Jobs, Phase};
use registry::{Admission, Registry};
use standing::Standings;

pub use event::{
    ConnId, Effect, Event, HoldError, HoldOrder, JobError, Payer, Plain, Receipt, Reply, Request, Sealed,
    SettleOrder, Standing, Submission, TICK,
};
pub use groups::PIPELINE_WORKLOAD;
pub use operator::Census;

/// Longest time that a provider may take to read a prompt.
const READING_MAX: Duration = Duration::from_secs(600);
/// Longest time between two ticks of a process that is awake.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the price follows the network's utilisation.
const PRICE_STEP: Duration = Duration::from_secs(60);

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// Chain id that statements must name: 84530 embedded, 8453 Base.
    pub network: u64,
    /// The name that statements must repeat.
    pub name: String,
    /// Bounds on all that a stranger can grow.
    pub limits: Limits,
}

/// Bounds on all that a stranger can grow, and on all waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Providers at once: at 16 KiB each 10,000 take 160 MB.
    pub providers: usize,
    /// Open jobs at once: each holds its prompt.
    pub jobs: usize,
    /// Bytes of the prompts of all open jobs: a full house of longest prompts would else be 16 GiB.
    pub prompt_bytes: Bytes,
    /// Open jobs of one key: an application with many users behind it, and never all of [`jobs`](Self::jobs).
    pub jobs_per_key: usize,
    /// Open jobs of one address with the demo key: two requests of the most answers, for each answer is a job.
    pub jobs_per_address: usize,
    /// Jobs that wait for one model.
    pub queue_per_model: usize,
    /// Share of a model's queue that jobs of the demo key may take, so that they never crowd paying users out.
    pub demo_queue_share: Permille,
    /// How long a job waits for a provider.
    pub queue_wait: Duration,
    /// Providers that may try one job.
    pub attempts: u32,
    /// How long a provider with the model loaded has to its first token.
    pub first_token: Duration,
    /// The same where the model must be loaded first: the product says 10 to 60 s.
    pub first_token_cold: Duration,
    /// Longest silence within an answer.
    pub between_tokens: Duration,
    /// Tokens that the demo key gives one address in a day.
    pub demo_tokens_per_address: TokenCount,
    /// Tokens that the demo key gives all addresses in a day.
    pub demo_tokens: TokenCount,
}

impl Limits {
    /// Places of a model's queue that jobs of the demo key may take: a share of one place is a place.
    const fn demo_places(&self) -> usize {
        self.queue_per_model.saturating_mul(self.demo_queue_share.get() as usize).div_ceil(1000)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            providers: 10_000,
            jobs: 4096,
            prompt_bytes: Bytes::from_gib(1),
            jobs_per_key: 256,
            jobs_per_address: 16,
            queue_per_model: 256,
            demo_queue_share: Permille::new(500),
            queue_wait: Duration::from_secs(30),
            attempts: 3,
            first_token: Duration::from_secs(30),
            first_token_cold: Duration::from_secs(120),
            between_tokens: Duration::from_secs(30),
            demo_tokens_per_address: TokenCount::new(200_000),
            demo_tokens: TokenCount::new(5_000_000),
        }
    }
}

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator {
    config: StateConfig,
    registry: Registry,
    jobs: Jobs,
    standings: Standings,
    groups: Groups,
    demo: DemoBudget,
    multiplier: Multiplier,
    priced_at: Timestamp,
    ticked_at: Timestamp,
    has_ticked: bool,
    draining: bool,
    totals: Totals,
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    jobs_done: u64,
    jobs_failed: u64,
    tokens: TokenCount,
    charged: XRam,
}

impl Coordinator {
    /// A coordinator that knows nobody yet.
    #[must_use]
    pub fn new(config: StateConfig) -> Self {
        let demo = DemoBudget::new(config.limits.demo_tokens_per_address, config.limits.demo_tokens);
        Self {
            config,
            registry: Registry::default(),
            jobs: Jobs::default(),
            standings: Standings::default(),
            groups: Groups::default(),
            demo,
            multiplier: Multiplier::default(),
            priced_at: Timestamp::ZERO,
            ticked_at: Timestamp::ZERO,
            has_ticked: false,
            draining: false,
            totals: Totals::default(),
        }
    }

    /// Takes in what happened at `now`, and appends what is to be done.
    pub fn handle(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        match event {
            Event::SocketOpened { conn, nonce } => {
                self.registry.open(conn, nonce, now);
                let challenge = ToProvider::Challenge {
                    network: self.config.network,
                    coordinator: self.config.name.clone(),
                    nonce,
                    capabilities: ram_proto::control::Capabilities::ours(),
                };
                effects.push(send(conn, challenge));
            }
            Event::FromProvider { conn, message } => self.hear(conn, *message, now, effects),
            Event::SocketClosed { conn } => self.socket_closed(conn, now, effects),
            Event::Submit(submission) => self.submit(*submission, now, effects),
            Event::Held { job, result } => self.held(job, result, now, effects),
            Event::Settled { job, remaining } => self.settled(job, remaining, effects),
            Event::Abandon { job } => self.abandon(job, now, effects),
            Event::Remembered(standings) => self.standings.remember(standings, now),
            Event::Tick => self.tick(now, effects),
            Event::Drain => self.drain(now, effects),
            Event::Resume => self.resume(),
            Event::Dismiss => self.dismiss(effects),
            Event::DrainProvider { provider, draining } => {
                self.drain_provider(provider, draining);
                self.serve_waiting(now, effects);
            }
        }
    }

    /// Jobs that have not had their last reply.
    #[must_use]
    pub fn open_jobs(&self) -> usize {
        self.jobs.len()
    }
}

/// What providers say.
impl Coordinator {
    fn hear(&mut self, conn: ConnId, message: ToCoordinator, now: Timestamp, effects: &mut Vec<Effect>) {
        let message = match message {
            ToCoordinator::Register(register) => return self.register(conn, *register, now, effects),
            other => other,
        };
        let Some(provider) = self.registry.provider_on(conn) else {
            return self.refuse(conn, RejectReason::NotRegistered, now, effects);
        };
        let Some(node) = self.registry.node_mut(provider) else { return };
        node.last_word = now;
        let from = node.key;
        match message {
            ToCoordinator::Register(_) | ToCoordinator::Unsupported { .. } => {}
            ToCoordinator::ShardReport(report) => self.shard_report(provider, report, now, effects),
            ToCoordinator::ShardReady(word) => {
                self.shard_word(word.group, group::Event::ShardReady { from, word }, now, effects);
            }
            ToCoordinator::ShardFailed(word) => {
                self.shard_word(word.group, group::Event::ShardFailed { from, word }, now, effects);
            }
            ToCoordinator::ShardLinked(word) => {
                self.shard_word(word.group, group::Event::ShardLinked { from, word }, now, effects);
            }
            ToCoordinator::ShardLost(word) => {
                self.shard_word(word.group, group::Event::ShardLost { from, word }, now, effects);
            }
            ToCoordinator::Heartbeat { load, memory_cap, offers } => {
                if self.registry.heartbeat(provider, load, memory_cap, offers) {
                    self.serve_waiting(now, effects);
                } else {
                    effects.push(Effect::Close { conn });
                    self.socket_closed(conn, now, effects);
                }
            }
            ToCoordinator::Draining => {
                if let Some(node) = self.registry.node_mut(provider) {
                    node.draining = true;
                }
            }
            ToCoordinator::Accepted { job, attempt, prompt } => {
                self.accepted(provider, job, attempt, prompt, now, effects);
            }
            ToCoordinator::Chunk(chunk) => self.chunk(provider, chunk, now, effects),
            ToCoordinator::SealedChunk(chunk) => self.sealed_chunk(provider, chunk, now, effects),
            ToCoordinator::Finished { job, attempt, outcome } => {
                self.finished(provider, job, attempt, outcome, now, effects);
            }
        }
    }

    fn register(&mut self, conn: ConnId, register: Register, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.draining {
            return self.refuse(conn, RejectReason::Draining, now, effects);
        }
        let admission = Admission {
            network: self.config.network,
            name: &self.config.name,
            providers_max: self.config.limits.providers,
        };
        let admitted = match self.registry.register(conn, register, &admission, now) {
            Ok(admitted) => admitted,
            Err(reason) => return self.refuse(conn, reason, now, effects),
        };
        if let Some((ghost, jobs)) = admitted.ghost {
            effects.push(Effect::Close { conn: ghost });
            self.lost(admitted.provider, jobs, now, effects);
        }
        let registered = ToProvider::Registered {
            provider: admitted.provider,
            epoch: admitted.epoch,
            heartbeat_ms: HEARTBEAT_MS,
            capabilities: admitted.capabilities,
        };
        effects.push(send(conn, registered));
        self.serve_waiting(now, effects);
    }

    fn socket_closed(&mut self, conn: ConnId, now: Timestamp, effects: &mut Vec<Effect>) {
        if let Some((provider, jobs)) = self.registry.close(conn) {
            self.lost(provider, jobs, now, effects);
        }
    }

    /// Says why, and ends the session, also one that stood until now.
    fn refuse(&mut self, conn: ConnId, reason: RejectReason, now: Timestamp, effects: &mut Vec<Effect>) {
        reject(conn, reason, effects);
        self.socket_closed(conn, now, effects);
    }

    /// A provider is gone with these jobs. One that it was told to cancel may long run elsewhere: that one goes on.
    fn lost(
        &mut self,
        provider: ProviderId,
        jobs: impl IntoIterator<Item = JobId>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        self.lender_gone(provider, now, effects);
        let mut vanished = false;
        for job in jobs {
            let runs_there = |record: &mut JobRecord| record.runs_on(provider);
            if self.jobs.get_mut(job).is_some_and(runs_there) {
                vanished = true;
                self.attempt_failed(job, Failure::ProviderLost, None, now, effects);
            }
        }
        if vanished {
            self.standings.note(provider, Deed::Failed, now); // once, with however many jobs
        }
    }

    fn accepted(
        &mut self,
        provider: ProviderId,
        job: JobId,
        attempt: Attempt,
        prompt: TokenCount,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        let (spec, model) = (record.spec, record.ask.model().clone());
        let Some(run) = record.run_of(provider, attempt) else { return }; // a ghost's word
        let Some(node) = self.registry.node(provider) else { return };
        if run.prompt.is_some() {
            return; // the user was told a count, and that is the one that counts
        }
        run.prompt = Some(prompt);
        // The prompt is counted and has yet to be read: a long one takes its time, on a slow machine twice that.
        let speed = node.offer(&model).and_then(|offer| offer.speed).unwrap_or_else(|| spec.expected_speed());
        let reading = speed.prefill.time_for(prompt).saturating_mul(2).min(READING_MAX);
        run.deadline = run.deadline.max(now.after(self.config.limits.first_token.saturating_add(reading)));
        if run.heard.as_ref().is_some_and(|heard| !heard.is_empty()) {
            return; // the user has heard all this
        }
        effects.push(reply(job, Reply::Started { provider, name: node.spec.name.clone(), prompt }));
    }

    fn chunk(&mut self, provider: ProviderId, chunk: Chunk, now: Timestamp, effects: &mut Vec<Effect>) {
        let (job, attempt) = (chunk.job, chunk.attempt);
        let Some(record) = self.jobs.get_mut(job) else { return };
        let (bounds, is_plain) = (record.bounds(), record.ask.plain().is_some());
        let Some(run) = record.run_of(provider, attempt) else { return };
        if chunk.seq < run.next_seq {
            return; // doubled on the way
        }
        if !is_plain || !run.take(&chunk, bounds) {
            effects.extend(self.cancel(provider, job, attempt));
            self.strike(provider, now);
            return self.attempt_failed(job, Failure::Internal, None, now, effects);
        }
        let Chunk { tokens, content, reasoning, tool_calls, logprobs, .. } = chunk;
        let says_nothing = content.as_str().is_empty()
            && reasoning.as_str().is_empty()
            && tool_calls.is_empty()
            && logprobs.is_empty();
        if tokens == TokenCount::ZERO && says_nothing {
            return; // and earns no further patience
        }
        run.deadline = now.after(self.config.limits.between_tokens);
        let piece = News { content, reasoning, tool_calls, logprobs };
        let news = match &mut run.heard {
            Some(heard) => heard.take(piece),
            None => Ok(piece),
        };
        let Ok(news) = news else {
            effects.extend(self.cancel(provider, job, attempt));
            return self.differs(job, now, effects);
        };
        let is_old = !says_nothing && news.is_empty();
        effects.extend(record.checkpoint(now).map(Effect::Checkpoint));
        if !is_old {
            let News { content, reasoning, tool_calls, logprobs } = news;
            effects.push(reply(job, Reply::Delta { content, reasoning, tool_calls, logprobs }));
        }
    }

    fn finished(
        &mut self,
        provider: ProviderId,
        job: JobId,
        attempt: Attempt,
        outcome: Outcome,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(node) = self.registry.node_mut(provider) {
            node.running.remove(&job); // also after a cancel: the slot is free again
        }
        if let Some(record) = self.jobs.get_mut(job)
            && record.run_of(provider, attempt).is_some()
        {
            match outcome {
                Outcome::Done { finish, usage } => self.done(provider, job, finish, usage, now, effects),
                Outcome::Failed { failure } => {
                    // Nobody cancelled the attempt that runs: then the provider did, for reasons of its own.
                    let failure = if failure == Failure::Cancelled { Failure::Internal } else { failure };
                    if failure == Failure::Internal {
                        self.strike(provider, now);
                    }
                    self.attempt_failed(job, failure, None, now, effects);
                }
            }
        }
        self.serve_waiting(now, effects);
    }
}

/// What users want.
impl Coordinator {
    fn submit(&mut self, submission: Submission, now: Timestamp, effects: &mut Vec<Effect>) {
        let id = submission.job;
        match self.admit(submission, now) {
            Ok(order) => effects.push(Effect::Hold(order)),
            Err(error) => effects.push(reply(id, Reply::Failed { error, receipt: None })),
        }
    }

    /// Takes a job in, or says why not; the order is for what it costs at worst.
    fn admit(&mut self, submission: Submission, now: Timestamp) -> Result<HoldOrder, JobError> {
        let asked = submission.model.clone();
        if self.draining {
            return Err(JobError::Draining);
        }
        let spec = catalog::resolve(asked.as_str()).ok_or_else(|| JobError::UnknownModel(asked.clone()))?;
        let model = spec.model_id();
        if let Request::Sealed(sealed) = &submission.request {
            let node = self.registry.node(sealed.provider);
            node.filter(|node| node.knows_sealed && node.offer(&model).is_some())
                .ok_or(JobError::ProviderGone)?;
        } else if self.registry.offering(&model).next().is_none() {
            self.could_gather(spec, now)?;
        }
        let price = pricing::price_per_1k(spec.rate(), self.multiplier);
        let record = JobRecord::new(submission, spec, price, now);
        self.check_room(&record, asked)?;
        let amount = record.hold().ok_or(JobError::Hold(HoldError::Unavailable))?;
        if let Payer::Demo(address) = record.payer
            && !self.demo.take(address, record.worst_case(), now)
        {
            return Err(JobError::DemoBudget);
        }
        let order = HoldOrder { job: record.ask.id(), payer: record.payer.clone(), amount, model };
        self.jobs.insert(record);
        Ok(order)
    }

    /// Whether there is room for one more job: of this payer, for this model, and at all.
    fn check_room(&self, record: &JobRecord, asked: ModelId) -> Result<(), JobError> {
        let (limits, model) = (self.config.limits, record.ask.model());
        let (is_demo, most) = match record.payer {
            Payer::Demo(_) => (true, limits.jobs_per_address),
            Payer::Key(_) => (false, limits.jobs_per_key),
        };
        if self.jobs.open_of(&record.payer) >= most {
            return Err(JobError::TooManyOpen { most });
        }
        let prompts = self.jobs.prompt_bytes() + record.prompt_bytes;
        let is_full = self.jobs.len() >= limits.jobs
            || self.jobs.queued(model) >= limits.queue_per_model
            || prompts > limits.prompt_bytes
            || (is_demo && self.jobs.demo_queued(model) >= limits.demo_places());
        if is_full { Err(JobError::QueueFull(asked)) } else { Ok(()) }
    }

    fn held(&mut self, job: JobId, result: Result<(), HoldError>, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        let Phase::Holding { abandoned } = record.phase else { return };
        match result {
            Err(error) => self.end(job, JobError::Hold(error), effects),
            Ok(()) if abandoned => self.void(job, None, effects),
            Ok(()) if self.draining => self.void(job, Some(JobError::Draining), effects),
            Ok(()) => {
                if let Err(error) = self.gather(job, now, effects) {
                    return self.void(job, Some(error), effects);
                }
                self.jobs.queue(job, now);
                self.dispatch(job, now, effects);
                self.check_queue(job, effects);
            }
        }
    }

    /// Ends a job that has just come to wait where no place is left: while the store held money for those before it,
    /// nobody could know whether they would wait.
    fn check_queue(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        let limits = self.config.limits;
        let Some(record) = self.jobs.get_mut(job) else { return };
        let (is_demo, model) = (matches!(record.payer, Payer::Demo(_)), record.ask.model().clone());
        let waits = matches!(record.phase, Phase::Queued { .. });
        let is_over = self.jobs.queued(&model) > limits.queue_per_model
            || (is_demo && self.jobs.demo_queued(&model) > limits.demo_places());
        if waits && is_over {
            self.void(job, Some(JobError::QueueFull(model)), effects);
        }
    }

    fn settled(&mut self, job: JobId, remaining: Option<XRam>, effects: &mut Vec<Effect>) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        if !matches!(record.phase, Phase::Settling { .. }) {
            return;
        }
        let Some(record) = self.jobs.remove(job) else { return };
        let Phase::Settling { end, charge } = &record.phase else { return };
        let receipt = record.receipt(*charge, remaining);
        self.totals.charged = XRam::from_units(self.totals.charged.units().saturating_add(charge.units()));
        match end {
            End::Whole { finish, usage } => {
                self.totals.jobs_done += 1;
                effects.push(reply(job, Reply::Done { finish: *finish, usage: *usage, receipt }));
            }
            End::Cut { error } => {
                self.totals.jobs_failed += 1;
                effects.push(reply(job, Reply::Failed { error: error.clone(), receipt: Some(receipt) }));
            }
            End::Abandoned => self.totals.jobs_failed += 1,
        }
    }

    fn abandon(&mut self, job: JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        match &mut record.phase {
            Phase::Holding { abandoned } => *abandoned = true,
            Phase::Queued { .. } => self.end_waiting(job, None, now, effects),
            Phase::Running(run) => {
                let (provider, attempt) = (run.provider, run.attempt);
                effects.extend(self.cancel(provider, job, attempt));
                if let Some(node) = self.registry.node_mut(provider) {
                    node.running.remove(&job); // its slot is free within a round trip
                }
                self.attempt_failed(job, Failure::Cancelled, Some(End::Abandoned), now, effects);
                self.serve_waiting(now, effects);
            }
            Phase::Settling { end, .. } => *end = End::Abandoned,
        }
    }
}

/// What only time brings.
impl Coordinator {
    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let pause = now.since(std::mem::replace(&mut self.ticked_at, now));
        if self.has_ticked && pause > PAUSE_MAX {
            // The process or the machine slept: whoever spoke meanwhile has not been heard yet.
            self.registry.forgive(pause);
            self.jobs.forgive(pause);
        }
        self.has_ticked = true;
        for conn in self.registry.silent(now) {
            effects.push(Effect::Close { conn });
            self.socket_closed(conn, now, effects);
        }
        for job in self.late(now) {
            self.give_up(job, now, effects);
        }
        if now.since(self.priced_at) >= PRICE_STEP {
            self.priced_at = now;
            self.multiplier = self.multiplier.step(self.utilisation());
        }
        self.note_standings(now, effects);
        self.tick_groups(now, effects);
        self.serve_waiting(now, effects);
    }

    /// Jobs that have waited for too long: for a provider, or for its next word.
    fn late(&self, now: Timestamp) -> Vec<JobId> {
        let patience = self.config.limits.queue_wait;
        let is_late = |record: &&JobRecord| match &record.phase {
            Phase::Queued { since } => now.since(*since) >= patience,
            Phase::Running(run) => now >= run.deadline,
            Phase::Holding { .. } | Phase::Settling { .. } => false, // the store always answers
        };
        self.jobs.iter().filter(is_late).map(|record| record.ask.id()).collect()
    }

    fn give_up(&mut self, job: JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        match &record.phase {
            Phase::Queued { .. } => {
                let model = record.ask.model().clone();
                let is_loading = self.groups.has(&model) && !self.groups.is_ready(&model);
                let error = if is_loading { JobError::Loading(model) } else { JobError::NoCapacity(model) };
                self.end_waiting(job, Some(error), now, effects);
            }
            Phase::Running(run) => {
                let (provider, attempt) = (run.provider, run.attempt);
                let moves = run.group.is_none() || self.groups.is_ready(record.ask.model());
                effects.extend(self.cancel(provider, job, attempt));
                if moves {
                    self.strike(provider, now);
                }
                self.attempt_failed(job, Failure::TimedOut, None, now, effects);
            }
            Phase::Holding { .. } | Phase::Settling { .. } => {}
        }
    }

    fn drain(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.draining = true;
        self.note_standings(now, effects);
        for model in self.jobs.waiting_models() {
            for job in self.jobs.waiting(&model) {
                self.end_waiting(job, Some(JobError::Draining), now, effects);
            }
        }
    }

    /// Slots that are busy with our jobs, of all slots: what providers say of other work moves no price.
    fn utilisation(&self) -> Permille {
        let (busy, slots) = self.registry.nodes().fold((0_u64, 0_u64), |(busy, slots), (_, node)| {
            let of_node = u64::from(node.load.slots);
            (busy + of_node.min(node.running.len() as u64), slots + of_node)
        });
        let share = (busy * 1000).checked_div(slots).unwrap_or(0);
        Permille::new(u32::try_from(share).unwrap_or(1000))
    }

    /// The price of 1,000 tokens of `model` now.
    #[must_use]
    pub fn price_per_1k(&self, model: &ModelId) -> Option<XRam> {
        catalog::resolve(model.as_str()).map(|spec| pricing::price_per_1k(spec.rate(), self.multiplier))
    }
}

fn send(conn: ConnId, message: ToProvider) -> Effect {
    Effect::Send { conn, message: Box::new(message) }
}

fn reply(job: JobId, reply: Reply) -> Effect {
    Effect::Reply { job, reply }
}

fn reject(conn: ConnId, reason: RejectReason, effects: &mut Vec<Effect>) {
    let retry_after_ms = match reason {
        RejectReason::BadNonce | RejectReason::NotRegistered => Some(0),
        RejectReason::Full | RejectReason::Draining => Some(30_000),
        _ => None,
    };
    effects.push(send(conn, ToProvider::Rejected { reason, retry_after_ms }));
    effects.push(Effect::Close { conn });
}
