//! The local server under siege: half-sent requests, bodies without end, readers who do not read, more askers than
//! there is room for. Nothing is timed; whoever behaves is simply served while the siege stands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod phrases;

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use ram_core::units::Bytes;
use ram_provider::config::{ModelChoice, Preload, ProviderConfig};
use ram_provider::hardware;
use ram_provider::local::{LocalConfig, LocalLimits, LocalServer};
use ram_provider::worker::Worker;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A guard against a hang.
const AT_MOST: Duration = Duration::from_secs(60);
/// Ten times what a body may have, in bytes.
const ENDLESS: usize = 80 << 20;

/// A server in a task of this process; it stops when this is dropped.
struct Server {
    address: SocketAddr,
    client: Client,
    _stop: oneshot::Sender<()>,
    _home: tempfile::TempDir,
}

impl Server {
    async fn start(change: impl FnOnce(&mut ProviderConfig, &mut LocalLimits)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = ProviderConfig::new(home.path());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut local = LocalConfig { listen, ..LocalConfig::default() };
        change(&mut config, &mut local.limits);
        let server = LocalServer::start(config, local).await.unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));
        Self { address, client: Client::new(), _stop: stop, _home: home }
    }

    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn ask(&self, body: &Value) -> Response {
        let request = self.client.post(format!("http://{}/v1/chat/completions", self.address));
        timeout(AT_MOST, request.json(body).send()).await.unwrap().unwrap()
    }

    /// A request that waits for its place is served once there is one.
    async fn ask_until_served(&self, body: &Value) {
        let served = async { while self.ask(body).await.status() != StatusCode::OK {} };
        timeout(AT_MOST, served).await.unwrap();
    }
}

fn question(model: &str, content: &str) -> Value {
    let messages = json!([{ "role": "user", "content": content }]);
    json!({ "model": model, "messages": messages, "max_tokens": 8 })
}

/// A question whose answer fills the context: the token that would end it is out of reach.
fn endless() -> Value {
    let mut body = question("ram-demo", "What is the capital of France?");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(100_000);
    body["logit_bias"] = json!({ "1": -100 });
    body
}

fn head(more: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\n{more}")
}

/// The status of an answer, as the first line tells it.
async fn status(socket: &mut TcpStream) -> Option<u16> {
    let mut line = [0; 12];
    timeout(AT_MOST, socket.read_exact(&mut line)).await.unwrap().ok()?;
    std::str::from_utf8(&line[9..]).ok()?.parse().ok()
}

/// Heads that nobody ends.
fn half_heads() -> Vec<String> {
    vec![String::new(), head(""), head("x-half: ")]
}

/// Bodies that nobody ends.
fn half_bodies() -> Vec<String> {
    let announced = head("content-length: 100\r\n\r\n{\"model\":");
    vec![announced, head("transfer-encoding: chunked\r\n\r\n5\r\n{\"mod")]
}

/// So many requests of these kinds, one after the other.
async fn send(server: &Server, kinds: &[String], many: usize) -> Vec<TcpStream> {
    let mut halves = Vec::new();
    for number in 0..many {
        let mut socket = server.open().await;
        socket.write_all(kinds[number % kinds.len()].as_bytes()).await.unwrap();
        halves.push(socket);
    }
    halves
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_stand_while_others_are_served() {
    let server = Server::start(|_, _| {}).await;
    let standing = send(&server, &[half_heads(), half_bodies()].concat(), 80).await;
    let body = question("ram-demo", "What is the capital of France?");
    for answer in join_all((0..8).map(|_| server.ask(&body))).await {
        assert_eq!(answer.status(), StatusCode::OK);
    }
    drop(standing);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_heads_that_take_every_place_are_cut_off() {
    let server = Server::start(|_, limits| {
        limits.connections_max = 4;
        limits.head_within = Duration::from_secs(1);
    })
    .await;
    let standing = send(&server, &half_heads(), 8).await;
    let answer = server.ask(&question("ram-demo", "What is the capital of France?")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    drop(standing);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_a_body_without_end_hears_why_it_is_refused() {
    let server = Server::start(|_, _| {}).await;
    let page = "x".repeat(1 << 20);
    for chunked in [false, true] {
        let length = format!("content-length: {ENDLESS}");
        let more = if chunked { "transfer-encoding: chunked" } else { length.as_str() };
        let mut socket = server.open().await;
        socket.write_all(head(&format!("{more}\r\n\r\n")).as_bytes()).await.unwrap();
        for _ in 0..ENDLESS >> 20 {
            let framed = if chunked { format!("{:x}\r\n{page}\r\n", page.len()) } else { page.clone() };
            timeout(AT_MOST, socket.write_all(framed.as_bytes())).await.unwrap().unwrap();
        }
        assert_eq!(status(&mut socket).await, Some(413), "chunked: {chunked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_frees_its_model() {
    let dir = tempfile::tempdir().unwrap();
    phrases::write_pages(dir.path());
    let server = Server::start(|config, limits| {
        let pages = ModelChoice { model: "pages".parse().unwrap(), path: Some(dir.path().to_owned()) };
        config.models.insert(0, pages);
        config.preload = Preload::None;
        limits.write_stall = Duration::from_secs(1);
        // Only one of both fits, so that the other comes into memory once nobody uses the first.
        let worker = Worker::open(config, &hardware::probe().unwrap()).unwrap();
        let needs: Vec<u64> = worker.views().iter().map(|model| model.needs.unwrap().get()).collect();
        config.memory_cap = Some(Bytes::new(needs[0].max(needs[1]) + needs[0].min(needs[1]) / 2));
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(server.address).await.unwrap();
    let mut body = question("pages", "Write.");
    let wish = json!({ "stream": true, "max_tokens": 100, "temperature": 0, "logprobs": true, "n": 2 });
    body.as_object_mut().unwrap().extend(wish.as_object().unwrap().clone());
    let body = body.to_string();
    let request = head(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    deaf.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(status(&mut deaf).await, Some(200), "its answer has begun");
    let answer = server.ask(&question("ram-demo", "What is the capital of France?")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut rest = Vec::new();
    let ended = timeout(AT_MOST, deaf.read_to_end(&mut rest)).await.unwrap();
    assert!(ended.is_err() || !rest.ends_with(b"0\r\n\r\n"), "it got all of its {} bytes", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_more_than_there_is_room_for_is_told_when_to_come_again() {
    let server = Server::start(|_, limits| limits.answers_max = 2).await;
    let mut several = question("ram-demo", "What is the capital of France?");
    let mut open = server.ask(&endless()).await;
    assert!(open.chunk().await.unwrap().is_some());
    several["n"] = json!(2);
    let refused = server.ask(&several).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "each choice is an answer");
    assert!(refused.headers().contains_key("retry-after"));
    drop(open);
    server.ask_until_served(&several).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_conversations_have_so_much_room_and_short_ones_always_pass() {
    let server = Server::start(|_, limits| limits.prompt_bytes_max = 1 << 20).await;
    let mut long = question("ram-demo", &"word ".repeat(150_000));
    let told = async |body: &Value| server.ask(body).await.status();
    assert_eq!(
        told(&long).await,
        StatusCode::BAD_REQUEST,
        "one has room, though the model's context is short"
    );
    long["n"] = json!(2);
    assert_eq!(told(&long).await, StatusCode::SERVICE_UNAVAILABLE, "each choice has a copy");
    let longer = question("ram-demo", &"word ".repeat(300_000));
    assert_eq!(told(&longer).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(told(&question("ram-demo", "Hello")).await, StatusCode::OK);
}
