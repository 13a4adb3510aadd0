//! A whole network on this machine: a coordinator, providers as processes of their own, and a question.
//!
//! ```text
//! cargo run --release -p ram-coordinator --example network
//! ```
//!
//! No wallet, no GPU, no download: the providers serve the bundled model, the money is a ledger in memory. The program
//! asks one question as any client would, over HTTP, and shows what became of it: the answer as it streams, who served
//! it, what it cost and the postings behind the charge. Then it stays up for your own questions; Ctrl-C ends it.
//!
//! `--shards 3` gives each provider so little memory that it takes three of them to hold the model, and so they do: the
//! question is the same. `--kill 1` kills one of them in the middle of a long answer, and shows that the answer goes on
//! as if nothing had been (`shards`).
//!
//! Providers are this program once more, started in that role (`--as-provider`). They end with their parent: each reads
//! its standard input, and that ends when the parent does, however it ended.

#![expect(clippy::disallowed_methods, reason = "it shows how long things take")]

mod shards;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use futures::StreamExt;
use ram_chain::account::Entry;
use ram_coordinator::config::{Config, Database};
use ram_coordinator::keys::{DEMO_KEY, KeyKind, NewKey};
use ram_coordinator::{Running, run};
use ram_core::id::JobId;
use ram_core::units::{TokenCount, TokenRate, XRam};
use ram_proto::openai::sse;
use ram_proto::rest::PipelineView;
use ram_proto::routes;
use ram_provider::config::ProviderConfig;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

const MODEL: &str = "ram-demo";
/// How long all providers may take to load the model and register.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// What the key of this network can spend.
const CREDIT: XRam = XRam::from_xram(1000);

/// A whole network on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// What to ask
    #[arg(default_value = "What is the capital of France?")]
    question: String,
    /// End after the answer
    #[arg(long)]
    once: bool,
    /// Where users connect; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How many providers to start
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32), conflicts_with = "shards")]
    providers: u8,
    /// Split the model over so many providers, none of which has memory for all of it
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    shards: Option<u8>,
    /// Kill so many providers in mid-answer, with a spare for each: a middle shard, then the last one, then the first
    #[arg(long, requires = "shards", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=8))]
    kill: u8,
    /// The API key of this network, 8 characters at least; a random one unless given
    #[arg(long)]
    key: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Be the provider of this name, with this folder, for the coordinator at `--coordinator`
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "HOME"], requires = "coordinator")]
    as_provider: Option<Vec<String>>,
    #[arg(long, hide = true)]
    coordinator: Option<String>,
    /// As a provider: have memory for a part of the model alone, such that it takes so many to hold it
    #[arg(long, hide = true)]
    part_of: Option<u8>,
    /// As such a provider: listen there for the others
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    listen_for_shards: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let (Some(role), Some(coordinator)) = (&args.as_provider, &args.coordinator) {
        let part = args.part_of.map(|of| (of, args.listen_for_shards));
        return be_provider(&role[0], Path::new(&role[1]), coordinator, part).await;
    }
    let show = Show { json: args.json, silent: false };
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let config = Config { listen: args.listen, database: Database::Memory, ..Config::default() };
    let coordinator = ram_coordinator::start(config).await.with_context(|| {
        format!("the coordinator did not start on {}; try --listen 127.0.0.1:0", args.listen)
    })?;
    let key = make_key(&coordinator, args.key).await?;
    let count = args.shards.map_or(args.providers, |shards| shards + args.kill);
    let mut providers = start_providers(count, &coordinator.base_url(), folder.path(), args.shards)?;
    wait_for(providers.len(), &coordinator, args.shards.is_some()).await?;
    show.up(&coordinator.base_url(), providers.len(), started.elapsed());

    let answer = ask(&coordinator.base_url(), &key, &question(&args.question), &show, &mut |_| {}).await?;
    let postings = coordinator.store.entries_of(answer.job).await?;
    show.answer(&args.question, &answer, &postings);
    if args.shards.is_some() {
        show.pipeline(&shards::pipeline(&coordinator).await?);
    }
    if args.kill > 0 {
        shards::kill(args.kill, &args.question, &coordinator, &key, &mut providers, &show).await?;
    }
    if !args.once {
        show.ready(&coordinator.base_url(), &key);
        tokio::signal::ctrl_c().await?;
    }
    drop(providers); // they end with their standard input
    coordinator.shutdown().await;
    Ok(())
}

/// The provider's role: what `ram-provider run` does, until the parent is gone.
async fn be_provider(
    name: &str,
    home: &Path,
    coordinator: &str,
    part: Option<(u8, SocketAddr)>,
) -> anyhow::Result<()> {
    let config = ProviderConfig {
        coordinator: coordinator.parse()?,
        name: name.parse()?,
        memory_cap: part.map(|(of, _)| shards::memory_for(MODEL, of)).transpose()?,
        shards: part.map(|(_, listen)| listen),
        ..ProviderConfig::new(home)
    };
    let parent_gone = async {
        let mut byte = [0];
        while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
    };
    Ok(ram_provider::run(config, parent_gone).await?)
}

async fn make_key(coordinator: &Running, secret: Option<String>) -> anyhow::Result<String> {
    let new = NewKey { kind: KeyKind::Live, name: "example".to_owned(), credit: CREDIT };
    if let Some(secret) = secret {
        if secret == DEMO_KEY {
            return Ok(secret); // every network knows it
        }
        coordinator.keys.adopt(new, &secret, run::now()).await?;
        return Ok(secret);
    }
    let (_, secret) = coordinator.keys.create(new, run::now()).await?;
    Ok(secret.reveal().to_owned())
}

fn start_providers(
    count: u8,
    coordinator: &str,
    folder: &Path,
    shards: Option<u8>,
) -> anyhow::Result<Vec<Child>> {
    let start = |number: u8| -> anyhow::Result<Child> {
        let name = format!("provider-{number}");
        let home: PathBuf = folder.join(&name);
        let child = Command::new(std::env::current_exe()?)
            .args(["--coordinator", coordinator, "--as-provider", &name])
            .arg(home)
            .args(shards.into_iter().flat_map(|shards| ["--part-of".to_owned(), shards.to_string()]))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    };
    (1..=count).map(start).collect()
}

/// Waits until `count` providers have registered, and lend memory if they are to.
async fn wait_for(count: usize, coordinator: &Running, lend: bool) -> anyhow::Result<()> {
    let all_here = async {
        loop {
            let providers = coordinator.handle.ask(|core, _| core.providers().providers).await?;
            if providers.iter().filter(|provider| !lend || provider.lends.is_some()).count() >= count {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(UP_WITHIN, all_here).await.context("the providers did not register in time")?
}

/// What came back.
struct Answer {
    text: String,
    job: JobId,
    provider: String,
    tokens: TokenCount,
    charge: String,
    first_token: Duration,
    rate: TokenRate,
}

/// One question.
fn question(words: &str) -> Value {
    json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": words }],
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    })
}

/// Asks as any OpenAI client would: one streamed chat completion over HTTP. `heard` is called at
/// each piece of it, with all that there is.
async fn ask(
    base_url: &str,
    key: &str,
    body: &Value,
    show: &Show,
    heard: &mut dyn FnMut(&str),
) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let request = reqwest::Client::new().post(format!("{base_url}{}", routes::CHAT_COMPLETIONS));
    let response = request.bearer_auth(key).json(body).send().await?;
    ensure!(response.status().is_success(), "the coordinator answered {}", response.text().await?);
    let (mut bytes, mut events) = (response.bytes_stream(), sse::Decoder::new());
    let (mut text, mut first_token, mut last) = (String::new(), None, Value::Null);
    show.question(body["messages"][0]["content"].as_str().unwrap_or_default());
    while let Some(piece) = bytes.next().await {
        events.push(&piece?)?;
        while let Some(event) = events.next_event() {
            if event.data == sse::DONE_DATA {
                break;
            }
            let chunk: Value = serde_json::from_str(&event.data)?;
            ensure!(chunk.get("error").is_none(), "the answer broke off: {}", chunk["error"]["message"]);
            if let Some(delta) =
                chunk["choices"][0]["delta"]["content"].as_str().filter(|delta| !delta.is_empty())
            {
                first_token.get_or_insert_with(|| started.elapsed());
                show.delta(delta);
                text.push_str(delta);
                heard(&text);
            }
            last = chunk;
        }
    }
    let Some(first_token) = first_token else { bail!("the answer is empty") };
    let field =
        |name: &str| last[name].as_str().map(str::to_owned).with_context(|| format!("no {name} came back"));
    let tokens = TokenCount::new(last["usage"]["completion_tokens"].as_u64().unwrap_or_default());
    Ok(Answer {
        text,
        job: field("xram_job_id")?.parse()?,
        provider: last["xram_provider"]["name"].as_str().unwrap_or("?").to_owned(),
        tokens,
        charge: field("xram_tokens_charged_exact")?,
        first_token,
        rate: TokenRate::of(tokens, started.elapsed()),
    })
}

/// The screen: for people, or one JSON object a line for programs.
struct Show {
    json: bool,
    silent: bool,
}

impl Show {
    /// Shows nothing.
    const SILENT: Self = Self { json: false, silent: true };

    fn up(&self, base_url: &str, providers: usize, took: Duration) {
        if self.json {
            say_line(&format!(
                "{}",
                json!({ "event": "up", "url": base_url, "providers": providers, "ms": millis(took) })
            ));
        } else {
            say_line(&format!(
                "A coordinator and {providers} providers are up on {base_url} ({} ms).\n",
                millis(took)
            ));
        }
    }

    fn question(&self, question: &str) {
        if !self.json && !self.silent {
            say_line(&format!("you       {question}"));
            say(&format!("{MODEL}  "));
        }
    }

    fn delta(&self, delta: &str) {
        if !self.json && !self.silent {
            say(delta);
        }
    }

    /// A provider is killed, at this place of the answer.
    fn dies(&self, name: &str) {
        if !self.json {
            say(&format!(" [{name} is killed] "));
        }
    }

    fn answer(&self, question: &str, answer: &Answer, entries: &[Entry]) {
        if self.json {
            return say_line(&answer_json(question, answer, entries).to_string());
        }
        say_line("\n");
        say_line(&format!("  served by     {}", answer.provider));
        say_line(&format!(
            "  speed         {} tokens at {}, the first after {} ms",
            answer.tokens,
            answer.rate,
            millis(answer.first_token)
        ));
        say_line(&format!("  charged       {} xRAM\n  postings", answer.charge));
        for entry in entries {
            for posting in entry.postings() {
                let account = posting.account.to_string();
                say_line(&format!(
                    "    {:<8} {account:<40} {:>22}",
                    entry.id().kind().as_str(),
                    posting.delta.to_string()
                ));
            }
        }
        say_line("");
    }

    /// Who holds which layers.
    fn pipeline(&self, pipeline: &PipelineView) {
        if self.json {
            return say_line(&json!({ "event": "pipeline", "pipeline": pipeline }).to_string());
        }
        say_line(&format!("  {MODEL} is held by {} providers together:", pipeline.shards.len()));
        for shard in &pipeline.shards {
            let name = shard.name.as_ref().map_or("?", |name| name.as_str());
            say_line(&format!(
                "    layers {:>3} to {:<3} {name}",
                shard.layers.first(),
                shard.layers.end() - 1
            ));
        }
        for spare in &pipeline.spares {
            let name = spare.name.as_ref().map_or("?", |name| name.as_str());
            let (first, last) = (spare.layers.first(), spare.layers.end() - 1);
            say_line(&format!("    spare      {name}, which holds layers {first} to {last}"));
        }
        say_line("");
    }

    /// What became of an answer in the middle of which a provider was killed.
    fn killed(&self, killed: &shards::Killed) {
        let shards::Killed { name, layers, after, pause, same } = killed;
        if self.json {
            return say_line(
                &json!({
                    "event": "killed",
                    "provider": name,
                    "layers": layers,
                    "after_bytes": after,
                    "longest_pause_ms": millis(*pause),
                    "same_text": same,
                })
                .to_string(),
            );
        }
        let verdict = if *same { "and the text is the same" } else { "AND THE TEXT IS ANOTHER" };
        say_line(&format!(
            "\n\n  killed        {name} with layers {} to {}, {after} bytes into the answer",
            layers.first(),
            layers.end() - 1
        ));
        say_line(&format!("  longest pause {} ms, {verdict}\n", millis(*pause)));
    }

    fn ready(&self, base_url: &str, key: &str) {
        let base_url = format!("{base_url}/v1");
        let ready = json!({
            "base_url": base_url,
            "api_key": key,
            "model": MODEL,
            "metrics_url": null,
            "page_url": null,
        });
        if !self.json {
            say_line(&snippet(&base_url, key));
        }
        say_line(&format!("READY {ready}"));
    }
}

fn answer_json(question: &str, answer: &Answer, entries: &[Entry]) -> Value {
    let postings = entries.iter().flat_map(|entry| {
        entry.postings().iter().map(|posting| {
            json!({
                "entry": entry.id().kind().as_str(),
                "account": posting.account.to_string(),
                "amount": posting.delta.to_string(),
            })
        })
    });
    json!({
        "event": "answer",
        "question": question,
        "answer": answer.text,
        "job": answer.job,
        "provider": answer.provider,
        "tokens": answer.tokens,
        "tokens_per_second": answer.rate.get() / 1000,
        "first_token_ms": millis(answer.first_token),
        "charged_xram": answer.charge,
        "postings": postings.collect::<Vec<_>>(),
    })
}

fn snippet(base_url: &str, key: &str) -> String {
    format!(
        r#"Ask on with curl:

  curl {base_url}/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "What is 7 plus 5?"}}]}}'

or with the OpenAI SDK:

  from openai import OpenAI
  client = OpenAI(base_url="{base_url}", api_key="{key}")
  answer = client.chat.completions.create(
      model="{MODEL}", messages=[{{"role": "user", "content": "What is 7 plus 5?"}}])
  print(answer.choices[0].message.content)

Ctrl-C ends the network.
"#
    )
}

fn say_line(line: &str) {
    say(&format!("{line}\n"));
}

/// Writes at once. Whoever has stopped reading, such as `head`, misses nothing that it wanted.
fn say(words: &str) {
    let mut screen = std::io::stdout().lock();
    let _ = screen.write_all(words.as_bytes()).and_then(|()| screen.flush());
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
