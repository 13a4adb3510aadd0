//! The gateway: every path, who may take it, and what all answers have in common.
//!
//! Every answer to a request that reads as HTTP carries `x-request-id`, and every such error, also those of routing,
//! has OpenAI's shape; what does not read is answered below us with a bare 400 or 431. Start at [`router`].

pub mod admin;
mod admission;
mod auth;
mod body;
mod chat;
mod choices;
mod cors;
mod e2e;
mod error;
mod front;
mod idempotency;
mod models;
mod network;
mod observe;
mod openapi;
mod pricing;
mod snapshot;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::request::Parts;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ram_core::id::JobId;
use ram_proto::openai::ApiError;
use ram_proto::routes;
use tokio::sync::OwnedSemaphorePermit;

use crate::address::Share;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::run::Handle;
use crate::store::Store;
use crate::ws;

use error::Refusal;

pub use front::Front;

/// What the gateway's rooms share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The loop.
    pub handle: Handle,
    /// Who may come in.
    pub keys: Arc<Keys>,
    /// For the probes.
    pub store: Arc<dyn Store>,
    /// What stands before the handlers.
    pub front: Arc<Front>,
}

/// The address that a connection comes from; put into each request by whoever accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A connection's place among all that there may be; free again when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Place {
    _taken: Arc<Taken>,
}

#[derive(Debug)]
struct Taken {
    _permit: OwnedSemaphorePermit,
    _share: Share,
    metrics: Arc<Metrics>,
}

impl Place {
    /// The place that `permit` stands for, out of its address's share.
    pub(crate) fn new(permit: OwnedSemaphorePermit, share: Share, metrics: Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self { _taken: Arc::new(Taken { _permit: permit, _share: share, metrics }) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// The address of whoever a request is from: the peer's, or the one behind the proxies that are trusted.
#[derive(Clone, Copy, Debug)]
struct Client(IpAddr);

/// The address that a request is from.
fn client_of(parts: &Parts) -> IpAddr {
    parts.extensions.get::<Client>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Client(address)| *address)
}

/// The number of a request: 128 random bits, which its job takes over.
#[derive(Clone, Copy, Debug)]
struct RequestId(JobId);

/// The whole gateway as one service. Requests must carry a [`Peer`] as an extension.
pub fn router(gateway: Gateway) -> Router {
    let admit = middleware::from_fn_with_state(gateway.clone(), admission::admit);
    let observe = middleware::from_fn_with_state(gateway.clone(), observe::observe);
    // The body's bounds are ours, and it has been read when the handler sees it.
    let chat = post(chat::complete).layer(DefaultBodyLimit::disable()).layer(admit.clone());
    let e2e_init = post(e2e::init).layer(DefaultBodyLimit::disable()).layer(admit.clone());
    let e2e_submit = post(e2e::submit).layer(DefaultBodyLimit::disable()).layer(admit);
    let router = Router::new()
        .route(routes::CHAT_COMPLETIONS, chat)
        .route(routes::E2E_PROVIDERS, get(e2e::providers))
        .route(routes::E2E_INIT, e2e_init)
        .route(routes::E2E_SUBMIT, e2e_submit)
        .route(routes::MODELS, get(models::list))
        .route(routes::MODEL, get(models::one))
        .route(routes::HEALTH, get(network::health))
        .route(routes::READY, get(network::ready))
        .route(routes::PROVIDERS, get(network::providers))
        .route(routes::PROVIDER, get(network::provider))
        .route(routes::PIPELINES, get(network::pipelines))
        .route(routes::STATS, get(network::stats))
        .route(routes::NETWORK_MODELS, get(pricing::models))
        .route(routes::PRICING, get(pricing::prices))
        .route(routes::QUOTE, get(pricing::quote))
        .route(routes::OPENAPI, get(openapi::document))
        .route(routes::PROVIDER_SOCKET, get(provider_socket))
        .fallback(|| async { Refusal(ApiError::unknown_route()) })
        .method_not_allowed_fallback(method_not_allowed);
    let router = match cors::layer(&gateway.front.origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(observe).with_state(gateway)
}

async fn provider_socket(
    State(gateway): State<Gateway>,
    place: Option<Extension<Place>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    match upgrade {
        Ok(upgrade) => {
            let pace = gateway.front.limits.socket_messages_per_second;
            let socket = ws::Socket::new(gateway.handle, pace, &gateway.front.metrics);
            ws::serve(upgrade, socket, place.map(|Extension(place)| place))
        }
        Err(_) => Refusal(ApiError::invalid_request("upgrade", "this path speaks WebSocket")).into_response(),
    }
}

async fn method_not_allowed(request: Request) -> Refusal {
    let posts = [routes::CHAT_COMPLETIONS, routes::E2E_INIT, routes::E2E_SUBMIT];
    let allowed = if posts.contains(&request.uri().path()) { "POST" } else { "GET" };
    Refusal(ApiError::method_not_allowed(allowed))
}
