//! Models that are loaded when they are first asked for, and those that cannot be: the bundled one under many names.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::join_all;
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::JobId;
use ram_core::job::{Failure, GenerationParams, Job, Outcome, Sampling};
use ram_core::provider::{Hardware, ModelState};
use ram_core::units::{Bytes, TokenCount};
use ram_proto::openai::{ChatCompletion, ModelList};
use ram_provider::ProviderError;
use ram_provider::config::{Preload, ProviderConfig};
use ram_provider::local::{LocalConfig, LocalServer};
use ram_provider::worker::{ModelView, PendingAnswer, Residence, Step, Worker};

const WEIGHTS: &str = "model.safetensors";

/// A home whose `demo` folder holds the bundled model, and `broken` one whose weights were cut short.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Self { dir };
        ram_infer::demo::unpack(&home.folder("demo")).unwrap();
        ram_infer::demo::unpack(&home.folder("broken")).unwrap();
        let weights =
            std::fs::OpenOptions::new().write(true).open(home.folder("broken").join(WEIGHTS)).unwrap();
        weights.set_len(weights.metadata().unwrap().len() / 2).unwrap();
        home
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration of these models, each in a folder of this home.
    fn config(&self, models: &[(&str, &str)]) -> ProviderConfig {
        let mut config = ProviderConfig::new(self.dir.path());
        let choice = |(name, folder): &(&str, &str)| choice(name, &self.folder(folder));
        config.models = models.iter().map(choice).collect();
        config
    }

    /// Opens a worker with room for so many halves of one model.
    fn worker(&self, models: &[(&str, &str)], halves: Option<u64>, preload: Preload) -> Worker {
        let mut config = self.config(models);
        config.preload = preload;
        let half = Bytes::new(self.needs().get() / 2);
        config.memory_cap = halves.map(|halves| half.saturating_mul(halves));
        Worker::open(&config, &machine()).unwrap()
    }

    /// What the bundled model needs.
    fn needs(&self) -> Bytes {
        let mut config = self.config(&[("a", "demo")]);
        config.preload = Preload::None;
        Worker::open(&config, &machine()).unwrap().views()[0].needs.unwrap()
    }
}

fn choice(name: &str, folder: &Path) -> ram_provider::config::ModelChoice {
    format!("{name}={}", folder.display()).parse().unwrap()
}

fn machine() -> Hardware {
    let memory = Bytes::from_gib(64);
    Hardware { chip: "test".to_owned(), os: "test".to_owned(), memory, usable_memory: memory, cpus: 2 }
}

fn ask(worker: &Worker, model: &str) -> PendingAnswer {
    let messages = vec![ChatMessage::new(Role::User, "What is the capital of France?")];
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let params = GenerationParams::new(TokenCount::new(32), sampling);
    worker.answer(Job::new(JobId::from_bits(1), model.parse().unwrap(), messages, params))
}

/// The text of an answer, and how it ended.
async fn hear(mut answer: PendingAnswer) -> (String, Outcome) {
    let mut text = String::new();
    loop {
        match answer.next().await.expect("an answer has an end") {
            Step::Started { .. } => {}
            Step::Piece(piece) => text += piece.content.as_str(),
            Step::End(outcome) => return (text, outcome),
        }
    }
}

async fn says_paris(worker: &Worker, model: &str) {
    let (text, outcome) = hear(ask(worker, model)).await;
    assert!(text.contains("Paris"), "{model}: {text:?}, {outcome:?}");
}

fn residences(worker: &Worker) -> Vec<Residence> {
    worker.views().into_iter().map(|view| view.residence).collect()
}

use Residence::{Failed, Loaded, OnDisk, Refused};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_model_is_loaded_at_the_start_and_the_others_when_they_are_asked_for() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo"), ("c", "demo")], None, Preload::First);
    assert_eq!(residences(&worker), [Loaded, OnDisk, OnDisk]);
    let states: Vec<ModelState> = worker.offers().into_iter().map(|offer| offer.state).collect();
    assert_eq!(states, [ModelState::Loaded, ModelState::OnDisk, ModelState::OnDisk]);
    let free = worker.memory_free();
    says_paris(&worker, "b").await;
    assert_eq!(residences(&worker), [Loaded, Loaded, OnDisk]);
    assert_eq!(worker.memory_free(), free.saturating_sub(home.needs()), "what it took is free no more");
    assert!(worker.offers()[1].speed.is_some(), "and its speed is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_wait_for_one_load() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo")], None, Preload::None);
    let asked = ["a", "b", "a", "b", "a", "b"].map(|model| says_paris(&worker, model));
    join_all(asked).await;
    assert_eq!(residences(&worker), [Loaded, Loaded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_gives_way_where_memory_is_short() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo"), ("c", "demo")], Some(5), Preload::All);
    assert_eq!(residences(&worker), [Loaded, Loaded, OnDisk], "as many as fit together");
    says_paris(&worker, "a").await;
    says_paris(&worker, "c").await;
    assert_eq!(residences(&worker), [Loaded, OnDisk, Loaded], "b was used least recently");
    assert!(worker.memory_for_a_load() > worker.memory_free(), "and comes back when it is asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_runs_is_never_unloaded() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo")], Some(3), Preload::First);
    let mut running = ask(&worker, "a");
    assert!(matches!(running.next().await, Some(Step::Started { .. })));
    let mut waiting = std::pin::pin!(hear(ask(&worker, "b")));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(residences(&worker), [Loaded, OnDisk]);
    assert!(hear(running).await.0.contains("Paris"));
    let (text, outcome) = waiting.await;
    assert!(text.contains("Paris"), "{outcome:?}");
    assert_eq!(residences(&worker), [OnDisk, Loaded]);
}

/// The clock of this test jumps on whenever all wait.
#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_for_room_is_refused() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo")], Some(3), Preload::First);
    let mut running = ask(&worker, "a");
    assert!(matches!(running.next().await, Some(Step::Started { .. })));
    let (_, outcome) = hear(ask(&worker, "b")).await;
    assert_eq!(outcome, Outcome::Failed { failure: Failure::OutOfMemory });
    assert!(hear(running).await.0.contains("Paris"), "who held the room was not disturbed");
    says_paris(&worker, "b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_turns_never_ends_in_a_deadlock() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo")], Some(3), Preload::None);
    let asked = (0..12).map(|number| says_paris(&worker, if number % 2 == 0 { "a" } else { "b" }));
    join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_while_a_model_loads_leaves_it_to_the_next() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo")], None, Preload::None);
    let mut given_up = Box::pin(hear(ask(&worker, "a")));
    assert!(given_up.as_mut().now_or_never().is_none());
    drop(given_up);
    says_paris(&worker, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_load_is_told_and_leaves_the_others_running() {
    let home = Home::new();
    let worker = home.worker(&[("good", "demo"), ("broken", "broken")], None, Preload::First);
    assert_eq!(worker.offers().len(), 2);
    let (_, outcome) = hear(ask(&worker, "broken")).await;
    assert_eq!(outcome, Outcome::Failed { failure: Failure::ModelUnavailable });
    let offers = worker.offers();
    assert_eq!((offers.len(), offers[0].model.as_str()), (1, "good"));
    let ModelView { residence, fault, .. } = worker.views().remove(1);
    assert_eq!(residence, Failed);
    assert!(fault.is_some_and(|fault| fault.contains(WEIGHTS)));
    let (_, outcome) = hear(ask(&worker, "broken")).await;
    assert_eq!(
        outcome,
        Outcome::Failed { failure: Failure::ModelUnavailable },
        "and not tried again at once"
    );
    says_paris(&worker, "good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_served_is_left_out_with_its_reason() {
    let home = Home::new();
    let models = [("nowhere", "nowhere"), ("good", "demo"), ("broken", "broken")];
    let worker = home.worker(&models, None, Preload::All);
    assert_eq!(residences(&worker), [Loaded, Failed, Refused]);
    let fault = worker.views()[2].fault.clone().unwrap();
    assert!(fault.contains("nowhere") && fault.contains("config.json"), "{fault}");
    says_paris(&worker, "good").await;
    let (_, outcome) = hear(ask(&worker, "nowhere")).await;
    assert_eq!(outcome, Outcome::Failed { failure: Failure::ModelUnavailable });
}

#[test]
fn models_to_be_preloaded_are_known_by_either_name_and_each_once() {
    let home = Home::new();
    let mut config = home.config(&[("ram-demo", "demo"), ("qwen3-8b", "nowhere")]);
    config.memory_cap = Some(Bytes::new(home.needs().get() / 2 * 3));
    for names in ["ram-demo,ram-aggregator/ram-demo-4bit,mlx-community/Qwen3-8B-4bit", "qwen3-8b"] {
        config.preload = names.parse().unwrap();
        let worker = Worker::open(&config, &machine()).unwrap();
        let first = if names == "qwen3-8b" { OnDisk } else { Loaded };
        assert_eq!(residences(&worker), [first, Refused], "{names}");
    }
}

/// Answers of one model follow upon each other without a gap; the clock of this test jumps on whenever all wait.
#[tokio::test(start_paused = true)]
async fn a_steady_stream_on_one_model_leaves_a_turn_to_another() {
    let home = Home::new();
    let worker = home.worker(&[("a", "demo"), ("b", "demo")], Some(3), Preload::First);
    let mut running = ask(&worker, "a");
    assert!(matches!(running.next().await, Some(Step::Started { .. })));
    let mut other = std::pin::pin!(hear(ask(&worker, "b")));
    assert!(other.as_mut().now_or_never().is_none());
    let mut next = Box::pin(hear(ask(&worker, "a")));
    assert!(next.as_mut().now_or_never().is_none(), "who comes later waits");
    assert!(hear(running).await.0.contains("Paris"));
    let (text, outcome) = other.await;
    assert!(text.contains("Paris"), "{outcome:?}");
    assert!(next.await.0.contains("Paris"));
}

#[test]
fn a_node_with_nothing_to_serve_does_not_start() {
    let home = Home::new();
    let open = |models: &[(&str, &str)], cap: Bytes| {
        let mut config = home.config(models);
        config.memory_cap = Some(cap);
        Worker::open(&config, &machine()).unwrap_err()
    };
    let error = open(&[("a", "demo"), ("b", "demo")], Bytes::from_mib(1));
    assert!(matches!(error, ProviderError::ModelTooLarge { .. }));
    let told = error.told();
    assert!(told.contains("of 1.0 MiB") && told.contains("memory cap is too low"), "{told}");
    let error = open(&[("broken", "broken")], Bytes::from_gib(1));
    assert!(matches!(error, ProviderError::Model { .. }), "{error}");
    let mut config = home.config(&[("a", "demo")]);
    config.preload = "b".parse().unwrap();
    let told = Worker::open(&config, &machine()).unwrap_err().told();
    assert!(told.contains("`b`") && told.contains("--model"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_server_lists_all_and_loads_what_is_asked_for() {
    let home = Home::new();
    let mut config = home.config(&[("a", "demo"), ("own/b", "demo"), ("broken", "broken")]);
    config.memory_cap = Some(Bytes::new(home.needs().get() / 2 * 3));
    let local = LocalConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..LocalConfig::default() };
    let server = LocalServer::start(config, local).await.unwrap();
    let base = format!("http://{}/v1", server.address());
    let (_stop, stopped) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
    let list: ModelList = reqwest::get(format!("{base}/models")).await.unwrap().json().await.unwrap();
    let ids: Vec<&str> = list.data.iter().map(|card| card.id.as_str()).collect();
    assert_eq!(ids, ["a", "own/b", "broken"]);
    let ask = |model: &str| {
        let question = serde_json::json!([{"role": "user", "content": "What is the capital of France?"}]);
        let body = serde_json::json!({"model": model, "messages": question, "temperature": 0});
        reqwest::Client::new().post(format!("{base}/chat/completions")).json(&body).send()
    };
    for model in ["a", "own/b", "a"] {
        let answer: ChatCompletion = ask(model).await.unwrap().json().await.unwrap();
        assert!(answer.choices[0].message.content.as_ref().unwrap().as_str().contains("Paris"));
    }
    assert_eq!(ask("broken").await.unwrap().status(), 503, "another try later may do");
}
