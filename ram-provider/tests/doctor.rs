//! `ram-provider doctor` as an operator meets it: exit codes, names of checks, and no black hole that holds it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use ram_core::id::NodeKey;
use ram_crypto::identity::NodeIdentity;
use ram_provider::doctor::CheckId;
use serde_json::Value;

/// A coordinator that answers each path as it is told to.
struct Coordinator {
    url: String,
}

impl Coordinator {
    /// `answers` are status, path and body; all other paths are 404.
    fn scripted(answers: Vec<(u16, String, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                while lines.next().is_some_and(|line| !line.is_empty()) {}
                let path = request.split(' ').nth(1).unwrap_or_default();
                let known = answers.iter().find(|(_, known, _)| known == path);
                let (status, body) = known.map_or((404, ""), |(status, _, body)| (*status, body));
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { url }
    }

    /// A sound one, and what it says of the node in `home`.
    fn explaining(home: &Path, explain: &str) -> Self {
        let identity = NodeIdentity::open_or_create(home).unwrap();
        let provider = NodeKey::from_bytes(identity.node_public()).provider_id();
        let view = format!(r#"{{"id": "{provider}", "explain": {explain}}}"#);
        let answer = |path: &str, body: &str| (200, path.to_owned(), body.to_owned());
        Self::scripted(vec![
            answer("/health", r#"{"status": "ok", "version": "0.1.0"}"#),
            answer("/readyz", r#"{"ready": true, "checks": []}"#),
            answer(&format!("/api/v1/providers/{provider}?explain=1"), &view),
        ])
    }
}

/// Runs the doctor and reads its report.
fn doctor(home: &Path, coordinator: &str, args: &[&str]) -> (Value, Option<i32>) {
    let Output { status, stdout, stderr } = command(home, coordinator, args).arg("--json").output().unwrap();
    let report = serde_json::from_slice(&stdout);
    (report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&stderr))), status.code())
}

fn command(home: &Path, coordinator: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-provider"));
    for name in ["RAM_MODELS", "RAM_MEMORY_CAP", "RAM_SLOTS", "RAM_PRELOAD", "RAM_PREVENT_SLEEP", "RUST_LOG"]
    {
        command.env_remove(name);
    }
    command.args(["doctor", "--coordinator", coordinator, "--home"]).arg(home).args(args);
    command
}

fn check<'a>(report: &'a Value, id: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{id} is not in {report}"))
}

fn outcome(report: &Value, id: &str) -> String {
    check(report, id)["outcome"].as_str().unwrap().to_owned()
}

#[test]
fn a_sound_node_passes_and_every_check_is_there_once() {
    let home = tempfile::tempdir().unwrap();
    let explain = r#"[{"model": "ram-aggregator/ram-demo-4bit", "would_serve": true, "refusal": null, "why": null, "queued": 0}]"#;
    let coordinator = Coordinator::explaining(home.path(), explain);
    let (report, code) = doctor(home.path(), &coordinator.url, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    let ids: Vec<&str> =
        report["checks"].as_array().unwrap().iter().map(|check| check["id"].as_str().unwrap()).collect();
    assert_eq!(ids, CheckId::ALL.map(CheckId::as_str));
    for id in ["engine.smoke", "models.fit", "coordinator.reachable", "coordinator.ready", "node.eligible"] {
        assert_eq!(outcome(&report, id), "pass", "{report:#}");
    }
    assert_eq!(outcome(&report, "node.running"), "skipped");
    assert_eq!(report["summary"]["failed"], 0);
}

#[test]
fn a_node_without_work_hears_the_coordinators_own_reason() {
    let home = tempfile::tempdir().unwrap();
    let explain = r#"[{"model": "a/b", "would_serve": false, "refusal": {"reason": "thermal_critical"}, "why": "it is too hot", "queued": 2}]"#;
    let coordinator = Coordinator::explaining(home.path(), explain);
    let (report, code) = doctor(home.path(), &coordinator.url, &[]);
    assert_eq!((outcome(&report, "node.eligible").as_str(), code), ("fail", Some(1)));
    let says = check(&report, "node.eligible")["says"].as_str().unwrap();
    assert!(says.contains("`a/b`") && says.contains("it is too hot"), "{says}");
}

#[test]
fn a_dead_coordinator_fails_and_what_hangs_on_it_is_skipped() {
    let home = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (report, code) = doctor(home.path(), &format!("ws://{closed}"), &[]);
    assert_eq!(code, Some(1));
    assert_eq!(outcome(&report, "coordinator.reachable"), "fail");
    assert!(check(&report, "coordinator.reachable")["next"].as_str().unwrap().contains(&closed.to_string()));
    for id in ["coordinator.tls", "coordinator.clock", "coordinator.ready", "node.eligible"] {
        assert_eq!(outcome(&report, id), "skipped");
    }
    assert_eq!(outcome(&report, "engine.smoke"), "pass", "the machine itself is well");
}

#[test]
fn a_black_hole_does_not_hold_the_doctor() {
    let home = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap(); // takes connections and never says a word
    let (report, code) = doctor(home.path(), &format!("ws://{}", silent.local_addr().unwrap()), &[]);
    assert_eq!((code, outcome(&report, "coordinator.reachable").as_str()), (Some(1), "fail"));
    let says = check(&report, "coordinator.reachable")["says"].as_str().unwrap();
    assert!(says.contains("no answer within 4 s"), "{says}");
}

#[test]
fn a_broken_handshake_is_told_apart_from_silence() {
    let home = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let greeting = BufReader::new(stream.try_clone().unwrap()).fill_buf().map(<[u8]>::len);
            // As a server does that knows plain HTTP alone.
            let _ = greeting.and_then(|_| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let (report, code) = doctor(home.path(), &url, &[]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(outcome(&report, "coordinator.tls"), "fail", "{report:#}");
}

#[test]
fn a_coordinator_that_is_not_ready_names_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let ready = r#"{"ready": false, "checks": [{"name": "store", "ok": false}, {"name": "x", "ok": true}]}"#;
    let answers =
        vec![(200, "/health".to_owned(), "{}".to_owned()), (503, "/readyz".to_owned(), ready.to_owned())];
    let (report, code) = doctor(home.path(), &Coordinator::scripted(answers).url, &[]);
    assert_eq!((outcome(&report, "coordinator.ready").as_str(), code), ("fail", Some(1)));
    assert_eq!(check(&report, "coordinator.ready")["says"], "it is not ready: store");
}

#[test]
fn a_warning_is_a_failure_only_to_the_strict() {
    let home = tempfile::tempdir().unwrap();
    let answer = |path: &str| (200, path.to_owned(), "{}".to_owned());
    let coordinator = Coordinator::scripted(vec![answer("/health"), answer("/readyz")]);
    let bad = format!("bad={}", home.path().display());
    let models = ["--model", "ram-demo", "--model", bad.as_str()];
    let (report, code) = doctor(home.path(), &coordinator.url, &models);
    assert_eq!((outcome(&report, "models.format").as_str(), code), ("warn", Some(0)), "{report:#}");
    assert_eq!(doctor(home.path(), &coordinator.url, &[&models[..], &["--strict"]].concat()).1, Some(1));
}

#[test]
fn the_table_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.json"), r#"{"slots": 0}"#).unwrap();
    let args = ["--memory-cap", "1MiB"];
    let output = command(home.path(), "ws://127.0.0.1:1", &args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    for part in ["✗ valid", "`slots`", "✗ fit", "of 1.0 MiB", "→ nothing is left to serve", "failed"] {
        assert!(table.contains(part), "{table}\nlacks {part:?}");
    }
    assert!(!table.contains('\x1b'), "no colours for a pipe");
}
