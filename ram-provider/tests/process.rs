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

/// The environment variables that the binary reads.
const VARIABLES: [&str; 10] = [
    "RAM_HOME",
    "RAM_MODELS",
    "RAM_PRELOAD",
    "RAM_COORDINATOR",
    "RAM_WALLET",
    "RAM_NAME",
    "RAM_MEMORY_CAP",
    "RAM_SLOTS",
    "RAM_PREVENT_SLEEP",
    "RUST_LOG",
];

fn provider(home: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-provider"));
    command.args(args).arg("--home").arg(home.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    for name in VARIABLES {
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
    registered_with(provider(home, &["run"])).await
}

async fn registered_with(mut command: Command) -> (Child, WebSocketStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let child = command.args(["--coordinator", &url]).spawn().unwrap();
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
    let params = GenerationParams::new(TokenCount::new(10_000), sampling);
    for number in 0..4 {
        let (id, model) = (JobId::from_bits(number), "ram-aggregator/ram-demo-4bit".parse().unwrap());
        let job =
            Job::new(id, model, vec![ChatMessage::new(Role::User, "a secret question")], params.clone());
        say(&mut socket, &ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group: None }).await;
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

/// What `ram-provider status --json` says, and its exit code.
async fn status(home: &tempfile::TempDir) -> (serde_json::Value, Option<i32>) {
    let Output { status, stdout, stderr } = provider(home, &["status", "--json"]).output().await.unwrap();
    let told = serde_json::from_slice(&stdout);
    (told.unwrap_or_else(|_| panic!("{}", text(&stderr))), status.code())
}

/// Asks until the status is as wanted: the node writes it in the background.
async fn status_when(
    home: &tempfile::TempDir,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    loop {
        let (told, code) = status(home).await;
        if wanted(&told["status"]) {
            assert_eq!(code, Some(0));
            return told["status"].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_follows_the_node_from_its_start_past_its_end() {
    let home = tempfile::tempdir().unwrap();
    let (told, code) = status(&home).await;
    assert_eq!((&told["running"], &told["status"], code), (&false.into(), &serde_json::Value::Null, Some(3)));
    let (child, mut socket) = registered(&home).await;
    let seen = status_when(&home, |status| status["standing"]["state"] == "registered").await;
    assert_eq!(seen["pid"], child.id().unwrap());
    let model = &seen["models"][0];
    assert_eq!(
        (&model["model"], &model["state"]),
        (&"ram-aggregator/ram-demo-4bit".into(), &"loaded".into())
    );
    assert_eq!(seen["sleep"]["state"], "off");
    let params = GenerationParams::new(TokenCount::new(8), Sampling::default());
    let (id, model) = (JobId::from_bits(1), "ram-aggregator/ram-demo-4bit".parse().unwrap());
    let job = Job::new(id, model, vec![ChatMessage::new(Role::User, "a secret question")], params);
    say(&mut socket, &ToProvider::Run { attempt: Attempt::FIRST, job: Box::new(job), group: None }).await;
    let seen = status_when(&home, |status| status["jobs"]["done"] == 1).await;
    assert!(seen["jobs"]["tokens_written"].as_u64() > Some(0));
    let file = std::fs::read_to_string(home.path().join("status.json")).unwrap();
    assert!(!file.contains("secret"), "{file}");
    let table = provider(&home, &["status"]).output().await.unwrap();
    assert!(text(&table.stdout).contains("registered for"), "{}", text(&table.stdout));
    signal(&child, "TERM").await;
    while hear(&mut socket).await.is_some() {}
    assert!(child.wait_with_output().await.unwrap().status.success());
    let (told, code) = status(&home).await;
    assert_eq!(
        (code, &told["running"], &told["status"]["standing"]["state"]),
        (Some(3), &false.into(), &"stopped".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_takes_one_node_and_is_free_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let (mut first, _socket) = registered(&home).await;
    let second = provider(&home, &["run"]).output().await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains(&format!("process {}", first.id().unwrap())) && said.contains("--home"), "{said}");
    first.kill().await.unwrap();
    assert_eq!(status(&home).await.1, Some(3));
    let table = provider(&home, &["status"]).output().await.unwrap();
    assert!(text(&table.stdout).contains("did not end cleanly"), "{}", text(&table.stdout));
    registered(&home).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_leaves_the_reason_in_its_status() {
    let home = tempfile::tempdir().unwrap();
    let refused = provider(&home, &["run", "--memory-cap", "1MiB"]).output().await.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("of 1.0 MiB"), "{}", text(&refused.stderr));
    let (told, code) = status(&home).await;
    assert_eq!(code, Some(3));
    assert!(told["status"]["last_error"]["what"].as_str().unwrap().contains("of 1.0 MiB"), "{told}");
}

/// A folder for the front of PATH that holds a tool of this name.
#[cfg(target_os = "linux")]
fn path_with(dir: &std::path::Path, name: &str, script: &str) -> std::ffi::OsString {
    use std::os::unix::fs::PermissionsExt;
    let tool = dir.join(name);
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let paths = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    std::env::join_paths([dir.to_owned()].into_iter().chain(paths)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn a_machine_is_kept_awake_for_as_long_as_its_node_lives() {
    let (home, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Holds a pipe open for as long as it runs, and runs its command as the real tool does.
    let pipe = tools.path().join("awake");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let script = format!("#!/bin/sh\nexec 3> {}\nprintf '%s\\n' \"$*\" >&3\ncat\n", pipe.display());
    let path = path_with(tools.path(), "systemd-inhibit", &script);
    let held = tokio::task::spawn_blocking(move || std::fs::read_to_string(pipe).unwrap());
    let mut command = provider(&home, &["run", "--prevent-sleep"]);
    command.env("PATH", path);
    let (mut child, _socket) = registered_with(command).await;
    let seen = status_when(&home, |status| status["sleep"]["state"] != "off").await;
    assert_eq!((&seen["sleep"]["state"], &seen["sleep"]["by"]), (&"held".into(), &"systemd-inhibit".into()));
    assert!(!held.is_finished());
    child.kill().await.unwrap(); // without a chance to tidy up
    let args = held.await.unwrap();
    assert!(args.contains("--what=sleep:idle") && args.contains("--mode=block"), "{args}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn a_machine_that_cannot_be_kept_awake_says_why() {
    let (home, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = path_with(tools.path(), "systemd-inhibit", "#!/bin/sh\necho no logind here >&2\nexit 1\n");
    let mut command = provider(&home, &["run"]);
    command.env("PATH", path).env("RAM_PREVENT_SLEEP", "true");
    let (_child, _socket) = registered_with(command).await;
    let seen = status_when(&home, |status| status["sleep"]["state"] != "off").await;
    assert_eq!(seen["sleep"]["state"], "not_available");
    assert!(seen["sleep"]["why"].as_str().unwrap().contains("no logind here"), "{seen}");
}
