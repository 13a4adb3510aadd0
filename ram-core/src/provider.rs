//! What a node says of itself: at registration the whole, at each heartbeat what changes.

use serde::{Deserialize, Serialize};

use crate::id::{ModelId, NodeName, WalletAddress};
use crate::units::{Bytes, TokenRate};

/// Most models that one provider may offer: the catalogue holds 21, the rest is room for an operator's own.
pub const OFFERS_MAX: usize = 64;

/// A node as it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderSpec {
    /// The name that its operator gave it.
    pub name: NodeName,
    /// Where its earnings go; `None` serves for nothing.
    pub wallet: Option<WalletAddress>,
    /// The version of its software, for display.
    pub version: String,
    /// The machine.
    pub hardware: Hardware,
    /// The memory that its operator lets models use: never more than the machine's usable memory.
    pub memory_cap: Bytes,
    /// What it serves, at most [`OFFERS_MAX`].
    pub offers: Vec<ModelOffer>,
}

/// The machine, as the provider's own probes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hardware {
    /// Marketing name of the chip or CPU, such as `Apple M3 Max`.
    pub chip: String,
    /// Operating system, such as `macos` or `linux`.
    pub os: String,
    /// All memory of the machine.
    pub memory: Bytes,
    /// Memory that a model can really use: on a Mac the GPU's recommended working set, else the RAM.
    pub usable_memory: Bytes,
    /// Logical CPUs.
    pub cpus: u16,
}

/// One model that a provider can serve, and how ready it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelOffer {
    /// The model, by full id.
    pub model: ModelId,
    /// How ready it is.
    pub state: ModelState,
    /// Measured speeds of this model on this machine; `None` until it has been run.
    pub speed: Option<Speed>,
}

/// How ready a model is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// In memory: the next token is one step away.
    Loaded,
    /// On disk: a load away.
    OnDisk,
    /// Allowed by the operator and fits: a download away.
    Downloadable,
}

/// Measured speeds of one model on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Speed {
    /// Prompt tokens read per second.
    pub prefill: TokenRate,
    /// Answer tokens written per second, one request alone.
    pub decode: TokenRate,
}

/// How busy a node is right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Load {
    /// Requests that run.
    pub running: u16,
    /// Requests that wait on the node itself.
    pub queued: u16,
    /// Requests that it will run at once.
    pub slots: u16,
    /// Memory under the cap that nothing uses yet.
    pub memory_free: Bytes,
    /// Whether heat slows it.
    pub thermal: Thermal,
}

/// Thermal state, in the four steps that macOS names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Thermal {
    /// No throttling.
    #[default]
    Nominal,
    /// Fans up, little slower.
    Fair,
    /// Throttled.
    Serious,
    /// Should be left alone.
    Critical,
}
