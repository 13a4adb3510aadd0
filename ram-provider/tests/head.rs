//! A chat over the shards of a model: step by step it is the engine's answer over the whole model, whatever is asked
//! for; and who stops listening frees the memory of every shard.

#![allow(clippy::unwrap_used, reason = "tests")]

mod phrases;

use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::format::ResponseFormat;
use ram_core::id::{Epoch, JobId};
use ram_core::job::{Failure, FinishReason, GenerationParams, Job, Outcome, Sampling};
use ram_core::layers::LayerRange;
use ram_core::provider::Hardware;
use ram_core::units::{Bytes, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_infer::config::ModelConfig;
use ram_infer::device::Device;
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_pipeline::member::{Chain, Member, Peer};
use ram_proto::frame::{Code, ModelDigest};
use ram_provider::config::{ModelChoice, ProviderConfig};
use ram_provider::shards::Shards;
use ram_provider::stage::ModelStage;
use ram_provider::worker::{Head, PendingAnswer, Step, Worker};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

const MODEL: ModelDigest = ModelDigest::from_bytes([4; 32]);
const NAME: &str = "ram-demo";
/// Positions of a block of keys and values.
const BLOCK: u64 = 32;

/// A model's folder, and the whole of it in memory.
struct Whole {
    dir: TempDir,
    worker: Worker,
}

impl Whole {
    fn demo() -> Self {
        Self::of(|dir| ram_infer::demo::unpack(dir).unwrap())
    }

    fn of(write: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        write(&path);
        let mut config = ProviderConfig::new(dir.path());
        config.models = vec![ModelChoice { model: NAME.parse().unwrap(), path: Some(path) }];
        let memory = Bytes::from_gib(64);
        let (chip, os) = ("test".to_owned(), "test".to_owned());
        let machine = Hardware { chip, os, memory, usable_memory: memory, cpus: 2 };
        let worker = Worker::open(&config, &machine).unwrap();
        Self { dir, worker }
    }

    /// The same model over so many nodes of this process, each with room for so many blocks.
    fn split(&self, stages: u16, blocks: u64) -> Group {
        let dir = self.dir.path().join("model");
        let layers = ModelConfig::read(&dir).unwrap().layers;
        let stages = NonZeroU16::new(stages).unwrap();
        let (reports, _) = mpsc::unbounded_channel();
        let (mut nodes, mut peers, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for (seed, range) in (1..).zip(LayerRange::split(layers, stages).unwrap()) {
            let identity = NodeIdentity::from_seeds([seed; 32], [seed; 32]);
            let shards = Shards::open(&identity, ([127, 0, 0, 1], 0).into()).unwrap();
            let shard = Shard { layers: range, embed: seed == 1, head: range.end() == layers.get() };
            let options = LoadOptions { shard: Some(shard), ..LoadOptions::new(Device::best()) };
            let model = Model::load_with(&dir, &options).unwrap();
            let stage = ModelStage::new(model, TokenCount::new(blocks * BLOCK), 4);
            assert_eq!(stage.room(), TokenCount::new(blocks * BLOCK));
            members.push(shards.hold(MODEL, stage, stages, reports.clone()));
            peers.push(Peer { node: shards.node(), addresses: shards.address().into(), layers: range });
            nodes.push(shards);
        }
        for (place, shards) in nodes.iter().enumerate() {
            assert!(shards.link(MODEL, Chain { epoch: Epoch::new(1), peers: peers.clone(), place }));
        }
        let (member, positions) = (members[0].clone(), TokenCount::new(blocks * BLOCK));
        let head = Head::load(&dir, NAME.parse().unwrap(), member.clone(), positions).unwrap();
        Group { head, member, _nodes: nodes }
    }
}

/// A chain, and its head.
struct Group {
    head: Head,
    member: Member,
    _nodes: Vec<Shards>,
}

fn job(number: u128, words: &str, params: GenerationParams) -> Job {
    let messages = vec![ChatMessage::new(Role::User, words)];
    Job::new(JobId::from_bits(number), NAME.parse().unwrap(), messages, params)
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

fn seeded(seed: u64) -> Sampling {
    Sampling { seed, ..Sampling::default() }
}

/// Ways to pick the tokens of an answer of so many, with these stop strings.
fn params(max_tokens: u64, sampling: Sampling, stop: &[&str]) -> GenerationParams {
    let stop = stop.iter().map(|&stop| stop.into()).collect();
    GenerationParams { stop, ..GenerationParams::new(TokenCount::new(max_tokens), sampling) }
}

/// An answer that nothing but the room for it ends.
fn endless(number: u128) -> Job {
    let sampling = Sampling { logit_bias: [(1, -100.0)].into(), ..greedy() };
    job(number, QUESTION, params(100_000, sampling, &[]))
}

/// All steps of an answer.
async fn hear(mut answer: PendingAnswer) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = soon(answer.next()).await {
        steps.push(step);
    }
    steps
}

/// Nothing in these tests takes long; whatever hangs fails.
async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), doing).await.expect("it hangs")
}

fn text(steps: &[Step]) -> String {
    let pieces = steps.iter().filter_map(|step| match step {
        Step::Piece(piece) => Some(piece.content.as_str()),
        _ => None,
    });
    pieces.collect()
}

fn failure(steps: &[Step]) -> Option<Failure> {
    match steps.last() {
        Some(Step::End(Outcome::Failed { failure })) => Some(*failure),
        _ => None,
    }
}

fn finish(steps: &[Step]) -> Option<FinishReason> {
    match steps.last() {
        Some(Step::End(Outcome::Done { finish, .. })) => Some(*finish),
        _ => None,
    }
}

const QUESTION: &str = "What is the capital of France?";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_is_that_of_the_engine_over_the_whole_model() {
    let whole = Whole::demo();
    let penalised = Sampling { frequency_penalty: 0.5, repetition_penalty: 1.2, ..seeded(3) };
    let jobs = [
        job(1, QUESTION, params(64, greedy(), &[])),
        job(2, QUESTION, params(64, seeded(7), &[])),
        job(3, "Tell me about the sea.", params(64, Sampling { temperature: 1.5, ..seeded(8) }, &[])),
        job(4, QUESTION, params(64, greedy(), &["never", "Paris"])),
        job(5, QUESTION, params(3, greedy(), &[])),
        job(6, QUESTION, params(0, greedy(), &[])),
        job(7, QUESTION, params(64, Sampling { top_logprobs: Some(2), ..seeded(9) }, &[])),
        job(8, QUESTION, params(64, Sampling { top_logprobs: Some(0), ..greedy() }, &["aris"])),
        job(9, QUESTION, params(40, penalised, &[])),
        job(10, &"word ".repeat(600), params(8, seeded(1), &[])),
        job(11, &"word ".repeat(4000), params(8, greedy(), &[])),
    ];
    let mut expected = Vec::new();
    for job in &jobs {
        expected.push(hear(whole.worker.answer(job.clone())).await);
    }
    assert!(text(&expected[0]).contains("Paris") && !text(&expected[3]).contains("Paris"));
    assert_eq!(finish(&expected[3]), Some(FinishReason::Stop));
    assert_eq!(finish(&expected[4]), Some(FinishReason::Length));
    assert!(matches!(failure(&expected[10]), Some(Failure::ContextLengthExceeded { .. })));
    for stages in [1, 2, 3] {
        let group = whole.split(stages, 64);
        for (job, expected) in jobs.iter().zip(&expected) {
            let found = hear(group.head.answer(job.clone())).await;
            assert_eq!(&found, expected, "job {} over {stages} shards", job.id);
        }
        // The same job again, as another head has it after a loss; and all of them at once.
        let again = jobs.iter().map(|job| hear(group.head.answer(job.clone())));
        for (number, found) in futures::future::join_all(again).await.into_iter().enumerate() {
            if failure(&found) != Some(Failure::Overloaded) {
                assert_eq!(found, expected[number], "all at once, over {stages} shards");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_told_from_words() {
    let whole = Whole::of(phrases::write_weather);
    let group = whole.split(1, 64);
    let tool: ram_core::chat::tools::Tool =
        serde_json::from_value(json!({ "name": "get_weather", "parameters": { "type": "object" } })).unwrap();
    let asked = Job { tools: vec![tool], ..job(1, "How is Paris?", params(32, greedy(), &[])) };
    let told = ChatMessage { tool_call_id: Some("call".into()), ..ChatMessage::new(Role::Tool, "sunny") };
    let answered = Job { id: JobId::from_bits(2), messages: vec![told], ..asked.clone() };
    let plain = Job { id: JobId::from_bits(3), tools: Vec::new(), ..asked.clone() };
    let mut ends = Vec::new();
    for job in [asked, answered, plain] {
        let expected = hear(whole.worker.answer(job.clone())).await;
        assert_eq!(hear(group.head.answer(job)).await, expected);
        ends.push((text(&expected), finish(&expected).unwrap()));
    }
    assert_eq!(ends[0], (String::new(), FinishReason::ToolCalls));
    assert_eq!(ends[1], ("It is sunny.".to_owned(), FinishReason::Stop));
    assert_eq!(ends[2], ("The capital of France is Paris, of course.".to_owned(), FinishReason::Stop));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thoughts_are_told_from_words_and_counted() {
    let whole = Whole::of(phrases::write_thinker);
    let group = whole.split(1, 64);
    for max_tokens in [3, 32] {
        let job = job(1, QUESTION, params(max_tokens, greedy(), &[]));
        let steps = hear(group.head.answer(job.clone())).await;
        assert_eq!(steps, hear(whole.worker.answer(job)).await);
        let Some(Step::End(Outcome::Done { usage, .. })) = steps.last() else { panic!("{steps:?}") };
        let (words, thoughts) = if max_tokens == 3 { ("", 3) } else { ("Paris it is.", 5) };
        assert_eq!((text(&steps).as_str(), usage.reasoning.get()), (words, thoughts));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_held_to_no_format() {
    let whole = Whole::demo();
    let group = whole.split(2, 64);
    let format = ResponseFormat::JsonObject;
    let job = job(1, QUESTION, GenerationParams { format, ..params(32, greedy(), &[]) });
    let failed = Outcome::Failed { failure: Failure::InvalidFormat };
    assert_eq!(hear(group.head.answer(job)).await, [Step::End(failed)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_or_is_dropped_frees_every_shard() {
    const BLOCKS: u64 = 3;
    let whole = Whole::demo();
    for stages in [2, 3] {
        let group = whole.split(stages, BLOCKS);
        for number in 0..3 {
            // It takes all the room that each shard has.
            let mut running = group.head.answer(endless(number));
            assert!(matches!(soon(running.next()).await, Some(Step::Started { .. })));
            assert!(matches!(soon(running.next()).await, Some(Step::Piece(_))));
            let beside = tokio::spawn(hear(group.head.answer(endless(100))));
            drop(running);
            let beside = soon(beside).await.unwrap();
            assert_eq!(finish(&beside), Some(FinishReason::Length), "it waits for its turn, and has it");
            // While its prompt is read, too, and before.
            let mut begun = group.head.answer(endless(101));
            assert!(matches!(soon(begun.next()).await, Some(Step::Started { .. })));
            drop(begun);
            drop(group.head.answer(endless(102)));
            // By a stop string, and by the end of the room.
            let stopped =
                hear(group.head.answer(job(103, QUESTION, params(500, greedy(), &["Paris"])))).await;
            assert_eq!(finish(&stopped), Some(FinishReason::Stop));
            let full = hear(group.head.answer(endless(104))).await;
            let Some(Step::End(Outcome::Done { finish, usage })) = full.last() else { panic!("{full:?}") };
            assert_eq!(*finish, FinishReason::Length);
            assert_eq!(usage.prompt + usage.completion, TokenCount::new(BLOCKS * BLOCK));
        }
        let long: PromptText = "word ".repeat(100).into();
        let refused = hear(group.head.answer(job(105, long.as_str(), params(8, greedy(), &[])))).await;
        assert_eq!(
            failure(&refused),
            Some(Failure::OutOfMemory),
            "the context has room, but the shards have not"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_answered_already_is_not_begun_twice_and_goes_on() {
    let whole = Whole::demo();
    let group = whole.split(2, 64);
    let asked = || {
        let job = endless(1);
        Job { params: GenerationParams { max_tokens: TokenCount::new(200), ..job.params }, ..job }
    };
    let mut first = group.head.answer(asked());
    let mut steps = vec![soon(first.next()).await.unwrap(), soon(first.next()).await.unwrap()];
    assert_eq!(failure(&hear(group.head.answer(asked())).await), Some(Failure::Internal));
    steps.extend(hear(first).await);
    assert_eq!(finish(&steps), Some(FinishReason::Length));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_hope_is_for_another_group() {
    let whole = Whole::demo();
    let group = whole.split(2, 8);
    let mut answer = group.head.answer(endless(1));
    assert!(matches!(soon(answer.next()).await, Some(Step::Started { .. })));
    group.member.hopeless(Code::LinkLost);
    assert_eq!(failure(&hear(answer).await), Some(Failure::ProviderLost));
}
