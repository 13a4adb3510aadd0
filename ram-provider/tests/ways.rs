//! The ways between two nodes that hold a model together: by iroh alone (feature `iroh`), and past addresses that one
//! of them cannot go by.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, say by their line what went wrong")]

use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_pipeline::driver::Request;
use ram_pipeline::member::{Chain, Member, Peer, Report, Word};
use ram_proto::control::shard::Addresses;
use ram_proto::frame::ModelDigest;
use ram_provider::shards::Shards;
use ram_provider::stage::ModelStage;
use tokio::sync::mpsc;

const MODEL: ModelDigest = ModelDigest::from_bytes([6; 32]);
const LAYERS: u16 = 3;
const COUNT: usize = 12;

fn stage(layers: LayerRange) -> ModelStage {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ram-infer/tests/fixtures/qwen3-moe-4bit-g64");
    let shard = Shard { layers, embed: layers.first() == 0, head: layers.end() == LAYERS };
    let model = Model::load_with(&dir, &LoadOptions { shard: Some(shard), ..LoadOptions::exact() }).unwrap();
    ModelStage::new(model, TokenCount::new(64), 1)
}

/// A node with a shard; the links end with it.
struct Node {
    shards: Shards,
    member: Member,
    layers: LayerRange,
}

/// Nodes that hold the model in so many shards, and what is heard of their links.
async fn nodes(count: u16) -> (Vec<Node>, mpsc::UnboundedReceiver<Report>) {
    let count = NonZeroU16::new(count).unwrap();
    let (reporter, reports) = mpsc::unbounded_channel();
    let mut nodes = Vec::new();
    for (seed, layers) in (1..).zip(LayerRange::split(NonZeroU16::new(LAYERS).unwrap(), count).unwrap()) {
        let identity = NodeIdentity::from_seeds([seed; 32], [seed; 32]);
        let shards = Shards::open(&identity, ([127, 0, 0, 1], 0).into()).unwrap();
        open_iroh(&shards, &identity).await;
        let member = shards.hold(MODEL, stage(layers), count, reporter.clone());
        nodes.push(Node { shards, member, layers });
    }
    (nodes, reports)
}

#[cfg(feature = "iroh")]
async fn open_iroh(shards: &Shards, identity: &NodeIdentity) {
    let listen = ([127, 0, 0, 1], 0).into();
    shards.open_iroh(identity, listen, Vec::new()).await.unwrap();
    assert!(shards.open_iroh(identity, listen, Vec::new()).await.is_err(), "it is open");
}

#[cfg(not(feature = "iroh"))]
#[expect(clippy::unused_async, reason = "iroh takes its time")]
async fn open_iroh(_: &Shards, _: &NodeIdentity) {}

/// Links nodes, of each of which the others know these addresses.
fn link(nodes: &[Node], addresses: impl Fn(&Shards) -> Vec<String>) {
    let peer = |Node { shards, layers, .. }: &Node| Peer {
        node: shards.node(),
        addresses: Addresses::new(addresses(shards)).unwrap(),
        layers: *layers,
    };
    let peers: Vec<Peer> = nodes.iter().map(peer).collect();
    for (place, node) in nodes.iter().enumerate() {
        assert!(node.shards.link(MODEL, Chain { epoch: Epoch::new(1), peers: peers.clone(), place }));
    }
}

fn told(shards: &Shards) -> Vec<String> {
    shards.addresses(&shards.address().into()).into()
}

async fn answer(head: &Member) -> Vec<u32> {
    let mut words = head.submit(Request {
        session: JobId::from_bits(1),
        prompt: (0..20).map(|at| at * 11 % 256).collect(),
        tokens_max: TokenCount::new(COUNT as u64),
        sampling: Sampling { seed: 3, ..Sampling::default() },
        deadline: Timestamp::from_millis(u64::MAX),
    });
    let mut answer = Vec::new();
    while let Some(Word::Token { token, .. }) = soon(words.recv()).await {
        answer.push(token);
    }
    answer
}

/// What one node answers that holds all of the model.
async fn alone() -> Vec<u32> {
    let (nodes, _reports) = nodes(1).await;
    link(&nodes, told);
    let answer = answer(&nodes[0].member).await;
    assert_eq!(answer.len(), COUNT);
    answer
}

/// Nothing in these tests takes long; whatever hangs fails.
async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), doing).await.expect("it hangs")
}

#[tokio::test]
async fn an_address_that_a_node_cannot_go_by_is_passed_over() {
    let (nodes, _reports) = nodes(2).await;
    // No relay is spoken to but one's own, and without the feature none at all.
    let relay = "iroh:https://relay.example/".to_owned();
    link(&nodes, |shards| vec![relay.clone(), shards.address().to_string()]);
    assert_eq!(answer(&nodes[0].member).await, alone().await);
}

#[tokio::test]
async fn a_node_with_no_address_that_another_can_go_by_is_missed() {
    let (nodes, mut reports) = nodes(2).await;
    link(&nodes, |_| vec!["iroh:https://relay.example/".to_owned()]);
    assert!(matches!(soon(reports.recv()).await, Some(Report::Lost(epoch, _)) if epoch == Epoch::new(1)));
}

#[cfg(not(feature = "iroh"))]
#[tokio::test]
async fn without_iroh_others_are_told_of_tls_alone() {
    let (nodes, _reports) = nodes(1).await;
    assert_eq!(told(&nodes[0].shards), [nodes[0].shards.address().to_string()]);
}

#[cfg(feature = "iroh")]
#[tokio::test]
async fn two_nodes_hold_a_model_by_iroh_alone_and_the_end_of_one_is_heard() {
    let (mut nodes, mut reports) = nodes(2).await;
    link(&nodes, |shards| {
        let (by_tls, by_iroh): (Vec<_>, Vec<_>) =
            told(shards).into_iter().partition(|address| !address.starts_with("iroh:"));
        assert_eq!((by_tls, by_iroh.len()), (vec![shards.address().to_string()], 1));
        by_iroh
    });
    assert_eq!(answer(&nodes[0].member).await, alone().await);
    drop(nodes.pop());
    while !matches!(soon(reports.recv()).await, Some(Report::Lost(..))) {}
}

#[cfg(feature = "iroh")]
#[tokio::test]
async fn a_stranger_is_not_let_in_by_iroh() {
    use ram_pipeline::link::iroh::Socket;
    use tokio::io::AsyncReadExt;

    let (nodes, _reports) = nodes(2).await;
    link(&nodes, told);
    answer(&nodes[0].member).await;
    let by_iroh = told(&nodes[1].shards);
    let by_iroh = by_iroh.iter().filter_map(|address| address.strip_prefix("iroh:"));
    let addresses = Addresses::new(by_iroh.map(str::to_owned).collect()).unwrap();
    let listen = ([127, 0, 0, 1], 0).into();
    let stranger = Socket::bind(&[9; 32], listen, Vec::new(), |_| false).await.unwrap();
    let met = soon(stranger.dial(nodes[1].shards.node(), &addresses)).await;
    if let Ok(mut link) = met {
        assert!(soon(link.read_u8()).await.is_err(), "it was let in");
    }
}
