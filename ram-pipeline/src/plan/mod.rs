//! Which node holds which layers of a model that no node holds alone.
//!
//! ```text
//!           token                 hidden state            hidden state
//! head ──────────────► layers 0..a ─────────► layers a..b ─────────► layers b..L
//!   ▲                                                                    │
//!   └───────────────────────────── next token ───────────────────────────┘
//!
//! time of a token  =  sum of stages  +  sum of hops (delay + bytes / rate)  +  delay of the way back
//! tokens a second  =  1 / the slowest stage or transfer, once enough sessions are under way
//! ```
//!
//! A stage is a run of layers on one node; it takes what its weights, as many as one token reads, take at the node's
//! speed. The first stage holds the embedding, the last one the head: of a model whose head is its embedding both hold
//! that. [`choose`] tries orders of the nodes, and finds the best runs for each order, which may leave nodes out: one
//! more machine is one more hop. With up to [`EXACT_NODES`] nodes every order is tried, and the plan is the best there
//! is.
//!
//! ```
//! use ram_core::catalog;
//! use ram_core::memory::Workload;
//! use ram_core::units::{ByteRate, Bytes};
//! use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Wish};
//!
//! let model = ModelNeeds::of(catalog::resolve("llama-3.1-405b").ok_or("no such model")?);
//! let mac = |number| Node::with(number, Bytes::from_gib(80), ByteRate::new(382_000_000_000));
//! let nodes: Vec<_> = (0..5).map(mac).collect();
//! let wish = Wish { workload: Workload::default(), objective: Objective::Latency };
//! let plan = plan::choose(&model, &nodes, &Links::uniform(Link::LAN), &wish)?;
//! assert!(plan.stages.len() < 5, "one can be left out, and is a spare");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod needs;
mod order;
mod refusal;
mod split;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ram_core::id::{NodeKey, ProviderId};
use ram_core::layers::LayerRange;
use ram_core::memory::{Breakdown, Room, Workload};
use ram_core::units::{ByteRate, Bytes, TokenCount, TokenRate};
use serde::{Deserialize, Serialize};

pub use self::needs::{Experts, LayerNeeds, ModelNeeds};
pub use self::order::EXACT_NODES;
pub use self::refusal::{Piece, Refusal};

use self::split::{Found, Table};

/// A machine that may hold layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Whose it is.
    pub id: ProviderId,
    /// Its memory.
    pub room: Room,
    /// How fast it reads weights while it decodes: measured, not a data sheet's.
    pub weights_per_s: ByteRate,
    /// What a pass takes beside reading weights.
    pub overhead: Duration,
}

/// The way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Bytes a second.
    pub rate: ByteRate,
}

/// The ways between all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    known: BTreeMap<(ProviderId, ProviderId), Link>,
    others: Link,
}

/// What a plan shall be good at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// One session's tokens come as fast as can be; among such plans, the slowest stage is as fast as can be.
    Latency,
    /// All sessions together get as many tokens as can be; among such plans, one session's come fast.
    Throughput,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// How long sessions are, and how many are held at once.
    pub workload: Workload,
    /// What the plan shall be good at.
    pub objective: Objective,
}

/// Who holds which layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order of layers; they hold each layer once.
    pub stages: Vec<Stage>,
    /// Nodes that were left out and could step in.
    pub spares: Vec<Spare>,
    /// What to expect of it.
    pub expected: Expected,
}

/// A run of layers on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Who holds it.
    pub node: ProviderId,
    /// What it holds; with the embedding where this begins at layer 0, with the head where it ends at the last.
    pub layers: LayerRange,
    /// The memory that this takes.
    pub needs: Breakdown,
    /// What one token takes in it.
    pub time: Duration,
    /// What one token takes from here to the next stage; from the last one, the chosen token on its way back.
    pub hop: Duration,
}

/// A node without a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// Whose it is.
    pub node: ProviderId,
    /// The stages, by their place in the plan, for which it has memory enough.
    pub stages: Vec<usize>,
}

/// What a plan promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// From one token of a session to its next.
    pub token: Duration,
    /// One session alone.
    pub single: TokenRate,
    /// All sessions together, when as many as `sessions` are under way.
    pub saturated: TokenRate,
    /// How many sessions keep the slowest stage busy.
    pub sessions: u32,
}

impl Node {
    /// A node that is a number, for examples and tests: all of its memory is usable, and passes cost nothing beside
    /// reading weights.
    #[must_use]
    pub fn with(number: u8, memory: Bytes, weights_per_s: ByteRate) -> Self {
        let mut key = [0; 32];
        key[15] = number;
        let id = NodeKey::from_bytes(key).provider_id();
        Self { id, room: Room { usable: memory, cap: memory }, weights_per_s, overhead: Duration::ZERO }
    }
}

impl Link {
    /// A home or office: 0.3 ms one way, 1 Gb/s.
    pub const LAN: Self = Self { delay: Duration::from_micros(300), rate: ByteRate::new(125_000_000) };
    /// Homes of one country: 20 ms one way, 100 Mb/s.
    pub const WAN: Self = Self { delay: Duration::from_millis(20), rate: ByteRate::new(12_500_000) };
}

impl Links {
    /// The same way between any two.
    #[must_use]
    pub const fn uniform(link: Link) -> Self {
        Self { known: BTreeMap::new(), others: link }
    }

    /// States the way from one node to another; the way back is its own.
    pub fn set(&mut self, from: ProviderId, to: ProviderId, link: Link) {
        self.known.insert((from, to), link);
    }

    /// The way from one node to another.
    #[must_use]
    pub fn between(&self, from: ProviderId, to: ProviderId) -> Link {
        self.known.get(&(from, to)).copied().unwrap_or(self.others)
    }
}

/// The best plan for a model over some of these nodes.
///
/// The order in which nodes are given makes no odds, and each counts once.
///
/// # Errors
/// [`Refusal`], which says in words what is missing.
pub fn choose(model: &ModelNeeds, nodes: &[Node], links: &Links, wish: &Wish) -> Result<Plan, Refusal> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| node.id);
    nodes.dedup_by_key(|node| node.id);
    if nodes.len() > NODES_MAX {
        return Err(Refusal::TooManyNodes { nodes: nodes.len() });
    }
    let table = Table::new(model, &nodes, links, wish.workload);
    match order::best(&table, wish.objective) {
        Some(found) => Ok(describe(model, &nodes, links, wish.workload, &found)),
        None => Err(refusal::explain(model, &nodes, links, wish)),
    }
}

/// A found split, with everything that people want to know of it.
fn describe(model: &ModelNeeds, nodes: &[Node], links: &Links, workload: Workload, found: &Found) -> Plan {
    let runs: Vec<(&Node, LayerRange)> =
        found.runs.iter().map(|(node, layers)| (&nodes[*node], *layers)).collect();
    let transfer = |link: Link| link.rate.time_for(model.hop_bytes());
    let stage = |(number, (node, layers)): (usize, &(&Node, LayerRange))| {
        let hop = match runs.get(number + 1) {
            Some((next, _)) => {
                let link = links.between(node.id, next.id);
                link.delay + transfer(link)
            }
            None if number == 0 => Duration::ZERO,
            None => links.between(node.id, runs[0].0.id).delay,
        };
        let time = node.overhead + node.weights_per_s.time_for(model.read_bytes(*layers));
        Stage { node: node.id, layers: *layers, needs: model.needs(*layers, workload), time, hop }
    };
    let stages: Vec<Stage> = runs.iter().enumerate().map(stage).collect();
    let transfers = runs.windows(2).map(|pair| transfer(links.between(pair[0].0.id, pair[1].0.id)));
    let slowest = stages.iter().map(|stage| stage.time).chain(transfers).max();
    let expected = Expected::of(&stages, slowest.unwrap_or_default());
    Plan { spares: spares(nodes, &stages), stages, expected }
}

/// The nodes without a stage that have memory for one.
fn spares(nodes: &[Node], stages: &[Stage]) -> Vec<Spare> {
    let idle = nodes.iter().filter(|node| stages.iter().all(|stage| stage.node != node.id));
    let spare = idle.map(|node| {
        let takes = |(_, stage): &(usize, &Stage)| stage.needs.total() <= node.room.available();
        let stages = stages.iter().enumerate().filter(takes).map(|(number, _)| number).collect();
        Spare { node: node.id, stages }
    });
    spare.filter(|spare| !spare.stages.is_empty()).collect()
}

impl Expected {
    fn of(stages: &[Stage], slowest: Duration) -> Self {
        let token = stages.iter().map(|stage| stage.time + stage.hop).sum::<Duration>();
        let slowest = slowest.max(Duration::from_nanos(1));
        let sessions = token.as_nanos().div_ceil(slowest.as_nanos());
        Self {
            token,
            single: TokenRate::of(TokenCount::new(1), token),
            saturated: TokenRate::of(TokenCount::new(1), slowest),
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        }
    }
}

impl fmt::Display for Plan {
    /// A table for people, a line for each stage.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, stage) in self.stages.iter().enumerate() {
            let Stage { node, layers, needs, time, hop } = stage;
            let millis = |time: &Duration| time.as_secs_f64() * 1e3;
            writeln!(
                f,
                "stage {number}: {node}, layers {}..{}, {}, {:.2} ms and {:.2} ms to the next",
                layers.first(),
                layers.end(),
                needs.total(),
                millis(time),
                millis(hop)
            )?;
        }
        for Spare { node, stages } in &self.spares {
            writeln!(f, "spare: {node}, for stages {stages:?}")?;
        }
        let Expected { single, saturated, sessions, .. } = self.expected;
        write!(f, "expected: {single} for one session, {saturated} in all from {sessions} sessions on")
    }
}

/// Nodes that are looked at: more make no pipeline faster.
pub const NODES_MAX: usize = 64;
