//! Serving the network: the shell around the [`Agent`]. Owns the clock, the socket, and a task for each answer.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ram_core::job::{Failure, Outcome};
use ram_core::provider::{Hardware, ProviderSpec};
use ram_core::units::Timestamp;
use ram_crypto::identity::NodeIdentity;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{info, warn};

use crate::ProviderError;
use crate::agent::{Agent, AgentConfig, Effect, Event, ShardWord, Ticket};
use crate::config::{CoordinatorUrl, ProviderConfig};
use crate::groups::Groups;
use crate::link::{Heard, Link};
use crate::lock::HomeLock;
use crate::status::Teller;
use crate::worker::{self, PendingAnswer, Step, Worker};
use crate::{hardware, reading};

/// Events of answers that may wait for the agent; then the answers wait, and after them the engines' own queues fill.
const INBOX_MAX: usize = 1024;
/// Longest wait for the last words to leave the socket when the node stops.
const LAST_WORDS_MAX: Duration = Duration::from_secs(3);
/// How often the node looks at what nothing tells it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often heat is asked for, which takes a process: as often as a coordinator hears of it.
const HEAT_EVERY: Duration = Duration::from_secs(10);

/// Serves the network until `shutdown`, then drains: what runs may end for half a minute, and nothing new is taken.
///
/// Loads the models off the async threads, registers with the coordinator, and comes back to it whenever the connection
/// is lost. Needs a tokio runtime with I/O and time.
///
/// # Errors
/// [`ProviderError`] when the node cannot start; once it runs it does not fail.
pub async fn run(config: ProviderConfig, shutdown: impl Future<Output = ()>) -> Result<(), ProviderError> {
    let mut shutdown = pin!(shutdown);
    let mut start = off_thread(move || Start::new(config)).await?;
    let (config, hardware) = (start.config.clone(), start.hardware.clone());
    let worker = tokio::select! {
        biased;
        () = &mut shutdown => {
            start.teller.stopped(now());
            return Ok(());
        }
        worker = off_thread(move || load(&config, &hardware)) => worker,
    };
    let worker = worker.inspect_err(|error| start.teller.not_started(error, now()))?;
    let groups = open_groups(&start.config, &start.identity, &worker).await;
    let groups = groups.inspect_err(|error| start.teller.not_started(error, now()))?;
    let node = off_thread(move || start.into_node(worker, groups)).await?;
    node.serve(shutdown.as_mut()).await;
    Ok(())
}

/// Does what blocks on a thread of its own.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProviderError> + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ProviderError::LoadPanicked)?
}

/// Opens the door to shards, if the node is to hold some.
async fn open_groups(
    config: &ProviderConfig,
    identity: &NodeIdentity,
    worker: &Worker,
) -> Result<Option<OpenGroups>, ProviderError> {
    let Some(address) = config.shards else { return Ok(None) };
    let rate = off_thread(|| Ok(reading::rate())).await?;
    info!(weights_per_s = rate.get(), "reads its memory");
    Groups::open(config, address, identity, worker, rate).await.map(Some)
}

/// Finds the models of the configuration and loads those to be preloaded.
pub(crate) fn load(config: &ProviderConfig, hardware: &Hardware) -> Result<Worker, ProviderError> {
    let cap = worker::memory_cap(config, hardware);
    info!(chip = hardware.chip, usable = %hardware.usable_memory, %cap, "loading");
    Worker::open(config, hardware)
}

/// A provider whose first models are still to be loaded: its home is taken, and its status says so.
struct Start {
    config: ProviderConfig,
    identity: NodeIdentity,
    hardware: Hardware,
    teller: Teller,
    lock: HomeLock,
}

/// A provider that is ready to connect.
struct Node {
    agent: Agent,
    shell: Shell,
    inbox: mpsc::Receiver<Event>,
    /// What is to be said of shards.
    words: mpsc::UnboundedReceiver<ShardWord>,
    teller: Teller,
    _lock: HomeLock,
}

/// What a node holds for groups, and what is to be said of it.
type OpenGroups = (Groups, mpsc::UnboundedReceiver<ShardWord>);

/// All that acts.
struct Shell {
    coordinator: CoordinatorUrl,
    worker: Worker,
    /// If the node lends anything.
    groups: Option<Groups>,
    link: Option<Link>,
    /// The link before, while its last words leave.
    closing: Option<JoinHandle<()>>,
    answers: HashMap<Ticket, AbortHandle>,
    events: mpsc::Sender<Event>,
    is_done: bool,
}

impl Start {
    /// Takes the home and says so in its status: a second at most.
    fn new(config: ProviderConfig) -> Result<Self, ProviderError> {
        let identity = NodeIdentity::open_or_create(&config.home)?;
        let lock = HomeLock::take(&config.home)?;
        let hardware = hardware::probe()?;
        let teller = Teller::new(&config, &identity, &hardware, now());
        Ok(Self { config, identity, hardware, teller, lock })
    }

    /// The node, now that its models are there.
    fn into_node(self, worker: Worker, groups: Option<OpenGroups>) -> Result<Node, ProviderError> {
        let Self { config, identity, hardware, mut teller, lock } = self;
        if config.prevent_sleep {
            teller.prevent_sleep();
        }
        if config.coordinator.is_exposed() {
            warn!(coordinator = %config.coordinator, "prompts travel unencrypted: use wss:// beyond a network of your own");
        }
        let slots = config.slots.get();
        let spec = ProviderSpec {
            name: config.name.clone(),
            wallet: config.wallet,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            memory_cap: worker::memory_cap(&config, &hardware),
            hardware,
            offers: worker.offers(),
        };
        let agent_config = AgentConfig {
            spec,
            memory_free: worker.memory_for_a_load(),
            slots,
            queue_max: worker::queue_max(slots),
            jitter_seed: getrandom::u64().map_err(|_| ProviderError::NoRandomness)?,
        };
        info!(fingerprint = %identity.fingerprint(), coordinator = %config.coordinator, "ready");
        let (events, inbox) = mpsc::channel(INBOX_MAX);
        let (groups, words) = groups.unzip();
        let words = words.unwrap_or_else(|| mpsc::unbounded_channel().1);
        let shell = Shell {
            coordinator: config.coordinator,
            worker,
            groups,
            link: None,
            closing: None,
            answers: HashMap::new(),
            events,
            is_done: false,
        };
        let agent = Agent::new(agent_config, Arc::new(identity));
        Ok(Node { agent, shell, inbox, words, teller, _lock: lock })
    }
}

impl Node {
    async fn serve(mut self, mut shutdown: impl Future<Output = ()> + Unpin) {
        let mut drained = false;
        let mut effects = Vec::new();
        let mut changes = self.shell.worker.changes();
        // A model whose load failed is offered again when its back-off is over, which nothing else tells.
        let mut look = tokio::time::interval(LOOK_EVERY);
        if hardware::TELLS_HEAT {
            tokio::spawn(watch_heat(self.shell.events.clone()));
        }
        self.report_shards(&mut effects);
        while !self.shell.is_done {
            let sleep = self.agent.wake_at().map(|at| at.since(now()));
            let event = tokio::select! {
                heard = self.shell.heard() => self.event_of(heard),
                Some(event) = self.inbox.recv() => event,
                Some(word) = self.words.recv() => Event::Shard(word),
                Ok(()) = changes.changed() => self.offers(),
                _ = look.tick() => self.offers(),
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => Event::Wake,
                () = &mut shutdown, if !drained => {
                    drained = true;
                    Event::DrainRequested
                }
            };
            if let Event::Ended { ticket, .. } = event {
                self.shell.answers.remove(&ticket);
            }
            let of_shards = matches!(event, Event::Shard(_) | Event::Offers { .. });
            self.handle(event, &mut effects);
            if of_shards {
                self.report_shards(&mut effects);
            }
        }
        self.shell.leave().await;
        self.teller.finish().await;
        info!("stopped");
    }

    fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let mut news = matches!(event, Event::Offers { .. });
        self.agent.handle(event, now(), effects);
        for effect in effects.drain(..) {
            news |= self.teller.saw(&effect, now());
            self.shell.perform(effect);
        }
        if news {
            self.teller.tell(&self.agent, &self.shell.worker, self.shell.groups.as_ref(), now());
        }
    }

    /// Hands the agent the newest report, which it tells when it is time.
    fn report_shards(&mut self, effects: &mut Vec<Effect>) {
        if let Some(report) = self.shell.groups.as_ref().map(Groups::report) {
            self.handle(Event::ShardReport(report), effects);
        }
    }

    fn event_of(&mut self, heard: Heard) -> Event {
        match heard {
            Heard::Up => Event::LinkUp,
            Heard::Message(message) => Event::Message(message),
            Heard::Down(error) => {
                warn!(coordinator = %self.shell.coordinator, "{error}");
                self.teller.link_failed(&error.to_string(), now());
                self.shell.link = None;
                Event::LinkDown
            }
        }
    }

    fn offers(&self) -> Event {
        let worker = &self.shell.worker;
        Event::Offers { offers: worker.offers(), memory_free: worker.memory_for_a_load() }
    }
}

impl Shell {
    async fn heard(&mut self) -> Heard {
        match &mut self.link {
            Some(link) => link.heard().await,
            None => std::future::pending().await,
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect => self.link = Some(Link::open(self.coordinator.clone())),
            Effect::Send(message) => {
                if let Some(link) = &mut self.link {
                    link.send(message);
                }
            }
            Effect::CloseLink => self.closing = self.link.take().map(Link::close),
            Effect::Generate { ticket, job, group } => {
                let begun = match group {
                    None => Some(self.worker.answer(job)),
                    Some(group) => self.groups.as_ref().and_then(|groups| groups.answer(group, job)),
                };
                let task = tokio::spawn(answer(begun, ticket, self.events.clone()));
                self.answers.insert(ticket, task.abort_handle());
            }
            Effect::Shard(order) => {
                if let Some(groups) = &self.groups {
                    groups.perform(order);
                }
            }
            Effect::CancelGeneration(ticket) => {
                if let Some(answer) = self.answers.remove(&ticket) {
                    answer.abort(); // drops the answer, and that cancels it in its engine
                }
            }
            Effect::Note(note) if note.is_warning() => warn!("{note}"),
            Effect::Note(note) => info!("{note}"),
            Effect::Exit => self.is_done = true,
        }
    }

    async fn leave(self) {
        for answer in self.answers.into_values() {
            answer.abort();
        }
        if let Some(closing) = self.closing {
            let _ = tokio::time::timeout(LAST_WORDS_MAX, closing).await;
        }
    }
}

/// Tells the agent of an answer, or that nothing here answers; ends early when aborted.
async fn answer(begun: Option<PendingAnswer>, ticket: Ticket, events: mpsc::Sender<Event>) {
    let Some(mut answer) = begun else {
        let outcome = Outcome::Failed { failure: Failure::ModelUnavailable };
        let _ = events.send(Event::Ended { ticket, outcome }).await; // without a listener the node is gone
        return;
    };
    while let Some(step) = answer.next().await {
        let event = match step {
            Step::Started { prompt } => Event::Started { ticket, prompt },
            Step::Piece(piece) => Event::Piece { ticket, piece },
            Step::End(outcome) => Event::Ended { ticket, outcome },
        };
        if events.send(event).await.is_err() {
            return; // the node is gone
        }
    }
}

/// Tells the agent of heat, until the node is gone.
async fn watch_heat(events: mpsc::Sender<Event>) {
    let mut look = tokio::time::interval(HEAT_EVERY);
    loop {
        look.tick().await;
        let Ok(thermal) = tokio::task::spawn_blocking(hardware::thermal).await else { return };
        if events.send(Event::Thermal(thermal)).await.is_err() {
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell owns the clock, and reads it here")]
pub(crate) fn now() -> Timestamp {
    Timestamp::ZERO.after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::status::{self, Found, Standing};

    #[tokio::test]
    async fn a_node_that_is_stopped_while_it_loads_says_so() {
        let home = tempfile::tempdir().unwrap();
        let given = Settings { models: Some(vec!["own=/nowhere".parse().unwrap()]), ..Settings::default() };
        let config = ProviderConfig::load(home.path().to_owned(), given).unwrap().config;
        run(config, async {}).await.unwrap();
        let Found::NotRunning(Some(status)) = status::look(home.path(), now()).unwrap() else {
            panic!("it has written down that it was here")
        };
        assert_eq!((status.standing.clone(), status.last_error.clone()), (Standing::Stopped, None));
    }
}
