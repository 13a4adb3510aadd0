//! The binary as an operator has it: started, told to stop, killed; its database and its logs afterwards.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fake::{AT_MOST, FakeProvider, question};
use futures::StreamExt;
use ram_coordinator::run;
use ram_coordinator::store::Store;
use ram_coordinator::store::sqlite::SqliteStore;
use ram_core::units::{Timestamp, XRam};
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

    /// Sends a signal, waits for the end, and answers the exit code and the whole log.
    async fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().await.unwrap().success());
        let status = timeout(AT_MOST, self.child.wait()).await.unwrap().unwrap();
        self.log.read_to_string(&mut self.logged).await.unwrap();
        (status.code(), self.logged)
    }
}

fn coordinator(database: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-coordinator"));
    command.arg("--database").arg(database).env("RUST_LOG", "debug");
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
