//! `GET /v1/models` and `GET /v1/models/{id}`.

use serde::{Deserialize, Serialize};

use ram_core::id::ModelId;
use ram_core::units::Timestamp;

use super::response::unix_seconds;

/// What models there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelList {
    /// Always `list`.
    pub object: ListObject,
    /// The models.
    pub data: Vec<ModelCard>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelCard {
    /// The name to ask for.
    pub id: ModelId,
    /// Always `model`.
    #[serde(default)]
    pub object: ModelObject,
    /// Since when it is in the catalogue, in seconds on the wire.
    #[serde(with = "unix_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub created: Timestamp,
    /// Who published the weights.
    pub owned_by: String,
}

/// The word `list`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ListObject {
    /// The only one.
    #[default]
    #[serde(rename = "list")]
    List,
}

/// The word `model`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ModelObject {
    /// The only one.
    #[default]
    #[serde(rename = "model")]
    Model,
}

impl From<Vec<ModelCard>> for ModelList {
    fn from(data: Vec<ModelCard>) -> Self {
        Self { object: ListObject::List, data }
    }
}
