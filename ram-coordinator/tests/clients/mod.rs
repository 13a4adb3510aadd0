//! Official clients of OpenAI's API against a server: which there are, how they are run, and what is told when not.
//!
//! `RAM_TEST_PYTHON` names a Python with `openai`, `RAM_TEST_NODE` a Node from version 22 on; without them `python3`
//! and `node` are tried. The packages for Node lie beside this file after `npm ci`. A machine without a client skips
//! its suite and says so: the build needs nothing but Rust and a C compiler. A client that is named must be there.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// A guard against a hang: an interpreter on a busy machine takes its time.
const SUITE_AT_MOST: Duration = Duration::from_secs(300);

/// A client, with its suite of cases.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// `openai` for Python.
    Python,
    /// `openai` for Node.
    Node,
    /// Vercel's `ai` with `@ai-sdk/openai-compatible`.
    AiSdk,
}

/// A server, as a suite has to know it.
#[derive(Clone, Debug)]
pub struct Server {
    /// For the report.
    pub name: &'static str,
    /// With `/v1`.
    pub base_url: String,
    /// A key that it takes.
    pub key: String,
    /// A model's alias and full id.
    pub model: [&'static str; 2],
    /// Whether the provider of `scripted.rs` is behind it.
    pub is_scripted: bool,
    /// What it makes of tools.
    pub tools: Tools,
}

/// What a server makes of tools.
#[derive(Clone, Copy, Debug)]
pub enum Tools {
    /// Its model calls them.
    Calls,
    /// Its model's template knows none: requests with tools are refused.
    Refused,
}

/// Runs a client's suite against a server and fails with what the suite says; tells how many cases passed, or that the
/// client is not here.
pub async fn run(client: Client, server: &Server) {
    let Some(mut command) = command(client).await else {
        return tell(&format!("SKIPPED: {client:?} is not installed: it was NOT tried on {}", server.name));
    };
    let flag = |is: bool| if is { "1" } else { "0" };
    command
        .env("OPENAI_BASE_URL", &server.base_url)
        .env("OPENAI_API_KEY", &server.key)
        .env("RAM_TEST_MODEL", server.model[0])
        .env("RAM_TEST_MODEL_ID", server.model[1])
        .env("RAM_TEST_SCRIPTED", flag(server.is_scripted))
        .env(
            "RAM_TEST_TOOLS",
            match server.tools {
                Tools::Calls => "calls",
                Tools::Refused => "refused",
            },
        )
        .kill_on_drop(true);
    let output = timeout(SUITE_AT_MOST, command.output()).await.expect("the suite hangs").unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} with {client:?}:\n{told}\n{errors}", server.name);
    for line in told.lines().filter(|line| !line.starts_with("ok ")) {
        tell(&format!("{} with {client:?}: {line}", server.name));
    }
}

/// What the product's sealed exchange, in version 1 and in plain Web Crypto, gives for a prompt; `None` where there is
/// no Node that is new enough, which is said.
pub async fn sealed_v1(base_url: &str, key: &str, model: &str, prompt: &str) -> Option<String> {
    let named = std::env::var_os("RAM_TEST_NODE");
    let program = named.clone().unwrap_or_else(|| "node".into());
    let probe =
        "crypto.subtle.generateKey({ name: 'X25519' }, true, ['deriveBits']).catch(() => process.exit(1))";
    let mut probing = Command::new(&program);
    probing.args(["-e", probe]).stdout(Stdio::null()).stderr(Stdio::null());
    if !probing.status().await.is_ok_and(|status| status.success()) {
        assert!(named.is_none(), "RAM_TEST_NODE names {program:?}, which has no X25519");
        tell("SKIPPED: no Node with X25519 is installed: the plain Web Crypto client was NOT tried");
        return None;
    }
    let mut command = Command::new(program);
    command
        .arg(folder().join("sealed_v1.mjs"))
        .env("OPENAI_BASE_URL", base_url)
        .env("OPENAI_API_KEY", key)
        .env("RAM_TEST_MODEL", model)
        .env("RAM_TEST_PROMPT", prompt)
        .kill_on_drop(true);
    let output = timeout(SUITE_AT_MOST, command.output()).await.expect("the client hangs").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The command that runs a client's suite, where the client is installed.
///
/// # Panics
/// When the client that the environment names is not.
async fn command(client: Client) -> Option<Command> {
    let here = folder();
    let (variable, usual, probe, script) = match client {
        Client::Python => ("RAM_TEST_PYTHON", "python3", ["-c", "import openai"], "openai_python.py"),
        Client::Node => ("RAM_TEST_NODE", "node", NODE_PROBE, "openai_node.mjs"),
        Client::AiSdk => ("RAM_TEST_NODE", "node", NODE_PROBE, "ai_sdk.mjs"),
    };
    let named = std::env::var_os(variable);
    let program = named.clone().unwrap_or_else(|| usual.into());
    let mut probing = Command::new(&program);
    probing.args(probe).current_dir(&here).stdout(Stdio::null()).stderr(Stdio::null());
    if !probing.status().await.is_ok_and(|status| status.success()) {
        assert!(named.is_none(), "{variable} names {program:?}, which has no client {client:?}");
        return None;
    }
    let mut command = Command::new(program);
    command.arg(here.join(script));
    Some(command)
}

/// Fails on an old Node, and where `npm ci` was not run.
const NODE_PROBE: [&str; 2] = [
    "-e",
    "process.exit(parseInt(process.versions.node) >= 22 && require('fs').existsSync('node_modules/ai') ? 0 : 1)",
];

/// Where the suites lie, also when another crate's tests borrow this file.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ram-coordinator/tests/clients")
}

/// Written past the harness, which would keep the words of a test that passes to itself.
fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}
