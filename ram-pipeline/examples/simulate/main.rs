//! How fast a model would be over some Macs: the head's driver and the shards' workers, on simulated machines and
//! links.
//!
//! ```text
//! cargo run -p ram-pipeline --example simulate -- --model qwen3-235b --nodes 4xM4-Max-64 --link wan --sessions 12
//! ```
//!
//! `plan::choose` says who holds which layers, `sim` plays one session alone and then more and more at once. Nothing is
//! measured: speeds are those of data sheets, times a share that decoding reaches elsewhere.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example speaks on its standard output")]
#![allow(clippy::cast_precision_loss, reason = "what is shown has few digits")]

mod chart;
#[path = "../macs/mod.rs"]
mod macs;

use std::error::Error;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ram_core::catalog;
use ram_core::memory::{Room, Workload};
use ram_core::units::{ByteRate, Bytes, TokenCount, TokenRate};
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Plan, Wish};
use ram_pipeline::sim::{self, Chain, Load, Report};
use serde_json::{Value, json};

/// Simulates a model over some Macs
#[derive(Debug, Parser)]
struct Args {
    /// A model of the catalogue
    #[arg(long, default_value = "llama-3.1-405b")]
    model: String,
    /// Machines: how many, chip and GB; several kinds with commas between (2xM4-Max-64,1xM2-Ultra-192)
    #[arg(long, default_value = "4xM4-Max-64")]
    nodes: String,
    /// lan (0.3ms:1Gbps), wan (20ms:100Mbps), or another delay one way and rate, such as 5ms:300Mbps
    #[arg(long, default_value = "lan", value_parser = read_link)]
    link: Link,
    /// Most sessions at once; without it a few more than fill the pipeline
    #[arg(long)]
    sessions: Option<NonZeroU32>,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    prompt: u64,
    /// Tokens of an answer
    #[arg(long, default_value_t = 48)]
    tokens: u64,
    /// What the plan shall be good at
    #[arg(long, default_value = "latency")]
    objective: Goal,
    /// Tokens whose arithmetic takes as long as reading the weights of one; 0: arithmetic costs nothing
    #[arg(long, default_value_t = 8)]
    arithmetic: u32,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Goal {
    Latency,
    Throughput,
}

fn main() -> ExitCode {
    match simulate(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(args: &Args) -> Result<(), Box<dyn Error>> {
    let Some(spec) = catalog::resolve(&args.model) else {
        let known: Vec<&str> = catalog::all().iter().map(|model| model.alias).collect();
        return Err(format!("there is no model `{}`; known are {}", args.model, known.join(", ")).into());
    };
    let (model, named) = (ModelNeeds::of(spec), macs::read(&args.nodes, spec)?);
    let nodes: Vec<Node> = named.iter().map(|(_, node)| *node).collect();
    let links = Links::uniform(args.link);
    let (plan, shortage) = plan(args, &model, &nodes, &links)?;
    let mut chain = Chain::of(&plan, &model, &nodes, links)?;
    if let Some(tokens) = NonZeroU32::new(args.arithmetic) {
        chain = chain.with_arithmetic(tokens);
    }
    let stages = u32::try_from(plan.stages.len())?;
    let enough = plan.expected.sessions.max(stages + 1);
    let most = args.sessions.map_or(enough * 2, NonZeroU32::get);
    let mut counts = vec![1, 2, 4, stages + 1, enough, enough * 2, most];
    counts.retain(|count| *count <= most);
    counts.sort_unstable();
    counts.dedup();
    let (prompt, tokens) = (TokenCount::new(args.prompt), TokenCount::new(args.tokens));
    let played = counts.into_iter().map(|sessions| {
        let load = Load { sessions, prompt, tokens, ..Load::default() };
        Ok((sessions, sim::run(&chain, &load, None)?))
    });
    let runs = played.collect::<Result<Vec<(u32, Report)>, sim::SimError>>()?;
    if args.json {
        println!("{}", to_json(args, &plan, shortage.as_deref(), &runs));
        return Ok(());
    }
    if let Some(shortage) = shortage {
        println!(
            "It does not fit: {shortage}\nWhat follows is of an even split, as if there were memory enough.\n"
        );
    }
    let name = |id| named.iter().find(|(_, node)| node.id == id).map_or("", |(name, _)| name);
    println!("{}, simulated; {} one way, {}\n", spec.alias, chart::millis(args.link.delay), args.link.rate);
    chart::stages(&plan, name, &runs[0].1);
    println!();
    chart::rates(&plan, &runs);
    println!();
    let (sessions, report) = runs.iter().find(|(sessions, _)| *sessions > stages).unwrap_or(&runs[0]);
    chart::lanes(*sessions, report);
    Ok(())
}

/// The plan; one that heeds no memory, and why, where there is no other.
fn plan(
    args: &Args,
    model: &ModelNeeds,
    nodes: &[Node],
    links: &Links,
) -> Result<(Plan, Option<String>), Box<dyn Error>> {
    let objective = match args.objective {
        Goal::Latency => Objective::Latency,
        Goal::Throughput => Objective::Throughput,
    };
    let workload = Workload::default();
    match plan::choose(model, nodes, links, &Wish { workload, objective }) {
        Ok(plan) => Ok((plan, None)),
        Err(refusal) => {
            let endless = Room { usable: Bytes::from_gib(1 << 20), cap: Bytes::from_gib(1 << 20) };
            let roomy: Vec<Node> = nodes.iter().map(|node| Node { room: endless, ..*node }).collect();
            let wish = Wish { workload, objective: Objective::Throughput };
            let plan =
                plan::choose(model, &roomy, links, &wish).map_err(|_| format!("no plan: {refusal}"))?;
            Ok((plan, Some(refusal.to_string())))
        }
    }
}

fn to_json(args: &Args, plan: &Plan, shortage: Option<&str>, runs: &[(u32, Report)]) -> Value {
    let run = |(sessions, report): &(u32, Report)| {
        let stage = |stage: &sim::Stage| json!({ "busy_permille": stage.busy, "passes": stage.passes.len() });
        let hop = |hop: &sim::Hop| {
            let each = hop.token_bytes.get().checked_div(hop.token_frames);
            json!({ "busy_permille": hop.busy, "bytes": hop.bytes, "bytes_a_token": each })
        };
        json!({
            "sessions": sessions,
            "tokens_per_s": per_second(report.rate()),
            "first_token_ms": [ms(report.first_token.0), ms(report.first_token.1)],
            "one_way_delays_a_token": report.delays,
            "stages": report.stages.iter().map(stage).collect::<Vec<_>>(),
            "hops": report.hops.iter().map(hop).collect::<Vec<_>>(),
        })
    };
    json!({
        "simulated": true,
        "model": args.model,
        "fits": shortage.is_none(),
        "shortage": shortage,
        "plan": plan,
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
    })
}

pub(crate) fn per_second(rate: TokenRate) -> f64 {
    rate.get() as f64 / 1e3
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `lan`, `wan`, or `20ms:100Mbps`.
fn read_link(text: &str) -> Result<Link, String> {
    let unknown = || {
        format!("`{text}` is no link: write lan, wan, or delay and rate such as 20ms:100Mbps or 300us:1Gbps")
    };
    let units = |text: &str, units: &[(&str, u64)]| {
        let unit = units.iter().find_map(|(unit, worth)| Some((text.strip_suffix(unit)?, *worth)))?;
        Some(unit.0.parse::<f64>().ok().filter(|number| (0.0..1e6).contains(number))? * unit.1 as f64)
    };
    match text {
        "lan" => Ok(Link::LAN),
        "wan" => Ok(Link::WAN),
        _ => {
            let (delay, rate) = text.split_once(':').ok_or_else(unknown)?;
            let nanos = units(delay, &[("us", 1_000), ("ms", 1_000_000)]).ok_or_else(unknown)?;
            let bits = units(rate, &[("kbps", 1_000), ("Mbps", 1_000_000), ("Gbps", 1_000_000_000)]);
            let bits = bits.filter(|bits| *bits >= 8.0).ok_or_else(unknown)?;
            let bytes = Duration::from_secs_f64(bits / 8.0).as_secs();
            Ok(Link { delay: Duration::from_secs_f64(nanos / 1e9), rate: ByteRate::new(bytes) })
        }
    }
}
