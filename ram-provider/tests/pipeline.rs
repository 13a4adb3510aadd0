//! A real model in shards over TLS: one answer, the same as the whole model's, and it goes on when a shard is lost.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_pipeline::driver::{End, Request};
use ram_pipeline::member::{Chain, Member, Peer, Report, Word};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_proto::frame::{ModelDigest, Want};
use ram_provider::shards::Shards;
use ram_provider::stage::ModelStage;
use tokio::sync::mpsc;

const MODEL: ModelDigest = ModelDigest::from_bytes([3; 32]);
const COUNT: usize = 24;

fn stage(dir: &Path, shard: Option<Shard>) -> ModelStage {
    let model = Model::load_with(dir, &LoadOptions { shard, ..LoadOptions::exact() }).unwrap();
    ModelStage::new(model, TokenCount::new(8 << 10), 8)
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, repetition_penalty: 1.1, ..Sampling::default() }
}

/// The whole model's answer.
fn whole(stage: &mut ModelStage, prompt: &[u32]) -> Vec<u32> {
    let session = JobId::from_bits(0);
    let (positions, picks) = (TokenCount::new((prompt.len() + COUNT) as u64), TokenCount::ZERO);
    let opening = Opening { positions, sampling: greedy(), seen: prompt.to_vec(), picks };
    stage.open(session, &opening).unwrap();
    let (mut answer, mut position, mut next) = (Vec::new(), 0, prompt.to_vec());
    while answer.len() < COUNT {
        let input = Input::Tokens(next.clone());
        let step = StageStep { session, position, input, want: Want::Token };
        let StageOutput::Token { token, .. } = stage.forward(&[step]).unwrap().remove(0) else { panic!() };
        answer.push(token);
        position += u32::try_from(next.len()).unwrap();
        next = vec![token];
    }
    answer
}

/// A node with a shard.
struct Node {
    shards: Shards,
    member: Member,
    peer: Peer,
}

/// Nodes, and what is heard of them.
struct Group {
    dir: std::path::PathBuf,
    layers: u16,
    nodes: Vec<Node>,
    epoch: Epoch,
    made: u8,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
}

impl Group {
    fn new(dir: &Path, stages: u16) -> Self {
        let layers = ram_infer::config::ModelConfig::read(dir).unwrap().layers;
        let (reporter, reports) = mpsc::unbounded_channel();
        let (nodes, epoch) = (Vec::new(), Epoch::new(0));
        let mut group =
            Self { dir: dir.to_path_buf(), layers: layers.get(), nodes, epoch, made: 0, reports, reporter };
        let stages = NonZeroU16::new(stages).unwrap();
        for range in LayerRange::split(layers, stages).unwrap() {
            let node = group.node(range, stages);
            group.nodes.push(node);
        }
        group.join();
        group
    }

    fn node(&mut self, layers: LayerRange, stages: NonZeroU16) -> Node {
        self.made += 1;
        let identity = NodeIdentity::from_seeds([self.made; 32], [self.made; 32]);
        let shards = Shards::open(&identity, ([127, 0, 0, 1], 0).into()).unwrap();
        let shard = Shard { layers, embed: layers.first() == 0, head: layers.end() == self.layers };
        let stage = stage(&self.dir, Some(shard));
        let member = shards.hold(MODEL, stage, stages, self.reporter.clone());
        let peer = Peer { node: shards.node(), addresses: shards.address().into(), layers };
        Node { shards, member, peer }
    }

    fn join(&mut self) {
        self.epoch = self.epoch.next();
        let peers: Vec<Peer> = self.nodes.iter().map(|node| node.peer.clone()).collect();
        for (place, node) in self.nodes.iter().enumerate() {
            assert!(node.shards.link(MODEL, Chain { epoch: self.epoch, peers: peers.clone(), place }));
        }
    }

    async fn replace(&mut self, place: usize) {
        let stages = NonZeroU16::new(u16::try_from(self.nodes.len()).unwrap()).unwrap();
        let spare = self.node(self.nodes[place].peer.layers, stages);
        drop(std::mem::replace(&mut self.nodes[place], spare));
        while !matches!(self.reports.recv().await, Some(Report::Lost(epoch, _)) if epoch == self.epoch) {}
        self.join();
    }

    fn submit(&self, number: u32, prompt: &[u32]) -> mpsc::UnboundedReceiver<Word> {
        self.nodes[0].member.submit(Request {
            session: JobId::from_bits(number.into()),
            prompt: prompt.to_vec(),
            tokens_max: TokenCount::new(COUNT as u64),
            sampling: greedy(),
            deadline: Timestamp::from_millis(u64::MAX),
        })
    }
}

/// So many tokens of an answer, or all of them.
async fn hear(words: &mut mpsc::UnboundedReceiver<Word>, count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        match words.recv().await.unwrap() {
            Word::Token { token, .. } => tokens.push(token),
            Word::End(end) => panic!("{end:?}"),
        }
    }
    tokens
}

fn prompt(number: u32) -> Vec<u32> {
    (0..40 + 200 * number).map(|at| (at * (number + 5) + 11) % 400).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_shards_answer_as_one_and_go_on_when_any_but_the_head_is_lost() {
    let home = tempfile::tempdir().unwrap();
    ram_infer::demo::unpack(home.path()).unwrap();
    let mut all = stage(home.path(), None);
    let expected: Vec<Vec<u32>> = (0..3).map(|number| whole(&mut all, &prompt(number))).collect();
    // After no token a long prompt is in the middle.
    for (lost, after) in [(1, 0), (1, 5), (2, 0), (2, 5)] {
        let answers = async {
            let mut group = Group::new(home.path(), 3);
            let mut words: Vec<_> = (0..3).map(|number| group.submit(number, &prompt(number))).collect();
            let mut first = hear(&mut words[0], after).await;
            group.replace(lost).await;
            first.extend(hear(&mut words[0], COUNT - after).await);
            let mut answers = vec![first];
            for words in &mut words[1..] {
                answers.push(hear(words, COUNT).await);
            }
            for words in &mut words {
                assert_eq!(words.recv().await, Some(Word::End(End::Length)));
            }
            answers
        };
        let answers = tokio::time::timeout(Duration::from_secs(100), answers).await.expect("it hangs");
        assert!(answers == expected, "shard {lost} was lost after {after} tokens");
    }
}
