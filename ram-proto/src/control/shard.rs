//! What coordinator and provider say of a shard group: some nodes that hold a model together.
//!
//! ```text
//! coordinator                                  provider
//!    |  <----------------------- shard_report --  |   what it lends; after it has registered, and with each heartbeat
//!    |  -- load_shard ------------------------->  |   minutes: fetch, load, listen
//!    |  <-- shard_ready | shard_failed ---------  |
//!    |  -- link_shard (epoch 1, the chain) ---->  |   seconds: dial the next shard, the last one the head
//!    |  <-- shard_linked | shard_lost ----------  |
//!    |  <------------------------- shard_lost --  |   a neighbour is gone
//!    |  -- link_shard (epoch 2, a new chain) -->  |   to every shard of the chain; the links of before are closed
//!    |  -- unload_shard ----------------------->  |
//! ```
//!
//! A shard is named by its group and its layers. A node may be asked for other layers of a group while it serves with
//! some: a better split is loaded beside the one that runs. `link_shard` says which of them serve; `unload_shard` lets
//! the others go. Asked again for what it holds, a node says again that it is ready. Only who has named
//! [`Capability::SHARD_V1`](super::Capability::SHARD_V1) and lends something is asked. Jobs go to the head by `run`,
//! with the group's id.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ram_core::id::{Epoch, GroupId, ModelId, NodeKey};
use ram_core::layers::LayerRange;
use ram_core::units::{ByteRate, Bytes, TokenCount};
use serde::{Deserialize, Serialize};

use crate::frame::ModelDigest;
use crate::tensor::Dtype;

/// Most shards of a group: more hops make no pipeline faster.
pub const SHARDS_MAX: usize = 64;
/// Most addresses of a node: its home's, the internet's, each in both versions of IP, and a relay's.
pub const ADDRESSES_MAX: usize = 8;
/// Most nodes that a node is told of as near: more than a home has.
pub const NEAR_MAX: usize = 8;
/// Longest address in bytes: a name of the DNS has 253, a port five and a colon.
pub const ADDRESS_BYTES_MAX: usize = 259;

/// Hold these layers of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadShard {
    /// For which group.
    pub group: GroupId,
    /// Of which model.
    pub model: ModelId,
    /// Which layers.
    pub layers: LayerRange,
    /// Which shard this is: the first one holds the embedding, too, the last one the head.
    pub place: Place,
    /// Positions of sessions to reserve memory for, all sessions together.
    pub positions: TokenCount,
    /// Sessions at once.
    pub sessions: u16,
    /// Who may have files of the model, likeliest first; [`NEAR_MAX`] of them are asked at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<Near>,
}

/// A node that may have files of a model, and gives them to others on its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Near {
    /// Who it is, and must prove to be when dialled.
    pub node: NodeKey,
    /// Where to dial it.
    pub addresses: Addresses,
}

/// Link with the other shards; what other epochs linked is closed, and the layers that the chain names serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkShard {
    /// Which group.
    pub group: GroupId,
    /// The links' epoch, which the frames of these links carry; it rises.
    pub epoch: Epoch,
    /// Who is in it.
    pub chain: Chain,
}

/// Let layers go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnloadShard {
    /// Of which group.
    pub group: GroupId,
    /// Which ones; all of this group when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayerRange>,
}

/// Layers are in memory, and a worker listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReady {
    /// Of which group.
    pub group: GroupId,
    /// Which layers.
    pub layers: LayerRange,
    /// Where the worker listens.
    pub addresses: Addresses,
    /// The model's files, as the frames name them.
    pub digest: ModelDigest,
    /// How wide activations are.
    pub width: u32,
    /// In which type they are sent.
    pub dtype: Dtype,
    /// Positions of sessions that there is room for.
    pub kv_free: TokenCount,
}

/// Layers are not held, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFailed {
    /// Of which group.
    pub group: GroupId,
    /// Which layers.
    pub layers: LayerRange,
    /// Why.
    pub failure: ShardFailure,
}

/// All links of this shard stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLinked {
    /// Of which group.
    pub group: GroupId,
    /// In which epoch.
    pub epoch: Epoch,
}

/// A link could not be made, was closed, or was silent for three heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLost {
    /// Of which group.
    pub group: GroupId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Who was at its other end.
    pub neighbour: Neighbour,
}

/// What a node lends to groups, and how its shards do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// What it lends; nothing when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lends: Option<Lending>,
    /// How its shards that are linked do; at most [`SHARDS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardStatus>,
    /// Where it gives files of models to nodes on its network; left out by one that gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
}

/// What a node lends to groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lending {
    /// Memory for shards, with that of those which it holds already.
    pub memory: Bytes,
    /// How fast it reads weights: measured.
    pub weights_per_s: ByteRate,
}

/// How a shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Of which group.
    pub group: GroupId,
    /// Which layers.
    pub layers: LayerRange,
    /// Sessions that it holds.
    pub sessions: u32,
    /// Positions of sessions that there is room for.
    pub kv_free: TokenCount,
    /// Microseconds of computing that a step of one token took lately; 0 before the first.
    pub step_us: u32,
    /// Microseconds, one way, to the next shard, or from the last one to the head; left out until it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop_us: Option<u32>,
}

/// A neighbour of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    /// The shard before.
    Up,
    /// The shard behind.
    Down,
    /// The other end of the results: the head's is the last shard, the last shard's the head.
    Results,
}

/// Why a node does not hold layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ShardFailure {
    /// The memory does not suffice.
    #[error("the layers do not fit in memory")]
    OutOfMemory,
    /// The disk does not suffice.
    #[error("the layers do not fit on the disk")]
    DiskFull,
    /// The files could not be fetched, or came broken.
    #[error("the model's files could not be fetched")]
    Unavailable,
    /// No model of this name, or without such layers.
    #[error("there is no such model, or it has no such layers")]
    UnknownModel,
    /// This version of the software cannot run it.
    #[error("the model is of a kind that this version does not run")]
    UnsupportedModel,
    /// The operator does not lend this machine for it.
    #[error("the operator does not allow it")]
    Forbidden,
    /// No port to listen on.
    #[error("the worker cannot listen")]
    CannotListen,
    /// More shards than the node holds at once.
    #[error("the node is busy with other shards")]
    Busy,
    /// It went wrong here.
    #[error("something went wrong at the node")]
    Internal,
}

impl ShardFailure {
    /// Whether the same node may do it at another time.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::CannotListen | Self::Busy | Self::Internal => true,
            Self::OutOfMemory
            | Self::DiskFull
            | Self::UnknownModel
            | Self::UnsupportedModel
            | Self::Forbidden => false,
        }
    }
}

/// Which shard of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlaceFields", into = "PlaceFields")]
pub struct Place {
    shard: u16,
    of: u16,
}

#[derive(Serialize, Deserialize)]
struct PlaceFields {
    shard: u16,
    of: u16,
}

impl Place {
    /// The shard of this number, from 0, of so many.
    ///
    /// # Errors
    /// [`ChainError`] when there are more than [`SHARDS_MAX`], or no such one.
    pub const fn new(shard: u16, of: u16) -> Result<Self, ChainError> {
        if of as usize > SHARDS_MAX {
            Err(ChainError::TooLong { shards: of as usize })
        } else if shard >= of {
            Err(ChainError::NoSuchShard { shard, of })
        } else {
            Ok(Self { shard, of })
        }
    }

    /// Its number, from 0.
    #[must_use]
    pub const fn shard(self) -> u16 {
        self.shard
    }

    /// How many there are.
    #[must_use]
    pub const fn of(self) -> u16 {
        self.of
    }

    /// Whether it holds the embedding, and its node is the head.
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.shard == 0
    }

    /// Whether it picks the tokens.
    #[must_use]
    pub const fn is_last(self) -> bool {
        self.shard + 1 == self.of
    }
}

impl TryFrom<PlaceFields> for Place {
    type Error = ChainError;

    fn try_from(PlaceFields { shard, of }: PlaceFields) -> Result<Self, ChainError> {
        Self::new(shard, of)
    }
}

impl From<Place> for PlaceFields {
    fn from(Place { shard, of }: Place) -> Self {
        Self { shard, of }
    }
}

/// Where a node can be dialled, best first; at least one, at most [`ADDRESSES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// These.
    ///
    /// # Errors
    /// [`AddressError`] when there is none or there are too many, or one is empty, too long or has other signs than
    /// visible ones of ASCII.
    pub fn new(addresses: Vec<String>) -> Result<Self, AddressError> {
        let is_good = |address: &String| {
            (1..=ADDRESS_BYTES_MAX).contains(&address.len())
                && address.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(AddressError::Count { got: addresses.len() });
        }
        if addresses.iter().all(is_good) { Ok(Self(addresses)) } else { Err(AddressError::Malformed) }
    }

    /// Best first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl From<SocketAddr> for Addresses {
    /// One, of numbers.
    fn from(address: SocketAddr) -> Self {
        Self(vec![address.to_string()])
    }
}

impl TryFrom<Vec<String>> for Addresses {
    type Error = AddressError;

    fn try_from(addresses: Vec<String>) -> Result<Self, AddressError> {
        Self::new(addresses)
    }
}

impl From<Addresses> for Vec<String> {
    fn from(addresses: Addresses) -> Self {
        addresses.0
    }
}

/// Why some texts are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// None, or too many.
    #[error("a node has 1 to {ADDRESSES_MAX} addresses, not {got}")]
    Count {
        /// How many there are.
        got: usize,
    },
    /// One has not the form of an address.
    #[error("an address is 1 to {ADDRESS_BYTES_MAX} visible signs of ASCII")]
    Malformed,
}

/// A shard in its chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainShard {
    /// Who holds it, and must prove so when dialled.
    pub node: NodeKey,
    /// Where to dial it.
    pub addresses: Addresses,
    /// What it holds.
    pub layers: LayerRange,
}

/// The shards of a group in the order of their layers.
///
/// There is one at least, and [`SHARDS_MAX`] at most; their layers begin at 0 and each run begins where the one before
/// it ends; no node is in it twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ChainShard>", into = "Vec<ChainShard>")]
pub struct Chain(Vec<ChainShard>);

impl Chain {
    /// These.
    ///
    /// # Errors
    /// [`ChainError`] when they are no chain.
    pub fn new(shards: Vec<ChainShard>) -> Result<Self, ChainError> {
        if shards.len() > SHARDS_MAX {
            return Err(ChainError::TooLong { shards: shards.len() });
        }
        let mut held = 0;
        for shard in &shards {
            if shard.layers.first() != held {
                return Err(ChainError::Gap { expected: held, got: shard.layers.first() });
            }
            held = shard.layers.end();
        }
        let nodes: BTreeSet<_> = shards.iter().map(|shard| shard.node).collect();
        match shards.len() {
            0 => Err(ChainError::Empty),
            count if count > nodes.len() => Err(ChainError::NodeTwice),
            _ => Ok(Self(shards)),
        }
    }

    /// In the order of layers.
    #[must_use]
    pub fn shards(&self) -> &[ChainShard] {
        &self.0
    }

    /// The first shard's, whose node drives.
    #[must_use]
    pub fn head(&self) -> &ChainShard {
        &self.0[0]
    }

    /// Layers of all of them together.
    #[must_use]
    pub fn layers(&self) -> u16 {
        self.0.last().map_or(0, |shard| shard.layers.end())
    }
}

impl TryFrom<Vec<ChainShard>> for Chain {
    type Error = ChainError;

    fn try_from(shards: Vec<ChainShard>) -> Result<Self, ChainError> {
        Self::new(shards)
    }
}

impl From<Chain> for Vec<ChainShard> {
    fn from(chain: Chain) -> Self {
        chain.0
    }
}

/// Why some shards are no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// None.
    #[error("a chain has at least one shard")]
    Empty,
    /// Too many.
    #[error("a chain of {shards} shards is over the limit of {SHARDS_MAX}")]
    TooLong {
        /// How many there are.
        shards: usize,
    },
    /// A layer is held by none, or by two.
    #[error("a shard begins at layer {got} where layer {expected} is the next")]
    Gap {
        /// Where it should begin.
        expected: u16,
        /// Where it begins.
        got: u16,
    },
    /// A node stands in it twice.
    #[error("a node is in a chain once")]
    NodeTwice,
    /// A number beyond the last.
    #[error("there is no shard {shard} of {of}")]
    NoSuchShard {
        /// The number.
        shard: u16,
        /// How many there are.
        of: u16,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u8, first: u16, end: u16) -> ChainShard {
        let addresses = Addresses::new(vec!["192.0.2.1:7000".to_owned()]).unwrap();
        let layers = LayerRange::new(first, end).unwrap();
        ChainShard { node: NodeKey::from_bytes([number; 32]), addresses, layers }
    }

    #[test]
    fn a_chain_holds_each_layer_once_and_each_node_once() {
        let chain = Chain::new(vec![shard(1, 0, 3), shard(2, 3, 4), shard(3, 4, 9)]).unwrap();
        assert_eq!((chain.layers(), chain.head().node), (9, NodeKey::from_bytes([1; 32])));
        let gap = |expected, got| ChainError::Gap { expected, got };
        let layers = 0..=u16::try_from(SHARDS_MAX).unwrap();
        let long = layers.map(|layer| shard(u8::try_from(layer).unwrap(), layer, layer + 1)).collect();
        for (shards, error) in [
            (vec![], ChainError::Empty),
            (vec![shard(1, 1, 3)], gap(0, 1)),
            (vec![shard(1, 0, 3), shard(2, 4, 5)], gap(3, 4)),
            (vec![shard(1, 0, 3), shard(2, 2, 5)], gap(3, 2)),
            (vec![shard(1, 0, 3), shard(1, 3, 5)], ChainError::NodeTwice),
            (long, ChainError::TooLong { shards: SHARDS_MAX + 1 }),
        ] {
            assert_eq!(Chain::new(shards), Err(error));
        }
    }

    #[test]
    fn addresses_are_few_and_short() {
        let of = |address: &str| Addresses::new(vec![address.to_owned()]);
        for good in ["192.0.2.1:7000", "[2001:db8::1]:7000", "mac.example:1", &"a".repeat(ADDRESS_BYTES_MAX)]
        {
            assert!(of(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "a b", "a\n", "ü:1", "a\0", &"a".repeat(ADDRESS_BYTES_MAX + 1)] {
            assert_eq!(of(bad), Err(AddressError::Malformed), "{bad:?}");
        }
        for got in [0, ADDRESSES_MAX + 1] {
            assert_eq!(Addresses::new(vec!["a:1".to_owned(); got]), Err(AddressError::Count { got }));
        }
    }

    #[test]
    fn a_place_is_one_of_so_many() {
        let place = |shard, of| Place::new(shard, of).map(|place| (place.is_first(), place.is_last()));
        assert_eq!(place(0, 1), Ok((true, true)));
        assert_eq!(place(1, 3), Ok((false, false)));
        assert_eq!(place(2, 3), Ok((false, true)));
        assert_eq!(place(3, 3), Err(ChainError::NoSuchShard { shard: 3, of: 3 }));
        assert_eq!(place(0, 65), Err(ChainError::TooLong { shards: 65 }));
    }
}
