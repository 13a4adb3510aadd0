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

use std::error::Error;

use ram_core::catalog;
use ram_core::memory::Workload;
use ram_core::units::{ByteRate, Bytes, TokenCount};
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Wish};

/// Chips by name, with Apple's figure of their memory's bandwidth in GB/s.
const CHIPS: [(&str, u64); 17] = [
    ("M1", 68),
    ("M1-Pro", 200),
    ("M1-Max", 400),
    ("M1-Ultra", 800),
    ("M2", 100),
    ("M2-Pro", 200),
    ("M2-Max", 400),
    ("M2-Ultra", 800),
    ("M3", 100),
    ("M3-Pro", 150),
    ("M3-Max", 400),
    ("M3-Ultra", 819),
    ("M4", 120),
    ("M4-Pro", 273),
    ("M4-Max", 546),
    ("M5", 153),
    ("M5-Max", 614),
];

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
    let experts = spec.active_parameters() < spec.parameters();
    let nodes = read_nodes(&nodes, if experts { 55 } else { 70 })?;
    match plan::choose(&ModelNeeds::of(spec), &nodes, &Links::uniform(link), &wish) {
        Ok(plan) => println!("{plan}"),
        Err(refusal) => println!("no plan: {refusal}"),
    }
    Ok(())
}

/// `4xM4-Max-64,1xM3-Ultra-512`.
fn read_nodes(list: &str, percent: u64) -> Result<Vec<Node>, Box<dyn Error>> {
    let mut nodes = Vec::new();
    for kind in list.split(',') {
        let unknown = || format!("{kind} is no kind of node, such as 4xM4-Max-64");
        let (count, name) = kind.split_once('x').ok_or_else(unknown)?;
        let (chip, memory) = name.rsplit_once('-').ok_or_else(unknown)?;
        let (_, bandwidth) = CHIPS.iter().find(|(known, _)| *known == chip).ok_or_else(unknown)?;
        let memory: u64 = memory.parse()?;
        let usable = if memory <= 36 { memory * 2 / 3 } else { memory * 3 / 4 };
        for _ in 0..count.parse::<u8>()? {
            let number = u8::try_from(nodes.len())?;
            let speed = ByteRate::new(bandwidth * 10_000_000 * percent);
            nodes.push(Node::with(number, Bytes::from_gib(usable), speed));
        }
    }
    Ok(nodes)
}
