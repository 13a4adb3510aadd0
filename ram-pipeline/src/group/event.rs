//! What happens to a group, and what it wants done: the whole surface between it and its shell.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use ram_core::id::{Epoch, ModelId, NodeKey, ProviderId};
use ram_core::units::TokenCount;
use ram_proto::control::ToProvider;
use ram_proto::control::shard::{ShardFailed, ShardFailure, ShardLinked, ShardLost, ShardReady};

use crate::plan::{NODES_MAX, Objective, Plan, Spare};

/// What a group is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The model that it holds.
    pub model: ModelId,
    /// The model's layers.
    pub layers: NonZeroU16,
    /// Positions of sessions that each shard is to have room for, all sessions together.
    pub positions: TokenCount,
    /// Sessions at once.
    pub sessions: u16,
    /// What its plans are good at, and so by what they are compared.
    pub objective: Objective,
    /// How long is waited.
    pub waits: Waits,
}

/// How long a group waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// For a node to fetch and load its layers.
    pub load: Duration,
    /// For all shards to link.
    pub link: Duration,
    /// For a plan, or for a node that makes one needless.
    pub plan: Duration,
    /// To be ready, from the beginning or from a loss on, whatever is tried.
    pub ready: Duration,
}

impl Default for Waits {
    /// 20 GB at 100 Mb/s take half an hour; a link is made, or is not, in 5 s, and hears of a loss in 3 s.
    fn default() -> Self {
        Self {
            load: Duration::from_secs(30 * 60),
            link: Duration::from_secs(15),
            plan: Duration::from_secs(60),
            ready: Duration::from_secs(60 * 60),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node holds layers.
    ShardReady {
        /// Who says so.
        from: NodeKey,
        /// What it says.
        word: ShardReady,
    },
    /// A node does not hold layers.
    ShardFailed {
        /// Who says so.
        from: NodeKey,
        /// What it says.
        word: ShardFailed,
    },
    /// A node's links stand.
    ShardLinked {
        /// Who says so.
        from: NodeKey,
        /// What it says.
        word: ShardLinked,
    },
    /// A node has lost a neighbour.
    ShardLost {
        /// Who says so.
        from: NodeKey,
        /// What it says.
        word: ShardLost,
    },
    /// A node's control connection is closed; so what it held counts as lost.
    NodeGone(ProviderId),
    /// A node has registered, perhaps anew; what it held before counts as lost.
    NodeBack(ProviderId),
    /// A plan: the answer to [`Effect::AskForPlan`], or one that may be better than what runs.
    Plan(Plan),
    /// A node that could step in for some stages of the plan that runs, as [`Group::holders`](super::Group::holders)
    /// numbers them: one that came later than the plan.
    Spare(Spare),
    /// Time passed; to be told once a second or so.
    Tick,
    /// The group is not wanted any more.
    Retire,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Say this to a node.
    Send {
        /// To whom.
        to: ProviderId,
        /// What: one of `LoadShard`, `LinkShard`, `UnloadShard`.
        message: Box<ToProvider>,
    },
    /// Jobs may run.
    Ready {
        /// The epoch of the links.
        epoch: Epoch,
        /// Who drives: jobs go to this node.
        head: NodeKey,
        /// What becomes of the jobs of before.
        jobs: Jobs,
        /// Positions of sessions that every shard has room for.
        positions: TokenCount,
    },
    /// The links of this epoch are void: until the next [`Effect::Ready`] nothing moves.
    Broken {
        /// Which epoch.
        epoch: Epoch,
    },
    /// Find a plan, and answer with [`Event::Plan`] if there is one; it is asked again while none comes.
    AskForPlan {
        /// Nodes that are away, rest, or cannot hold this model.
        without: BTreeSet<ProviderId>,
    },
    /// The group is no more; nothing comes after this.
    Ended(End),
}

/// What becomes of jobs that ran in an earlier epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jobs {
    /// The head is who it was and knows them: it takes them up where they stopped.
    GoOn,
    /// The head is another one, or has lost what it knew: they must be started anew.
    StartAnew,
}

/// Why a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// It was not wanted any more.
    #[error("the group was retired")]
    Retired,
    /// There were not enough nodes for a plan.
    #[error("not enough nodes can hold the model together")]
    NoPlan {
        /// Why a node did not hold its layers, at last.
        failure: Option<ShardFailure>,
    },
    /// The links broke again and again.
    #[error("the nodes lost each other more than {RELINKS_MAX} times in a minute")]
    Unstable,
    /// Too much time passed.
    #[error("the model was not ready in time")]
    TooSlow,
}

impl End {
    /// Whether a new group for the same model may do better.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unstable | Self::TooSlow => true,
            Self::NoPlan { failure } => {
                !matches!(failure, Some(ShardFailure::UnknownModel | ShardFailure::UnsupportedModel))
            }
            Self::Retired => false,
        }
    }
}

/// A plan that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a plan holds each layer once, in order, on {NODES_MAX} nodes at most, and none of them twice")]
pub struct Misplan;

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Layers are loaded.
    Loading,
    /// A stage has no holder, and a plan is waited for.
    Planning,
    /// Links are made.
    Linking,
    /// Jobs may run.
    Ready,
    /// It is over.
    Ended(End),
}

/// Most times that links are made anew within a minute: each makes every session wait, and some be computed
/// again.
pub(super) const RELINKS_MAX: usize = 6;
