//! The operator's own paths, on a listener of their own: metrics, keys, draining, settings.
//!
//! All but `/metrics` ask for the administrator's key, and so does that where more than this machine can reach it. What
//! is done is written to the log, with the id of the key that did it.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Extension, FromRequestParts, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use ram_chain::account::KeyId;
use ram_core::id::ProviderId;
use ram_core::units::XRam;
use ram_proto::openai::ApiError;
use ram_proto::routes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use crate::admin::AdminKey;
use crate::config::Layered;
use crate::keys::{KeyError, KeyKind, KeyRecord, NewKey};
use crate::metrics;
use crate::run;
use crate::store::StoreError;

use super::error::Refusal;
use super::{Gateway, Peer, auth, observe};

/// What the operator's paths share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The gateway that is administered.
    pub gateway: Gateway,
    /// Its settings.
    pub settings: Arc<Layered>,
    /// The key that opens the paths.
    pub key: AdminKey,
    /// Whether the metrics are for anybody who can reach them.
    pub open_metrics: bool,
}

/// The operator's paths as one service. Requests must carry a [`Peer`] as an extension.
pub fn router(admin: Admin) -> Router {
    let observe = middleware::from_fn_with_state(admin.gateway.clone(), observe::observe);
    Router::new()
        .route(routes::METRICS, get(metrics))
        .route(routes::ADMIN_KEYS, get(list_keys).post(create_key))
        .route(routes::ADMIN_KEY, delete(revoke_key))
        .route(routes::ADMIN_KEY_CREDIT, post(credit_key))
        .route(routes::ADMIN_DRAIN, get(drain_state).post(begin_drain).delete(end_drain))
        .route(routes::ADMIN_CONFIG, get(settings))
        .route(routes::ADMIN_PROVIDER_DRAIN, post(drain_provider).delete(resume_provider))
        .fallback(|| async { Refusal(ApiError::unknown_route()) })
        .method_not_allowed_fallback(|| async { Refusal(ApiError::method_not_allowed("another method")) })
        .layer(observe)
        .with_state(admin)
}

/// The administrator, and where from.
struct Administrator {
    key: String,
    peer: Option<Peer>,
}

impl FromRequestParts<Admin> for Administrator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Refusal> {
        if !admin.key.is(auth::bearer(parts)?) {
            admin.gateway.front.metrics.limited("admin_key");
            return Err(Refusal(ApiError::invalid_key()));
        }
        let Ok(Extension(peer)) = Extension::from_request_parts(parts, admin).await else {
            return Ok(Self { key: admin.key.id(), peer: None });
        };
        Ok(Self { key: admin.key.id(), peer: Some(peer) })
    }
}

impl Administrator {
    /// Writes what was done to the log, for whoever has to know later.
    fn did(&self, action: &str, subject: &dyn std::fmt::Display) {
        let peer = self.peer.map(|Peer(peer)| tracing::field::display(peer));
        info!(target: "ram_coordinator::audit", admin = self.key, peer, action, %subject, "administration");
    }
}

async fn metrics(State(admin): State<Admin>, mut parts: Parts) -> Result<Response, Refusal> {
    if !admin.open_metrics {
        Administrator::from_request_parts(&mut parts, &admin).await?;
    }
    let census = admin.gateway.handle.ask(|core, _| core.census()).await.ok();
    let text = admin.gateway.front.metrics.text(census.as_ref());
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE))], text).into_response())
}

/// A key, and what it can spend.
#[derive(Debug, Serialize)]
struct KeyRow {
    #[serde(flatten)]
    record: KeyRecord,
    spendable: XRam,
}

async fn list_keys(State(admin): State<Admin>, _: Administrator) -> Result<Json<Value>, Refusal> {
    let keys = admin.gateway.keys.list().await.map_err(KeyError::from)?;
    let rows: Vec<KeyRow> =
        keys.into_iter().map(|(record, spendable)| KeyRow { record, spendable }).collect();
    Ok(Json(json!({ "keys": rows })))
}

/// A key as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyWish {
    name: String,
    #[serde(default = "live")]
    kind: KeyKind,
    #[serde(default)]
    credit: XRam,
}

const fn live() -> KeyKind {
    KeyKind::Live
}

async fn create_key(
    State(admin): State<Admin>,
    who: Administrator,
    wish: Result<Json<KeyWish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let KeyWish { name, kind, credit } = read(wish)?;
    let made = admin.gateway.keys.create(NewKey { kind, name, credit }, run::now()).await;
    let (record, secret) = made.map_err(of_wish)?;
    who.did("key made", &record.id);
    let told = json!({ "id": record.id, "key": secret.reveal(), "kind": kind, "name": record.name,
                       "credit": credit });
    Ok((StatusCode::CREATED, Json(told)).into_response())
}

async fn revoke_key(
    State(admin): State<Admin>,
    who: Administrator,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<KeyRecord>, Refusal> {
    let id = key_id(id)?;
    let record = admin.gateway.keys.revoke(&id, run::now()).await.map_err(of_wish)?;
    who.did("key revoked", &id);
    Ok(Json(record))
}

/// Money for a key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreditWish {
    amount: XRam,
}

async fn credit_key(
    State(admin): State<Admin>,
    who: Administrator,
    id: Result<Path<String>, PathRejection>,
    wish: Result<Json<CreditWish>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let (id, CreditWish { amount }) = (key_id(id)?, read(wish)?);
    let spendable = admin.gateway.keys.credit(&id, amount, run::now()).await.map_err(of_wish)?;
    who.did("key credited", &format_args!("{id} {amount}"));
    Ok(Json(json!({ "id": id, "spendable": spendable })))
}

async fn drain_state(State(admin): State<Admin>, _: Administrator) -> Result<Json<Value>, Refusal> {
    let told = admin.gateway.handle.ask(|core, _| (core.is_draining(), core.open_jobs())).await?;
    Ok(Json(json!({ "draining": told.0, "open_jobs": told.1 })))
}

async fn begin_drain(state: State<Admin>, who: Administrator) -> Result<Json<Value>, Refusal> {
    state.gateway.handle.begin_drain().await?;
    who.did("drain begun", &"network");
    drain_state(state, who).await
}

async fn end_drain(state: State<Admin>, who: Administrator) -> Result<Json<Value>, Refusal> {
    state.gateway.handle.resume().await?;
    who.did("drain ended", &"network");
    drain_state(state, who).await
}

async fn drain_provider(
    state: State<Admin>,
    who: Administrator,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    set_provider(state, who, id, true).await
}

async fn resume_provider(
    state: State<Admin>,
    who: Administrator,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    set_provider(state, who, id, false).await
}

async fn set_provider(
    State(admin): State<Admin>,
    who: Administrator,
    id: Result<Path<String>, PathRejection>,
    draining: bool,
) -> Result<Response, Refusal> {
    let unknown = || ApiError::not_found("provider");
    let id: ProviderId = id.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown)?;
    let handle = &admin.gateway.handle;
    // One that is away can be taken back into service, and not out of it.
    let is_known =
        handle.ask(move |core, _| if draining { core.provider(id).is_some() } else { core.knows(id) });
    if !is_known.await? {
        return Err(unknown().into());
    }
    handle.drain_provider(id, draining).await?;
    who.did(if draining { "provider drained" } else { "provider resumed" }, &id);
    Ok(match handle.ask(move |core, _| core.provider(id)).await? {
        Some(view) => Json(view).into_response(),
        None => Json(json!({ "id": id, "draining": draining })).into_response(),
    })
}

async fn settings(State(admin): State<Admin>, _: Administrator) -> Json<Value> {
    let Layered { config, sources } = &*admin.settings;
    Json(json!({ "settings": config.to_json(), "sources": sources }))
}

fn key_id(id: Result<Path<String>, PathRejection>) -> Result<KeyId, ApiError> {
    id.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(|| ApiError::not_found("key"))
}

fn read<T>(wish: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    wish.map(|Json(wish)| wish).map_err(|rejection| ApiError::malformed_body(rejection.body_text()))
}

/// What an administrator hears of keys.
fn of_wish(error: KeyError) -> Refusal {
    match error {
        KeyError::Unknown | KeyError::Store(StoreError::UnknownKey) => Refusal(ApiError::not_found("key")),
        KeyError::BadName => Refusal(ApiError::invalid_request("name", error.to_string())),
        other => other.into(),
    }
}
