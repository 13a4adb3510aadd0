//! One model over several shards on this machine, side by side with the whole:
//! `cargo run --release -p ram-provider --example shards -- [MODEL_DIR] [--shards 2,4] [--tokens 64] [--prompt 64]
//! [--rounds 5] [--threads 2] [--kill] [--json]`.
//!
//! All shards are members over TLS on loopback, as between machines, each with a thread and a model of its own; they
//! take turns, so the computing is the same as of one. What is more than that is the pipeline's own cost. Rounds are
//! interleaved; figures are medians, ratios are of each round.
//!
//! With `--kill` the shard before the last is lost in the middle of each answer, and a spare takes its place: how long
//! until that is noticed, and until the next token. Without MODEL_DIR the bundled model answers.

#![allow(clippy::print_stdout, reason = "an example shows what it found")]
#![expect(clippy::disallowed_methods, reason = "an example measures time")]

use std::error::Error;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_infer::config::ModelConfig;
use ram_infer::device::Device;
use ram_infer::models::{LoadOptions, Model, Numerics, Shard};
use ram_pipeline::driver::Request;
use ram_pipeline::member::{Chain, Member, Peer, Report, Word};
use ram_proto::frame::ModelDigest;
use ram_provider::shards::Shards;
use ram_provider::stage::ModelStage;
use tokio::sync::mpsc;

type Fault = Box<dyn Error>;

struct Options {
    model: Option<PathBuf>,
    shards: Vec<u16>,
    tokens: u32,
    prompt: u32,
    rounds: usize,
    threads: NonZeroUsize,
    kill: bool,
    json: bool,
}

/// Members of one chain.
struct Group {
    dir: PathBuf,
    config: ModelConfig,
    threads: NonZeroUsize,
    nodes: Vec<Node>,
    spares: Vec<Node>,
    epoch: Epoch,
    answers: u128,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
}

struct Node {
    shards: Shards,
    member: Member,
    peer: Peer,
}

/// What an answer took.
struct Answer {
    /// From one token to the next, without the first.
    tokens_per_s: f64,
    /// Where a shard was lost: until that was noticed, and until the token after.
    lost: Option<[Duration; 2]>,
    /// A token's computing, all shards together, without the first.
    compute: Duration,
}

/// Of all sessions of a shard: four long ones.
const POSITIONS: TokenCount = TokenCount::new(128 << 10);
const MODEL: ModelDigest = ModelDigest::from_bytes([1; 32]);

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let options = Options::read(std::env::args().skip(1))?;
    let home = tempfile::tempdir()?;
    let dir = options.model.clone().unwrap_or_else(|| home.path().to_path_buf());
    if options.model.is_none() {
        ram_infer::demo::unpack(&dir)?;
    }
    let mut groups = Vec::new();
    for count in [1].into_iter().chain(options.shards.iter().copied()) {
        groups.push(Group::new(&dir, count, &options).await?);
    }
    let mut found: Vec<Vec<Answer>> = groups.iter().map(|_| Vec::new()).collect();
    for round in 0..=options.rounds {
        for (group, found) in groups.iter_mut().zip(&mut found) {
            let answer = group.answer(&options).await?;
            if round > 0 {
                found.push(answer); // The first one warms up.
            }
        }
    }
    show(&groups, &found, &options);
    Ok(())
}

impl Group {
    async fn new(dir: &Path, stages: u16, options: &Options) -> Result<Self, Fault> {
        let config = ModelConfig::read(dir)?;
        let stages = NonZeroU16::new(stages).ok_or("--shards: a model has at least one")?;
        let (reporter, reports) = mpsc::unbounded_channel();
        let (layers, threads) = (config.layers, options.threads);
        let (nodes, spares, epoch, dir) = (Vec::new(), Vec::new(), Epoch::new(0), dir.to_path_buf());
        let mut group = Self { dir, config, threads, nodes, spares, epoch, answers: 0, reports, reporter };
        for layers in LayerRange::split(layers, stages)? {
            let node = group.node(layers, stages)?;
            group.nodes.push(node);
        }
        group.join().await?;
        Ok(group)
    }

    fn node(&self, layers: LayerRange, stages: NonZeroU16) -> Result<Node, Fault> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let shards = Shards::open(&NodeIdentity::from_seeds(seed, seed), ([127, 0, 0, 1], 0).into())?;
        let (embed, head) = (layers.first() == 0, layers.end() == self.config.layers.get());
        let (shard, threads) = (Some(Shard { layers, embed, head }), Some(self.threads));
        let options =
            LoadOptions { numerics: Numerics::Int8, shard, threads, ..LoadOptions::new(Device::Cpu) };
        let stage = ModelStage::new(Model::load_with(&self.dir, &options)?, POSITIONS, 4);
        let member = shards.hold(MODEL, stage, stages, self.reporter.clone());
        let peer = Peer { node: shards.node(), addresses: shards.address().into(), layers };
        Ok(Node { shards, member, peer })
    }

    /// Links all members in another epoch, and waits until they are.
    async fn join(&mut self) -> Result<(), Fault> {
        self.epoch = self.epoch.next();
        let peers: Vec<Peer> = self.nodes.iter().map(|node| node.peer.clone()).collect();
        for (place, node) in self.nodes.iter().enumerate() {
            if !node.shards.link(MODEL, Chain { epoch: self.epoch, peers: peers.clone(), place }) {
                return Err("a shard that was made is not held".into());
            }
        }
        let mut linked = 0;
        while linked < self.nodes.len() {
            match self.reports.recv().await {
                Some(Report::Linked(epoch)) if epoch == self.epoch => linked += 1,
                Some(Report::Lost(epoch, side)) if epoch == self.epoch => {
                    return Err(format!("a shard has no link {side:?}").into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn answer(&mut self, options: &Options) -> Result<Answer, Fault> {
        let kills = options.kill && self.nodes.len() > 1;
        let victim = self.nodes.len().saturating_sub(2).max(1);
        if kills && self.spares.is_empty() {
            let stages = NonZeroU16::new(u16::try_from(self.nodes.len())?).ok_or("no shards")?;
            self.spares.push(self.node(self.nodes[victim].peer.layers, stages)?);
        }
        self.answers += 1;
        let vocabulary = u32::try_from(self.config.vocab_size)?;
        let mut words = self.nodes[0].member.submit(Request {
            session: JobId::from_bits(self.answers),
            prompt: (0..options.prompt).map(|at| at * 7 % vocabulary).collect(),
            tokens_max: TokenCount::new(options.tokens.into()),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            deadline: Timestamp::from_millis(u64::MAX),
        });
        let (mut times, mut compute, mut lost) = (Vec::new(), Duration::ZERO, None);
        loop {
            match words.recv().await.ok_or("an answer without an end")? {
                Word::End(_) => break,
                Word::Token { spent, .. } => {
                    // The first token has the prompt's computing.
                    compute += Duration::from_micros(spent.compute_us.into()) * u32::from(!times.is_empty());
                    times.push(Instant::now());
                }
            }
            if kills && times.len() == options.tokens as usize / 2 {
                lost = Some(self.lose(victim).await?);
            }
        }
        let [first, .., last] = &times[..] else { return Err("--tokens: at least two".into()) };
        let lost = lost.map(|(at, noticed)| {
            let next = times[options.tokens as usize / 2];
            [noticed, next.duration_since(at)]
        });
        let steps = times.len() - 1;
        let tokens_per_s = steps as f64 / last.duration_since(*first).as_secs_f64();
        Ok(Answer { tokens_per_s, lost, compute: compute / u32::try_from(steps)? })
    }

    /// A shard is lost, and the spare takes its place; when it was, and how long until that was noticed.
    async fn lose(&mut self, victim: usize) -> Result<(Instant, Duration), Fault> {
        let spare = self.spares.pop().ok_or("no spare")?;
        let lost = std::mem::replace(&mut self.nodes[victim], spare);
        let at = Instant::now();
        drop(lost);
        loop {
            match self.reports.recv().await {
                Some(Report::Lost(epoch, _)) if epoch == self.epoch => break,
                Some(_) => {}
                None => return Err("nobody reports".into()),
            }
        }
        let noticed = at.elapsed();
        self.join().await?;
        Ok((at, noticed))
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn show(groups: &[Group], found: &[Vec<Answer>], options: &Options) {
    let mut rows = Vec::new();
    for (group, answers) in groups.iter().zip(found) {
        let rate = median(answers.iter().map(|answer| answer.tokens_per_s));
        let pairs = answers.iter().zip(&found[0]);
        let ratio = median(pairs.clone().map(|(own, whole)| own.tokens_per_s / whole.tokens_per_s));
        let compute_ms = median(answers.iter().map(|answer| answer.compute.as_secs_f64() * 1e3));
        // What a token takes beside computing, by each link that it goes over.
        let links = group.nodes.len() as f64;
        let over = |answer: &Answer| 1e3 / answer.tokens_per_s - answer.compute.as_secs_f64() * 1e3;
        let per_link_ms = median(answers.iter().map(|answer| over(answer) / links));
        let of = |number: usize| {
            let times = answers.iter().filter_map(|answer| answer.lost).map(|lost| lost[number]);
            median(times.map(|time| time.as_secs_f64() * 1e3))
        };
        let lost = answers.iter().any(|answer| answer.lost.is_some()).then(|| [of(0), of(1)]);
        rows.push((group.nodes.len(), rate, ratio, compute_ms, per_link_ms, lost));
    }
    if options.json {
        let row = |(shards, rate, ratio, compute_ms, per_link_ms, lost): &(
            usize,
            f64,
            f64,
            f64,
            f64,
            Option<[f64; 2]>,
        )| {
            serde_json::json!({
                "shards": shards, "tokens_per_s": rate, "of_the_whole": ratio, "compute_ms": compute_ms,
                "over_ms_per_link": per_link_ms, "noticed_ms": lost.map(|lost| lost[0]),
                "next_token_ms": lost.map(|lost| lost[1]),
            })
        };
        println!("{}", serde_json::Value::Array(rows.iter().map(row).collect()));
        return;
    }
    println!("shards  tokens/s  of the whole  computing  beside, a link");
    for (shards, rate, ratio, compute_ms, per_link_ms, lost) in rows {
        println!("{shards:>6}  {rate:>8.1}  {ratio:>12.3}  {compute_ms:>6.2} ms  {per_link_ms:>11.3} ms");
        if let Some([noticed, next]) = lost {
            println!(
                "        a lost shard: noticed after {noticed:.1} ms, the next token after {next:.0} ms"
            );
        }
    }
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Fault> {
        let (mut model, mut shards, mut kill, mut json) = (None, vec![2, 4], false, false);
        let (mut tokens, mut prompt, mut rounds, mut threads) =
            (64, 64, 5, NonZeroUsize::new(2).ok_or("two")?);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--shards" => shards = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--tokens" => tokens = value()?.parse()?,
                "--prompt" => prompt = value()?.parse()?,
                "--rounds" => rounds = value()?.parse()?,
                "--threads" => threads = value()?.parse()?,
                "--kill" => kill = true,
                "--json" => json = true,
                flag if flag.starts_with('-') => {
                    return Err(format!("{flag} is unknown: see the head of this example").into());
                }
                folder => model = Some(folder.into()),
            }
        }
        if tokens < 4 || rounds == 0 || prompt == 0 {
            return Err("at least four --tokens, one --rounds and one token of a --prompt".into());
        }
        Ok(Self { model, shards, tokens, prompt, rounds, threads, kill, json })
    }
}
