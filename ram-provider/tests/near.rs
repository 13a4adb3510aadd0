//! Nodes on one network that give each other files of a model: over TLS on loopback, with a hub that sees what it is
//! asked for. What a neighbour gives is taken when its hash is right, and the hub is there for all else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "../../ram-infer/tests/hub_server/mod.rs"]
mod hub_server;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use ram_core::id::{Epoch, GroupId, ModelId, NodeKey};
use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use ram_crypto::identity::NodeIdentity;
use ram_infer::config::ModelConfig;
use ram_infer::hub::cache::Cache;
use ram_infer::hub::{Hub, HubConfig, HubError, Progress};
use ram_infer::models::Shard;
use ram_proto::control::shard::{LoadShard, Near, Place, ShardReady, ShardReport};
use ram_proto::control::{Capabilities, Decoded, Nonce, ToCoordinator, ToProvider, decode, encode};
use ram_provider::shards::Shards;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use self::hub_server::HubServer;

const MODEL: &str = "org/demo";
const WEIGHTS: &str = "model.safetensors";

/// A hub that has the bundled model under another name.
fn hub() -> HubServer {
    let hub = HubServer::start();
    hub.publish(MODEL, ram_infer::demo::FILES.map(|(name, bytes)| (name, bytes.to_vec())));
    hub
}

fn model() -> ModelId {
    MODEL.parse().unwrap()
}

/// Bytes of the weights that the hub was asked for since the last call, but for the file's header.
fn asked(hub: &HubServer) -> bool {
    let is_of_data = |range: &Option<String>| {
        let first =
            range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        first.is_none_or(|first: u64| first > 8)
    };
    let seen = hub.seen();
    seen.iter().any(|seen| seen.method == "GET" && seen.path.ends_with(WEIGHTS) && is_of_data(&seen.range))
}

/// A node with a cache of its own, which gives what is in it.
struct Home {
    shards: Shards,
    key: NodeKey,
    config: HubConfig,
    dir: tempfile::TempDir,
}

impl Home {
    fn new(seed: u8, hub: &HubServer) -> Self {
        let identity = NodeIdentity::from_seeds([seed; 32], [seed; 32]);
        let shards = Shards::open(&identity, ([127, 0, 0, 1], 0).into()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let endpoint = hub.endpoint();
        let cache = dir.path().to_str().unwrap().to_owned();
        let config = HubConfig::from_environment(|name| match name {
            "HF_ENDPOINT" => Some(endpoint.clone().into()),
            "HF_HUB_CACHE" => Some(cache.clone().into()),
            _ => None,
        });
        let config = config.unwrap();
        shards.give_from(Cache::new(&config.cache));
        Self { shards, key: NodeKey::from_bytes(identity.node_public()), config, dir }
    }

    fn near(&self) -> Near {
        Near { node: self.key, addresses: self.shards.address().into() }
    }

    /// Fetches with these for neighbours, on a thread on which one may block.
    async fn fetch(&self, near: &[Near], shard: Option<Shard>) -> Result<PathBuf, HubError> {
        let hub = Hub::new(self.config.clone()).with_near(self.shards.neighbours(near));
        let never = AtomicBool::new(false);
        let quiet = |_: Progress| {};
        tokio::task::spawn_blocking(move || match shard {
            Some(shard) => hub.fetch_layers(&model(), shard, &never, quiet),
            None => hub.fetch(&model(), &never, quiet),
        })
        .await
        .unwrap()
    }

    /// The file with the weights, as it lies in the cache.
    fn blob(&self) -> PathBuf {
        let repository = Cache::new(&self.config.cache).repository(&model());
        fs::canonicalize(repository.snapshot().unwrap().join(WEIGHTS)).unwrap()
    }
}

/// The last layers of the bundled model: less of its file than would be fetched whole.
fn last_layer(dir: &Path) -> Shard {
    let layers = ModelConfig::read(dir).unwrap().layers.get();
    Shard { layers: LayerRange::new(layers - 1, layers).unwrap(), embed: false, head: false }
}

fn same(one: &Path, other: &Path) {
    assert!(fs::read(one.join(WEIGHTS)).unwrap() == fs::read(other.join(WEIGHTS)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_model_and_some_of_its_layers_come_from_next_door() {
    let hub = hub();
    let [first, second, third, alone] = [1, 2, 3, 4].map(|seed| Home::new(seed, &hub));
    let whole = first.fetch(&[], None).await.unwrap();
    assert!(asked(&hub));
    same(&whole, &second.fetch(&[first.near()], None).await.unwrap());
    assert!(!asked(&hub), "the weights came from next door");

    let shard = last_layer(&whole);
    let layers = third.fetch(&[first.near()], Some(shard)).await.unwrap();
    assert!(!asked(&hub), "the layers, too");
    same(&layers, &alone.fetch(&[], Some(shard)).await.unwrap());
    assert!(asked(&hub));
    // What came in parts has no hash that anybody could check: it is not given on.
    same(&layers, &Home::new(5, &hub).fetch(&[third.near()], Some(shard)).await.unwrap());
    assert!(asked(&hub));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_there_comes_from_the_hub() {
    let hub = hub();
    let [first, second, third] = [1, 2, 3].map(|seed| Home::new(seed, &hub));
    let whole = first.fetch(&[], None).await.unwrap();
    let good = fs::read(whole.join(WEIGHTS)).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(first.blob(), bad).unwrap();
    let shard = last_layer(&whole);
    asked(&hub);
    assert!(fs::read(second.fetch(&[first.near()], None).await.unwrap().join(WEIGHTS)).unwrap() == good);
    assert!(asked(&hub));
    let layers = third.fetch(&[first.near()], Some(shard)).await.unwrap();
    assert!(asked(&hub));
    same(&layers, &Home::new(4, &hub).fetch(&[], Some(shard)).await.unwrap());
    assert!(
        fs::read_dir(&layers).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("near"))
    );

    // Shorter than it should be, as after a full disk.
    fs::write(first.blob(), &good[..good.len() / 2]).unwrap();
    let fourth = Home::new(6, &hub);
    assert!(fs::read(fourth.fetch(&[first.near()], None).await.unwrap().join(WEIGHTS)).unwrap() == good);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_there_has_nothing_or_breaks_off_holds_nobody_up() {
    let hub = hub();
    let [first, empty] = [1, 2].map(|seed| Home::new(seed, &hub));
    let whole = first.fetch(&[], None).await.unwrap();
    let good = fs::read(whole.join(WEIGHTS)).unwrap();
    // A door that hangs up amid the file, whoever comes.
    let cut = cutting(first.shards.address(), good.len() / 2).await;
    let breaks_off = Near { addresses: cut.into(), ..first.near() };
    let nobody =
        Near { node: NodeKey::from_bytes([7; 32]), addresses: SocketAddr::from(([127, 0, 0, 1], 9)).into() };
    let imposter = Near { node: NodeKey::from_bytes([8; 32]), ..first.near() };

    asked(&hub);
    let second = Home::new(3, &hub);
    let near = [nobody.clone(), imposter, empty.near(), first.near()];
    same(&whole, &second.fetch(&near, None).await.unwrap());
    assert!(!asked(&hub), "the last of them has it");
    let third = Home::new(4, &hub);
    same(&whole, &third.fetch(std::slice::from_ref(&breaks_off), None).await.unwrap());
    assert!(asked(&hub), "the rest came from the hub");
    let fourth = Home::new(5, &hub);
    same(&whole, &fourth.fetch(&[breaks_off, first.near()], None).await.unwrap());
    let fifth = Home::new(6, &hub);
    same(&whole, &fifth.fetch(&[nobody], None).await.unwrap());
    drop((second.dir, third.dir));
}

/// Passes bytes on to another door, and hangs up after so many of them have come back.
async fn cutting(to: SocketAddr, after: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let (mut from_near, mut to_near) = near.split();
                let (from_far, mut to_far) = far.split();
                let mut some = tokio::io::AsyncReadExt::take(from_far, after as u64);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_near, &mut to_far) => {}
                    _ = tokio::io::copy(&mut some, &mut to_near) => {}
                }
            });
        }
    });
    address
}

/// A node in a process of its own, whose cache and hub are its own, and its coordinator's end.
struct Node {
    socket: WebSocketStream<TcpStream>,
    key: NodeKey,
    _child: Child,
    _home: tempfile::TempDir,
}

impl Node {
    async fn start(hub: &HubServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ram-provider"))
            .args(["run", "--shards", "127.0.0.1:0", "--memory-cap", "2GiB", "--coordinator"])
            .arg(format!("ws://{}", listener.local_addr().unwrap()))
            .arg("--home")
            .arg(home.path())
            .env("HF_ENDPOINT", hub.endpoint())
            .env("HF_HUB_CACHE", home.path().join("hub"))
            .env_remove("HF_HUB_OFFLINE")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let (coordinator, nonce) = ("here".to_owned(), Nonce::from_bytes([1; 32]));
        let capabilities = Capabilities::ours();
        let challenge =
            ToProvider::Challenge { network: 1, coordinator, nonce, capabilities: capabilities.clone() };
        socket.send(Message::text(encode(&challenge))).await.unwrap();
        let ToCoordinator::Register(register) = hear(&mut socket).await else { panic!("it registers first") };
        let key = register.statement.node_key;
        let (provider, epoch) = (key.provider_id(), Epoch::new(1));
        let registered = ToProvider::Registered { provider, epoch, heartbeat_ms: 100, capabilities };
        socket.send(Message::text(encode(&registered))).await.unwrap();
        Self { socket, key, _child: child, _home: home }
    }

    /// Where it gives files.
    async fn near(&mut self) -> Near {
        loop {
            if let ToCoordinator::ShardReport(ShardReport { addresses: Some(addresses), .. }) =
                hear(&mut self.socket).await
            {
                return Near { node: self.key, addresses };
            }
        }
    }

    async fn load(&mut self, load: LoadShard) -> ShardReady {
        self.socket.send(Message::text(encode(&ToProvider::LoadShard(load)))).await.unwrap();
        loop {
            match hear(&mut self.socket).await {
                ToCoordinator::ShardReady(ready) => return ready,
                ToCoordinator::Heartbeat { .. } | ToCoordinator::ShardReport(_) => {}
                other => panic!("{other:?}"),
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

/// By the coordinator's orders alone: the first node fetches from the hub, the second from the first.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_told_to_hold_layers_fetch_them_from_the_hub_or_from_each_other() {
    let doing = async {
        let hub = hub();
        let dir = tempfile::tempdir().unwrap();
        ram_infer::demo::unpack(dir.path()).unwrap();
        let layers = ModelConfig::read(dir.path()).unwrap().layers.get();
        let order = |first: u16, place: Place, near: Vec<Near>| LoadShard {
            group: GroupId::from_bits(7),
            model: model(),
            layers: LayerRange::new(first, layers).unwrap(),
            place,
            positions: TokenCount::new(512),
            sessions: 2,
            near,
        };
        let mut first = Node::start(&hub).await;
        let near = first.near().await;
        let ready = first.load(order(0, Place::new(0, 1).unwrap(), Vec::new())).await;
        assert!(asked(&hub) && ready.kv_free >= TokenCount::new(512));
        let mut second = Node::start(&hub).await;
        let half = second.load(order(layers - 1, Place::new(1, 2).unwrap(), vec![near])).await;
        assert!(!asked(&hub), "it came from the first node");
        assert_eq!(half.digest, ready.digest);
    };
    tokio::time::timeout(Duration::from_secs(100), doing).await.expect("it hangs");
}
