//! A model that providers hold together, as processes of their own, which are killed (`kill -9`) or cut off in the
//! middle of answers: the text is the one that is written when nobody dies, each token once.
//!
//! The processes are the example network in its provider's role.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test")]

mod machines;
mod sealing;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use ram_coordinator::Running;
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{KeyKind, NewKey};
use ram_core::units::XRam;
use ram_proto::openai::sse;
use ram_proto::rest::{PipelineState, PipelineView, ProviderList};
use ram_proto::routes;
use serde_json::{Value, json};

use self::machines::Machines;

/// A guard against a hang, far beyond what anything here takes.
const AT_MOST: Duration = Duration::from_secs(120);
const SHARDS: usize = 3;

struct Network {
    coordinator: Running,
    key: String,
    providers: Vec<Child>,
    folder: tempfile::TempDir,
}

/// What a user has got.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    finish: Value,
    usage: Value,
}

/// What is done to a provider, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// While the prompt is read.
    Prefill,
    /// After the first words.
    Decode,
}

impl Network {
    async fn start(count: usize, machines: Option<&Machines>) -> Self {
        let listen = machines.map_or_else(|| "127.0.0.1:0".parse().unwrap(), |_| Machines::home());
        let config = Config { listen, database: Database::Memory, ..Config::default() };
        let coordinator = ram_coordinator::start(config).await.unwrap();
        let new = NewKey { kind: KeyKind::Live, name: "test".to_owned(), credit: XRam::from_xram(1000) };
        let (_, key) = coordinator.keys.create(new, ram_coordinator::run::now()).await.unwrap();
        let key = key.reveal().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let mut network = Self { coordinator, key, providers: Vec::new(), folder };
        for n in 0..count {
            let mut command = machines
                .map_or_else(|| Command::new(example_network()), |all| all.command(n, &example_network()));
            if machines.is_some() {
                command.args(["--listen-for-shards", &Machines::address(n).to_string()]);
            }
            network.providers.push(network.start_provider(n, command));
        }
        let url = format!("{}{}", network.coordinator.base_url(), routes::PROVIDERS);
        let all_lend = async {
            loop {
                let list: ProviderList = reqwest::get(&url).await.unwrap().json().await.unwrap();
                if list.providers.iter().filter(|provider| provider.lends.is_some()).count() == count {
                    return;
                }
            }
        };
        tokio::time::timeout(AT_MOST, all_lend).await.expect("the providers did not register");
        network
    }

    fn start_provider(&self, n: usize, mut command: Command) -> Child {
        let name = format!("provider-{n}");
        command
            .args(["--coordinator", &self.coordinator.base_url(), "--part-of", &SHARDS.to_string()])
            .args(["--as-provider", &name])
            .arg(self.folder.path().join(&name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The pipeline, once this is true of it.
    async fn pipeline(&self, is_so: impl Fn(&PipelineView) -> bool) -> PipelineView {
        // Not over HTTP, where some moments are not shown.
        let looking = async {
            loop {
                let list = self.coordinator.handle.ask(|core, _| core.pipelines()).await.unwrap();
                if let Some(view) = list.pipelines.into_iter().find(|view| is_so(view)) {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(AT_MOST, looking).await.expect("the pipeline did not become what it was to be")
    }

    /// Asks, and calls `first` at the first words; says the longest time without a word, too.
    #[expect(clippy::disallowed_methods, reason = "told, and nothing hangs on it")]
    async fn ask(&self, body: &Value, first: impl FnOnce()) -> (Answer, Duration) {
        let url = format!("{}{}", self.coordinator.base_url(), routes::CHAT_COMPLETIONS);
        let request = reqwest::Client::new().post(url).bearer_auth(&self.key).json(body);
        let response = tokio::time::timeout(AT_MOST, request.send()).await.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let (mut bytes, mut decoder) = (response.bytes_stream(), sse::Decoder::new());
        let mut answer = Answer { text: String::new(), finish: Value::Null, usage: Value::Null };
        let (mut first, mut done) = (Some(first), false);
        let (mut heard, mut pause) = (Instant::now(), Duration::ZERO);
        while let Some(piece) = tokio::time::timeout(AT_MOST, bytes.next()).await.unwrap() {
            decoder.push(&piece.unwrap()).unwrap();
            pause = pause.max(heard.elapsed());
            heard = Instant::now();
            while let Some(event) = decoder.next_event() {
                if event.data == sse::DONE_DATA {
                    done = true;
                    continue;
                }
                let chunk: Value = serde_json::from_str(&event.data).unwrap();
                assert!(chunk.get("error").is_none(), "{chunk}");
                let choice = &chunk["choices"][0];
                answer.text += choice["delta"]["content"].as_str().unwrap_or_default();
                if !choice["finish_reason"].is_null() {
                    answer.finish = choice["finish_reason"].clone();
                }
                if !chunk["usage"].is_null() {
                    answer.usage = chunk["usage"].clone();
                }
                if !answer.text.is_empty()
                    && let Some(first) = first.take()
                {
                    first();
                }
            }
        }
        assert!(done, "the stream broke off");
        (answer, pause)
    }

    async fn audit(&self) {
        let audit = self.coordinator.store.audit().await.unwrap();
        assert!(audit.is_sound() && audit.held == XRam::ZERO, "{audit:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for child in &mut self.providers {
            let _ = child.kill(); // a dead one stays dead
            let _ = child.wait();
        }
    }
}

/// The example beside this test.
fn example_network() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let program = here.parent().and_then(Path::parent).unwrap().join("examples").join("network");
    assert!(program.exists(), "build it first: cargo build -p ram-coordinator --example network");
    program
}

/// A question whose answer takes a while; some of the prompt, too, if it is long.
fn question(prompt: &str) -> Value {
    json!({
        "model": "ram-demo",
        "messages": [{ "role": "user", "content": prompt }],
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_tokens": 100,
        "logit_bias": { "1": -100 }, // never the end-of-turn token: it talks on until it is stopped
    })
}

fn number_of(view: &PipelineView, place: usize) -> usize {
    let name = view.shards[place].name.as_ref().unwrap().to_string();
    name.rsplit('-').next().unwrap().parse().unwrap()
}

/// Ready, and each shard has a spare.
fn is_covered(view: &PipelineView) -> bool {
    view.state == PipelineState::Ready
        && view.shards.iter().all(|shard| view.spares.iter().any(|spare| spare.layers == shard.layers))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_whenever_the_text_is_the_same() {
    let deaths = [Moment::Prefill, Moment::Decode].map(|moment| [0, 1, 2].map(|place| (place, moment)));
    let deaths = deaths.concat();
    let mut network = Network::start(2 * SHARDS + deaths.len(), None).await;
    let long = "What is the capital of France? And of Spain? ".repeat(30);
    let (whole, _) = network.ask(&question(&long), || {}).await;
    assert_eq!((&whole.finish, &whole.usage["completion_tokens"]), (&json!("length"), &json!(100)));
    for (place, moment) in deaths {
        let view = network.pipeline(is_covered).await;
        let victim = number_of(&view, place);
        let pid = network.providers[victim].id();
        let body = question(&long);
        let (answer, pause) = if moment == Moment::Prefill {
            let killing = async {
                network.pipeline(|view| view.running == 1).await;
                kill(pid);
            };
            tokio::join!(network.ask(&body, || {}), killing).0
        } else {
            network.ask(&body, || kill(pid)).await
        };
        assert!(!network.providers[victim].wait().unwrap().success(), "it was killed");
        assert_eq!(answer, whole, "shard {place} was killed in {moment:?}");
        println!("shard {place} killed in {moment:?}: the longest pause was {} ms", pause.as_millis());
    }
    network.audit().await;
}

/// The head opens the prompt, and seals what all of them have written.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_answered_by_all_of_them_as_what_is_said() {
    let network = Network::start(SHARDS, None).await;
    let body = question("What is the capital of France?");
    let (said, _) = network.ask(&body, || {}).await;
    let client = sealing::Client { base_url: network.coordinator.base_url(), key: network.key.clone() };
    let (response, waiting) = client.ask(&body.to_string(), true).await;
    let (sealed, _) = sealing::streamed(response, waiting).await;
    // An offer is for fewer tokens than the question asks for.
    assert!(!sealed.is_empty() && said.text.starts_with(&sealed), "{sealed}, {}", said.text);
    network.audit().await;
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

/// Machines 5 ms apart that lose one packet of a hundred; then one is cut off without a word.
#[tokio::test(flavor = "multi_thread")]
async fn over_a_bad_line_too_also_when_a_machine_falls_silent() {
    let mut machines = match Machines::new(2 * SHARDS, 5, 1.0) {
        Ok(machines) => machines,
        Err(why) => {
            return eprintln!("SKIPPED: no network namespaces here, nothing was tried over one: {why}");
        }
    };
    let network = Network::start(2 * SHARDS, Some(&machines)).await;
    let body = question("What is the capital of France?");
    let (whole, usual) = network.ask(&body, || {}).await;
    let view = network.pipeline(is_covered).await;
    let hops = network
        .pipeline(|view| view.shards.iter().all(|shard| shard.now.is_some_and(|now| now.hop_us.is_some())));
    for shard in hops.await.shards {
        let hop = shard.now.and_then(|now| now.hop_us).unwrap();
        assert!(hop >= 5000, "a way of 5 ms was measured as {hop} µs");
    }
    let (answer, pause) = network.ask(&body, || machines.cut(number_of(&view, 1))).await;
    assert_eq!(answer, whole, "the middle one was cut off");
    let millis = |time: Duration| time.as_millis();
    println!("cut off: the longest pause was {} ms, and {} without that", millis(pause), millis(usual));
    network.audit().await;
}
