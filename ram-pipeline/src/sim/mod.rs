//! Driver and workers on a clock of its own: how fast a chain of machines is before there is one.
//!
//! ```text
//! driver -> worker 0 -- delay, rate --> worker 1 -- … --> worker S-1
//!    ^                                                        |
//!    '------------------ delay, rate: the token --------------'
//! ```
//!
//! What is simulated is what runs: the [`Driver`](crate::driver::Driver) and the [`Worker`](crate::worker::Worker)s
//! themselves, with their batches, credits and pieces of prompts, and each frame with the bytes that it has on the
//! wire. Only what is slow or costs money is made up: a stage is a [`Cost`], from a batch to a time, and a link is a
//! delay and a rate. Frames of a link are sent one behind the other, and their delays run side by side. There is no
//! chance in it: the same chain under the same load takes the same time to the nanosecond.
//!
//! Workers are told of activations that are one number wide, for nobody looks at these; on a link each counts as all
//! that it stands for. Not simulated: heartbeats, which are a few hundred bytes a second, and whatever TCP adds.
//!
//! ```
//! use ram_core::catalog;
//! use ram_core::layers::LayerRange;
//! use ram_core::units::{ByteRate, Bytes};
//! use ram_pipeline::plan::{Link, Links, ModelNeeds, Node};
//! use ram_pipeline::sim::{self, Chain, Load};
//!
//! let model = ModelNeeds::of(catalog::resolve("llama-3.1-405b").ok_or("no such model")?);
//! let halves = [LayerRange::new(0, 63)?, LayerRange::new(63, 126)?];
//! let mac = |number| Node::with(number, Bytes::from_gib(160), ByteRate::new(382_000_000_000));
//! let runs = [(mac(1), halves[0]), (mac(2), halves[1])];
//! let chain = Chain::new(&model, &runs, Links::uniform(Link::LAN));
//! let report = sim::run(&chain, &Load { sessions: 1, ..Load::default() }, None)?;
//! assert_eq!(report.delays, (2, 2), "to the second stage, and back with the token");
//! assert_eq!(report.rate().get() / 100, 16, "1.6 tokens a second");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cost;
mod report;
mod world;

use std::num::NonZeroU32;
use std::time::Duration;

use ram_core::id::ProviderId;
use ram_core::layers::LayerRange;
use ram_core::units::{Bytes, TokenCount};
use ram_proto::frame::PAYLOAD_BYTES_MAX;

use crate::plan::{Links, ModelNeeds, Node, Plan};

pub use self::cost::{Batch, Cost};
pub use self::report::{Hop, Pass, Report, Stage};

/// Machines in the order of the layers that they hold.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Who they are, and what passes take there.
    pub stages: Vec<(ProviderId, Cost)>,
    /// The ways between them.
    pub links: Links,
    /// Numbers of a hidden state, of 16 bits each.
    pub width: u32,
}

/// What is asked of a chain: all at once, and all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Answers at once.
    pub sessions: u32,
    /// Tokens of a prompt.
    pub prompt: TokenCount,
    /// Tokens of an answer.
    pub tokens: TokenCount,
    /// Tokens of a piece of a prompt.
    pub piece: NonZeroU32,
}

/// A machine that dies, and when there is another in its place. All times are counted from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Whose: the place in the chain, from 1 on, for with the head's machine the driver dies.
    pub stage: usize,
    /// When.
    pub at: Duration,
    /// When its neighbours know: at once if a link is closed, after three heartbeats if it is silent.
    pub noticed: Duration,
    /// When a spare is in its place and all links are made anew.
    pub rebuilt: Duration,
}

/// Why there is nothing to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// A chain without a machine.
    #[error("a chain has at least one stage")]
    NoStage,
    /// Nothing is asked.
    #[error("a load has at least one session, with a token of a prompt and one of an answer")]
    NoLoad,
    /// Positions are counted in 32 bits.
    #[error("prompt and answer have more tokens than the {most} that a session may have")]
    TooLong {
        /// As many as may be.
        most: u32,
    },
    /// A piece of a prompt makes a frame that nobody takes.
    #[error("a piece of a prompt has {got} on a link, over the {PAYLOAD_BYTES_MAX} bytes that a frame takes")]
    PieceTooLong {
        /// What it would have.
        got: Bytes,
    },
    /// The machine that dies is the head's or none.
    #[error("stage {stage} of {stages} cannot die: it is one from 1 on, behind the head's own")]
    NoSuchDeath {
        /// Which.
        stage: usize,
        /// How many there are.
        stages: usize,
    },
    /// It is there again before it is missed.
    #[error("a death is first, then it is noticed, then the chain is made anew")]
    DeathOutOfOrder,
    /// A plan names a machine that was not given.
    #[error("stage {stage} of the plan is on a node that is not among those given")]
    UnknownNode {
        /// The stage.
        stage: usize,
    },
}

impl Default for Load {
    /// One answer of 64 tokens to a prompt of 16.
    fn default() -> Self {
        Self { sessions: 1, prompt: TokenCount::new(16), tokens: TokenCount::new(64), piece: PIECE }
    }
}

impl Chain {
    /// Of these runs of a model's layers.
    #[must_use]
    pub fn new(model: &ModelNeeds, runs: &[(Node, LayerRange)], links: Links) -> Self {
        let stage = |(node, layers): &(Node, LayerRange)| (node.id, Cost::of(model, *layers, node));
        let width = u32::try_from(model.hop_bytes().get() / NUMBER_BYTES).unwrap_or(u32::MAX);
        Self { stages: runs.iter().map(stage).collect(), links, width }
    }

    /// Of a plan over these nodes.
    ///
    /// # Errors
    /// [`SimError::UnknownNode`] when the plan is one over others.
    pub fn of(plan: &Plan, model: &ModelNeeds, nodes: &[Node], links: Links) -> Result<Self, SimError> {
        let run = |(number, stage): (usize, &crate::plan::Stage)| {
            let node = nodes.iter().find(|node| node.id == stage.node);
            Ok((*node.ok_or(SimError::UnknownNode { stage: number })?, stage.layers))
        };
        let runs = plan.stages.iter().enumerate().map(run).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(model, &runs, links))
    }

    /// The same chain where the arithmetic of so many tokens takes as long as reading what one token reads: so long
    /// prompts take time.
    #[must_use]
    pub fn with_arithmetic(mut self, tokens_per_read: NonZeroU32) -> Self {
        for (_, cost) in &mut self.stages {
            cost.tokens_per_read = Some(tokens_per_read);
        }
        self
    }
}

/// Plays a load on a chain to its end.
///
/// # Errors
/// [`SimError`], when there is nothing to play.
pub fn run(chain: &Chain, load: &Load, death: Option<Death>) -> Result<Report, SimError> {
    let Load { sessions, prompt, tokens, piece } = *load;
    let stages = chain.stages.len();
    if stages == 0 {
        return Err(SimError::NoStage);
    }
    if sessions == 0 || prompt == TokenCount::ZERO || tokens == TokenCount::ZERO {
        return Err(SimError::NoLoad);
    }
    if prompt.checked_add(tokens).is_none_or(|most| most.get() > u64::from(u32::MAX)) {
        return Err(SimError::TooLong { most: u32::MAX });
    }
    let rows = u64::from(piece.get()).min(prompt.saturating_add(tokens).get());
    let got = Bytes::new(NUMBER_BYTES * u64::from(chain.width)).saturating_mul(rows);
    if stages > 1 && got.get() > PAYLOAD_BYTES_MAX as u64 {
        return Err(SimError::PieceTooLong { got });
    }
    if let Some(Death { stage, at, noticed, rebuilt }) = death {
        if stage == 0 || stage >= stages {
            return Err(SimError::NoSuchDeath { stage, stages });
        }
        if at > noticed || noticed > rebuilt {
            return Err(SimError::DeathOutOfOrder);
        }
    }
    Ok(world::World::new(chain, load).play(death))
}

/// Tokens of a piece of a prompt: as many as the planner of memory counts with.
const PIECE: NonZeroU32 = NonZeroU32::new(512).expect("is not zero");
/// Bytes of a number of a hidden state on a link: bfloat16.
const NUMBER_BYTES: u64 = 2;
