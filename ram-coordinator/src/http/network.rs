//! `/health`, `/readyz` and `/api/v1`: what the network shows of itself, to anybody.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use ram_core::id::ProviderId;
use ram_proto::openai::ApiError;
use ram_proto::rest::{Health, ProviderView, Ready, ReadyCheck};
use serde::Deserialize;
use tokio::time::timeout;

use super::Gateway;
use super::error::Refusal;
use crate::state::Coordinator;

/// How long a probe waits for the store: less than the second or more that probes themselves wait.
const PROBE_WITHIN: Duration = Duration::from_millis(900);

pub(super) async fn health() -> Json<Health> {
    Json(Health::ok(env!("CARGO_PKG_VERSION")))
}

/// Ready while the store answers and jobs are taken. Whether somebody is here to serve is told and decides nothing: a
/// balancer that kept a coordinator without providers out of rotation would keep the first of them out, too.
pub(super) async fn ready(State(gateway): State<Gateway>) -> (StatusCode, Json<Ready>) {
    let store = matches!(timeout(PROBE_WITHIN, gateway.store.ping()).await, Ok(Ok(())));
    let asked = gateway.handle.ask(|core, _| (core.has_providers(), core.is_draining()));
    let (providers, draining) = match timeout(PROBE_WITHIN, asked).await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) | Err(_) => (false, true),
    };
    let check = |name: &str, ok| ReadyCheck { name: name.to_owned(), ok };
    let mut ready = Ready::from_checks(vec![check("store", store), check("accepting", !draining)]);
    ready.checks.push(check("providers", providers));
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready))
}

pub(super) async fn providers(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    let front = &gateway.front;
    front.providers.take(async || gateway.handle.ask(|core, _| core.providers()).await).await
}

pub(super) async fn pipelines(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    let front = &gateway.front;
    front.pipelines.take(async || gateway.handle.ask(|core, _| core.pipelines()).await).await
}

/// What a request for one provider may ask for besides.
#[derive(Debug, Deserialize)]
pub(super) struct ProviderQuery {
    /// `1`: why it gets work or none.
    explain: Option<String>,
}

pub(super) async fn provider(
    State(gateway): State<Gateway>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<ProviderQuery>, QueryRejection>,
) -> Result<Json<ProviderView>, Refusal> {
    let unknown = || ApiError::not_found("provider");
    let id: ProviderId = id.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown)?;
    let explain = match query.as_ref().map(|Query(query)| query.explain.as_deref()) {
        Ok(Some("1" | "true")) => true,
        Ok(None | Some("0" | "false")) => false,
        Ok(Some(_)) | Err(_) => {
            return Err(ApiError::invalid_request("explain", "`explain` is `1` or `0`").into());
        }
    };
    let view = move |core: &Coordinator, now| if explain { core.explain(id, now) } else { core.provider(id) };
    let view = gateway.handle.ask(view).await?;
    Ok(Json(view.ok_or_else(unknown)?))
}

pub(super) async fn stats(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    gateway.front.stats.take(async || gateway.handle.ask(|core, _| core.stats()).await).await
}
