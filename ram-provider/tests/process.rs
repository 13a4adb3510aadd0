//! The binary as an operator meets it: signals, exit codes, what it prints.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![cfg(unix)]

use std::process::{Output, Stdio};

use futures::{SinkExt, StreamExt};
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, Epoch, JobId};
use ram_core::job::{GenerationParams, Job, Sampling};
use ram_core::units::TokenCount;
use ram_proto::control::{Capabilities, Decoded, Nonce, ToCoordinator, ToProvider, decode, encode};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

fn provider(home: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-provider"));
    command.args(args).arg("--home").arg(home.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    for name in
        ["RAM_HOME", "RAM_MODELS", "RAM_COORDINATOR", "RAM_WALLET", "RAM_NAME", "RAM_MEMORY_CAP", "RUST_LOG"]
    {
        command.env_remove(name);
    }
    command
}

async fn signal(child: &Child, name: &str) {
    let process = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-s", name, &process]).status().await.unwrap();
    assert!(sent.success());
}

async fn say(socket: &mut WebSocketStream<TcpStream>, message: &ToProvider) {
    socket.send(Message::text(encode(message))).await.unwrap();
}

/// The next message; `None` when the provider closes.
async fn hear(socket: &mut WebSocketStream<TcpStream>) -> Option<ToCoordinator> {
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) => match decode(&text).unwrap() {
                Decoded::Known(message) => return Some(message),
                Decoded::Unknown { of } => panic!("an unknown message: {of}"),
            },
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The binary, registered with a coordinator that is this test.
async fn registered(home: &tempfile::TempDir) -> (Child, WebSocketStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let child = provider(home, &["run", "--coordinator", &url]).spawn().unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let challenge = ToProvider::Challenge {
        network: 84_530,
        coordinator: "c".to_owned(),
        nonce: Nonce::from_bytes([1; 32]),
        capabilities: Capabilities::ours(),
    };
    say(&mut socket, &challenge).await;
    let Some(ToCoordinator::Register(register)) = hear(&mut socket).await else { panic!("it registers") };
    let provider = register.statement.node_key.provider_id();
    let (epoch, capabilities) = (Epoch::new(1), Capabilities::ours());
    say(&mut socket, &ToProvider::Registered { provider, epoch, heartbeat_ms: 100, capabilities }).await;
    while !matches!(hear(&mut socket).await, Some(ToCoordinator::Heartbeat { .. })) {}
    (child, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_terminate_drains_and_exits_with_success() {
    let home = tempfile::tempdir().unwrap();
    let (child, mut socket) = registered(&home).await;
    signal(&child, "TERM").await;
    let mut last = None;
    while let Some(message) = hear(&mut socket).await {
        last = Some(message);
    }
    assert_eq!(last, Some(ToCoordinator::Draining));
    let Output { status, stderr, .. } = child.wait_with_output().await.unwrap();
    assert!(status.success(), "{}", text(&stderr));
    assert!(text(&stderr).contains("registered as p_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait_for_what_runs() {
    let home = tempfile::tempdir().unwrap();
    let (child, mut socket) = registered(&home).await;
    // Four answers that fill the context: the token that would end them is out of reach.
    let sampling = Sampling { logit_bias: [(1, -100.0)].into(), ..Sampling::default() };
    let params = GenerationParams { max_tokens: TokenCount::new(10_000), stop: Vec::new(), sampling };
    for number in 0..4 {
        let (id, model) = (JobId::from_bits(number), "ram-aggregator/ram-demo-4bit".parse().unwrap());
        let job =
            Job::new(id, model, vec![ChatMessage::new(Role::User, "a secret question")], params.clone());
        say(&mut socket, &ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job) }).await;
    }
    while !matches!(hear(&mut socket).await, Some(ToCoordinator::Chunk(_))) {}
    signal(&child, "INT").await;
    while !matches!(hear(&mut socket).await, Some(ToCoordinator::Draining)) {}
    signal(&child, "INT").await;
    let Output { status, stdout, stderr } = child.wait_with_output().await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", text(&stderr));
    for said in [stdout, stderr] {
        assert!(!text(&said).contains("secret"), "no word of a prompt is logged: {}", text(&said));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_printed_as_it_was_put_together() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.json"), r#"{"name": "file", "slots": 2, "colour": "red"}"#)
        .unwrap();
    let mut command = provider(&home, &["run", "--slots", "3", "--print-config"]);
    let Output { status, stdout, stderr } =
        command.env("RAM_NAME", "environment").env("RAM_SLOTS", "9").output().await.unwrap();
    assert!(status.success());
    let config: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(config["name"], "environment", "the environment goes before the file");
    assert_eq!(config["slots"], 3, "a flag goes before the environment");
    assert_eq!(config["models"], serde_json::json!(["ram-demo"]));
    assert!(text(&stderr).contains("colour"), "an unknown field is told: {}", text(&stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_file_is_said_and_ends_the_process() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.json"), r#"{"wallet": "0x12"}"#).unwrap();
    let Output { status, stderr, .. } = provider(&home, &["run"]).output().await.unwrap();
    assert_eq!(status.code(), Some(1));
    let said = text(&stderr);
    assert!(said.contains("config.json") && said.contains("`wallet`") && said.contains("40 hex"), "{said}");
}
