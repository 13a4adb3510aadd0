//! `/api/v1`, `/health` and `/readyz`: what the network shows of itself.
//!
//! Money is a decimal string ([`XRam`] writes itself so), an instant is milliseconds since 1970 UTC, memory is bytes.
//! Wallets and earnings are not shown.

mod e2e;
mod pipelines;

use serde::{Deserialize, Serialize};

use ram_core::id::{ModelId, NodeName, ProviderId};
use ram_core::provider::{Hardware, Load, ModelOffer, Speed};
use ram_core::route::Refusal;
use ram_core::units::{Bytes, Permille, Timestamp, TokenCount, XRam};

pub use self::e2e::{
    E2eAnswer, E2eEvent, E2eInit, E2eOffer, E2eOffered, E2eProvider, E2eProviders, E2eSubmit,
};
pub use self::pipelines::{PipelineList, PipelineShard, PipelineState, PipelineView, ShardNow};

/// `GET /api/v1/providers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProviderList {
    /// The providers online, in the order of their ids.
    pub providers: Vec<ProviderView>,
}

/// `GET /api/v1/providers/{id}`: one provider, as anybody may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProviderView {
    /// Its id.
    pub id: ProviderId,
    /// The name that its operator gave it.
    pub name: NodeName,
    /// The version of its software.
    pub version: String,
    /// The machine.
    pub hardware: Hardware,
    /// The memory that its operator lets models use.
    pub memory_cap: Bytes,
    /// What it serves, and how ready each model is.
    pub models: Vec<ModelOffer>,
    /// How busy it is.
    pub load: Load,
    /// Since when this session is open, in milliseconds.
    pub online_since: Timestamp,
    /// Whether it takes no new jobs.
    pub draining: bool,
    /// Whether it takes none because the coordinator's operator took it out of service; absent where not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
    /// How far it is trusted: 500 for a node that nothing is known of, and no work below 250.
    pub reputation: Permille,
    /// The memory that it lends to models which several providers hold together; absent where it lends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lends: Option<Bytes>,
    /// Whole seconds since its last word, when asked with `?explain=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
    /// Why it gets work or none, for each model that it offers, when asked with `?explain=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<Vec<ModelExplanation>>,
}

/// Whether a provider would be given a usual request for one model at this moment, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelExplanation {
    /// The model, by full id.
    pub model: ModelId,
    /// Whether it could serve now. Others may still be chosen before it.
    pub would_serve: bool,
    /// The gate that excludes it, as the dispatcher names it; `null` where it is not the dispatcher that does.
    pub refusal: Option<Refusal>,
    /// The same as a sentence.
    pub why: Option<String>,
    /// Requests that wait for this model.
    pub queued: u64,
}

/// `GET /api/v1/stats`: the network as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkStats {
    /// Providers online.
    pub providers_online: u64,
    /// Memory that the providers online let models use.
    pub memory_total: Bytes,
    /// Memory of it that nothing uses now.
    pub memory_available: Bytes,
    /// Jobs that ended with a whole answer.
    pub jobs_done: u64,
    /// Jobs that ended without one.
    pub jobs_failed: u64,
    /// Jobs that run or wait.
    pub jobs_running: u64,
    /// Tokens read and written for finished jobs.
    pub tokens_served: TokenCount,
    /// What all answers cost together.
    pub xram_charged: XRam,
    /// The models that somebody serves.
    pub models: Vec<ModelStats>,
}

/// One model in [`NetworkStats`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelStats {
    /// The model, by full id.
    pub model: ModelId,
    /// Providers online that offer it.
    pub providers: u64,
    /// Those of them that have it in memory.
    pub loaded: u64,
}

/// `GET /api/v1/models`: what can be asked for, and what stands behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkModels {
    /// The whole catalogue, smallest model first.
    pub models: Vec<NetworkModel>,
}

/// One model in [`NetworkModels`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkModel {
    /// The model, by full id.
    pub model: ModelId,
    /// Its short name.
    pub alias: ModelId,
    /// Longest conversation, prompt and answer together.
    pub context: TokenCount,
    /// Memory that its weights take.
    pub weights: Bytes,
    /// Providers online that offer it.
    pub providers: u64,
    /// Those of them that have it in memory.
    pub loaded: u64,
    /// Price of 1,000 tokens now, of prompt and answer alike.
    pub price_per_1k: XRam,
    /// Measured on the provider online that writes fastest; none where nobody has run it.
    pub speed: Option<Speed>,
}

/// `GET /api/v1/pricing`: what 1,000 tokens cost now.
///
/// A model's price is its rate times the multiplier, within the floor and the ceiling. It is fixed for a request when
/// the request is taken, and prompt and answer cost the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pricing {
    /// What load makes of every rate, in thousandths; it moves once a minute.
    pub multiplier: Permille,
    /// Least price of 1,000 tokens.
    pub floor: XRam,
    /// Highest price of 1,000 tokens.
    pub ceiling: XRam,
    /// The whole catalogue, smallest model first.
    pub models: Vec<ModelPrice>,
}

/// One model in [`Pricing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelPrice {
    /// The model, by full id.
    pub model: ModelId,
    /// Its short name.
    pub alias: ModelId,
    /// Price of 1,000 tokens at a multiplier of one.
    pub rate_per_1k: XRam,
    /// Price of 1,000 tokens now.
    pub price_per_1k: XRam,
}

/// `GET /api/v1/quote`: what one request can cost at most, were it taken now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quote {
    /// The model, as the caller named it.
    pub model: ModelId,
    /// Price of 1,000 tokens now.
    pub price_per_1k: XRam,
    /// Tokens of the prompt, as the caller stated them.
    pub prompt_tokens: TokenCount,
    /// Most tokens of the answer: as asked for, never more than the model's context.
    pub max_tokens: TokenCount,
    /// Whether the prompt leaves room for an answer in the model's context.
    pub fits: bool,
    /// The price of all these tokens. What an answer costs in the end follows from the tokens that were delivered.
    pub cost_max: XRam,
}

/// `GET /health`: the process lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// Always `ok`.
    pub status: HealthStatus,
    /// The version of the software.
    pub version: String,
}

/// The word `ok`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// The only one: a process that is not well does not answer.
    #[default]
    Ok,
}

/// `GET /readyz`: whether the process can serve; 200 when ready, else 503.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ready {
    /// Whether every check is good, but for `providers`: who is ready without any can be reached by the first.
    pub ready: bool,
    /// What was checked: `store`, `accepting`, and `providers`.
    pub checks: Vec<ReadyCheck>,
}

/// One check of [`Ready`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReadyCheck {
    /// What was checked, such as `store`.
    pub name: String,
    /// Whether it is good.
    pub ok: bool,
}

impl Health {
    /// The answer of a process of this version.
    #[must_use]
    pub fn ok(version: impl Into<String>) -> Self {
        Self { status: HealthStatus::Ok, version: version.into() }
    }
}

impl Ready {
    /// Ready when every check is.
    #[must_use]
    pub fn from_checks(checks: Vec<ReadyCheck>) -> Self {
        Self { ready: checks.iter().all(|check| check.ok), checks }
    }
}
