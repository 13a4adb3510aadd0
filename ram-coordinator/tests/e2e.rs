//! Sealed requests from end to end: real HTTP, a real provider with the bundled model as a process of its own, and
//! clients in Rust and in plain Web Crypto. What is sealed is what is answered in words, and who relays it has no word
//! of it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test")]

mod clients;
mod sealing;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ram_coordinator::Running;
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{KeyKind, NewKey};
use ram_core::units::XRam;
use ram_crypto::envelope;
use ram_proto::blob::Blob;
use ram_proto::rest::{E2eAnswer, E2eProviders, E2eSubmit};
use ram_proto::routes;
use reqwest::Response;
use serde_json::{Value, json};

use self::sealing::{Client, MODEL, streamed, submit_v2, whole};

/// A guard against a hang, far beyond what anything here takes.
const AT_MOST: Duration = Duration::from_secs(120);
const PROMPT: &str = "What is the capital of France?";

struct Network {
    coordinator: Running,
    client: Client,
    provider: Child,
    _folder: tempfile::TempDir,
}

impl Network {
    async fn start() -> Self {
        let config =
            Config { listen: ([127, 0, 0, 1], 0).into(), database: Database::Memory, ..Config::default() };
        let coordinator = ram_coordinator::start(config).await.unwrap();
        let client = Client { base_url: coordinator.base_url(), key: make_key(&coordinator).await };
        let folder = tempfile::tempdir().unwrap();
        let provider = Command::new(example_network())
            .args(["--coordinator", &coordinator.base_url(), "--as-provider", "opener"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let network = Self { coordinator, client, provider, _folder: folder };
        let is_here = async {
            while network.providers().await.providers.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(AT_MOST, is_here).await.expect("the provider did not register");
        network
    }

    /// Not over HTTP, where they are shown once a second.
    async fn providers(&self) -> E2eProviders {
        self.coordinator.handle.ask(|core, _| core.e2e_providers()).await.unwrap()
    }

    /// The answer in words.
    async fn plain(&self, body: Value) -> String {
        let response = self.client.post(routes::CHAT_COMPLETIONS, &body).await;
        let answer: Value = response.json().await.unwrap();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    async fn audit(&self) {
        let audit = self.coordinator.store.audit().await.unwrap();
        assert!(audit.is_sound() && audit.held == XRam::ZERO, "{audit:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.provider.kill();
        let _ = self.provider.wait();
    }
}

async fn make_key(coordinator: &Running) -> String {
    let new = NewKey { kind: KeyKind::Live, name: "test".to_owned(), credit: XRam::from_xram(1000) };
    let (_, key) = coordinator.keys.create(new, ram_coordinator::run::now()).await.unwrap();
    key.reveal().to_owned()
}

/// The example, which `cargo test` builds beside the tests.
fn example_network() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples").join("network")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_answered_as_what_is_said() {
    let network = Network::start().await;
    let message = json!({ "role": "user", "content": PROMPT });
    let wish = json!({ "model": MODEL, "messages": [message], "max_tokens": 24, "temperature": 0 });
    let plain = network.plain(wish).await;
    assert!(!plain.is_empty());

    let offer = network.client.offer(1).await;
    let (prompt, waiting) = network.client.choose(&offer).seal_v1(PROMPT.as_bytes()).unwrap();
    let submit = E2eSubmit {
        job_id: offer.job_id,
        encrypted_prompt_b64: Blob::new(&prompt.sealed.ciphertext),
        prompt_nonce_b64: Some(Blob::new(&prompt.sealed.nonce)),
        client_public_key_b64: Blob::new(&prompt.client_key),
        stream: false,
    };
    let answer: E2eAnswer = network.client.post(routes::E2E_SUBMIT, &submit).await.json().await.unwrap();
    let ciphertext = answer.encrypted_output_b64.unwrap().to_bytes();
    let sealed = envelope::Sealed { ciphertext, nonce: answer.output_nonce_b64.to_array().unwrap() };
    assert_eq!(**waiting.open(&sealed).unwrap(), *plain.as_bytes());
    assert!(answer.usage.completion_tokens.get() > 0 && answer.xram_tokens_charged > XRam::ZERO);

    let (response, waiting) = network.client.ask(PROMPT, false).await;
    assert_eq!(whole(response, waiting).await, plain);
    // As a chat request, with what was said of it inside.
    let chat = json!({ "messages": [message], "max_tokens": 8, "temperature": 0 });
    let (response, waiting) = network.client.ask(&chat.to_string(), true).await;
    let (text, boxes) = streamed(response, waiting).await;
    assert!(plain.starts_with(&text) && !text.is_empty() && boxes > 1, "{text}, {plain}, {boxes}");
    network.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_open_costs_nothing_and_says_so() {
    let network = Network::start().await;
    let refused = async |response: Response, status: u16, code: &str| {
        assert_eq!(response.status(), status);
        let told: Value = response.json().await.unwrap();
        assert_eq!(told["error"]["code"], code, "{told}");
    };
    // A bit is flipped on the way.
    let offer = network.client.offer(2).await;
    let (mut request, _) = network.client.choose(&offer).seal(PROMPT.as_bytes()).unwrap();
    request.ciphertext[7] ^= 1;
    let submit = submit_v2(&offer, &request, false);
    refused(network.client.post(routes::E2E_SUBMIT, &submit).await, 400, "sealed_unopened").await;
    // The same again: an offer is good for one request.
    refused(network.client.post(routes::E2E_SUBMIT, &submit).await, 404, "not_found").await;
    // What was sealed for one job is sent as another's.
    let (request, _) = network.client.choose(&network.client.offer(2).await).seal(PROMPT.as_bytes()).unwrap();
    let other = submit_v2(&network.client.offer(2).await, &request, true);
    refused(network.client.post(routes::E2E_SUBMIT, &other).await, 400, "sealed_unopened").await;
    // What opens and is no chat that could be run.
    let (response, _) = network.client.ask(r#"{"messages":[]}"#, false).await;
    refused(response, 400, "invalid_prompt").await;
    // Somebody else's offer.
    let offer = network.client.offer(2).await;
    let (request, _) = network.client.choose(&offer).seal(PROMPT.as_bytes()).unwrap();
    let url = format!("{}{}", network.coordinator.base_url(), routes::E2E_SUBMIT);
    let other = make_key(&network.coordinator).await;
    let theirs =
        reqwest::Client::new().post(url).bearer_auth(other).json(&submit_v2(&offer, &request, false));
    refused(theirs.send().await.unwrap(), 404, "not_found").await;
    // Fields that do not fit the version.
    let submit = E2eSubmit { stream: true, ..submit_v2(&network.client.offer(1).await, &request, true) };
    assert_eq!(network.client.post(routes::E2E_SUBMIT, &submit).await.status(), 400);
    let submit = submit_v2(&network.client.offer(1).await, &request, false);
    assert_eq!(network.client.post(routes::E2E_SUBMIT, &submit).await.status(), 400);
    for bad in [json!({ "version": 3 }), json!({ "max_tokens": 0 }), json!({ "temperature": 3 })] {
        let mut wish = json!({ "model": MODEL });
        wish.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        assert_eq!(network.client.post(routes::E2E_INIT, &wish).await.status(), 400);
    }
    network.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_gone_is_told_of_before_anything_is_charged() {
    let mut network = Network::start().await;
    let offer = network.client.offer(2).await;
    network.provider.kill().unwrap();
    network.provider.wait().unwrap();
    let is_gone = async {
        while !network.providers().await.providers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(AT_MOST, is_gone).await.unwrap();
    let (request, _) = network.client.choose(&offer).seal(PROMPT.as_bytes()).unwrap();
    let response = network.client.post(routes::E2E_SUBMIT, &submit_v2(&offer, &request, false)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-should-retry"]),
        (409, &"false".parse().unwrap())
    );
    network.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_plain_web_crypto_reads_what_is_said() {
    let network = Network::start().await;
    let message = json!({ "role": "user", "content": PROMPT });
    let wish = json!({ "model": MODEL, "messages": [message], "max_tokens": 24, "temperature": 0 });
    let base_url = format!("{}/v1", network.coordinator.base_url());
    if let Some(text) = clients::sealed_v1(&base_url, &network.client.key, MODEL, PROMPT).await {
        assert_eq!(text, network.plain(wish).await);
    }
}
