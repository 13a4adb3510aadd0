//! Thousands of providers in one process, for load tests: real agents on real sockets, which write nonsense.
//!
//! ```text
//! cargo run --release -p ram-provider --example sim_provider -- ws://127.0.0.1:8080 --count 3000 --duration 120
//! ```
//!
//! Each has an identity of its own, made from the seed, so that the same seed comes back as the same providers. Faults
//! are given in a thousand jobs: a node falls off the network in the middle of an answer (`--die`), stops writing for
//! good (`--stall`), says its words twice (`--double`), begins up to a minute late (`--late`), or claims a thousand
//! times the tokens that it took (`--lie`).

#![expect(clippy::print_stdout, reason = "it is a program for a terminal")]

mod dice;
mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use ram_core::catalog;
use ram_provider::config::CoordinatorUrl;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use node::{Faults, Node, Plan, Tally};

/// How often the state of the fleet is printed.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Thousands of providers in one process.
#[derive(Debug, Parser)]
struct Args {
    /// Where they register
    coordinator: CoordinatorUrl,
    /// How many there are
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Makes them who they are
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What they serve: a model of the catalogue
    #[arg(long, default_value = "ram-demo")]
    model: String,
    /// Jobs that each runs at once
    #[arg(long, default_value_t = 4)]
    slots: u16,
    /// Prompt tokens that each reads in a second, half to one and a half of it
    #[arg(long, default_value_t = 2000)]
    prefill: u64,
    /// Tokens that each writes in a second for each job, half to one and a half of it
    #[arg(long, default_value_t = 40)]
    decode: u64,
    /// Tokens of an answer, half to one and a half of it, and never more than were asked for
    #[arg(long, default_value_t = 128)]
    answer: u64,
    /// Writes the time, in microseconds since 1970, instead of words
    #[arg(long)]
    stamp: bool,
    /// Keeps to these figures, without the half less or more
    #[arg(long)]
    steady: bool,
    /// Falls off the network in so many of a thousand jobs
    #[arg(long, default_value_t = 0)]
    die: u32,
    /// Stops writing in so many of a thousand jobs
    #[arg(long, default_value_t = 0)]
    stall: u32,
    /// Says its words twice in so many of a thousand jobs
    #[arg(long, default_value_t = 0)]
    double: u32,
    /// Begins up to a minute late in so many of a thousand jobs
    #[arg(long, default_value_t = 0)]
    late: u32,
    /// Claims too much in so many of a thousand jobs
    #[arg(long, default_value_t = 0)]
    lie: u32,
    /// Sockets that are opened in a second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: u32,
    /// Seconds until they drain and leave; without it they stay until interrupted
    #[arg(long)]
    duration: Option<u64>,
    /// Prints one JSON object a line
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let model =
        catalog::resolve(&args.model).context("no model of this name is in the catalogue")?.model_id();
    let plan = Arc::new(Plan {
        coordinator: args.coordinator.clone(),
        seed: args.seed,
        model,
        slots: args.slots,
        prefill: args.prefill,
        decode: args.decode,
        answer: args.answer,
        stamp: args.stamp,
        steady: args.steady,
        faults: Faults {
            die: args.die,
            stall: args.stall,
            double: args.double,
            late: args.late,
            lie: args.lie,
        },
    });
    let tally = Arc::new(Tally::default());
    let (stop, stopping) = watch::channel(false);
    let mut nodes = JoinSet::new();
    let coming = args.duration.map(Duration::from_secs);
    let work = async {
        let gap = Duration::from_secs(1) / args.connect_rate;
        let mut next = interval(gap);
        next.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0..args.count {
            next.tick().await;
            nodes.spawn(Node::new(number, Arc::clone(&plan), Arc::clone(&tally)).serve(stopping.clone()));
        }
        match coming {
            Some(duration) => sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = work => {}
        () = report(&tally, args.json) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    stop.send_replace(true);
    tokio::select! {
        () = async { while nodes.join_next().await.is_some() {} } => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    show("end", &tally, args.json);
    Ok(())
}

/// Prints the state of the fleet, for ever.
async fn report(tally: &Tally, json: bool) {
    let mut next = interval(REPORT_EVERY);
    loop {
        next.tick().await;
        show("now", tally, json);
    }
}

fn show(when: &str, tally: &Tally, json: bool) {
    let figures: [(&str, &AtomicU64); 14] = [
        ("standing", &tally.standing),
        ("registrations", &tally.registrations),
        ("links_lost", &tally.links_lost),
        ("rejected", &tally.rejected),
        ("heartbeats", &tally.heartbeats),
        ("jobs", &tally.jobs),
        ("finished", &tally.finished),
        ("cancelled", &tally.cancelled),
        ("tokens", &tally.tokens),
        ("deaths", &tally.deaths),
        ("stalls", &tally.stalls),
        ("doubles", &tally.doubles),
        ("lates", &tally.lates),
        ("lies", &tally.lies),
    ];
    let values = figures.map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
    if json {
        let mut line = serde_json::Map::from_iter([("when".to_owned(), when.into())]);
        line.extend(values.map(|(name, value)| (name.to_owned(), value.into())));
        println!("{}", serde_json::Value::Object(line));
    } else {
        let words: Vec<String> = values
            .into_iter()
            .filter(|(name, value)| *value > 0 || *name == "standing")
            .map(|(name, value)| format!("{value} {}", name.replace('_', " ")))
            .collect();
        println!("{when}: {}", words.join(", "));
    }
}
