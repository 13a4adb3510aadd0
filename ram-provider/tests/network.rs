//! A real node against a coordinator made of a bare WebSocket server, over loopback, with the bundled model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod phrases;

use std::collections::BTreeMap;
use std::path::Path;

use futures::{SinkExt, StreamExt};
use ram_core::chat::tools::ToolCall;
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, Epoch, JobId};
use ram_core::job::{Failure, FinishReason, GenerationParams, Job, Outcome, Sampling, Usage};
use ram_core::provider::{ModelOffer, ModelState};
use ram_core::units::{Bytes, TokenCount};
use ram_crypto::statement::{Expected, Statement};
use ram_proto::control::{
    Capabilities, Decoded, NodeStatement, Nonce, Register, ToCoordinator, ToProvider, decode, encode,
};
use ram_provider::ProviderError;
use ram_provider::config::{ModelChoice, Preload, ProviderConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const NETWORK: u64 = 84_530;
const NAME: &str = "coordinator.test";
const MODEL: &str = "ram-aggregator/ram-demo-4bit";
/// The bundled model's token that ends a turn.
const END_TOKEN: u32 = 1;

/// The server's side of the providers' socket.
struct Coordinator {
    listener: TcpListener,
}

/// One socket of one provider.
struct Session {
    socket: WebSocketStream<TcpStream>,
}

impl Coordinator {
    async fn listen() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn url(&self) -> String {
        format!("ws://{}", self.listener.local_addr().unwrap())
    }

    async fn accept(&self) -> Session {
        let (stream, _) = self.listener.accept().await.unwrap();
        Session { socket: tokio_tungstenite::accept_async(stream).await.unwrap() }
    }

    /// Takes a provider in, checking its signature over this nonce.
    async fn admit(&self, nonce: u8) -> (Session, Box<Register>) {
        let mut session = self.accept().await;
        let nonce = Nonce::from_bytes([nonce; 32]);
        let capabilities = Capabilities::ours();
        let coordinator = NAME.to_owned();
        session.say(&ToProvider::Challenge { network: NETWORK, coordinator, nonce, capabilities }).await;
        let ToCoordinator::Register(register) = session.hear().await else { panic!("it registers first") };
        verify(&register, nonce);
        let provider = register.statement.node_key.provider_id();
        let capabilities = register.capabilities.common(&Capabilities::ours());
        let epoch = Epoch::new(1);
        session.say(&ToProvider::Registered { provider, epoch, heartbeat_ms: 100, capabilities }).await;
        (session, register)
    }
}

impl Session {
    async fn say(&mut self, message: &ToProvider) {
        self.socket.send(Message::text(encode(message))).await.unwrap();
    }

    /// The next message; `None` when the provider closes.
    async fn try_hear(&mut self) -> Option<ToCoordinator> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text) => match decode(&text).unwrap() {
                    Decoded::Known(message) => return Some(message),
                    Decoded::Unknown { of } => panic!("an unknown message: {of}"),
                },
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    async fn hear(&mut self) -> ToCoordinator {
        self.try_hear().await.expect("the provider stays")
    }

    /// The next message that is no heartbeat.
    async fn hear_news(&mut self) -> ToCoordinator {
        loop {
            match self.hear().await {
                ToCoordinator::Heartbeat { .. } => {}
                news => return news,
            }
        }
    }

    /// Everything about one job, to its end.
    async fn hear_answer(&mut self) -> Heard {
        let mut heard = Heard::default();
        loop {
            match self.hear_news().await {
                ToCoordinator::Accepted { prompt, .. } => heard.prompt = Some(prompt),
                ToCoordinator::Chunk(chunk) => {
                    assert_eq!(chunk.seq, heard.chunks, "numbered without a gap");
                    assert!(heard.prompt.is_some(), "accepted before the first word");
                    heard.chunks += 1;
                    heard.tokens += chunk.tokens;
                    heard.text += chunk.content.as_str();
                    heard.calls.extend(chunk.tool_calls);
                }
                ToCoordinator::Finished { outcome, .. } => return Heard { outcome: Some(outcome), ..heard },
                other => panic!("not of a job: {other:?}"),
            }
        }
    }
}

/// What came of one job.
#[derive(Debug, Default)]
struct Heard {
    prompt: Option<TokenCount>,
    chunks: u32,
    tokens: TokenCount,
    text: String,
    calls: Vec<ToolCall>,
    outcome: Option<Outcome>,
}

impl Heard {
    fn usage(&self) -> Usage {
        match self.outcome {
            Some(Outcome::Done { usage, .. }) => usage,
            other => panic!("not done: {other:?}"),
        }
    }
}

fn verify(register: &Register, nonce: Nonce) {
    let NodeStatement { network, coordinator, node_key, e2e_key, wallet, name, expires_at, .. } =
        &register.statement;
    let statement = Statement {
        network: *network,
        coordinator: coordinator.clone(),
        nonce: *register.statement.nonce.as_bytes(),
        node_key: *node_key.as_bytes(),
        e2e_key: *e2e_key.as_bytes(),
        wallet: wallet.map(|wallet| *wallet.as_bytes()),
        name: name.as_str().to_owned(),
        expires_ms: expires_at.as_millis(),
    };
    let expected = Expected { network: NETWORK, coordinator: NAME, nonce: *nonce.as_bytes(), now_ms: 1 };
    statement.verify(register.signature.as_bytes(), expected).unwrap();
    assert_eq!((&register.spec.name, register.spec.wallet), (name, *wallet));
}

/// A node in a task of this process.
struct Node {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ProviderError>>,
    _home: tempfile::TempDir,
}

impl Node {
    fn start(coordinator: &Coordinator) -> Self {
        Self::with(coordinator, |_| {})
    }

    fn with(coordinator: &Coordinator, change: impl FnOnce(&mut ProviderConfig)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = config(home.path(), coordinator);
        change(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(ram_provider::run(config, async { stopped.await.unwrap_or(()) }));
        Self { stop, task, _home: home }
    }
}

fn config(home: &Path, coordinator: &Coordinator) -> ProviderConfig {
    let mut config = ProviderConfig::new(home);
    config.coordinator = coordinator.url().parse().unwrap();
    config.name = "node under test".parse().unwrap();
    config.memory_cap = Some(Bytes::from_gib(1));
    config
}

fn run(number: u128, params: GenerationParams) -> ToProvider {
    let job = Job::new(
        JobId::from_bits(number),
        MODEL.parse().unwrap(),
        vec![ChatMessage::new(Role::User, "What is the capital of France?")],
        params,
    );
    ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group: None }
}

fn short() -> GenerationParams {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    GenerationParams::new(TokenCount::new(32), sampling)
}

/// An answer that fills the context: the token that would end it is out of reach.
fn long() -> GenerationParams {
    let sampling = Sampling { logit_bias: BTreeMap::from([(END_TOKEN, -100.0)]), ..Sampling::default() };
    GenerationParams::new(TokenCount::new(100_000), sampling)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_and_answers() {
    let coordinator = Coordinator::listen().await;
    let node = Node::start(&coordinator);
    let (mut session, register) = coordinator.admit(1).await;
    assert_eq!(register.spec.memory_cap, Bytes::from_gib(1));
    assert!(register.spec.hardware.memory > Bytes::ZERO);
    let offer = &register.spec.offers[0];
    assert_eq!((offer.model.as_str(), offer.state, offer.speed), (MODEL, ModelState::Loaded, None));

    session.say(&run(1, short())).await;
    let heard = session.hear_answer().await;
    assert!(heard.text.contains("Paris"), "{:?}", heard.text);
    assert_eq!(heard.usage().completion, heard.tokens, "each token is told once");
    assert_eq!(Some(heard.usage().prompt), heard.prompt);

    session.say(&run(2, short())).await;
    assert_eq!(session.hear_answer().await.text, heard.text, "same seed, same prompt, same text");
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_function_is_told_as_one() {
    let coordinator = Coordinator::listen().await;
    let node = Node::with(&coordinator, |config| {
        let dir = config.home.join("model");
        phrases::write_weather(&dir);
        config.models = vec![ModelChoice { model: MODEL.parse().unwrap(), path: Some(dir) }];
    });
    let (mut session, _) = coordinator.admit(1).await;
    let mut job = Job::new(
        JobId::from_bits(5),
        MODEL.parse().unwrap(),
        vec![ChatMessage::new(Role::User, "What is the weather in Paris?")],
        short(),
    );
    job.tools = vec![serde_json::from_value(serde_json::json!({ "name": "get_weather" })).unwrap()];
    session.say(&ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group: None }).await;
    let heard = session.hear_answer().await;
    assert_eq!((heard.text.as_str(), heard.calls.len()), ("", 1));
    assert_eq!(heard.calls[0].arguments.as_str(), "{\"city\": \"Paris\"}");
    let Some(Outcome::Done { finish, usage }) = heard.outcome else { panic!("not done: {heard:?}") };
    assert_eq!((finish, usage.completion), (FinishReason::ToolCalls, heard.tokens));
    node.stop.send(()).unwrap();
    node.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_on_disk_is_offered_as_such_and_loaded_by_its_first_job() {
    let coordinator = Coordinator::listen().await;
    let home = tempfile::tempdir().unwrap();
    let mut config = config(home.path(), &coordinator);
    config
        .models
        .push(format!("own/twin={}", home.path().join("models/ram-demo").display()).parse().unwrap());
    config.preload = Preload::Models(vec!["own/twin".parse().unwrap()]);
    let _node = tokio::spawn(ram_provider::run(config, std::future::pending()));
    let (mut session, register) = coordinator.admit(1).await;
    let states = |offers: &[ModelOffer]| offers.iter().map(|offer| offer.state).collect::<Vec<_>>();
    assert_eq!(states(&register.spec.offers), [ModelState::OnDisk, ModelState::Loaded]);
    let free = register.load.memory_free;
    session.say(&run(1, short())).await;
    assert!(session.hear_answer().await.text.contains("Paris"));
    loop {
        if let ToCoordinator::Heartbeat { offers, load, .. } = session.hear().await
            && states(&offers) == [ModelState::Loaded; 2]
        {
            assert!(load.memory_free < free, "what the model took is free no more");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measured_speed_is_told_with_a_heartbeat() {
    let coordinator = Coordinator::listen().await;
    let _node = Node::start(&coordinator);
    let (mut session, _) = coordinator.admit(1).await;
    // Long enough to measure: the prompt has more than eight tokens, and so has the answer.
    let params = GenerationParams { max_tokens: TokenCount::new(40), ..long() };
    session.say(&run(1, params)).await;
    session.hear_answer().await;
    loop {
        if let ToCoordinator::Heartbeat { offers, load, .. } = session.hear().await
            && let Some(speed) = offers[0].speed
        {
            assert!(speed.decode.get() > 0 && speed.prefill.get() > 0);
            assert_eq!((load.running, load.queued, load.slots), (0, 0, 4));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_a_job_and_frees_its_slot() {
    let coordinator = Coordinator::listen().await;
    let _node = Node::start(&coordinator);
    let (mut session, _) = coordinator.admit(1).await;
    session.say(&run(1, long())).await;
    while !matches!(session.hear_news().await, ToCoordinator::Chunk(_)) {}
    session.say(&ToProvider::Cancel { job: JobId::from_bits(1), attempt: Attempt::FIRST }).await;
    let outcome = loop {
        if let ToCoordinator::Finished { outcome, .. } = session.hear_news().await {
            break outcome;
        }
    };
    assert_eq!(outcome, Outcome::Failed { failure: Failure::Cancelled });
    session.say(&run(2, short())).await;
    assert!(session.hear_answer().await.text.contains("Paris"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlong_prompt_is_refused_with_its_length() {
    let coordinator = Coordinator::listen().await;
    let _node = Node::start(&coordinator);
    let (mut session, _) = coordinator.admit(1).await;
    let ToProvider::Run { attempt, mut job, .. } = run(1, short()) else { unreachable!() };
    job.messages = vec![ChatMessage::new(Role::User, "word ".repeat(4000))];
    session.say(&ToProvider::Run { attempt, job, group: None }).await;
    let heard = session.hear_answer().await;
    let Some(Outcome::Failed { failure: Failure::ContextLengthExceeded { prompt, limit } }) = heard.outcome
    else {
        panic!("{heard:?}");
    };
    assert!(prompt > limit && limit == TokenCount::new(1024));
    assert_eq!(heard.prompt, None, "it was never accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_after_its_socket_was_closed() {
    let coordinator = Coordinator::listen().await;
    let _node = Node::start(&coordinator);
    let (mut session, first) = coordinator.admit(1).await;
    session.say(&run(1, long())).await;
    while !matches!(session.hear_news().await, ToCoordinator::Chunk(_)) {}
    drop(session);
    let (mut session, second) = coordinator.admit(2).await;
    assert_eq!(first.statement.node_key, second.statement.node_key);
    assert_ne!(first.signature, second.signature);
    session.say(&run(1, short())).await; // the same attempt again: the run of before is forgotten
    assert!(session.hear_answer().await.text.contains("Paris"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_from_the_coordinator_costs_it_the_connection_alone() {
    let coordinator = Coordinator::listen().await;
    let node = Node::start(&coordinator);
    let garbage = [
        Message::text("{"),
        Message::text(r#"{"type":"run","job":"no job"}"#),
        Message::text(r#"{"type":"registered"}"#),
        Message::binary(vec![0_u8, 159, 146, 150]),
    ];
    for (nonce, frame) in (1..).zip(garbage) {
        let (mut session, _) = coordinator.admit(nonce).await;
        session.socket.send(frame).await.unwrap();
        while session.try_hear().await.is_some() {}
    }
    let (mut session, _) = coordinator.admit(99).await;
    session.say(&run(1, short())).await;
    assert!(session.hear_answer().await.text.contains("Paris"));
    assert!(!node.task.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drains_before_it_stops() {
    let coordinator = Coordinator::listen().await;
    let node = Node::start(&coordinator);
    let (mut session, _) = coordinator.admit(1).await;
    session.say(&run(1, long())).await;
    while !matches!(session.hear_news().await, ToCoordinator::Chunk(_)) {}
    node.stop.send(()).unwrap();
    while !matches!(session.hear_news().await, ToCoordinator::Draining) {}
    session.say(&run(2, short())).await;
    let mut ends = BTreeMap::new();
    while let Some(message) = session.try_hear().await {
        if let ToCoordinator::Finished { job, outcome, .. } = message {
            ends.insert(job.bits(), outcome);
        }
    }
    assert_eq!(ends[&2], Outcome::Failed { failure: Failure::Draining });
    assert!(matches!(ends[&1], Outcome::Done { .. }), "what ran was finished: {:?}", ends[&1]);
    node.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_before_it_connects_stops() {
    let coordinator = Coordinator::listen().await; // which never answers
    let node = Node::start(&coordinator);
    node.stop.send(()).unwrap();
    node.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_over_the_memory_cap_is_refused_with_the_numbers() {
    let coordinator = Coordinator::listen().await;
    let home = tempfile::tempdir().unwrap();
    let mut config = config(home.path(), &coordinator);
    config.memory_cap = Some(Bytes::from_mib(1));
    let error = ram_provider::run(config, std::future::pending()).await.unwrap_err();
    let ProviderError::ModelTooLarge { .. } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains("1.0 MiB") && text.contains("memory cap is too low"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_holds_no_model_is_an_error_that_names_it() {
    let coordinator = Coordinator::listen().await;
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut config = config(home.path(), &coordinator);
    config.models = vec![format!("own/model={}", empty.display()).parse().unwrap()];
    let error = ram_provider::run(config.clone(), std::future::pending()).await.unwrap_err();
    let told = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(told.contains("own/model") && told.contains("config.json"), "{told}");
    assert!(told.contains(&empty.display().to_string()), "{told}");
    config.models = vec!["ram-demo".parse().unwrap(), MODEL.parse().unwrap()];
    let error = ram_provider::run(config, std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ProviderError::ModelTwice { .. }), "{error}");
}
