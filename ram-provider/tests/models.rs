//! `ram-provider models` as an operator meets it: against a hub on loopback, with a cache of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![cfg(unix)]

#[path = "../../ram-infer/tests/hub_server/mod.rs"]
mod hub_server;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use self::hub_server::{Fault, HubServer};

const MODEL: &str = "org/tiny-4bit";

/// A hub with the bundled model under another name, and a machine's folders.
struct Machine {
    hub: HubServer,
    folder: TempDir,
}

fn start() -> Machine {
    let hub = HubServer::start();
    hub.publish(MODEL, ram_infer::demo::FILES.map(|(name, bytes)| (name, bytes.to_vec())));
    Machine { hub, folder: tempfile::tempdir().unwrap() }
}

impl Machine {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("models").args(args);
        command
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ram-provider"));
        for name in
            ["RAM_MEMORY_CAP", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy"]
        {
            command.env_remove(name);
        }
        command
            .env("RAM_HOME", self.folder.path().join("home"))
            .env("HF_HOME", self.folder.path().join("hf"));
        command.env("HF_ENDPOINT", self.hub.endpoint());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().unwrap())
    }

    fn state_of(&self, model: &str) -> Option<Value> {
        let listed: Value = serde_json::from_str(&self.run(&["list", "--json"]).stdout).unwrap();
        let models = listed["models"].as_array().unwrap();
        let found = models.iter().find(|item| item["model"] == model || item["alias"] == model);
        found.map(|item| item["state"].clone())
    }
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn of(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn a_model_is_pulled_listed_and_removed() {
    let machine = start();
    let said = machine.run(&["pull", MODEL]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stdout.starts_with("org/tiny-4bit is in ") && said.stdout.contains("/snapshots/"),
        "{said:?}"
    );
    assert!(
        said.stderr.contains("to come") && said.stderr.contains("100 %"),
        "lines, without a terminal: {said:?}"
    );
    assert_eq!(machine.state_of(MODEL), Some("on disk".into()));

    let table = machine.run(&["list"]).stdout;
    for part in ["MODEL", "ram-demo", "bundled", "org/tiny-4bit", "on disk", "qwen3-8b", "Memory for models"]
    {
        assert!(table.contains(part), "{table} lacks {part:?}");
    }

    let unasked = machine.run(&["remove", MODEL]);
    assert_eq!(unasked.code, Some(2), "nobody can be asked: {unasked:?}");
    assert!(unasked.stderr.contains("--yes"));
    let removed = machine.run(&["remove", MODEL, "--yes"]);
    assert!(removed.code == Some(0) && removed.stdout.contains("MiB"), "{removed:?}");
    assert_eq!(machine.state_of(MODEL), None);
    let again = machine.run(&["remove", MODEL, "ram-demo", "--yes"]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("not in the cache") && again.stderr.contains("part of this program"));
}

#[test]
fn a_cache_whose_name_is_no_text_is_listed_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let machine = start();
    let cache = machine.folder.path().join(std::ffi::OsStr::from_bytes(b"hub-\xff"));
    if std::fs::create_dir(&cache).is_err() {
        return; // this file system takes no such names, as a Mac's does not
    }
    let run = |args: &[&str]| Said::of(machine.command(args).env("HF_HUB_CACHE", &cache).output().unwrap());
    let pulled = run(&["pull", "--json", MODEL]);
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(pulled.events().last().unwrap()["folder"].as_str().unwrap().contains("hub-\u{FFFD}"));
    let listed = run(&["list", "--json"]);
    let told: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(told["cache"].as_str().unwrap().ends_with("hub-\u{FFFD}"), "{listed:?}");
    assert_eq!(run(&["remove", "--json", "--yes", MODEL]).events()[0]["event"], "removed");
}

#[test]
fn a_model_that_a_node_offers_is_not_removed_whether_it_is_loaded_or_not() {
    let machine = start();
    assert_eq!(machine.run(&["pull", MODEL]).code, Some(0));
    for preload in ["first", "none"] {
        let mut command = machine.program();
        command.args(["run", "--model", MODEL, "--preload", preload, "--coordinator", "ws://127.0.0.1:9"]);
        let mut node = command.env("RUST_LOG", "info").spawn().unwrap();
        let mut lines = BufReader::new(node.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("ready")));
        let refused = machine.run(&["remove", MODEL, "--yes"]);
        node.kill().unwrap(); // before anything can fail
        node.wait().unwrap();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(
            refused.stderr.contains("is in use") && refused.stderr.contains("stop the node"),
            "{refused:?}"
        );
        assert_eq!(machine.state_of(MODEL), Some("on disk".into()));
    }
    assert_eq!(machine.run(&["remove", MODEL, "--yes"]).code, Some(0));
}

#[test]
fn programs_read_one_object_a_line() {
    let machine = start();
    let said = machine.run(&["pull", "ram-demo", MODEL, "org/none", "--json"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.stderr, "");
    let events = said.events();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["done", "planned"]);
    assert_eq!(names[names.len() - 2..], ["done", "failed"]);
    let progress = events.iter().rfind(|event| event["event"] == "progress").unwrap();
    assert_eq!(progress["done_bytes"], progress["total_bytes"]);
    assert!(events.last().unwrap()["error"].as_str().unwrap().contains("no model `org/none`"));

    let removed = machine.run(&["remove", "--json", "--yes", MODEL]).events();
    assert_eq!((removed[0]["event"].as_str(), removed[0]["model"].as_str()), (Some("removed"), Some(MODEL)));
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers_unless_forced() {
    let machine = start();
    let cap = ["--memory-cap", "64MiB"];
    let refused = machine.run(&["pull", MODEL, cap[0], cap[1]]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for part in ["too large: needs", "of 64.0 MiB", "memory cap is too low", "--force"] {
        assert!(refused.stderr.contains(part), "{refused:?} lacks {part:?}");
    }
    assert_eq!(machine.state_of(MODEL), None, "nothing was written");
    assert_eq!(machine.run(&["pull", MODEL, cap[0], cap[1], "--force"]).code, Some(0));
}

#[test]
fn a_model_that_the_engine_does_not_know_is_refused() {
    let machine = start();
    let mut files = ram_infer::demo::FILES.map(|(name, bytes)| (name, bytes.to_vec()));
    files[0].1 = br#"{"model_type": "mamba"}"#.to_vec();
    machine.hub.publish(MODEL, files);
    let refused = machine.run(&["pull", MODEL]);
    assert!(refused.code == Some(1) && refused.stderr.contains("`mamba`"), "{refused:?}");
}

#[test]
fn a_refusal_of_the_hub_says_what_to_do() {
    let machine = start();
    machine.hub.plot(|_| Some(Fault::Status(401, vec![("x-error-code", "GatedRepo".to_owned())])));
    let said = machine.run(&["pull", MODEL]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("is gated") && said.stderr.contains("HF_TOKEN"), "{said:?}");
}

#[test]
fn an_interrupt_leaves_what_has_come_and_says_so() {
    let machine = start();
    machine.hub.plot(|seen| seen.path.ends_with("model.safetensors").then_some(Fault::StallAfter(400_000)));
    let mut child = machine.command(&["pull", MODEL, "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let is_under_way = |line: &String| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["file"] == "model.safetensors" && event["file_done_bytes"].as_u64() > Some(0)
    };
    assert!(lines.any(|line| is_under_way(&line)));
    let sent = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(lines.last().unwrap(), r#"{"event":"stopped"}"#);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(machine.state_of(MODEL), Some("partial".into()));

    machine.hub.behave();
    machine.hub.seen();
    assert_eq!(machine.run(&["pull", MODEL]).code, Some(0));
    let range = machine.hub.seen().into_iter().find_map(|seen| seen.range);
    assert!(range.is_some_and(|range| range != "bytes=0-"), "the second run goes on from there");
}

#[test]
fn a_command_that_is_given_wrongly_exits_with_2() {
    let machine = start();
    for args in [&["pull"][..], &["remove", "../x"], &["list", "--memory-cap", "much"], &["fetch"]] {
        assert_eq!(machine.run(args).code, Some(2), "{args:?}");
    }
}
