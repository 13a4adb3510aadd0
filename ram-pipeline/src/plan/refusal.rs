//! Why there is no plan, in words that an operator can act on.

use std::fmt;

use ram_core::layers::LayerRange;
use ram_core::memory::{Breakdown, Workload};
use ram_core::units::{Bytes, TokenCount};

use super::split::Table;
use super::{Links, ModelNeeds, NODES_MAX, Node, Objective, Wish, order};

/// Why a model cannot be split over some nodes: the first of these that would have to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is nobody.
    #[error("no machine offers memory for layers")]
    NoNodes,
    /// More nodes than are looked at.
    #[error(
        "{nodes} machines were offered, and {NODES_MAX} are looked at: offer the largest and fastest ones"
    )]
    TooManyNodes {
        /// How many there are.
        nodes: usize,
    },
    /// All memory together is less than the model.
    #[error(
        "the model needs {needed} with headroom, and the {nodes} machines have {available} for it together: {} are \
         missing{}", needed.saturating_sub(*available), Hint(*shorter)
    )]
    TooLarge {
        /// The whole model on one machine, which is the least.
        needed: Bytes,
        /// Of all machines.
        available: Bytes,
        /// How many there are.
        nodes: usize,
        /// A context with which there is a plan.
        shorter: Option<TokenCount>,
    },
    /// A part that cannot be divided fits no machine.
    #[error("{piece} alone needs {needed} with headroom, and the largest machine has {largest}{}", Hint(*shorter))]
    PieceTooLarge {
        /// The largest such part.
        piece: Piece,
        /// What it needs.
        needed: Bytes,
        /// The most that one machine has.
        largest: Bytes,
        /// A context with which there is a plan.
        shorter: Option<TokenCount>,
    },
    /// The memory would do, but is in pieces that are too small.
    #[error(
        "the {nodes} machines have {available} together, and the model needs {needed}, but layers cannot be divided, \
         and what is left over on each machine is too little for one more{}", Hint(*shorter)
    )]
    TooScattered {
        /// The whole model on one machine.
        needed: Bytes,
        /// Of all machines.
        available: Bytes,
        /// How many there are.
        nodes: usize,
        /// A context with which there is a plan.
        shorter: Option<TokenCount>,
    },
}

/// A part of a model that one node must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Piece {
    /// A layer in the middle, by its number.
    Layer(u16),
    /// The embedding and the first layer.
    Begin,
    /// The last layer and the head.
    End,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(number) => write!(f, "layer {number}"),
            Self::Begin => f.write_str("the embedding with the first layer"),
            Self::End => f.write_str("the head with the last layer"),
        }
    }
}

/// What would help, as the end of a sentence.
struct Hint(Option<TokenCount>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(context) => write!(f, "; with sessions of {context} tokens at most it would fit"),
            None => f.write_str("; no shorter session would help"),
        }
    }
}

/// Why there is no plan for these nodes.
pub(super) fn explain(model: &ModelNeeds, nodes: &[Node], links: &Links, wish: &Wish) -> Refusal {
    if nodes.is_empty() {
        return Refusal::NoNodes;
    }
    let needs = |a, b| LayerRange::new(a, b).map(|layers| model.needs(layers, wish.workload));
    let count = u16::try_from(model.layers().len()).unwrap_or(u16::MAX);
    let needed = needs(0, count).as_ref().map_or(Bytes::MAX, Breakdown::total);
    let available = nodes.iter().map(|node| node.room.available()).sum();
    let shorter = shorter(model, nodes, links, wish);
    if needed > available {
        return Refusal::TooLarge { needed, available, nodes: nodes.len(), shorter };
    }
    let largest = nodes.iter().map(|node| node.room.available()).max().unwrap_or_default();
    let pieces = (0..count).filter_map(|layer| {
        let piece = match layer {
            0 => Piece::Begin,
            last if last + 1 == count => Piece::End,
            layer => Piece::Layer(layer),
        };
        Some((needs(layer, layer + 1).ok()?.total(), piece))
    });
    match pieces.max_by_key(|(needed, _)| *needed) {
        Some((needed, piece)) if needed > largest => {
            Refusal::PieceTooLarge { piece, needed, largest, shorter }
        }
        _ => Refusal::TooScattered { needed, available, nodes: nodes.len(), shorter },
    }
}

/// The longest context, of halves and halves of halves, with which there is a plan.
fn shorter(model: &ModelNeeds, nodes: &[Node], links: &Links, wish: &Wish) -> Option<TokenCount> {
    let asked = wish.workload.context.min(model.context()).get();
    let shorter = std::iter::successors(Some(asked / 2), |context| Some(context / 2));
    let shorter = shorter.take_while(|context| *context >= CONTEXT_MIN).map(TokenCount::new);
    shorter.into_iter().find(|context| {
        let workload = Workload { context: *context, ..wish.workload };
        let table = Table::new(model, nodes, links, workload);
        order::best(&table, Objective::Latency).is_some()
    })
}

/// Sessions that are shorter serve nobody.
const CONTEXT_MIN: u64 = 256;
