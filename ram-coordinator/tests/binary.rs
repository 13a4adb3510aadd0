//! The binary as an operator has it: started, told to stop, killed; its database and its logs afterwards.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fake::{AT_MOST, FakeProvider, question};
use futures::StreamExt;
use ram_coordinator::keys::DEMO_KEY;
use ram_coordinator::run;
use ram_coordinator::store::Store;
use ram_coordinator::store::sqlite::SqliteStore;
use ram_core::units::{Timestamp, XRam};
use ram_proto::control::ToProvider;
use ram_proto::openai::sse;
use ram_proto::routes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// A word that must be found nowhere but on the wire.
const CANARY: &str = "zebra-canary-7391";

/// A coordinator in a process of its own.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
    base_url: String,
    /// What has been read of the log.
    logged: String,
}

impl Process {
    async fn start(database: &Path) -> Self {
        let mut child = coordinator(database)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut logged = String::new();
        let addr = loop {
            let line_begins = logged.len();
            assert!(timeout(AT_MOST, log.read_line(&mut logged)).await.unwrap().unwrap() > 0, "{logged}");
            let line: Value = serde_json::from_str(&logged[line_begins..]).unwrap();
            if let Some(addr) = line["fields"]["addr"].as_str() {
                break addr.to_owned();
            }
        };
        Self { child, log, base_url: format!("http://{addr}"), logged }
    }

    /// Sends a signal.
    async fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().await.unwrap().success());
    }

    /// Reads the log until a line says this.
    async fn logged(&mut self, message: &str) {
        loop {
            let begins = self.logged.len();
            let read = timeout(AT_MOST, self.log.read_line(&mut self.logged)).await.unwrap().unwrap();
            assert!(read > 0, "{message} is not in {}", self.logged);
            let line: Value = serde_json::from_str(&self.logged[begins..]).unwrap();
            if line["fields"]["message"].as_str().is_some_and(|said| said.starts_with(message)) {
                return;
            }
        }
    }

    /// Sends a signal, waits for the end, and answers the exit code and the whole log.
    async fn end(mut self, signal: &str) -> (Option<i32>, String) {
        self.signal(signal).await;
        let status = timeout(AT_MOST, self.child.wait()).await.unwrap().unwrap();
        self.log.read_to_string(&mut self.logged).await.unwrap();
        (status.code(), self.logged)
    }
}

fn coordinator(database: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-coordinator"));
    command.arg("--database").arg(database).env("RAM_LOG", "trace");
    command
}

async fn make_key(database: &Path) -> String {
    let create = ["keys", "create", "--name", "mine", "--credit", "1000", "--json"];
    let output = coordinator(database).args(create).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_killed_coordinator_forgets_no_hold_and_keeps_no_word() {
    let folder = tempfile::tempdir().unwrap();
    let database: PathBuf = folder.path().join("ledger.db");
    let process = Process::start(&database).await;
    let key = make_key(&database).await; // while the coordinator runs
    let mut provider = FakeProvider::join(&process.base_url, 1).await;
    let body = question(json!({ "stream": true, "messages": [{ "role": "user", "content": CANARY }] }));
    let url = format!("{}{}", process.base_url, routes::CHAT_COMPLETIONS);
    let asked = tokio::spawn(reqwest::Client::new().post(url).bearer_auth(&key).json(&body).send());
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, CANARY).await;
    let mut answer = asked.await.unwrap().unwrap().bytes_stream();
    assert!(answer.next().await.unwrap().is_ok());
    let (_, log) = process.end("-KILL").await;

    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in [CANARY, &key] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds what it must not", path.display());
        }
    }
    assert!(!log.contains(CANARY) && !log.contains(&key));

    let store = SqliteStore::open(&database).unwrap();
    let audit = store.audit().await.unwrap();
    assert!(audit.is_sound() && audit.held > XRam::ZERO);
    let later = Timestamp::from_millis(run::now().as_millis() + 3_600_000);
    assert_eq!(store.resolve_expired(later).await.unwrap(), 1);
    assert_eq!(store.keys().await.unwrap()[0].1, XRam::from_xram(1000));
}

#[tokio::test]
async fn a_coordinator_that_is_told_to_stop_ends_well() {
    let process = Process::start(Path::new(":memory:")).await;
    let _idle = FakeProvider::join(&process.base_url, 1).await;
    let health = reqwest::get(format!("{}{}", process.base_url, routes::HEALTH)).await.unwrap();
    assert_eq!(health.status(), 200);
    let (code, log) = process.end("-TERM").await;
    assert_eq!(code, Some(0), "{log}");
}

/// A question to the process, under the demo key.
fn ask(process: &Process, body: &Value) -> tokio::task::JoinHandle<reqwest::Response> {
    let url = format!("{}{}", process.base_url, routes::CHAT_COMPLETIONS);
    let request = reqwest::Client::new().post(url).bearer_auth(DEMO_KEY).json(body);
    tokio::spawn(async move { request.send().await.unwrap() })
}

#[tokio::test]
async fn a_signal_lets_running_answers_end_and_takes_no_more() {
    let mut process = Process::start(Path::new(":memory:")).await;
    let mut provider = FakeProvider::join(&process.base_url, 1).await;
    let asked = ask(&process, &question(json!({ "stream": true })));
    let mut run = provider.run().await;
    provider.accept(&run).await;
    provider.write(&mut run, "Par").await;
    let answer = asked.await.unwrap();
    process.signal("-TERM").await;
    assert_eq!(provider.hear().await, Some(ToProvider::Drain));

    let ready = reqwest::get(format!("{}{}", process.base_url, routes::READY)).await.unwrap();
    assert_eq!(ready.status(), 503);
    let checks: Value = ready.json().await.unwrap();
    assert!(checks["checks"].as_array().unwrap().contains(&json!({ "name": "accepting", "ok": false })));
    let refused = ask(&process, &question(json!({}))).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));

    provider.write(&mut run, "is").await;
    provider.finish(&run).await;
    assert!(answer.text().await.unwrap().ends_with(sse::DONE));
    process.logged("the coordinator has stopped").await;
    assert_eq!(timeout(AT_MOST, process.child.wait()).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_says_so() {
    let mut process = Process::start(Path::new(":memory:")).await;
    let mut provider = FakeProvider::join(&process.base_url, 1).await;
    let asked = ask(&process, &question(json!({})));
    let run = provider.run().await;
    provider.accept(&run).await;
    process.signal("-TERM").await;
    process.logged("stopping").await;
    process.signal("-INT").await;
    assert_eq!(timeout(AT_MOST, process.child.wait()).await.unwrap().unwrap().code(), Some(3));
    asked.abort();
}

#[tokio::test]
async fn at_its_most_talkative_the_log_holds_no_word_and_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("ledger.db");
    let process = Process::start(&database).await;
    let key = make_key(&database).await;
    let admin = std::fs::read_to_string(folder.path().join("ledger.admin-key")).unwrap();
    let mut provider = FakeProvider::join(&process.base_url, 1).await;
    let body =
        question(json!({ "messages": [{ "role": "user", "content": format!("say {CANARY}-asked") }] }));
    let url = format!("{}{}", process.base_url, routes::CHAT_COMPLETIONS);
    let request = || {
        let request = reqwest::Client::new().post(&url).bearer_auth(&key).json(&body);
        request.header("idempotency-key", format!("{CANARY}-key")).header("x-client-request-id", CANARY)
    };
    let asked = tokio::spawn(request().send());
    provider.answer(&[&format!("{CANARY}-told")]).await;
    assert!(asked.await.unwrap().unwrap().text().await.unwrap().contains(CANARY));
    assert_eq!(request().send().await.unwrap().status(), 200);
    for broken in [format!("{{\"model\":\"{CANARY}"), json!({ "model": CANARY, "messages": [] }).to_string()]
    {
        reqwest::Client::new().post(&url).bearer_auth(&key).body(broken).send().await.unwrap();
    }
    reqwest::get(format!("{}/{CANARY}", process.base_url)).await.unwrap();
    reqwest::Client::new().get(&url).bearer_auth(CANARY).send().await.unwrap();
    let (code, log) = process.end("-TERM").await;
    assert_eq!(code, Some(0));
    assert!(log.contains("job done") && log.contains("\"DEBUG\"") && log.contains(routes::CHAT_COMPLETIONS));
    for secret in [CANARY, &key, admin.trim()] {
        assert!(!log.contains(secret), "{log}");
    }
}
