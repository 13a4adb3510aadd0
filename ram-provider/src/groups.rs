//! What this node holds for groups: layers that are loaded, linked and let go as the coordinator orders.
//!
//! ```text
//! LoadShard   -> Loader: find or fetch, reserve, load -> Shards::hold -> ShardReady | ShardFailed   one by one
//! LinkShard   -> Shards::link -> Report               -> ShardLinked | ShardLost
//! Generate    -> the head's own answer
//! UnloadShard -> Shards::release; a load that is under way is cancelled
//! ```
//!
//! A shard is named by its group and its layers. What is to be said of it goes to the agent; what is said of one that
//! was let go meanwhile is dropped there. Start at [`Groups::perform`].

mod digest;
mod failure;
mod load;
mod needs;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ram_core::id::{Epoch, GroupId, ModelId};
use ram_core::job::Job;
use ram_core::layers::LayerRange;
use ram_core::units::{ByteRate, Bytes};
use ram_crypto::identity::NodeIdentity;
use ram_pipeline::member::{Chain, Member, Peer, Report};
use ram_pipeline::worker::Side;
use ram_proto::control::shard::{
    Addresses, Lending, LinkShard, LoadShard, Neighbour, ShardFailed, ShardFailure, ShardLinked, ShardLost,
    ShardReady, ShardReport, ShardStatus, UnloadShard,
};
use ram_proto::frame::Code;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

use crate::ProviderError;
use crate::agent::{ShardOrder, ShardWord};
use crate::config::{self, ProviderConfig};
use crate::shards::{self, Shards};
use crate::status::HeldShard;
use crate::worker::{Head, PendingAnswer, Worker};

use load::{Loaded, Loader};

/// Most shards at once, loading or held: a better split beside the one that runs, for a few groups.
const HELD_MAX: usize = 8;

/// All that this node holds for groups. Cheap to clone; all of it is let go with the last one.
#[derive(Clone)]
pub(crate) struct Groups(Arc<Inner>);

struct Inner {
    shards: Shards,
    /// Where others dial it by TLS.
    addresses: Addresses,
    worker: Worker,
    rate: ByteRate,
    loader: Arc<Loader>,
    /// One load at a time: two would make each other slow.
    turn: Arc<Semaphore>,
    book: Mutex<Book>,
    words: mpsc::UnboundedSender<ShardWord>,
}

type Key = (GroupId, LayerRange);

#[derive(Default)]
struct Book {
    entries: BTreeMap<Key, Entry>,
    /// Entries so far.
    numbers: u64,
}

/// A shard that was asked for.
struct Entry {
    /// None has that of one before: what is heard of one that was let go is told apart by it.
    number: u64,
    state: State,
}

enum State {
    /// On its way, until this says that nobody waits for it.
    Loading(Arc<AtomicBool>),
    Held(Box<Held>),
}

/// A shard in memory.
struct Held {
    model: ModelId,
    ready: ShardReady,
    member: Member,
    /// Of links that stand.
    linked: Option<Epoch>,
    /// On the first shard.
    head: Option<Head>,
    /// The memory that it keeps.
    reserved: Bytes,
}

impl Groups {
    /// Opens the door to the node's shards, of which there are none yet; what is to be said of them comes out of the
    /// other end. Takes the caller's tokio runtime.
    ///
    /// # Errors
    /// [`ProviderError::ShardsListen`], [`ProviderError::IrohListen`].
    #[cfg_attr(
        not(feature = "iroh"),
        expect(clippy::unused_async, reason = "iroh alone takes its time to listen")
    )]
    pub(crate) async fn open(
        config: &ProviderConfig,
        address: std::net::SocketAddr,
        identity: &NodeIdentity,
        worker: &Worker,
        rate: ByteRate,
    ) -> Result<(Self, mpsc::UnboundedReceiver<ShardWord>), ProviderError> {
        let not_taken = |source| ProviderError::ShardsListen { address, source };
        let shards = Shards::open(identity, address).map_err(not_taken)?;
        #[cfg(feature = "iroh")]
        if let Some(address) = config.shards_iroh {
            let relays = config.shards_relays.iter().map(config::RelayUrl::relay).collect();
            let opened = shards.open_iroh(identity, address, relays).await;
            opened.map_err(|source| ProviderError::IrohListen { address, source })?;
        }
        let addresses = config::addresses(&config.shards_at, shards.address());
        info!(listen = %shards.address(), told = ?shards.addresses(&addresses), "holds layers for others");
        let loader = Loader::new(config, worker);
        if let Some(cache) = loader.cache() {
            shards.give_from(cache);
        }
        let (words, heard) = mpsc::unbounded_channel();
        let inner = Inner {
            shards,
            addresses,
            worker: worker.clone(),
            rate,
            loader: Arc::new(loader),
            turn: Arc::new(Semaphore::new(1)),
            book: Mutex::default(),
            words,
        };
        Ok((Self(Arc::new(inner)), heard))
    }

    /// Does what the coordinator orders. Waits for nothing.
    pub(crate) fn perform(&self, order: ShardOrder) {
        match order {
            ShardOrder::Load(load) => self.load(load),
            ShardOrder::Link(link) => self.0.link(link),
            ShardOrder::Unload(unload) => self.0.unload(&unload),
        }
    }

    /// Begins an answer by a group; `None` when this node is not its head.
    pub(crate) fn answer(&self, group: GroupId, job: Job) -> Option<PendingAnswer> {
        let head = {
            let book = self.0.book();
            let of_group = book.held().filter(|((of, _), _)| *of == group);
            let heads = of_group.filter_map(|(_, held)| Some((held.linked, held.head.clone()?)));
            heads.max_by_key(|(linked, _)| *linked).map(|(_, head)| head)
        };
        Some(head?.answer(job))
    }

    /// What this node lends, and how its shards do.
    pub(crate) fn report(&self) -> ShardReport {
        let Inner { worker, rate, shards, addresses, .. } = &*self.0;
        let status = |((group, layers), held): (Key, &Held)| {
            let beat = held.member.status();
            held.linked.map(|_| ShardStatus {
                group,
                layers,
                sessions: beat.sessions,
                kv_free: beat.kv_free,
                step_us: beat.step_us,
                hop_us: held.member.hop().map(|hop| u32::try_from(hop.as_micros()).unwrap_or(u32::MAX)),
            })
        };
        ShardReport {
            lends: Some(Lending { memory: worker.lendable(), weights_per_s: *rate }),
            shards: self.0.book().held().filter_map(status).collect(),
            addresses: shards.gives().then(|| shards.addresses(addresses)),
        }
    }

    /// What this node holds, for its operator.
    pub(crate) fn held(&self) -> Vec<HeldShard> {
        let told = |((group, layers), held): (Key, &Held)| HeldShard {
            model: held.model.clone(),
            group,
            layers,
            linked: held.linked,
            sessions: held.member.status().sessions,
        };
        self.0.book().held().map(told).collect()
    }

    fn load(&self, load: LoadShard) {
        let key = (load.group, load.layers);
        let mut book = self.0.book();
        match book.entries.get(&key).map(|entry| &entry.state) {
            Some(State::Held(held)) => return self.0.say(ShardWord::Ready(held.ready.clone())),
            Some(State::Loading(_)) => return, // It will say so itself.
            None if book.entries.len() >= HELD_MAX => return self.0.fail(key, ShardFailure::Busy),
            None => {}
        }
        let cancelled = Arc::<AtomicBool>::default();
        let number = book.add(key, State::Loading(cancelled.clone()));
        tokio::spawn(take_in(Arc::downgrade(&self.0), load, number, cancelled));
    }
}

/// Loads a shard when its turn has come.
async fn take_in(groups: Weak<Inner>, load: LoadShard, number: u64, cancelled: Arc<AtomicBool>) {
    let of = |inner: Arc<Inner>| (inner.turn.clone(), inner.loader.clone());
    let Some((turn, loader)) = groups.upgrade().map(of) else { return };
    let Ok(_turn) = turn.acquire_owned().await else { return };
    if cancelled.load(Ordering::Relaxed) {
        return;
    }
    let Some(kept) = groups.upgrade().map(|groups| groups.book().held().map(|(_, held)| held.reserved).sum())
    else {
        return;
    };
    let Some(near) = groups.upgrade().map(|groups| groups.shards.neighbours(&load.near)) else { return };
    let order = load.clone();
    let loaded = tokio::task::spawn_blocking(move || loader.load(&order, &near, &cancelled, kept)).await;
    let Some(groups) = groups.upgrade() else { return };
    let held = match loaded.unwrap_or(Err(ShardFailure::Internal)) {
        Ok(loaded) => groups.hold(&load, loaded, number).await,
        Err(failure) => Err(failure),
    };
    groups.settle((load.group, load.layers), number, held);
}

impl Inner {
    /// Has a stage take part, and on the head what answers by it.
    async fn hold(
        self: &Arc<Self>,
        load: &LoadShard,
        loaded: Loaded,
        number: u64,
    ) -> Result<Held, ShardFailure> {
        let Loaded { stage, digest, dir, reserved } = loaded;
        let (group, layers) = (load.group, load.layers);
        // A HELLO names no group: the same layers cannot be told apart.
        let is_same = |held: &Held| held.ready.digest == digest && held.ready.layers == layers;
        if self.book().held().any(|(_, held)| is_same(held)) {
            return Err(ShardFailure::Busy);
        }
        let ready = ShardReady {
            group,
            layers,
            addresses: self.shards.addresses(&self.addresses),
            digest,
            width: shards::width(&stage),
            dtype: shards::DTYPE,
            kv_free: stage.room(),
        };
        let shards = NonZeroU16::new(load.place.of()).unwrap_or(NonZeroU16::MIN);
        let (reporter, reports) = mpsc::unbounded_channel();
        let member = self.shards.hold(digest, stage, shards, reporter);
        let mut head = None;
        if load.place.is_first() {
            let (model, member, positions) = (load.model.clone(), member.clone(), load.positions);
            let loading = tokio::task::spawn_blocking(move || Head::load(&dir, model, member, positions));
            let loaded = loading.await.map_err(|_| ShardFailure::Internal);
            let loaded = loaded.and_then(|loaded| loaded.map_err(|error| failure::of_model(&error)));
            head = Some(loaded.inspect_err(|_| self.shards.release(digest, layers))?);
        }
        tokio::spawn(relay(Arc::downgrade(self), (group, layers), number, reports));
        Ok(Held { model: load.model.clone(), ready, member, linked: None, head, reserved })
    }

    /// Tells what came of a load, if somebody waits for it still.
    fn settle(&self, key: Key, number: u64, held: Result<Held, ShardFailure>) {
        let mut book = self.book();
        let Some(entry) = book.entries.get_mut(&key).filter(|entry| entry.number == number) else {
            if let Ok(held) = held {
                self.shards.release(held.ready.digest, key.1);
            }
            return;
        };
        match held {
            Ok(held) => {
                info!(group = %key.0, layers = ?key.1, "holds layers");
                self.say(ShardWord::Ready(held.ready.clone()));
                entry.state = State::Held(Box::new(held));
            }
            Err(failure) => {
                book.entries.remove(&key);
                self.fail(key, failure);
            }
        }
    }

    /// Links the layers that a chain names, and takes others of the group out of theirs.
    fn link(&self, link: LinkShard) {
        let LinkShard { group, epoch, chain } = link;
        let own = self.shards.node();
        let Some(place) = chain.shards().iter().position(|shard| shard.node == own) else {
            return debug!(%group, "a chain without this node");
        };
        let layers = chain.shards()[place].layers;
        let mut book = self.book();
        let others = book.entries.iter_mut().filter(|((of, other), _)| *of == group && *other != layers);
        for (_, entry) in others {
            if let State::Held(held) = &mut entry.state {
                held.linked = None;
                held.member.hopeless(Code::LinkLost); // Its jobs are not those of the new chain's head.
                self.shards.unlink(held.ready.digest, held.ready.layers);
            }
        }
        let key = (group, layers);
        let Some(State::Held(held)) = book.entries.get_mut(&key).map(|entry| &mut entry.state) else {
            if let Some(Entry { state: State::Loading(cancelled), .. }) = book.entries.remove(&key) {
                cancelled.store(true, Ordering::Relaxed);
            }
            return self.fail(key, ShardFailure::Internal);
        };
        let peers = chain.shards().iter().map(|shard| Peer {
            node: shard.node,
            addresses: shard.addresses.clone(),
            layers: shard.layers,
        });
        held.linked = None;
        let chain = Chain { epoch, peers: peers.collect(), place };
        if !self.shards.link(held.ready.digest, chain) {
            book.entries.remove(&key);
            self.fail(key, ShardFailure::Internal);
        }
    }

    fn unload(&self, unload: &UnloadShard) {
        let is_meant =
            |(group, layers): &Key| *group == unload.group && unload.layers.is_none_or(|of| of == *layers);
        let mut book = self.book();
        for ((group, layers), entry) in book.entries.extract_if(.., |key, _| is_meant(key)) {
            match entry.state {
                State::Loading(cancelled) => cancelled.store(true, Ordering::Relaxed),
                State::Held(held) => {
                    held.member.hopeless(Code::LinkLost);
                    self.shards.release(held.ready.digest, layers);
                }
            }
            info!(%group, ?layers, "lets layers go");
        }
    }

    /// Tells what a member says of its links.
    fn heard(&self, key: Key, number: u64, report: Report) {
        let mut book = self.book();
        let entry = book.entries.get_mut(&key).filter(|entry| entry.number == number);
        let Some(State::Held(held)) = entry.map(|entry| &mut entry.state) else { return };
        let group = key.0;
        match report {
            Report::Linked(epoch) => {
                held.linked = Some(epoch);
                self.say(ShardWord::Linked(ShardLinked { group, epoch }));
            }
            Report::Lost(epoch, side) => {
                held.linked = None;
                let neighbour = match side {
                    Side::Up => Neighbour::Up,
                    Side::Down => Neighbour::Down,
                    Side::Results => Neighbour::Results,
                };
                self.say(ShardWord::Lost(ShardLost { group, epoch, neighbour }));
            }
        }
    }

    fn fail(&self, (group, layers): Key, failure: ShardFailure) {
        warn!(%group, ?layers, "does not hold layers: {failure}");
        self.say(ShardWord::Failed(ShardFailed { group, layers, failure }));
    }

    fn say(&self, word: ShardWord) {
        let _ = self.words.send(word); // Without a listener the node is gone.
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner) // entries are whole at any moment
    }
}

/// Hands on what a member says, until it or the node is gone.
async fn relay(groups: Weak<Inner>, key: Key, number: u64, mut reports: mpsc::UnboundedReceiver<Report>) {
    while let Some(report) = reports.recv().await {
        let Some(groups) = groups.upgrade() else { return };
        groups.heard(key, number, report);
    }
}

impl Book {
    fn add(&mut self, key: Key, state: State) -> u64 {
        self.numbers += 1;
        self.entries.insert(key, Entry { number: self.numbers, state });
        self.numbers
    }

    fn held(&self) -> impl Iterator<Item = (Key, &Held)> {
        self.entries.iter().filter_map(|(key, entry)| match &entry.state {
            State::Held(held) => Some((*key, &**held)),
            State::Loading(_) => None,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for entry in self.book().entries.values() {
            if let State::Loading(cancelled) = &entry.state {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("shards", &self.0.shards).finish_non_exhaustive()
    }
}
