//! The gateway: every path, who may take it, and what all answers have in common.
//!
//! Every answer carries `x-request-id`, and every error, also those of routing, has OpenAI's shape. Start at
//! [`router`].

mod auth;
mod chat;
mod error;
mod models;
mod network;
mod openapi;
mod pricing;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ram_core::id::JobId;
use ram_proto::openai::ApiError;
use ram_proto::routes;
use tokio::sync::OwnedSemaphorePermit;

use crate::keys::Keys;
use crate::run::{self, Handle};
use crate::store::Store;
use crate::ws;

use error::Refusal;

/// Header that names a request, in its answer and in our logs. A job has its request's number.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the gateway's rooms share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The loop.
    pub handle: Handle,
    /// Who may come in.
    pub keys: Arc<Keys>,
    /// For the probes.
    pub store: Arc<dyn Store>,
}

/// The address that a connection comes from; put into each request by whoever accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A connection's place among all that there may be; free again when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Place {
    /// The place that `permit` stands for.
    #[must_use]
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }
}

/// The number of a request: 128 random bits, which its job takes over.
#[derive(Clone, Copy, Debug)]
struct RequestId(JobId);

/// The whole gateway as one service. Requests must carry a [`Peer`] as an extension.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route(routes::CHAT_COMPLETIONS, post(chat::complete))
        .route(routes::MODELS, get(models::list))
        .route(routes::MODEL, get(models::one))
        .route(routes::HEALTH, get(network::health))
        .route(routes::READY, get(network::ready))
        .route(routes::PROVIDERS, get(network::providers))
        .route(routes::PROVIDER, get(network::provider))
        .route(routes::STATS, get(network::stats))
        .route(routes::NETWORK_MODELS, get(pricing::models))
        .route(routes::PRICING, get(pricing::prices))
        .route(routes::QUOTE, get(pricing::quote))
        .route(routes::OPENAPI, get(openapi::document))
        .route(routes::PROVIDER_SOCKET, get(provider_socket))
        .fallback(|| async { Refusal(ApiError::unknown_route()) })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(name_request))
        .with_state(gateway)
}

async fn provider_socket(
    State(gateway): State<Gateway>,
    place: Option<Extension<Place>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    match upgrade {
        Ok(upgrade) => ws::serve(upgrade, gateway.handle, place.map(|Extension(place)| place)),
        Err(_) => Refusal(ApiError::invalid_request("upgrade", "this path speaks WebSocket")).into_response(),
    }
}

async fn method_not_allowed(request: Request) -> Refusal {
    let allowed = if request.uri().path() == routes::CHAT_COMPLETIONS { "POST" } else { "GET" };
    Refusal(ApiError::method_not_allowed(allowed))
}

/// Gives each request its number, and each answer its header.
async fn name_request(mut request: Request, next: Next) -> Response {
    let Ok(number) = run::random_job_id() else {
        return Refusal(ApiError::internal()).into_response();
    };
    request.extensions_mut().insert(RequestId(number));
    let mut response = next.run(request).await;
    let value = HeaderValue::try_from(format!("req_{number}")).expect("hexadecimal digits are visible ASCII");
    response.headers_mut().insert(REQUEST_ID, value);
    response
}
