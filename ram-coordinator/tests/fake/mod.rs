//! A coordinator on loopback and providers that do what a test tells them, word by word, over the real wire.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{KeyKind, NewKey};
use ram_coordinator::{Running, run};
use ram_core::id::{Attempt, JobId, NodeKey, ProviderId};
use ram_core::job::{FinishReason, Job, Outcome, Usage};
use ram_core::provider::{Hardware, Load, ModelOffer, ModelState, ProviderSpec, Speed, Thermal};
use ram_core::units::{Bytes, Timestamp, TokenCount, TokenRate, XRam};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::statement::Statement;
use ram_proto::control::{
    self, Capabilities, Chunk, Decoded, E2eKey, NodeStatement, Nonce, Register, Signature, ToCoordinator,
    ToProvider,
};
use ram_proto::routes;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// A guard against a hang, far beyond what anything here takes.
pub const AT_MOST: Duration = Duration::from_secs(30);
/// The model that every fake provider has in memory.
pub const MODEL: &str = "ram-demo";

/// A model with a long context, which every fake provider has in memory as well.
pub const LONG_MODEL: &str = "llama-3.2-1b";

/// A coordinator, and a key with 1000 xRAM.
pub struct Network {
    pub coordinator: Running,
    pub key: String,
    pub http: reqwest::Client,
}

impl Network {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let listen = ([127, 0, 0, 1], 0).into();
        let mut config = Config { listen, database: Database::Memory, ..Config::default() };
        change(&mut config);
        let coordinator = ram_coordinator::start(config).await.unwrap();
        let key = make_key(&coordinator, XRam::from_xram(1000)).await;
        Self { coordinator, key, http: reqwest::Client::new() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.coordinator.base_url())
    }

    /// A chat request under the network's key, not yet sent.
    pub fn chat(&self, more: Value) -> reqwest::RequestBuilder {
        self.http.post(self.url(routes::CHAT_COMPLETIONS)).bearer_auth(&self.key).json(&question(more))
    }

    /// Sends a chat request from a task of its own.
    pub fn ask(&self, more: Value) -> tokio::task::JoinHandle<reqwest::Response> {
        let request = self.chat(more);
        tokio::spawn(async move { request.send().await.unwrap() })
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).bearer_auth(&self.key).send().await.unwrap()
    }

    /// A provider that has registered.
    pub async fn provider(&self, number: u8) -> FakeProvider {
        FakeProvider::join(&self.coordinator.base_url(), number).await
    }
}

pub async fn make_key(coordinator: &Running, credit: XRam) -> String {
    let new = NewKey { kind: KeyKind::Live, name: "test".to_owned(), credit };
    let (_, secret) = coordinator.keys.create(new, run::now()).await.unwrap();
    secret.reveal().to_owned()
}

/// A request's body, with `more` fields over the usual ones.
pub fn question(more: Value) -> Value {
    let message = json!({ "role": "user", "content": "What is the capital of France?" });
    let mut body = json!({ "model": MODEL, "messages": [message] });
    let Value::Object(more) = more else { panic!("fields are given as an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// A provider that says only what a test makes it say.
pub struct FakeProvider {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub id: ProviderId,
}

/// A job as a provider got it.
pub struct Run {
    pub id: JobId,
    pub attempt: Attempt,
    pub job: Job,
    seq: u32,
}

impl Run {
    pub fn new(attempt: Attempt, job: Job) -> Self {
        Self { id: job.id, attempt, job, seq: 0 }
    }

    /// The next chunk, of one token and no words yet.
    pub fn chunk(&mut self) -> Chunk {
        let seq = self.seq;
        self.seq += 1;
        Chunk {
            job: self.id,
            attempt: self.attempt,
            seq,
            tokens: TokenCount::new(1),
            content: "".into(),
            reasoning: "".into(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }
    }
}

impl FakeProvider {
    pub async fn join(base_url: &str, number: u8) -> Self {
        let mut socket = connect(base_url).await;
        let Some(ToProvider::Challenge { network, coordinator, nonce, .. }) = receive(&mut socket).await
        else {
            panic!("the first word is no challenge");
        };
        let identity = NodeIdentity::from_seeds([number; 32], [number.wrapping_add(1); 32]);
        let id = NodeKey::from_bytes(identity.node_public()).provider_id();
        let register = register(&identity, number, network, coordinator, nonce);
        send(&mut socket, &ToCoordinator::Register(Box::new(register))).await;
        match receive(&mut socket).await {
            Some(ToProvider::Registered { provider, .. }) => assert_eq!(provider, id),
            other => panic!("not registered: {other:?}"),
        }
        Self { socket, id }
    }

    /// What the coordinator says next; `None` once it has closed the socket.
    pub async fn hear(&mut self) -> Option<ToProvider> {
        receive(&mut self.socket).await
    }

    pub async fn say(&mut self, message: &ToCoordinator) {
        send(&mut self.socket, message).await;
    }

    /// The next job, which must be what comes next.
    pub async fn run(&mut self) -> Run {
        match self.hear().await {
            Some(ToProvider::Run { attempt, job, .. }) => Run::new(attempt, *job),
            other => panic!("no job came but {other:?}"),
        }
    }

    pub async fn accept(&mut self, run: &Run) {
        let (job, attempt) = (run.id, run.attempt);
        self.say(&ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) }).await;
    }

    /// What the coordinator has said already, if anything.
    pub async fn heard(&mut self) -> Option<ToProvider> {
        tokio::select! {
            biased;
            message = self.hear() => Some(message.expect("the socket is open")),
            () = tokio::task::yield_now() => None,
        }
    }

    /// One chunk of one token.
    pub async fn write(&mut self, run: &mut Run, text: &str) {
        self.write_tokens(run, text, 1).await;
    }

    /// One chunk of several tokens.
    pub async fn write_tokens(&mut self, run: &mut Run, text: &str, tokens: u64) {
        let chunk = Chunk { tokens: TokenCount::new(tokens), content: text.into(), ..run.chunk() };
        self.say(&ToCoordinator::Chunk(chunk)).await;
    }

    pub async fn finish(&mut self, run: &Run) {
        let usage = Usage {
            prompt: TokenCount::new(12),
            completion: TokenCount::new(run.seq.into()),
            reasoning: TokenCount::ZERO,
        };
        self.end(run, Outcome::Done { finish: FinishReason::Stop, usage }).await;
    }

    pub async fn end(&mut self, run: &Run, outcome: Outcome) {
        self.say(&ToCoordinator::Finished { job: run.id, attempt: run.attempt, outcome }).await;
    }

    /// Answers every job with these words, until the coordinator closes the socket.
    pub async fn serve(mut self, words: &[&str]) {
        while let Some(message) = self.hear().await {
            if let ToProvider::Run { attempt, job, .. } = message {
                self.tell(Run::new(attempt, *job), words).await;
            }
        }
    }

    /// Answers one job whole with these words.
    pub async fn answer(&mut self, words: &[&str]) -> Run {
        let run = self.run().await;
        self.tell(run, words).await
    }

    async fn tell(&mut self, mut run: Run, words: &[&str]) -> Run {
        self.accept(&run).await;
        for word in words {
            self.write(&mut run, word).await;
        }
        self.finish(&run).await;
        run
    }

    /// Falls off the network without a word, as a killed process does.
    pub fn die(self) {
        drop(self);
    }
}

/// Whichever of two gets the next job, then the other one.
pub async fn first_to_run(mut a: FakeProvider, mut b: FakeProvider) -> (FakeProvider, Run, FakeProvider) {
    tokio::select! {
        run = a.run() => (a, run, b),
        run = b.run() => (b, run, a),
    }
}

pub async fn connect(base_url: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let url = format!("{}{}", base_url.replacen("http", "ws", 1), routes::PROVIDER_SOCKET);
    // Without Nagle, as a provider must: with it each word waits 40 ms for the acknowledgement of the one before.
    connect_async_with_config(url, None, true).await.unwrap().0
}

/// The next control message; `None` once the socket is closed.
pub async fn receive(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Option<ToProvider> {
    loop {
        match timeout(AT_MOST, socket.next()).await.expect("nothing came") {
            Some(Ok(Message::Text(text))) => match control::decode(&text).unwrap() {
                Decoded::Known(message) => return Some(message),
                Decoded::Unknown { of } => panic!("an unknown message {of}"),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_) | Err(_)) | None => return None,
        }
    }
}

pub async fn send(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, message: &ToCoordinator) {
    socket.send(Message::Text(control::encode(message).into())).await.unwrap();
}

/// What every fake provider serves.
pub fn offers() -> Vec<ModelOffer> {
    let speed = Some(Speed { prefill: TokenRate::new(1_000_000), decode: TokenRate::new(100_000) });
    let offer = |alias| ModelOffer {
        model: ram_core::catalog::resolve(alias).unwrap().model_id(),
        state: ModelState::Loaded,
        speed,
    };
    [MODEL, LONG_MODEL].map(offer).to_vec()
}

/// A registration that is good in every way.
pub fn register(
    identity: &NodeIdentity,
    number: u8,
    network: u64,
    coordinator: String,
    nonce: Nonce,
) -> Register {
    let expires_at = Timestamp::from_millis(run::now().as_millis() + 60_000);
    let name = format!("fake-{number}");
    let signed = Statement {
        network,
        coordinator: coordinator.clone(),
        nonce: *nonce.as_bytes(),
        node_key: identity.node_public(),
        e2e_key: identity.e2e_public(),
        wallet: None,
        name: name.clone(),
        expires_ms: expires_at.as_millis(),
    };
    let statement = NodeStatement {
        network,
        coordinator,
        nonce,
        node_key: NodeKey::from_bytes(identity.node_public()),
        e2e_key: E2eKey::from_bytes(identity.e2e_public()),
        wallet: None,
        name: name.parse().unwrap(),
        expires_at,
    };
    let gib = Bytes::from_gib;
    let spec = ProviderSpec {
        name: name.parse().unwrap(),
        wallet: None,
        version: "0".to_owned(),
        hardware: Hardware {
            chip: "fake".to_owned(),
            os: "test".to_owned(),
            memory: gib(16),
            usable_memory: gib(12),
            cpus: 4,
        },
        memory_cap: gib(8),
        offers: offers(),
    };
    Register {
        statement,
        signature: Signature::from_bytes(identity.sign_statement(&signed)),
        spec,
        load: Load { running: 0, queued: 0, slots: 4, memory_free: gib(8), thermal: Thermal::Nominal },
        capabilities: Capabilities::ours(),
    }
}
