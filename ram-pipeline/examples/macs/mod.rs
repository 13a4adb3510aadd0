//! Macs by their chips: how fast each reads memory, and how much of its own a model can have.

use std::error::Error;

use ram_core::catalog::ModelSpec;
use ram_core::units::{ByteRate, Bytes};
use ram_pipeline::plan::Node;

/// Chips by name, with Apple's figure of their memory's bandwidth in GB/s; where there are two, that of fewer cores has
/// their number. Those of the M5 are not checked.
const CHIPS: [(&str, u64); 21] = [
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
    ("M3-Max-30core", 300),
    ("M3-Ultra", 819),
    ("M4", 120),
    ("M4-Pro", 273),
    ("M4-Max", 546),
    ("M4-Max-32core", 410),
    ("M5", 153),
    ("M5-Pro", 307),
    ("M5-Max", 614),
    ("M5-Max-32core", 460),
];

/// `4xM4-Max-64,1xM3-Ultra-512`: nodes with their names. Weights are read at the share of the bandwidth that decoding
/// reaches elsewhere: 0.70 of dense models, 0.55 of experts. Of the memory the GPU gets two thirds up to 36 GB and
/// three quarters above, as macOS sets it.
pub(crate) fn read(list: &str, model: &ModelSpec) -> Result<Vec<(String, Node)>, Box<dyn Error>> {
    let has_experts = model.active_parameters() < model.parameters();
    let percent = if has_experts { 55 } else { 70 };
    let mut nodes = Vec::new();
    for kind in list.split(',') {
        let unknown =
            || format!("`{kind}` is no kind of node: write how many, chip and GB, such as 4xM4-Max-64");
        let (count, name) = kind.split_once('x').ok_or_else(unknown)?;
        let (chip, memory) = name.rsplit_once('-').ok_or_else(unknown)?;
        let (count, memory): (u8, u64) =
            (count.parse().map_err(|_| unknown())?, memory.parse().map_err(|_| unknown())?);
        let known = CHIPS.iter().find(|(known, _)| known.eq_ignore_ascii_case(chip));
        let Some((chip, bandwidth)) = known else {
            let known: Vec<&str> = CHIPS.iter().map(|(name, _)| *name).collect();
            return Err(format!("there is no chip `{chip}`; known are {}", known.join(", ")).into());
        };
        let usable = if memory <= 36 { memory * 2 / 3 } else { memory * 3 / 4 };
        for _ in 0..count {
            let number = u8::try_from(nodes.len()).map_err(|_| "there are at most 256 nodes: take fewer")?;
            let speed = ByteRate::new(bandwidth * 10_000_000 * percent);
            nodes.push((format!("{chip} {memory} GB"), Node::with(number, Bytes::from_gib(usable), speed)));
        }
    }
    Ok(nodes)
}
