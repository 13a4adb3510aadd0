//! What coordinator and wire add: the same requests to a provider alone and through the network, in turn, in one run.
//!
//! ```text
//! cargo run --release -p ram-coordinator --example overhead
//! ```
//!
//! Two processes serve the same bundled model: `ram-provider local` (HTTP, engine) and a provider behind a coordinator
//! (HTTP, authentication, hold, routing, WebSocket, engine, settlement; the ledger is a SQLite file that is synced to
//! disk two or three times a job). What the second takes longer is what the network costs. Printed are medians and
//! 99th percentiles; quote the differences, not the absolute times, for they are this machine's.

#![expect(clippy::print_stdout, reason = "it is a program for a terminal")]
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use futures::StreamExt;
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{KeyKind, NewKey};
use ram_coordinator::{Running, run};
use ram_core::units::XRam;
use ram_proto::routes;
use ram_provider::config::ProviderConfig;
use ram_provider::local::LocalConfig;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

/// What coordinator and wire add.
#[derive(Debug, Parser)]
struct Args {
    /// Requests of each kind to each server
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true, requires = "home")]
    role: Option<Role>,
    #[arg(long, hide = true)]
    home: Option<std::path::PathBuf>,
    #[arg(long, hide = true)]
    coordinator: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Local,
    Provider,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let (Some(role), Some(home)) = (args.role, &args.home) {
        return play(role, home, args.coordinator).await;
    }
    let folder = tempfile::tempdir()?;
    let started = Instant::now();
    let coordinator = start_coordinator(folder.path()).await?;
    let coordinator_up = started.elapsed();
    let new = NewKey { kind: KeyKind::Live, name: "bench".to_owned(), credit: XRam::from_xram(1_000_000) };
    let (_, key) = coordinator.keys.create(new, run::now()).await?;

    let started = Instant::now();
    let provider = spawn(Role::Provider, &folder.path().join("provider"), Some(&coordinator.base_url()))?;
    wait_for_provider(&coordinator).await?;
    let provider_up = started.elapsed();
    let mut local = spawn(Role::Local, &folder.path().join("local"), None)?;
    let local_url = first_line(&mut local).await?;

    let targets = [
        Target { name: "provider alone", url: local_url, key: String::new() },
        Target { name: "through the network", url: coordinator.base_url(), key: key.reveal().to_owned() },
    ];
    let show = Show { json: args.json };
    show.figure("coordinator up, ms", millis(coordinator_up));
    show.figure("provider up and registered, ms", millis(provider_up));
    for kind in [Kind { max_tokens: 1, stream: false }, Kind { max_tokens: 64, stream: true }] {
        show.kind(&kind, &measure(&targets, &kind, args.requests).await?);
    }
    show.figure("coordinator (this process), MiB", resident_mib("self"));
    show.figure("provider, MiB", provider.id().map_or(f64::NAN, |pid| resident_mib(&pid.to_string())));
    coordinator.shutdown().await;
    Ok(())
}

/// A server in a process of its own, until the parent is gone.
async fn play(role: Role, home: &Path, coordinator: Option<String>) -> anyhow::Result<()> {
    let parent_gone = async {
        let mut byte = [0];
        while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
    };
    let mut config = ProviderConfig::new(home);
    match role {
        Role::Local => {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let local = LocalConfig { listen, ..LocalConfig::default() };
            let server = ram_provider::local::LocalServer::start(config, local).await?;
            println!("http://{}", server.address());
            server.serve(parent_gone).await;
        }
        Role::Provider => {
            config.coordinator = coordinator.context("a provider needs a coordinator")?.parse()?;
            ram_provider::run(config, parent_gone).await?;
        }
    }
    Ok(())
}

async fn start_coordinator(folder: &Path) -> anyhow::Result<Running> {
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        database: Database::File(folder.join("coordinator.db")),
        ..Config::default()
    };
    Ok(ram_coordinator::start(config).await?)
}

fn spawn(role: Role, home: &Path, coordinator: Option<&str>) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let name = role.to_possible_value().context("every role has a name")?;
    command.args(["--role", name.get_name()]).arg("--home").arg(home);
    if let Some(coordinator) = coordinator {
        command.args(["--coordinator", coordinator]);
    }
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
}

async fn first_line(child: &mut Child) -> anyhow::Result<String> {
    let stdout = child.stdout.take().context("its output is piped")?;
    BufReader::new(stdout).lines().next_line().await?.context("the server ended before it was up")
}

async fn wait_for_provider(coordinator: &Running) -> anyhow::Result<()> {
    loop {
        if coordinator.handle.ask(|core, _| core.stats().providers_online).await? > 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Target {
    name: &'static str,
    url: String,
    key: String,
}

struct Kind {
    max_tokens: u32,
    stream: bool,
}

/// Times of one kind of request at one target, sorted.
struct Times {
    target: &'static str,
    first_byte: Vec<Duration>,
    whole: Vec<Duration>,
}

/// Sends each target the same requests, in turn, so that a slow minute of the machine hits both.
async fn measure(targets: &[Target], kind: &Kind, requests: usize) -> anyhow::Result<Vec<Times>> {
    let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let fresh = |target: &Target| Times { target: target.name, first_byte: Vec::new(), whole: Vec::new() };
    let mut times: Vec<Times> = targets.iter().map(fresh).collect();
    for round in 0..requests + 10 {
        for (target, times) in targets.iter().zip(&mut times) {
            let (first_byte, whole) = ask(&client, target, kind).await?;
            if round >= 10 {
                times.first_byte.push(first_byte);
                times.whole.push(whole);
            }
        }
    }
    for times in &mut times {
        times.first_byte.sort_unstable();
        times.whole.sort_unstable();
    }
    Ok(times)
}

async fn ask(client: &reqwest::Client, target: &Target, kind: &Kind) -> anyhow::Result<(Duration, Duration)> {
    let body = json!({
        "model": "ram-demo",
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
        "max_tokens": kind.max_tokens,
        "logit_bias": { "1": -100 }, // never the end-of-turn token: every answer is as long as it may be
        "stream": kind.stream,
    });
    let url = format!("{}{}", target.url, routes::CHAT_COMPLETIONS);
    let started = Instant::now();
    let response = client.post(url).bearer_auth(&target.key).json(&body).send().await?;
    ensure!(response.status().is_success(), "{}: {}", target.name, response.text().await?);
    let mut bytes = response.bytes_stream();
    let mut first_byte = None;
    while let Some(piece) = bytes.next().await {
        piece?;
        first_byte.get_or_insert_with(|| started.elapsed());
    }
    Ok((first_byte.context("an answer has a body")?, started.elapsed()))
}

struct Show {
    json: bool,
}

impl Show {
    fn figure(&self, name: &str, value: f64) {
        if self.json {
            println!("{}", json!({ "figure": name, "value": value }));
        } else {
            println!("{name:<44} {value:>9.2}");
        }
    }

    fn kind(&self, kind: &Kind, times: &[Times]) {
        let what = format!("{} tokens, {}", kind.max_tokens, if kind.stream { "streamed" } else { "whole" });
        for times in times {
            for (of, times_of) in [("first byte", &times.first_byte), ("whole answer", &times.whole)] {
                for (name, share) in [("p50", 500), ("p99", 990)] {
                    let label = format!("{what}: {}, {of}, {name} ms", times.target);
                    self.figure(&label, millis(percentile(times_of, share)));
                }
            }
        }
        if let [alone, network] = times {
            let added = millis(percentile(&network.whole, 500)) - millis(percentile(&alone.whole, 500));
            self.figure(&format!("{what}: ADDED by the network, p50 ms"), added);
        }
    }
}

/// The value that `share` thousandths of the sorted `times` do not pass.
fn percentile(times: &[Duration], share: usize) -> Duration {
    times[(times.len() * share / 1000).min(times.len() - 1)]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resident memory of a process, by the kernel's account; not a number where there is no `/proc`.
fn resident_mib(process: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().map_or(f64::NAN, |kib| kib / 1024.0)
}
