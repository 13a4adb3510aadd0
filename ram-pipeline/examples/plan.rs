//! How a model would be split over some Macs.
//!
//! ```text
//! cargo run -p ram-pipeline --example plan -- --model llama-3.1-405b --nodes 6xM4-Max-64,2xM4-Pro-48 \
//!     --link lan --objective throughput --context 8192 --slots 1
//! ```
//!
//! A kind of node is its chip and its memory in GB. Of the memory the GPU gets two thirds up to 36 GB and three
//! quarters above, as macOS sets it. Weights are read at the share of the chip's bandwidth that decoding reaches
//! elsewhere: 0.70 of dense models, 0.55 of experts. These are figures to plan with, not measurements.
#![allow(clippy::print_stdout, reason = "an example speaks on its standard output")]

mod macs;

use std::error::Error;

use ram_core::catalog;
use ram_core::memory::Workload;
use ram_core::units::TokenCount;
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Objective, Wish};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut model, mut nodes, mut link) = ("llama-3.1-405b".to_owned(), "6xM4-Max-64".to_owned(), Link::LAN);
    let mut wish = Wish { workload: Workload::default(), objective: Objective::Latency };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match (word.as_str(), value.as_str()) {
            ("--model", _) => model = value,
            ("--nodes", _) => nodes = value,
            ("--link", "lan") => link = Link::LAN,
            ("--link", "wan") => link = Link::WAN,
            ("--objective", "latency") => wish.objective = Objective::Latency,
            ("--objective", "throughput") => wish.objective = Objective::Throughput,
            ("--context", count) => wish.workload.context = TokenCount::new(count.parse()?),
            ("--slots", count) => wish.workload.slots = count.parse()?,
            _ => return Err(format!("{word} {value} is unknown: see the head of this example").into()),
        }
    }
    let spec = catalog::resolve(&model).ok_or_else(|| format!("the catalogue has no {model}"))?;
    let nodes: Vec<_> = macs::read(&nodes, spec)?.into_iter().map(|(_, node)| node).collect();
    match plan::choose(&ModelNeeds::of(spec), &nodes, &Links::uniform(link), &wish) {
        Ok(plan) => println!("{plan}"),
        Err(refusal) => println!("no plan: {refusal}"),
    }
    Ok(())
}
