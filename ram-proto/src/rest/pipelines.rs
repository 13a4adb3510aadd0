//! `GET /api/v1/pipelines`: the models that several providers hold together.

use ram_core::id::{Epoch, GroupId, ModelId, NodeName, ProviderId};
use ram_core::layers::LayerRange;
use ram_core::units::{Bytes, Timestamp, TokenCount, TokenRate};
use serde::{Deserialize, Serialize};

/// `GET /api/v1/pipelines`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PipelineList {
    /// In the order of their models.
    pub pipelines: Vec<PipelineView>,
}

/// A model that several providers hold together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PipelineView {
    /// The group of providers.
    pub id: GroupId,
    /// The model, by full id.
    pub model: ModelId,
    /// How far it is.
    pub state: PipelineState,
    /// How often its shards were linked; it rises with each loss.
    pub epoch: Epoch,
    /// Since when there is this group, in milliseconds.
    pub since: Timestamp,
    /// Who holds which layers, or is to, in the order of layers. The first one is the head, whom jobs go to.
    pub shards: Vec<PipelineShard>,
    /// Who holds layers besides, to step in for a shard that is lost.
    pub spares: Vec<PipelineShard>,
    /// Tokens a second that one conversation is expected to get.
    pub expected_single: TokenRate,
    /// Tokens a second that all conversations together are expected to get.
    pub expected_saturated: TokenRate,
    /// Jobs that run over it.
    pub running: u64,
    /// Jobs that wait for its model.
    pub queued: u64,
}

/// How far a pipeline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PipelineState {
    /// Layers are fetched and loaded.
    Loading,
    /// A shard has no holder, and one is looked for.
    Planning,
    /// Shards are linked with each other.
    Linking,
    /// Jobs run.
    Ready,
}

/// Some layers of a model at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PipelineShard {
    /// Who holds them, or is to.
    pub provider: ProviderId,
    /// Its name, while it is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Which layers, from the first one up to, and without, the second.
    pub layers: LayerRange,
    /// The memory that they take, with room for conversations.
    pub memory: Bytes,
    /// How it does, by its own word; absent until it has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<ShardNow>,
}

/// How a shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShardNow {
    /// Conversations that it holds.
    pub sessions: u32,
    /// Tokens of conversations that there is room for.
    pub kv_free: TokenCount,
    /// Microseconds that it computes for one token; 0 before the first.
    pub step_us: u32,
    /// Microseconds, one way, to the next shard, or from the last one to the head; absent until it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop_us: Option<u32>,
}
