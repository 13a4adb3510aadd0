//! What a group knows of one node: whether it is here, what it holds, how often it failed.

use std::collections::BTreeMap;
use std::time::Duration;

use ram_core::id::NodeKey;
use ram_core::layers::LayerRange;
use ram_core::units::Timestamp;
use ram_proto::control::shard::ShardReady;

/// A node that a plan has named.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Whether the coordinator has a connection to it.
    pub(super) here: bool,
    /// Its key, once it has said a word.
    pub(super) key: Option<NodeKey>,
    /// What it was asked to hold, by layers.
    pub(super) shards: BTreeMap<LayerRange, Shard>,
    /// It has failed in a way that time does not mend.
    pub(super) out: bool,
    /// Failures since it last stood well for [`FORGIVEN_AFTER`].
    pub(super) strikes: u32,
    struck: Timestamp,
    rests_until: Timestamp,
}

/// How far a node is with some layers.
#[derive(Clone, Debug)]
pub(super) enum Shard {
    /// It was asked for them, and is given up at this time.
    Loading(Timestamp),
    /// It holds them.
    Ready(Box<ShardReady>),
}

impl Member {
    /// A node that is here and has not failed.
    pub(super) const fn new() -> Self {
        Self {
            here: true,
            key: None,
            shards: BTreeMap::new(),
            out: false,
            strikes: 0,
            struck: Timestamp::ZERO,
            rests_until: Timestamp::ZERO,
        }
    }

    /// What it said of these layers, if it holds them.
    pub(super) fn ready(&self, layers: LayerRange) -> Option<&ShardReady> {
        match self.shards.get(&layers) {
            Some(Shard::Ready(word)) => Some(word),
            Some(Shard::Loading(_)) | None => None,
        }
    }

    /// It failed: it is not chosen for a while, and for longer each time.
    pub(super) fn strike(&mut self, now: Timestamp) {
        if now.since(self.struck) >= FORGIVEN_AFTER {
            self.strikes = 0;
        }
        let rest = REST_FIRST * (1 << self.strikes.min(REST_DOUBLINGS));
        self.strikes = self.strikes.saturating_add(1);
        self.struck = now;
        self.rests_until = now.after(rest);
    }

    /// Takes the last strike back.
    pub(super) fn forgive(&mut self) {
        self.strikes = self.strikes.saturating_sub(1);
        self.rests_until = Timestamp::ZERO;
    }

    /// Whether it is not to be chosen yet.
    pub(super) fn rests(&self, now: Timestamp) -> bool {
        now < self.rests_until
    }

    /// Whether it can be asked for anything.
    pub(super) fn may_be_chosen(&self, now: Timestamp) -> bool {
        self.here && !self.out && !self.rests(now)
    }
}

/// A node's first rest; each further one is twice as long.
const REST_FIRST: Duration = Duration::from_secs(10);
/// The longest rest is 10 s times 2^5: about five minutes.
const REST_DOUBLINGS: u32 = 5;
/// Strikes are forgotten after this: twice the longest rest.
const FORGIVEN_AFTER: Duration = Duration::from_secs(640);
