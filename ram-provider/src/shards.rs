//! The shards that a node holds for groups, and the door by which the shards before them, and the last ones of chains
//! whose head this is, come in.
//!
//! ```text
//! Shards::open -> hold(stage) -> Member -> link(chain) -> Report::Linked -> Member::submit, on the head
//! ```
//!
//! Links are TLS 1.3 between node keys; with the feature `iroh` QUIC between the same keys, too, through address
//! translation. Either door opens to the nodes of the chains that this node was linked into, and to nobody else: a
//! stranger is refused before a byte of a frame is read. How others are dialled is in `ways`.
//!
//! A node that gives files of models (`near`) opens the first door to anybody on its own network, too. Who is a
//! stranger there may ask for a file, and for nothing else.

mod near;
mod ways;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ram_core::id::NodeKey;
use ram_core::layers::LayerRange;
use ram_core::units::Bytes;
use ram_crypto::identity::NodeIdentity;
use ram_infer::device::Device;
use ram_infer::hub::cache::Cache;
use ram_pipeline::link::greet::{self, Heard};
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::{Relay, Socket};
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{Link, LinkError, tcp};
use ram_pipeline::member::{Chain, Member, MemberConfig, Report};
use ram_pipeline::worker::{Replay, WorkerConfig};
use ram_proto::control::shard::{Addresses, Near};
use ram_proto::frame::{Code, ModelDigest};
use ram_proto::tensor::Dtype;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

pub(crate) use self::near::Neighbours;
use self::near::Pantry;
use self::ways::Ways;

use crate::run::now;
use crate::stage::ModelStage;

/// All shards of this node. Cheap to clone; the door closes with the last one.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    ways: Arc<Ways>,
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
    /// What others on this network are given.
    pantry: Arc<OnceLock<Pantry>>,
    links: Handle,
    /// The thread of the links ends with this.
    _open: oneshot::Sender<()>,
}

/// What is held, by what a HELLO names.
#[derive(Default)]
struct Held {
    members: HashMap<(ModelDigest, LayerRange), (Member, BTreeSet<NodeKey>)>,
}

impl Shards {
    /// Opens the door. Links have a thread of their own: what else the node does keeps no frame waiting, and a frame is
    /// handed from task to task without waking anybody.
    ///
    /// # Errors
    /// When nobody may listen at this address, or there is no thread to be had.
    pub fn open(identity: &NodeIdentity, address: SocketAddr) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let identity = Identity::from_seed(&identity.node_seed());
        let held = Arc::<Mutex<Held>>::default();
        let known = held.clone();
        let doors = Doors {
            known: Door::new(&identity, move |key| lock(&known).knows(key)),
            anybody: Door::new(&identity, |_| true),
            held: held.clone(),
            pantry: Arc::default(),
        };
        let pantry = doors.pantry.clone();
        let ways = Arc::new(Ways::new(identity));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (links, closes) = (runtime.handle().clone(), ways.clone());
        let (open, closed) = oneshot::channel();
        std::thread::Builder::new().name("ram-links".to_owned()).spawn(move || {
            runtime.block_on(async {
                let accepting = async { accept(TcpListener::from_std(listener)?, Arc::new(doors)).await };
                tokio::select! {
                    Err(error) = accepting => warn!(%error, "the door to shards is shut"),
                    _ = closed => {}
                }
                closes.close().await;
            });
        })?;
        Ok(Self(Arc::new(Inner { ways, address, held, pantry, links, _open: open })))
    }

    /// Opens a door by iroh beside the other one, once, with these relays of one's own or none; it opens to the same
    /// nodes.
    ///
    /// # Errors
    /// When nobody may listen at this address, or it is open already.
    #[cfg(feature = "iroh")]
    pub async fn open_iroh(
        &self,
        identity: &NodeIdentity,
        listen: SocketAddr,
        relays: Vec<Relay>,
    ) -> std::io::Result<()> {
        let (known, held, ways) = (self.0.held.clone(), self.0.held.clone(), self.0.ways.clone());
        let seed = identity.node_seed();
        let binding = self.0.links.spawn(async move {
            let opens_to = move |key: &NodeKey| lock(&known).knows(key);
            let bound = Socket::bind(&seed, listen, relays, opens_to).await;
            let socket = bound.map_err(std::io::Error::other)?;
            ways.open(socket.clone())?;
            tokio::spawn(accept_knocks(socket, held));
            Ok(())
        });
        binding.await.map_err(std::io::Error::other)?
    }

    /// Gives the files of this cache to others on this network, from now on.
    pub fn give_from(&self, cache: Cache) {
        let _ = self.0.pantry.set(Pantry::new(cache)); // one is enough
    }

    /// Whether it gives files to others.
    #[must_use]
    pub fn gives(&self) -> bool {
        self.0.pantry.get().is_some()
    }

    /// Asks these for files of a model, one after the other.
    #[must_use]
    pub fn neighbours(&self, near: &[Near]) -> Arc<dyn ram_infer::hub::Near> {
        Arc::new(Neighbours::new(self.0.ways.clone(), self.0.links.clone(), near))
    }

    /// All that others are told of where they can dial: by TLS there, and by iroh where that is open, as far as is
    /// known by now.
    #[must_use]
    pub fn addresses(&self, by_tls: &Addresses) -> Addresses {
        self.0.ways.addresses(by_tls)
    }

    /// Where others dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// This node, for others.
    #[must_use]
    pub fn node(&self) -> NodeKey {
        self.0.ways.node()
    }

    /// Takes part with a stage of a model that the group calls `model`, in chains of so many shards. Until it is
    /// [linked](Self::link) nobody is let in to it.
    #[must_use]
    pub fn hold(
        &self,
        model: ModelDigest,
        stage: ModelStage,
        shards: NonZeroU16,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Member {
        let layers = stage.model().shard().layers;
        let config = config(model, &stage, shards);
        let within = self.0.links.enter();
        let member = Member::start(config, stage, self.0.ways.dialer(), now, reports);
        drop(within);
        lock(&self.0.held).members.insert((model, layers), (member.clone(), BTreeSet::new()));
        member
    }

    /// Links a shard that is held into a chain; says whether it is held, and in its place.
    #[must_use = "a shard that is not held was not linked"]
    pub fn link(&self, model: ModelDigest, chain: Chain) -> bool {
        let Some(own) = chain.peers.get(chain.place) else { return false };
        let mut held = lock(&self.0.held);
        let Some((member, keys)) = held.members.get_mut(&(model, own.layers)) else { return false };
        *keys = chain.peers.iter().map(|peer| peer.node).collect();
        member.join(chain);
        true
    }

    /// Takes a shard that is held out of its chain: its links end, and nobody is let in to it until it is linked again.
    pub fn unlink(&self, model: ModelDigest, layers: LayerRange) {
        if let Some((member, keys)) = lock(&self.0.held).members.get_mut(&(model, layers)) {
            keys.clear();
            member.leave();
        }
    }

    /// Lets a shard go: its links end, and its memory is free when its last pass is over.
    pub fn release(&self, model: ModelDigest, layers: LayerRange) {
        lock(&self.0.held).members.remove(&(model, layers));
    }
}

impl Held {
    fn knows(&self, key: &NodeKey) -> bool {
        self.members.values().any(|(_, keys)| keys.contains(key))
    }

    fn member(&self, model: ModelDigest, layers: LayerRange) -> Option<Member> {
        self.members.get(&(model, layers)).map(|(member, _)| member.clone())
    }
}

/// How wide the activations of a stage are.
pub(crate) fn width(stage: &ModelStage) -> u32 {
    u32::try_from(stage.model().config().hidden_size).unwrap_or(u32::MAX)
}

/// What a stage is to its group.
fn config(model: ModelDigest, stage: &ModelStage, shards: NonZeroU16) -> MemberConfig {
    let own = stage.model();
    let worker = WorkerConfig {
        room: stage.room(),
        width: width(stage),
        dtype: DTYPE,
        is_first: own.shard().embed,
        is_last: own.shard().head,
        idle: IDLE,
        shards,
        goes_back: !own.is_recurrent(),
        log: LOG_BYTES_MAX,
        // On the processor numbers are the same whatever is computed at once.
        replay: if own.device() == Device::Cpu { Replay::Fast(PIECE) } else { Replay::Exact },
    };
    MemberConfig { model, worker, piece: PIECE }
}

/// Who is let in, and to what.
struct Doors {
    known: Door,
    /// For those on this network, where there are files to be had.
    anybody: Door,
    held: Arc<Mutex<Held>>,
    pantry: Arc<OnceLock<Pantry>>,
}

impl Doors {
    fn of(&self, address: SocketAddr) -> &Door {
        let is_open = self.pantry.get().is_some() && near::is_near(address.ip());
        if is_open { &self.anybody } else { &self.known }
    }
}

/// Lets in who is known, and takes each to the shard that it means, or to the file.
async fn accept(listener: TcpListener, doors: Arc<Doors>) -> std::io::Result<()> {
    let callers = Arc::new(Semaphore::new(CALLERS_MAX));
    loop {
        let Ok(turn) = callers.clone().acquire_owned().await else { return Ok(()) };
        match tcp::accept(&listener).await {
            Ok(stream) => {
                let doors = doors.clone();
                tokio::spawn(async move {
                    let opening = async {
                        let door = doors.of(stream.peer_addr()?);
                        Ok(Box::new(tls::accept(door, stream).await?) as Box<dyn Link>)
                    };
                    greet_caller(opening, &doors.held, doors.pantry.get()).await;
                    drop(turn);
                });
            }
            Err(error) => {
                warn!(%error, "a link could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await; // Out of sockets, most likely.
            }
        }
    }
}

/// The same for who comes by iroh, until the socket is closed.
#[cfg(feature = "iroh")]
async fn accept_knocks(socket: Socket, held: Arc<Mutex<Held>>) {
    let callers = Arc::new(Semaphore::new(CALLERS_MAX));
    while let Ok(turn) = callers.clone().acquire_owned().await
        && let Some(knock) = socket.accept().await
    {
        let held = held.clone();
        tokio::spawn(async move {
            let opening = async { Ok(Box::new(knock.open().await?) as Box<dyn Link>) };
            greet_caller(opening, &held, None).await;
            drop(turn);
        });
    }
}

async fn greet_caller(
    opening: impl Future<Output = Result<Box<dyn Link>, LinkError>>,
    held: &Mutex<Held>,
    pantry: Option<&Pantry>,
) {
    let heard = async { greet::hear_any(opening.await?).await };
    match heard.await {
        Ok(Heard::Caller(caller)) => {
            let hello = caller.hello();
            let member = {
                let held = lock(held);
                let is_known = caller.peer().is_some_and(|key| held.knows(&key));
                held.member(hello.model, hello.layers).filter(|_| is_known)
            };
            match member {
                Some(member) => member.called(caller),
                None => {
                    caller.refuse(Code::WrongModel, None).await;
                }
            }
        }
        Ok(Heard::Asker(asker)) => match pantry {
            Some(pantry) => pantry.give(asker).await,
            None => {
                asker.refuse(Code::UnknownContent).await;
            }
        },
        Err(error) => debug!(%error, "a caller was not let in"),
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner) // a map of whole entries
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("address", &self.0.address).finish_non_exhaustive()
    }
}

/// What stands between two layers is sent as it is: a hop loses nothing.
pub(crate) const DTYPE: Dtype = Dtype::F32;
/// Tokens of a piece of a prompt: as the engine cuts them.
const PIECE: NonZeroU32 = NonZeroU32::new(512).expect("not zero");
/// How long a session may be silent: a user who reads is not gone, and who is gone frees its memory by CLOSE.
const IDLE: Duration = Duration::from_secs(600);
/// Activations kept for a shard that takes a lost one's place: of Llama 3.1 405B 4,000 tokens in f32.
const LOG_BYTES_MAX: Bytes = Bytes::from_mib(256);
/// Callers that may be greeted at once. One that says nothing is hung up on after some seconds.
const CALLERS_MAX: usize = 64;
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
