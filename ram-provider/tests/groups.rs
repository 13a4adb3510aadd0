//! Real nodes that hold a model together, as a coordinator made of a bare WebSocket server orders, over loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::num::NonZeroU16;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, Epoch, GroupId, JobId, NodeKey};
use ram_core::job::{Failure, GenerationParams, Job, Outcome, Sampling};
use ram_core::layers::LayerRange;
use ram_core::units::{ByteRate, Bytes, TokenCount};
use ram_proto::control::shard::{
    Chain, ChainShard, LinkShard, LoadShard, Neighbour, Place, ShardFailed, ShardFailure, ShardLinked,
    ShardLost, ShardReady, ShardReport, UnloadShard,
};
use ram_proto::control::{Capabilities, Decoded, Nonce, ToCoordinator, ToProvider, decode, encode};
use ram_provider::ProviderError;
use ram_provider::config::{Preload, ProviderConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const MODEL: &str = "ram-aggregator/ram-demo-4bit";
const GROUP: GroupId = GroupId::from_bits(7);
const SHARDS: u16 = 3;

/// The coordinator's end of one node, and the node.
struct Node {
    socket: WebSocketStream<TcpStream>,
    key: NodeKey,
    /// The newest.
    report: ShardReport,
    task: JoinHandle<Result<(), ProviderError>>,
    _home: tempfile::TempDir,
}

impl Drop for Node {
    /// As if it was killed: all of it is gone at once.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// A node that lends, or not, under this cap, registered.
    async fn start(cap: Bytes, lends: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("model");
        ram_infer::demo::unpack(&dir).unwrap();
        let mut config = ProviderConfig::new(home.path());
        config.coordinator = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        config.models = vec![format!("{MODEL}={}", dir.display()).parse().unwrap()];
        (config.memory_cap, config.preload) = (Some(cap), Preload::None);
        config.shards = lends.then(|| ([127, 0, 0, 1], 0).into());
        let task = tokio::spawn(ram_provider::run(config, std::future::pending()));
        let (socket, key) = admit(&listener).await;
        let report = ShardReport::default();
        Self { socket, key, report, task, _home: home }
    }

    async fn lender() -> Self {
        let mut node = Self::start(Bytes::from_gib(2), true).await;
        node.lends(|bytes| bytes == Bytes::from_gib(2)).await;
        node
    }

    async fn say(&mut self, message: ToProvider) {
        self.socket.send(Message::text(encode(&message))).await.unwrap();
    }

    /// The next message that is no heartbeat; reports are noted.
    async fn hear(&mut self) -> ToCoordinator {
        loop {
            match hear(&mut self.socket).await {
                ToCoordinator::Heartbeat { .. } => {}
                ToCoordinator::ShardReport(report) => self.report = report,
                news => return news,
            }
        }
    }

    /// Hears reports, and nothing else but heartbeats, until it lends so much.
    async fn lends(&mut self, wanted: impl Fn(Bytes) -> bool) {
        self.reports(|report| report.lends.is_some_and(|lends| wanted(lends.memory))).await;
        assert!(self.report.lends.unwrap().weights_per_s > ByteRate::ZERO, "it was measured");
    }

    async fn reports(&mut self, wanted: impl Fn(&ShardReport) -> bool) {
        while !wanted(&self.report) {
            match hear(&mut self.socket).await {
                ToCoordinator::Heartbeat { .. } => {}
                ToCoordinator::ShardReport(report) => self.report = report,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn load(&mut self, load: LoadShard) -> Result<ShardReady, ShardFailure> {
        let (group, layers) = (load.group, load.layers);
        self.say(ToProvider::LoadShard(load)).await;
        loop {
            match self.hear().await {
                ToCoordinator::ShardReady(ready) if (ready.group, ready.layers) == (group, layers) => {
                    return Ok(ready);
                }
                ToCoordinator::ShardFailed(failed) if (failed.group, failed.layers) == (group, layers) => {
                    return Err(failed.failure);
                }
                ToCoordinator::ShardReady(_) => {} // said before it was called off
                other => panic!("{other:?}"),
            }
        }
    }

    async fn run(&mut self, number: u128, group: Option<GroupId>) -> Outcome {
        let params = GenerationParams::new(TokenCount::new(4), Sampling::default());
        let messages = vec![ChatMessage::new(Role::User, "hello")];
        let job = Job::new(JobId::from_bits(number), MODEL.parse().unwrap(), messages, params);
        self.say(ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group }).await;
        loop {
            if let ToCoordinator::Finished { outcome, .. } = self.hear().await {
                return outcome;
            }
        }
    }
}

async fn hear(socket: &mut WebSocketStream<TcpStream>) -> ToCoordinator {
    loop {
        if let Message::Text(text) = socket.next().await.expect("it stays").unwrap() {
            match decode(&text).unwrap() {
                Decoded::Known(message) => return message,
                Decoded::Unknown { of } => panic!("an unknown message: {of}"),
            }
        }
    }
}

/// Takes a node in, whoever it is.
async fn admit(listener: &TcpListener) -> (WebSocketStream<TcpStream>, NodeKey) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let (coordinator, nonce) = ("here".to_owned(), Nonce::from_bytes([1; 32]));
    let capabilities = Capabilities::ours();
    let challenge =
        ToProvider::Challenge { network: 1, coordinator, nonce, capabilities: capabilities.clone() };
    socket.send(Message::text(encode(&challenge))).await.unwrap();
    let ToCoordinator::Register(register) = hear(&mut socket).await else { panic!("it registers first") };
    let key = register.statement.node_key;
    let epoch = Epoch::new(1);
    let registered =
        ToProvider::Registered { provider: key.provider_id(), epoch, heartbeat_ms: 100, capabilities };
    socket.send(Message::text(encode(&registered))).await.unwrap();
    (socket, key)
}

/// The runs of layers of the bundled model, one for each shard.
fn split() -> Vec<LayerRange> {
    let layers = ram_core::catalog::resolve(MODEL).unwrap().layers();
    LayerRange::split(layers, NonZeroU16::new(SHARDS).unwrap()).unwrap()
}

fn order(place: u16) -> LoadShard {
    LoadShard {
        group: GROUP,
        model: MODEL.parse().unwrap(),
        layers: split()[usize::from(place)],
        place: Place::new(place, SHARDS).unwrap(),
        positions: TokenCount::new(512),
        sessions: 2,
        near: Vec::new(),
    }
}

fn link(epoch: u64, nodes: &[&Node], ready: &[ShardReady]) -> LinkShard {
    let shards = nodes.iter().zip(ready).map(|(node, ready)| ChainShard {
        node: node.key,
        addresses: ready.addresses.clone(),
        layers: ready.layers,
    });
    LinkShard { group: GROUP, epoch: Epoch::new(epoch), chain: Chain::new(shards.collect()).unwrap() }
}

/// Links nodes in an epoch, and waits until each says that it is linked.
async fn linked(epoch: u64, nodes: &mut [Node], ready: &[ShardReady]) {
    let order = link(epoch, &nodes.iter().collect::<Vec<_>>(), ready);
    for node in nodes.iter_mut() {
        node.say(ToProvider::LinkShard(order.clone())).await;
    }
    for node in nodes {
        let word = ShardLinked { group: GROUP, epoch: Epoch::new(epoch) };
        loop {
            match node.hear().await {
                // Its neighbour has heard of this epoch before it, and closed the link of the one before.
                ToCoordinator::ShardLost(lost) if lost.epoch < word.epoch => {}
                other => break assert_eq!(other, ToCoordinator::ShardLinked(word)),
            }
        }
    }
}

/// Nothing in these tests takes long; whatever hangs fails.
async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), doing).await.expect("it hangs")
}

/// Three nodes that hold the bundled model together, not linked yet.
async fn group() -> (Vec<Node>, Vec<ShardReady>) {
    let (mut nodes, mut ready) = (Vec::new(), Vec::new());
    for place in 0..SHARDS {
        let mut node = Node::lender().await;
        ready.push(node.load(order(place)).await.unwrap());
        nodes.push(node);
    }
    (nodes, ready)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_load_link_and_let_go() {
    soon(async {
        let (mut nodes, ready) = group().await;
        assert!(ready.iter().all(|word| word.kv_free >= TokenCount::new(512) && word.width > 0));
        let form = |word: &ShardReady| (word.digest, word.width, word.dtype);
        assert!(ready.iter().all(|word| form(word) == form(&ready[0])), "all call the model by one name");
        assert_eq!(nodes[1].load(order(1)).await.as_ref(), Ok(&ready[1]), "asked again, it says so again");
        assert_eq!(nodes[1].report.shards, [], "none is linked");
        linked(1, &mut nodes, &ready).await;
        for (node, ready) in nodes.iter_mut().zip(&ready) {
            node.reports(|report| report.shards.first().is_some_and(|shard| shard.kv_free == ready.kv_free))
                .await;
            let [shard] = &node.report.shards[..] else { panic!("{:?}", node.report) };
            assert_eq!((shard.group, shard.layers, shard.sessions), (GROUP, ready.layers, 0));
            node.lends(|bytes| bytes == Bytes::from_gib(2)).await; // with what its shard has
        }
        let answer = nodes[0].run(1, Some(GROUP)).await;
        assert!(matches!(answer, Outcome::Done { .. }), "the head answers by the chain: {answer:?}");
        let failure = Failure::ModelUnavailable;
        let refused = nodes[1].run(2, Some(GROUP)).await;
        assert_eq!(refused, Outcome::Failed { failure }, "and nobody else does");
        let unload = UnloadShard { group: GROUP, layers: None };
        nodes[2].say(ToProvider::UnloadShard(unload)).await;
        let lost =
            |neighbour| ToCoordinator::ShardLost(ShardLost { group: GROUP, epoch: Epoch::new(1), neighbour });
        assert_eq!(nodes[1].hear().await, lost(Neighbour::Down));
        assert_eq!(nodes[0].hear().await, lost(Neighbour::Results));
        nodes[2].reports(|report| report.shards.is_empty()).await;
        assert!(matches!(nodes[2].run(9, None).await, Outcome::Done { .. }), "whole models serve beside");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_missed_and_a_spare_takes_its_place() {
    soon(async {
        let (mut nodes, mut ready) = group().await;
        linked(1, &mut nodes, &ready).await;
        drop(nodes.remove(1));
        let lost =
            |neighbour| ToCoordinator::ShardLost(ShardLost { group: GROUP, epoch: Epoch::new(1), neighbour });
        assert_eq!(nodes[0].hear().await, lost(Neighbour::Down));
        assert_eq!(nodes[1].hear().await, lost(Neighbour::Up));
        let mut spare = Node::lender().await;
        ready[1] = spare.load(order(1)).await.unwrap();
        nodes.insert(1, spare);
        linked(2, &mut nodes, &ready).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_held_is_refused_by_name() {
    soon(async {
        let mut node = Node::lender().await;
        let wrong = |change: fn(&mut LoadShard)| {
            let mut order = order(2);
            change(&mut order);
            order
        };
        let unknown = Err(ShardFailure::UnknownModel);
        assert_eq!(node.load(wrong(|order| order.model = "no--model".parse().unwrap())).await, unknown);
        assert_eq!(node.load(wrong(|order| order.layers = LayerRange::new(2, 999).unwrap())).await, unknown);
        assert_eq!(node.load(wrong(|order| order.place = Place::new(1, 3).unwrap())).await, unknown);
        let large = node.load(wrong(|order| order.positions = TokenCount::MAX)).await;
        assert!(large.is_ok(), "no session is longer than the model's context");
        let link = link(1, &[&node], &[ShardReady { layers: split()[0], ..large.unwrap() }]);
        node.say(ToProvider::LinkShard(link)).await;
        let failure = ShardFailure::Internal;
        let told = ShardFailed { group: GROUP, layers: split()[0], failure };
        assert_eq!(node.hear().await, ToCoordinator::ShardFailed(told), "layers that are not held");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_is_kept_and_what_is_let_go_is_lent_again() {
    soon(async {
        // Too little for the whole model with its headroom, so that none is served; enough for a part of it.
        let needs = |place: u16| {
            let spec = ram_core::catalog::resolve(MODEL).unwrap();
            let workload = ram_core::memory::Workload { context: TokenCount::new(256), slots: 2 };
            ram_core::memory::needs(spec, Some(split()[usize::from(place)]), workload).total()
        };
        let mut node = Node::start(needs(1), true).await;
        node.lends(|bytes| bytes == needs(1)).await;
        assert!(needs(0) > needs(1), "the embedding is in the first shard");
        assert_eq!(node.load(order(0)).await, Err(ShardFailure::OutOfMemory));
        assert!(node.load(order(1)).await.is_ok());
        let mut other = order(1);
        other.group = GroupId::from_bits(8);
        assert_eq!(
            node.load(other.clone()).await,
            Err(ShardFailure::OutOfMemory),
            "the first has all there is"
        );
        node.say(ToProvider::UnloadShard(UnloadShard { group: GROUP, layers: Some(split()[1]) })).await;
        assert!(node.load(other).await.is_ok(), "it waits until the first one's thread has ended");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_called_off_leaves_nothing_behind() {
    soon(async {
        let mut node = Node::lender().await;
        node.say(ToProvider::LoadShard(order(0))).await;
        node.say(ToProvider::UnloadShard(UnloadShard { group: GROUP, layers: None })).await;
        let ready = node.load(order(1)).await.unwrap();
        let link = link(1, &[&node], &[ShardReady { layers: split()[0], ..ready }]);
        node.say(ToProvider::LinkShard(link)).await;
        let told = ShardFailed { group: GROUP, layers: split()[0], failure: ShardFailure::Internal };
        assert_eq!(node.hear().await, ToCoordinator::ShardFailed(told), "it is not held");
        let other = LoadShard { group: GroupId::from_bits(8), ..order(1) };
        assert_eq!(
            node.load(other).await,
            Err(ShardFailure::Busy),
            "a caller could not tell these from those"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lends_nothing_holds_nothing() {
    soon(async {
        let mut node = Node::start(Bytes::from_gib(2), false).await;
        assert_eq!(node.load(order(0)).await, Err(ShardFailure::Forbidden));
        assert_eq!(node.report, ShardReport::default(), "and reports nothing");
    })
    .await;
}
