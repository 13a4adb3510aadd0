//! The one loop: what happens goes into the core, what the core wants done goes out.
//!
//! ```text
//!  http, ws --Input--> inbox --Event--> state::Coordinator --Effect--> outboxes (ws), replies (http), store
//!                        ^                                                                            |
//!                        +--------------------------- Held, Settled ----------------------------------+
//! ```
//!
//! The loop never waits for anybody: a slow provider's outbox and a slow reader's replies are bounded and cut when
//! full, and the store answers by events. This file is also the only one of the crate that reads the wall clock, and it
//! and `keys` alone ask for randomness. Start at [`Handle`] from outside, at `Loop::run` from inside.

mod replies;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ram_core::id::{JobId, ModelId, ProviderId};
use ram_core::units::{Timestamp, XRam};
use ram_proto::control::{Nonce, ToCoordinator, ToProvider};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use crate::metrics::{JobEnd, Metrics};
use crate::state::{
    ConnId, Coordinator, Effect, Event, HoldOrder, Receipt, Reply, SettleOrder, Standing, Submission, TICK,
};
use crate::store::{Lease, Store, StoreError};

use replies::ReplySender;

pub use replies::Replies;

/// Inputs that may wait for the loop; whoever brings more waits itself, so sockets feel it as back-pressure.
const INBOX_MAX: usize = 1024;
/// Messages that may wait for one provider. Each is small but for prompts, of which it has at most its slots' worth.
/// They wait in boxes: a channel makes room for 32 at once, and an idle provider shall not cost a page.
const OUTBOX_MAX: usize = 256;
/// How long money stays set aside for a job that nobody vouches for: what a crash can cost a user in waiting.
const HOLD_LEASE: Duration = Duration::from_secs(120);
/// When to settle again where the disk was full or another process held the database: within the lease.
const SETTLE_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];
/// After 60 days nothing is left of a reputation: 30 half-lives.
const FORGOTTEN_AFTER_MS: u64 = 60 * 24 * 3600 * 1000;
/// How often the leases of running jobs are renewed and dead ones are voided.
const RENEW_EVERY: Duration = Duration::from_secs(30);

/// The time, read here and nowhere else: the wall clock's, but it never goes back, or nothing would end for as long.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this shell owns the clock")]
pub fn now() -> Timestamp {
    static LAST: Mutex<Option<(Instant, Timestamp)>> = Mutex::new(None);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (wall, instant) = (Timestamp::ZERO.after(since_epoch), Instant::now());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let steady = last.map(|(at, then)| then.after(instant.saturating_duration_since(at)));
    let now = steady.map_or(wall, |steady| steady.max(wall));
    *last = Some((instant, now));
    now
}

/// A new name for a job.
///
/// # Errors
/// [`Gone`] when the operating system gives no random bits: nothing can be served then.
pub fn random_job_id() -> Result<JobId, Gone> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|_| Gone)?;
    Ok(JobId::from_bits(u128::from_be_bytes(bits)))
}

/// A seed for whoever named none.
///
/// # Errors
/// As [`random_job_id`].
pub fn random_seed() -> Result<u64, Gone> {
    getrandom::u64().map_err(|_| Gone)
}

/// The loop does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator has stopped")]
pub struct Gone;

/// A way to reach the loop from anywhere; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    inbox: mpsc::Sender<Input>,
    /// Jobs whose user left. Unbounded, for `drop` cannot wait; at most one for each submitted job.
    abandoned: mpsc::UnboundedSender<JobId>,
    conns: Arc<AtomicU64>,
}

/// What reaches the loop.
enum Input {
    Opened(ConnId, Nonce, mpsc::Sender<Box<ToProvider>>),
    Happened(Event),
    Submit(Box<Submission>, ReplySender),
    Ask(Question),
    Drain(oneshot::Sender<()>),
    Do(Event),
    Stop,
}

/// What somebody wants to know of the core; brings its own way to answer.
type Question = Box<dyn FnOnce(&Coordinator, Timestamp) + Send>;

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

/// Starts the loop over a store, on the current tokio runtime.
///
/// The task ends after [`Handle::stop`].
pub fn spawn(
    core: Coordinator,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (inbox_tx, inbox) = mpsc::channel(INBOX_MAX);
    let (abandoned_tx, abandoned) = mpsc::unbounded_channel();
    let handle = Handle { inbox: inbox_tx.clone(), abandoned: abandoned_tx, conns: Arc::default() };
    let turning = Loop {
        core,
        store,
        metrics,
        to_inbox: inbox_tx,
        outboxes: HashMap::new(),
        users: HashMap::new(),
        held: BTreeSet::new(),
        paying: 0,
        drained: None,
        effects: Vec::new(),
    };
    (handle, tokio::spawn(turning.run(inbox, abandoned)))
}

impl Handle {
    /// Brings a job in. Its replies end with `Done` or `Failed`; dropping them before that abandons the job.
    ///
    /// # Errors
    /// [`Gone`] when the loop has stopped.
    pub async fn submit(&self, submission: Submission) -> Result<Replies, Gone> {
        let job = submission.job;
        let (sender, replies) = replies::pair(job, self.abandoned.clone());
        self.inbox.send(Input::Submit(Box::new(submission), sender)).await.map_err(|_| Gone)?;
        Ok(replies)
    }

    /// Asks the core, as it is right now.
    ///
    /// # Errors
    /// [`Gone`] when the loop has stopped.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Coordinator, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (sender, answer) = oneshot::channel();
        let ask = Box::new(move |core: &Coordinator, now: Timestamp| {
            let _ = sender.send(question(core, now)); // whoever asked may have left
        });
        self.inbox.send(Input::Ask(ask)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// A provider's socket opened: what is sent to it comes out of the outbox, which ends when it shall close.
    pub(crate) async fn socket_opened(&self) -> Result<(ConnId, mpsc::Receiver<Box<ToProvider>>), Gone> {
        let conn = ConnId(self.conns.fetch_add(1, Ordering::Relaxed));
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| Gone)?;
        let (sender, outbox) = mpsc::channel(OUTBOX_MAX);
        self.inbox.send(Input::Opened(conn, Nonce::from_bytes(nonce), sender)).await.map_err(|_| Gone)?;
        Ok((conn, outbox))
    }

    /// A provider said something. Waits while the loop is behind, so that a flood stays in its sender's socket.
    pub(crate) async fn provider_said(&self, conn: ConnId, message: ToCoordinator) -> Result<(), Gone> {
        let event = Event::FromProvider { conn, message: Box::new(message) };
        self.inbox.send(Input::Happened(event)).await.map_err(|_| Gone)
    }

    /// A provider's socket is closed.
    pub(crate) async fn socket_closed(&self, conn: ConnId) {
        let _ = self.inbox.send(Input::Happened(Event::SocketClosed { conn })).await; // nobody left to care
    }

    /// Takes no more jobs; those that run end. Does not wait for them.
    ///
    /// # Errors
    /// [`Gone`] when the loop has stopped.
    pub async fn begin_drain(&self) -> Result<(), Gone> {
        self.inbox.send(Input::Do(Event::Drain)).await.map_err(|_| Gone)
    }

    /// Takes jobs again after [`Handle::begin_drain`].
    ///
    /// # Errors
    /// [`Gone`] when the loop has stopped.
    pub async fn resume(&self) -> Result<(), Gone> {
        self.inbox.send(Input::Do(Event::Resume)).await.map_err(|_| Gone)
    }

    /// Tells providers that the process is about to end.
    pub(crate) async fn dismiss(&self) {
        let _ = self.inbox.send(Input::Do(Event::Dismiss)).await; // a loop that stopped has dismissed them
    }

    /// Gives a provider no new jobs, or some again, over all its sessions; one that is not here stays unknown.
    ///
    /// # Errors
    /// [`Gone`] when the loop has stopped.
    pub async fn drain_provider(&self, provider: ProviderId, draining: bool) -> Result<(), Gone> {
        self.inbox.send(Input::Do(Event::DrainProvider { provider, draining })).await.map_err(|_| Gone)
    }

    /// Takes no more jobs, and waits until those that run have ended and are paid.
    pub async fn drain(&self) {
        let (sender, drained) = oneshot::channel();
        if self.inbox.send(Input::Drain(sender)).await.is_ok() {
            let _ = drained.await; // a loop that stopped is drained, too
        }
    }

    /// Stops the loop at once; what still runs is lost, and its holds are voided when their leases end.
    pub async fn stop(&self) {
        let _ = self.inbox.send(Input::Stop).await;
    }
}

/// The loop's own state: where effects go.
struct Loop {
    core: Coordinator,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    to_inbox: mpsc::Sender<Input>,
    outboxes: HashMap<ConnId, mpsc::Sender<Box<ToProvider>>>,
    users: HashMap<JobId, User>,
    /// Jobs with money set aside, whose leases we renew.
    held: BTreeSet<JobId>,
    /// Orders that the store has not answered yet.
    paying: usize,
    drained: Option<oneshot::Sender<()>>,
    effects: Vec<Effect>,
}

/// Somebody who waits for an answer.
struct User {
    replies: ReplySender,
    model: ModelId,
    since: Timestamp,
    provider: Option<ProviderId>,
    /// Whether a word of the answer has come.
    has_word: bool,
}

impl Loop {
    async fn run(mut self, mut inbox: mpsc::Receiver<Input>, mut abandoned: mpsc::UnboundedReceiver<JobId>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renew = tokio::time::interval(RENEW_EVERY);
        self.remember().await;
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => self.handle(Event::Tick),
                _ = renew.tick() => self.renew(),
                Some(job) = abandoned.recv() => {
                    if let Some(user) = self.users.remove(&job) {
                        user.gone(&self.metrics);
                    }
                    self.handle(Event::Abandon { job });
                }
                input = inbox.recv() => match input {
                    Some(Input::Stop) | None => break,
                    Some(input) => self.take(input),
                },
            }
            if self.drained.is_some() && self.core.open_jobs() == 0 && self.paying == 0 {
                self.drained.take().map(|drained| drained.send(()));
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Opened(conn, nonce, outbox) => {
                self.outboxes.insert(conn, outbox);
                self.handle(Event::SocketOpened { conn, nonce });
            }
            Input::Happened(event) => {
                match &event {
                    Event::SocketClosed { conn } => {
                        debug!(conn = conn.0, "a provider's socket closed");
                        self.outboxes.remove(conn);
                    }
                    Event::Held { job, result } => {
                        self.paying -= 1;
                        if result.is_err() {
                            self.held.remove(job);
                        }
                    }
                    Event::Settled { .. } => self.paying -= 1,
                    _ => {}
                }
                self.handle(event);
            }
            Input::Submit(submission, replies) => {
                if replies.is_closed() {
                    return; // its abandonment may have overtaken it
                }
                let model = submission.model.clone();
                let user = User { replies, model, since: now(), provider: None, has_word: false };
                self.users.insert(submission.job, user);
                self.handle(Event::Submit(submission));
            }
            Input::Ask(ask) => ask(&self.core, now()),
            Input::Drain(drained) => {
                self.drained = Some(drained);
                self.handle(Event::Drain);
            }
            Input::Do(event) => self.handle(event),
            Input::Stop => {}
        }
    }

    /// One event and all that follows from it.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut effects = std::mem::take(&mut self.effects);
        while let Some(event) = events.pop_front() {
            self.core.handle(event, now(), &mut effects);
            events.extend(effects.drain(..).filter_map(|effect| self.perform(effect)));
        }
        self.effects = effects; // its allocation serves the next event
    }

    /// Does one thing; answers what happened by doing it, if anything did at once.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Send { conn, message } => return self.send(conn, message),
            Effect::Close { conn } => drop(self.outboxes.remove(&conn)),
            Effect::Hold(order) => self.hold(order),
            Effect::Settle(order) => self.settle(order),
            Effect::Checkpoint(order) => self.checkpoint(order),
            Effect::Refuse(order) => self.refuse(order),
            Effect::NoteStandings(standings) => self.note_standings(standings),
            Effect::Void { job } => self.void(job),
            Effect::Reply { job, reply } => return self.reply(job, reply),
        }
        None
    }

    fn send(&mut self, conn: ConnId, message: Box<ToProvider>) -> Option<Event> {
        match &*message {
            ToProvider::Registered { provider, .. } => {
                info!(%provider, conn = conn.0, "a provider registered");
            }
            ToProvider::Rejected { reason, .. } => info!(%reason, conn = conn.0, "a provider was refused"),
            _ => {}
        }
        self.outboxes.get(&conn)?.try_send(message).err()?;
        // Full or gone: a provider that does not read cannot serve.
        warn!(conn = conn.0, "a provider's outbox is full or closed; it is cut off");
        self.outboxes.remove(&conn);
        Some(Event::SocketClosed { conn })
    }

    fn reply(&mut self, job: JobId, reply: Reply) -> Option<Event> {
        let user = self.users.get_mut(&job)?;
        user.note(job, &reply, &self.metrics);
        let last = matches!(reply, Reply::Done { .. } | Reply::Failed { .. });
        let sent = user.replies.send(reply);
        let cut = !sent && !last;
        if let Some(user) = (last || cut).then(|| self.users.remove(&job)).flatten()
            && cut
        {
            user.gone(&self.metrics);
            debug!(%job, "the reader left or is too slow; the job is abandoned");
        }
        cut.then_some(Event::Abandon { job })
    }

    fn hold(&mut self, order: HoldOrder) {
        let (job, now) = (order.job, now());
        self.held.insert(job);
        let answer = self.store.hold(order, Lease { at: now, until: now.after(HOLD_LEASE) });
        let answer = self.timed("hold", answer);
        self.when_answered(async move { Event::Held { job, result: answer.await } });
    }

    fn settle(&mut self, order: SettleOrder) {
        let job = order.job;
        self.held.remove(&job);
        let store = Arc::clone(&self.store);
        let first = self.timed("settle", self.store.settle(order.clone(), now()));
        self.when_answered(async move {
            let mut settled = first.await;
            for wait in SETTLE_AGAIN_AFTER {
                if !matches!(settled, Err(StoreError::Failed(_))) {
                    break; // the rest is final; and whoever asks twice is paid once
                }
                tokio::time::sleep(wait).await;
                settled = store.settle(order.clone(), now()).await;
            }
            let remaining = match settled {
                Ok(settled) => settled.remaining,
                Err(error) => {
                    // The hold stays; when its lease ends the last checkpoint is paid, in the user's favour.
                    error!(%job, %error, "a job was served and could not be settled");
                    None
                }
            };
            Event::Settled { job, remaining }
        });
    }

    fn checkpoint(&self, order: SettleOrder) {
        let job = order.job;
        let noted = self.timed("checkpoint", self.store.checkpoint(order));
        tokio::spawn(async move {
            if let Err(error) = noted.await {
                warn!(%job, %error, "what a job has delivered could not be noted");
            }
        });
    }

    fn refuse(&self, order: SettleOrder) {
        let (job, provider, verdict) = (order.job, order.provider, order.verdict);
        warn!(%job, %provider, verdict = verdict.code(), "a result was refused; nobody pays for it");
        let noted = self.store.refuse(order, now());
        tokio::spawn(async move {
            if let Err(error) = noted.await {
                warn!(%job, %error, "a refused result could not be noted");
            }
        });
    }

    fn note_standings(&self, standings: Vec<Standing>) {
        let noted = self.store.note_standings(standings);
        tokio::spawn(async move {
            if let Err(error) = noted.await {
                warn!(%error, "what is thought of providers could not be noted");
            }
        });
    }

    /// Brings back what an earlier process thought of providers.
    async fn remember(&mut self) {
        let now = now();
        let since = Timestamp::from_millis(now.as_millis().saturating_sub(FORGOTTEN_AFTER_MS));
        match self.store.standings(since).await {
            Ok(standings) => self.handle(Event::Remembered(standings)),
            Err(error) => warn!(%error, "what was thought of providers is not known; all begin anew"),
        }
    }

    fn void(&mut self, job: JobId) {
        self.held.remove(&job);
        let answer = self.timed("void", self.store.void(job, now()));
        tokio::spawn(async move {
            if let Err(error) = answer.await {
                warn!(%job, %error, "a hold could not be released; it ends with its lease");
            }
        });
    }

    /// The store's answer, and how long it took into the metrics.
    fn timed<F: Future>(
        &self,
        operation: &'static str,
        answer: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let (metrics, began) = (Arc::clone(&self.metrics), tokio::time::Instant::now());
        async move {
            let answer = answer.await;
            metrics.stored(operation, began.elapsed());
            answer
        }
    }

    /// Brings the store's answer back into the loop as an event.
    fn when_answered(&mut self, answer: impl Future<Output = Event> + Send + 'static) {
        self.paying += 1;
        let inbox = self.to_inbox.clone();
        tokio::spawn(async move {
            let _ = inbox.send(Input::Happened(answer.await)).await; // a stopped loop wants no answers
        });
    }

    fn renew(&self) {
        let now = now();
        let renewed = self
            .store
            .renew(self.held.iter().copied().collect(), Lease { at: now, until: now.after(HOLD_LEASE) });
        let resolved = self.store.resolve_expired(now);
        tokio::spawn(async move {
            match renewed.await.and(resolved.await) {
                Ok(0) => {}
                Ok(holds) => info!(holds, "resolved holds that no job stands behind any more"),
                Err(error) => warn!(%error, "leases could not be renewed"),
            }
        });
    }
}

impl User {
    /// Writes a job's turning points to the log and the metrics: numbers and names, never a word.
    fn note(&mut self, job: JobId, reply: &Reply, metrics: &Metrics) {
        let waited = now().since(self.since);
        let ms = waited.as_millis();
        let (model, provider) = (&self.model, self.provider.map(tracing::field::display));
        match reply {
            Reply::Started { provider, prompt, .. } => {
                debug!(%job, %model, %provider, %prompt, ms, "job started");
                self.provider = Some(*provider);
            }
            Reply::Delta { .. } | Reply::Sealed { .. } if self.has_word => {}
            Reply::Delta { .. } | Reply::Sealed { .. } => {
                self.has_word = true;
                metrics.first_word(model, waited);
            }
            Reply::Done { usage, receipt: Receipt { charge, .. }, .. } => {
                let (prompt, completion) = (usage.prompt, usage.completion);
                info!(%job, %model, provider, %prompt, %completion, %charge, ms, "job done");
                metrics.job_ended(model, JobEnd::Done(*usage, *charge), waited);
            }
            Reply::Failed { error, receipt } => {
                info!(%job, %model, provider, %error, ms, "job failed");
                let charge = receipt.map_or(XRam::ZERO, |receipt| receipt.charge);
                metrics.job_ended(model, JobEnd::Failed(error, charge), waited);
            }
        }
    }

    /// Nobody waits any more.
    fn gone(&self, metrics: &Metrics) {
        metrics.job_ended(&self.model, JobEnd::Abandoned, now().since(self.since));
    }
}
