//! `/v1/models`: what can be asked for.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use ram_core::catalog::{self, ModelSpec};
use ram_core::id::ModelId;
use ram_core::units::Timestamp;
use ram_proto::openai::{ApiError, ModelCard, ModelList, ModelObject};

use crate::run::{Gone, Handle};

use super::Gateway;
use super::auth::Called;
use super::error::Refusal;

/// Since when the catalogue has its models: 2026-11-20.
const CATALOGUE_SINCE: Timestamp = Timestamp::from_millis(1_795_132_800_000);

/// The models that a provider has in memory, or the whole catalogue while nobody has any.
pub(super) async fn list(State(gateway): State<Gateway>, _: Called) -> Result<Response, Refusal> {
    gateway.front.models.take(async || loaded(&gateway.handle).await).await
}

async fn loaded(handle: &Handle) -> Result<ModelList, Gone> {
    let loaded = handle.ask(|core, _| core.loaded_models()).await?;
    let mut specs: Vec<&ModelSpec> =
        loaded.iter().filter_map(|model| catalog::resolve(model.as_str())).collect();
    if specs.is_empty() {
        specs = catalog::all().iter().collect();
    }
    let cards: Vec<ModelCard> =
        specs.into_iter().filter_map(|spec| Some(card(spec.alias.parse().ok()?, spec))).collect();
    Ok(cards.into())
}

/// One model, by alias or full id; the slash of a full id may be plain or `%2F`.
pub(super) async fn one(
    id: Result<Path<String>, PathRejection>,
    _: Called,
) -> Result<Json<ModelCard>, Refusal> {
    let unknown = || ApiError {
        param: Some("model".to_owned()),
        code: Some("model_not_found"),
        ..ApiError::not_found("model")
    };
    let id: ModelId = id.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown)?;
    let spec = catalog::resolve(id.as_str()).ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(Json(card(id, spec)))
}

fn card(id: ModelId, spec: &ModelSpec) -> ModelCard {
    let owner = spec.id.split_once('/').map_or("ram-aggregator", |(owner, _)| owner);
    ModelCard { id, object: ModelObject::Model, created: CATALOGUE_SINCE, owned_by: owner.to_owned() }
}
