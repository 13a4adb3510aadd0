//! What a coordinator bears: memory and CPU under thousands of idle providers, and the time that it adds to an answer.
//!
//! ```text
//! cargo build --release -p ram-coordinator -p ram-provider --examples
//! target/release/examples/load
//! ```
//!
//! The coordinator, the simulated providers and the engines are processes of their own. Three things are measured:
//!
//! - **memory**: resident bytes of the coordinator with `--providers` sockets registered, less those before, by socket;
//! - **CPU**: its share of one core while they beat every 10 s for `--seconds`, and how many it took for dead;
//! - **time**: the same streamed request three ways in turn: to an engine over HTTP (*direct*), through a reverse proxy
//!   of a few lines of axum in front of it (*relay*), and through the coordinator to a provider with an engine of the
//!   same pace (*network*). Engines write the time instead of words, so each token tells how old it is when it arrives.
//!   The provider sends tokens that come within 20 ms of the last ones together: that is part of *network*.

#![expect(clippy::print_stdout, reason = "it is a program for a terminal")]
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::post};
use clap::{Parser, ValueEnum};
use futures::{StreamExt, stream};
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{KeyKind, NewKey};
use ram_coordinator::run;
use ram_core::units::XRam;
use ram_proto::openai::sse;
use ram_proto::rest::NetworkStats;
use ram_proto::routes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::sleep;

/// Tokens of an answer, and milliseconds between them: short enough to take many, slow enough not to measure queues.
const TOKENS: u64 = 16;
const TOKEN_EVERY: Duration = Duration::from_millis(50);
/// Answers at once.
const CONCURRENCIES: [usize; 3] = [1, 4, 16];
/// Ticks of the kernel's clock in a second, as `/proc` counts CPU time on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;
/// File handles that a process of thousands of sockets needs.
const HANDLES: u32 = 20_000;

/// What a coordinator bears.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Idle providers
    #[arg(long, default_value_t = 3000)]
    providers: u64,
    /// Seconds over which CPU time is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Answers of each way, at each concurrency
    #[arg(long, default_value_t = 96)]
    requests: usize,
    /// Measures memory and CPU, or the time that is added, alone
    #[arg(long)]
    only: Option<Part>,
    /// The program that simulates providers; beside this one, if it is not named
    #[arg(long)]
    sim_provider: Option<PathBuf>,
    /// Prints one JSON object a line
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true)]
    home: Option<PathBuf>,
    #[arg(long, hide = true)]
    upstream: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Idle,
    Time,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Coordinator,
    Engine,
    Relay,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Coordinator) => coordinator(&args.home.context("it needs a home")?).await,
        Some(Role::Engine) => serve(Router::new().fallback(post(engine))).await,
        Some(Role::Relay) => {
            let upstream = args.upstream.context("it relays to somebody")?;
            let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
            serve(Router::new().fallback(post(relay)).with_state((client, upstream))).await
        }
        None => measure(&args).await,
    }
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let show = Show { json: args.json };
    let folder = tempfile::tempdir()?;
    if args.only != Some(Part::Time) {
        idle(args, folder.path(), &show).await?;
    }
    if args.only != Some(Part::Idle) {
        latency(args, folder.path(), &show).await?;
    }
    Ok(())
}

// ---- idle providers: memory and CPU ----

async fn idle(args: &Args, folder: &Path, show: &Show) -> anyhow::Result<()> {
    let coordinator = Coordinator::start(&folder.join("idle.db")).await?;
    // A few come and go, so that what is made once is made before the count.
    let first = Fleet::start(args, &coordinator, &["--count", "20"])?;
    coordinator.wait_for(20).await?;
    drop(first);
    coordinator.wait_for(0).await?;
    let before = coordinator.memory()?;
    let count = args.providers.to_string();
    let fleet = Fleet::start(args, &coordinator, &["--count", &count])?;
    coordinator.wait_for(args.providers).await?;
    sleep(Duration::from_secs(12)).await; // a heartbeat of each
    let idle = coordinator.memory()?;
    let (cpu, since) = (coordinator.cpu()?, Instant::now());
    let mut least = args.providers;
    while since.elapsed() < Duration::from_secs(args.seconds) {
        sleep(Duration::from_secs(2)).await;
        least = least.min(coordinator.providers().await?);
    }
    let share = (coordinator.cpu()? - cpu) / since.elapsed().as_secs_f64();
    let after = coordinator.memory()?;
    let providers = float(args.providers);
    show.figure("idle providers", providers);
    show.figure("coordinator without them, MiB", float(before) / 1024.0 / 1024.0);
    show.figure("coordinator with them, MiB", float(idle) / 1024.0 / 1024.0);
    show.figure("a provider, KiB", (float(idle) - float(before)) / providers / 1024.0);
    show.figure("a provider after the heartbeats, KiB", (float(after) - float(before)) / providers / 1024.0);
    show.figure("coordinator, % of one core", share * 100.0);
    show.figure("providers taken for dead", float(args.providers - least));
    drop(fleet);
    Ok(())
}

// ---- time that is added ----

async fn latency(args: &Args, folder: &Path, show: &Show) -> anyhow::Result<()> {
    let coordinator = Coordinator::start(&folder.join("latency.db")).await?;
    let pace = (1000 / TOKEN_EVERY.as_millis()).to_string();
    let flags =
        ["--count", "1", "--slots", "64", "--stamp", "--prefill", "1000000000", "--answer", "1000000"];
    let fleet = Fleet::start(args, &coordinator, &[&flags[..], &["--decode", &pace, "--steady"]].concat())?;
    coordinator.wait_for(1).await?;
    let (_engine, engine_url) = spawn(Role::Engine, &[]).await?;
    let (_relay, relay_url) = spawn(Role::Relay, &["--upstream", &engine_url]).await?;
    let way = |name, url: &str, key: &str| Way { name, url: url.to_owned(), key: key.to_owned() };
    let ways = [
        way("direct", &engine_url, ""),
        way("relay", &relay_url, ""),
        way("network", &coordinator.url, &coordinator.key),
    ];
    for concurrency in CONCURRENCIES {
        let mut times: Vec<Times> = ways.iter().map(|_| Times::default()).collect();
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        for round in 0..=args.requests.div_ceil(concurrency) {
            for (way, times) in ways.iter().zip(&mut times) {
                let asked = (0..concurrency).map(|_| ask(&client, way));
                for answer in futures::future::join_all(asked).await {
                    let answer = answer?;
                    if round > 0 {
                        times.take(answer);
                    }
                }
            }
        }
        show.times(concurrency, &ways, &mut times);
    }
    drop(fleet);
    Ok(())
}

/// One way to an answer.
struct Way {
    name: &'static str,
    url: String,
    key: String,
}

/// What one answer took.
struct Answered {
    first: Duration,
    /// How old each token after the first was.
    ages: Vec<Duration>,
}

/// What many took.
#[derive(Default)]
struct Times {
    first: Vec<Duration>,
    ages: Vec<Duration>,
}

impl Times {
    fn take(&mut self, answer: Answered) {
        self.first.push(answer.first);
        self.ages.extend(answer.ages);
    }
}

async fn ask(client: &reqwest::Client, way: &Way) -> anyhow::Result<Answered> {
    let message = json!({ "role": "user", "content": "What is the time?" });
    let body = json!({ "model": "ram-demo", "messages": [message], "max_tokens": TOKENS, "stream": true });
    let url = format!("{}{}", way.url, routes::CHAT_COMPLETIONS);
    let started = Instant::now();
    let response = client.post(url).bearer_auth(&way.key).json(&body).send().await?;
    ensure!(response.status().is_success(), "{}: {}", way.name, response.text().await?);
    let (mut bytes, mut decoder) = (response.bytes_stream(), sse::Decoder::new());
    let (mut first, mut ages) = (None, Vec::new());
    while let Some(piece) = bytes.next().await {
        decoder.push(&piece?)?;
        let (arrived, elapsed) = (since_epoch(), started.elapsed());
        while let Some(event) = decoder.next_event() {
            let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else { continue };
            let words = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            let stamps = words.split_whitespace().filter_map(|word| word.parse().ok());
            for written in stamps.map(Duration::from_micros) {
                match first {
                    None => first = Some(elapsed),
                    Some(_) => ages.push(arrived.saturating_sub(written)),
                }
            }
        }
    }
    ensure!(ages.len() as u64 + 1 == TOKENS, "{}: {} tokens came", way.name, ages.len() + 1);
    Ok(Answered { first: first.context("an answer has a first token")?, ages })
}

// ---- the processes ----

/// The coordinator under test.
struct Coordinator {
    process: Child,
    url: String,
    key: String,
}

impl Coordinator {
    async fn start(database: &Path) -> anyhow::Result<Self> {
        let home = database.to_str().context("a path in UTF-8")?;
        let (process, line) = spawn(Role::Coordinator, &["--home", home]).await?;
        let (url, key) = line.split_once(' ').context("an address and a key")?;
        Ok(Self { process, url: url.to_owned(), key: key.to_owned() })
    }

    async fn providers(&self) -> anyhow::Result<u64> {
        let stats: NetworkStats =
            reqwest::get(format!("{}{}", self.url, routes::STATS)).await?.json().await?;
        Ok(stats.providers_online)
    }

    async fn wait_for(&self, providers: u64) -> anyhow::Result<()> {
        while self.providers().await? != providers {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Resident bytes.
    fn memory(&self) -> anyhow::Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()?))?;
        let line =
            rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("the kernel knows it")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }

    /// Seconds of CPU time.
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        let after_name = stat.rsplit_once(')').context("the name stands in brackets")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks =
            |field: usize| -> anyhow::Result<f64> { Ok(fields.get(field).context("a field")?.parse()?) };
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND) // in user and in kernel mode
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.process.id().context("the coordinator has ended")
    }
}

/// Simulated providers, until it is dropped.
struct Fleet {
    _process: Child,
}

impl Fleet {
    fn start(args: &Args, coordinator: &Coordinator, flags: &[&str]) -> anyhow::Result<Self> {
        let beside = std::env::current_exe()?.with_file_name("sim_provider");
        let program = args.sim_provider.clone().unwrap_or(beside);
        ensure!(program.is_file(), "{} is not built: see the top of this program", program.display());
        let mut process = with_handles(&program);
        process.arg(&coordinator.url).args(flags).stdout(Stdio::null()).kill_on_drop(true);
        Ok(Self { _process: process.spawn()? })
    }
}

/// This program in another role; answers its first line.
async fn spawn(role: Role, flags: &[&str]) -> anyhow::Result<(Child, String)> {
    let name = role.to_possible_value().context("every role has a name")?;
    let mut command = with_handles(&std::env::current_exe()?);
    command.args(["--role", name.get_name()]).args(flags);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let line = BufReader::new(stdout).lines().next_line().await?.context("it ended before it was up")?;
    Ok((child, line))
}

/// A command whose process may open thousands of sockets, as far as the system lets it.
fn with_handles(program: &Path) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {HANDLES} 2>/dev/null || ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(program);
    command
}

async fn coordinator(database: &Path) -> anyhow::Result<()> {
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        database: Database::File(database.to_owned()),
        ..Config::default()
    };
    let coordinator = ram_coordinator::start(config).await?;
    let new = NewKey { kind: KeyKind::Live, name: "load".to_owned(), credit: XRam::from_xram(1_000_000) };
    let (_, key) = coordinator.keys.create(new, run::now()).await?;
    println!("{} {}", coordinator.base_url(), key.reveal());
    parent_gone().await;
    coordinator.shutdown().await;
    Ok(())
}

async fn serve(router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let listener = axum::serve::ListenerExt::tap_io(listener, |socket| {
        let _ = socket.set_nodelay(true); // a socket that is gone needs none
    });
    axum::serve(listener, router).with_graceful_shutdown(parent_gone()).await?;
    Ok(())
}

async fn parent_gone() {
    let mut byte = [0];
    while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
}

/// Answers any request with tokens at a pace, each of which is the time; the first comes at once.
async fn engine(_request: String) -> Response {
    let tokens = stream::unfold((0, Instant::now()), |(number, start)| async move {
        if number > TOKENS {
            return None;
        }
        let due = start + TOKEN_EVERY * u32::try_from(number.min(TOKENS - 1)).unwrap_or_default();
        tokio::time::sleep_until(due.into()).await;
        let delta = json!({ "content": format!("{} ", since_epoch().as_micros()) });
        let chunk = json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] });
        let frame = if number < TOKENS { chunk.to_string() } else { "[DONE]".to_owned() };
        Some((Ok::<_, Infallible>(format!("data: {frame}\n\n")), (number + 1, start)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(tokens)).into_response()
}

/// All that a reverse proxy is: the request goes up, the answer's bytes come down as they are.
async fn relay(State((client, upstream)): State<(reqwest::Client, String)>, request: String) -> Response {
    let url = format!("{upstream}{}", routes::CHAT_COMPLETIONS);
    match client.post(url).header(header::CONTENT_TYPE, "application/json").body(request).send().await {
        Ok(answer) => {
            let headers = [(header::CONTENT_TYPE, "text/event-stream")];
            (headers, Body::from_stream(answer.bytes_stream())).into_response()
        }
        Err(_) => axum::http::StatusCode::BAD_GATEWAY.into_response(),
    }
}

// ---- what is shown ----

struct Show {
    json: bool,
}

impl Show {
    fn figure(&self, name: &str, value: f64) {
        if self.json {
            println!("{}", json!({ "figure": name, "value": value }));
        } else {
            println!("{name:<44} {value:>10.2}");
        }
    }

    fn times(&self, concurrency: usize, ways: &[Way], times: &mut [Times]) {
        for (way, times) in ways.iter().zip(&mut *times) {
            for (what, times) in
                [("first token", &mut times.first), ("age of a later token", &mut times.ages)]
            {
                times.sort_unstable();
                for (name, share) in [("p50", 500), ("p99", 990)] {
                    let label = format!("{concurrency} at once: {}, {what}, {name} ms", way.name);
                    self.figure(&label, millis(percentile(times, share)));
                }
            }
        }
        let first = |of: usize| millis(percentile(&times[of].first, 500));
        for (of, name) in [(0, "direct"), (1, "relay")] {
            let label = format!("{concurrency} at once: ADDED over {name}, first token, p50 ms");
            self.figure(&label, first(2) - first(of));
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

#[expect(clippy::cast_precision_loss, reason = "it is shown, not counted with")]
fn float(number: u64) -> f64 {
    number as f64
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
