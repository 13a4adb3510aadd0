//! The node's own hand in its status: gathers what it knows, and writes it down in the background.

use std::path::PathBuf;
use std::time::Duration;

use ram_core::id::NodeKey;
use ram_core::provider::Hardware;
use ram_core::units::{Bytes, Timestamp};
use ram_crypto::identity::NodeIdentity;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{JobCounts, Journal, MemoryStatus, NodeStatus, Standing};
use crate::ProviderError;
use crate::agent::{Agent, Effect};
use crate::config::ProviderConfig;
use crate::groups::Groups;
use crate::power::{self, SleepGuard, Wakefulness};
use crate::worker::{self, Worker};

/// Shortest time between two writes: a busy node changes more often than anybody reads.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// Tells the operator how the node fares.
#[derive(Debug)]
pub(crate) struct Teller {
    home: PathBuf,
    journal: Journal,
    status: NodeStatus,
    guard: Option<Box<dyn SleepGuard>>,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Writer {
    newest: watch::Sender<NodeStatus>,
    task: JoinHandle<()>,
}

impl Teller {
    /// Of a node that has just started, which it writes down at once.
    pub(crate) fn new(
        config: &ProviderConfig,
        identity: &NodeIdentity,
        hardware: &Hardware,
        now: Timestamp,
    ) -> Self {
        let cap = worker::memory_cap(config, hardware);
        let journal = Journal::new();
        let status = NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: now,
            written_at: now,
            name: config.name.clone(),
            provider: NodeKey::from_bytes(identity.node_public()).provider_id(),
            coordinator: config.coordinator.to_string(),
            standing: journal.standing.clone(),
            last_error: None,
            models: Vec::new(),
            shards: Vec::new(),
            memory: MemoryStatus { cap, free: Bytes::ZERO },
            running: 0,
            queued: 0,
            slots: config.slots.get(),
            jobs: JobCounts::default(),
            thermal: Default::default(),
            sleep: Wakefulness::Off,
        };
        let teller = Self { home: config.home.clone(), journal, status, guard: None, writer: None };
        teller.write_now();
        teller
    }

    /// Keeps the machine awake from now on, if that can be; says so otherwise.
    pub(crate) fn prevent_sleep(&mut self) {
        let mut guard = power::hold();
        match guard.state() {
            Wakefulness::Held { by } => info!(by, "this machine does not sleep while the node runs"),
            Wakefulness::NotAvailable { why } => warn!("this machine may fall asleep: {why}"),
            Wakefulness::Off => {}
        }
        self.guard = Some(guard);
    }

    /// Why the node did not even start.
    pub(crate) fn not_started(&mut self, error: &ProviderError, now: Timestamp) {
        self.journal.failed(&error.told(), now);
        self.status.last_error = self.journal.last_error.clone();
        self.stopped(now);
    }

    /// That the node ends before it has begun to serve.
    pub(crate) fn stopped(&mut self, now: Timestamp) {
        (self.status.standing, self.status.written_at) = (Standing::Stopped, now);
        self.write_now();
    }

    /// Takes in what the agent did; answers whether that is worth telling at once.
    pub(crate) fn saw(&mut self, effect: &Effect, now: Timestamp) -> bool {
        self.journal.saw(effect, now)
    }

    /// The socket's own word for why it is gone.
    pub(crate) fn link_failed(&mut self, what: &str, now: Timestamp) {
        self.journal.failed(what, now);
    }

    /// Tells all anew. Needs a tokio runtime, in whose background it is written.
    pub(crate) fn tell(&mut self, agent: &Agent, worker: &Worker, groups: Option<&Groups>, now: Timestamp) {
        let load = agent.load();
        let status = &mut self.status;
        status.written_at = now;
        status.standing = self.journal.standing.clone();
        status.last_error = self.journal.last_error.clone();
        status.models = worker.views().into_iter().map(Into::into).collect();
        status.shards = groups.map(Groups::held).unwrap_or_default();
        status.memory.free = worker.memory_free();
        (status.running, status.queued, status.thermal) = (load.running, load.queued, load.thermal);
        status.jobs = self.journal.jobs;
        status.sleep = self.guard.as_mut().map_or(Wakefulness::Off, |guard| guard.state());
        let newest = self.status.clone();
        match &self.writer {
            Some(writer) => drop(writer.newest.send_replace(newest)),
            None => self.writer = Some(Writer::start(self.home.clone(), newest)),
        }
    }

    /// Waits until the last word is written.
    pub(crate) async fn finish(self) {
        if let Some(Writer { newest, task }) = self.writer {
            drop(newest);
            let _ = task.await; // it only writes a file
        }
    }

    fn write_now(&self) {
        if let Err(error) = super::write(&self.home, &self.status) {
            warn!(home = %self.home.display(), "the status cannot be written: {error}");
        }
    }
}

impl Writer {
    fn start(home: PathBuf, first: NodeStatus) -> Self {
        let (newest, mut changes) = watch::channel(first);
        let task = tokio::spawn(async move {
            let mut complained = false;
            changes.mark_changed();
            while changes.changed().await.is_ok() {
                let (home, status) = (home.clone(), changes.borrow_and_update().clone());
                let last = status.standing == Standing::Stopped;
                let written = tokio::task::spawn_blocking(move || super::write(&home, &status)).await;
                if let Ok(Err(error)) = written
                    && !std::mem::replace(&mut complained, true)
                {
                    warn!("the status cannot be written: {error}");
                }
                if !last {
                    tokio::time::sleep(WRITE_PAUSE).await;
                }
            }
        });
        Self { newest, task }
    }
}
