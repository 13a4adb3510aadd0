//! An OpenAI server on this machine, without a network.
//!
//! It validates requests with the very code of the gateway (`ram-proto`, `openai`), so that a program which works here
//! works there. A stream's status and headers are held back until the first word or [`HELD_BACK`], so that an error
//! before it keeps its real status; after that an error is the stream's last event, and no `[DONE]` follows it. Whoever
//! hangs up or stops reading cancels the answer: its connection owns it. [`LocalLimits`] bound what all callers
//! together can take.
//!
//! Start at [`LocalServer::start`].

mod body;
mod choices;
mod door;
mod room;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use ram_core::id::{JobId, ModelId};
use ram_core::job::Job;
use ram_core::units::Timestamp;
use ram_proto::openai::{
    ApiError, Asked, ChatCompletion, ChatRequest, CompletionHead, CompletionId, Delivery, HELD_BACK,
    IGNORED_FIELDS_HEADER, KEEP_ALIVE_EVERY, ModelCard, ModelList, ModelObject, StreamedAnswer, WholeAnswer,
};
use ram_proto::routes;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::ProviderError;
use crate::agent::DRAIN_MAX;
use crate::config::ProviderConfig;
use crate::worker::{Model, Worker};
use crate::{hardware, run};

use choices::Choices;
use door::Door;
use room::Room;

pub use room::LocalLimits;

/// Where the server listens unless told otherwise: this machine alone.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
/// Longest API key.
pub const API_KEY_BYTES_MAX: usize = 256;
/// Header that names a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header that names the fields without effect.
const IGNORED_FIELDS: HeaderName = HeaderName::from_static(IGNORED_FIELDS_HEADER);

/// What the local server wants to know beside the provider's configuration.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The key that callers must send, if any.
    pub api_key: Option<ApiKey>,
    /// What callers can take.
    pub limits: LocalLimits,
}

impl Default for LocalConfig {
    /// Port 8090 of this machine alone, open to all of its programs.
    fn default() -> Self {
        Self { listen: DEFAULT_LISTEN, api_key: None, limits: LocalLimits::default() }
    }
}

/// A key that callers must send. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<str>);

impl std::str::FromStr for ApiKey {
    type Err = ProviderError;

    fn from_str(key: &str) -> Result<Self, ProviderError> {
        let is_plain =
            (1..=API_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if is_plain { Ok(Self(key.into())) } else { Err(ProviderError::ApiKey) }
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl ApiKey {
    /// Compares in a time that does not tell how much of the key was right.
    fn is(&self, sent: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), sent.as_bytes());
        let differences = ours.iter().zip(theirs).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(differences) == 0 && ours.len() == theirs.len()
    }
}

/// A server that is ready to serve: its models are found, the first is loaded, and its address is taken.
#[derive(Debug)]
pub struct LocalServer {
    listener: TcpListener,
    address: SocketAddr,
    shared: Shared,
}

/// What the handlers share; cheap to clone.
#[derive(Clone, Debug)]
struct Shared {
    worker: Worker,
    api_key: Option<ApiKey>,
    limits: LocalLimits,
    /// Answers that may be open.
    answers: Room,
    /// Bytes of their requests.
    prompts: Room,
    since: Timestamp,
}

impl LocalServer {
    /// Takes the address, then finds the models and loads those to be preloaded, off the async threads.
    ///
    /// # Errors
    /// [`ProviderError`], which says what to change: the address is taken, or a model is not there, too large or
    /// broken.
    pub async fn start(config: ProviderConfig, local: LocalConfig) -> Result<Self, ProviderError> {
        if local.api_key.is_none() && !local.listen.ip().is_loopback() {
            warn!(listen = %local.listen, "anybody who reaches this address can use it: set a key, or listen on 127.0.0.1");
        }
        let not_taken = |source| ProviderError::Listen { address: local.listen, source };
        let listener = TcpListener::bind(local.listen).await.map_err(not_taken)?;
        let address = listener.local_addr().map_err(not_taken)?;
        let config = ProviderConfig { shards: None, ..config }; // a server for this machine lends nothing to others
        let loading = tokio::task::spawn_blocking(move || run::load(&config, &hardware::probe()?));
        let worker = loading.await.map_err(|_| ProviderError::LoadPanicked)??;
        let LocalConfig { api_key, limits, .. } = local;
        let (answers, prompts) = (Room::new(limits.answers_max), Room::new(limits.prompt_bytes_max));
        let shared = Shared { worker, api_key, limits, answers, prompts, since: run::now() };
        Ok(Self { listener, address, shared })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; answers that are under way may then end for half a minute.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) {
        info!("listening: OPENAI_BASE_URL=http://{}/v1", self.address);
        let (close, closing) = watch::channel(false);
        let door = Door { limits: self.shared.limits, router: router(self.shared) };
        let mut serving = Box::pin(door.open(self.listener, closing));
        tokio::select! {
            () = &mut serving => return,
            () = shutdown => {}
        }
        close.send_replace(true);
        let _ = timeout(DRAIN_MAX, serving).await; // those that are not over by then are cut off
    }
}

/// Serves OpenAI's API on this machine until `shutdown`: [`LocalServer::start`], then [`LocalServer::serve`].
///
/// # Errors
/// Those of the start.
pub async fn serve_local(
    config: ProviderConfig,
    local: LocalConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProviderError> {
    let mut shutdown = Box::pin(shutdown);
    let server = tokio::select! {
        started = LocalServer::start(config, local) => started?,
        () = &mut shutdown => return Ok(()), // models may take minutes to load
    };
    server.serve(shutdown).await;
    Ok(())
}

fn router(shared: Shared) -> Router {
    let open = Router::new().route(routes::HEALTH, get(|| async { Json(json!({ "status": "ok" })) }));
    let guarded = Router::new()
        .route(routes::CHAT_COMPLETIONS, post(complete))
        .route(routes::MODELS, get(models))
        .route(routes::MODEL, get(model))
        .layer(middleware::from_fn_with_state(shared.clone(), authorize));
    open.merge(guarded)
        .fallback(|| async { Refusal(ApiError::unknown_route()) })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(name_request))
        .with_state(shared)
}

// ---- what all requests have in common ----

/// The number of a request, which its answer's id takes over.
#[derive(Clone, Copy, Debug)]
struct RequestId(JobId);

async fn name_request(mut request: Request, next: Next) -> Response {
    let number = match random_job_id() {
        Ok(number) => number,
        Err(error) => return Refusal(error).into_response(),
    };
    request.extensions_mut().insert(RequestId(number));
    let mut response = next.run(body::poured_away(request)).await;
    let value = HeaderValue::try_from(format!("req_{number}")).expect("hexadecimal digits are visible ASCII");
    response.headers_mut().insert(REQUEST_ID, value);
    response
}

fn random_job_id() -> Result<JobId, ApiError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|_| ApiError::internal())?;
    Ok(JobId::from_bits(u128::from_be_bytes(bits)))
}

async fn authorize(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match shared.api_key.map_or(Ok(()), |key| check_key(&key, request.headers())) {
        Ok(()) => next.run(request).await,
        Err(error) => Refusal(error).into_response(),
    }
}

fn check_key(key: &ApiKey, headers: &HeaderMap) -> Result<(), ApiError> {
    let header = headers.get(AUTHORIZATION).ok_or_else(ApiError::missing_key)?;
    let (scheme, sent) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") && key.is(sent.trim()) {
        Ok(())
    } else {
        Err(ApiError::invalid_key())
    }
}

async fn method_not_allowed(uri: Uri) -> Refusal {
    let allowed = if uri.path() == routes::CHAT_COMPLETIONS { "POST" } else { "GET" };
    Refusal(ApiError::method_not_allowed(allowed))
}

/// An error on its way out.
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(error.body())).into_response();
        for (name, value) in error.headers() {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

// ---- /v1/models ----

async fn models(State(shared): State<Shared>) -> Json<ModelList> {
    let card = |model: &Arc<Model>| card(model.short_name().clone(), model, shared.since);
    Json(shared.worker.models().map(card).collect::<Vec<_>>().into())
}

/// One model by alias or full id; the slash of a full id may be plain or `%2F`.
async fn model(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, Refusal> {
    let id: Option<ModelId> = id.ok().and_then(|Path(id)| id.parse().ok());
    let id = id.ok_or_else(|| ApiError::not_found("model"))?;
    let model = shared.worker.model(&id).ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(Json(card(id, model, shared.since)))
}

fn card(id: ModelId, model: &Model, since: Timestamp) -> ModelCard {
    let owner = model.id().as_str().split_once('/').map_or("local", |(owner, _)| owner);
    ModelCard { id, object: ModelObject::Model, created: since, owned_by: owner.to_owned() }
}

// ---- /v1/chat/completions ----

async fn complete(
    State(shared): State<Shared>,
    Extension(RequestId(number)): Extension<RequestId>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, held) = body::read(request, &shared.prompts, shared.limits.body_within).await?;
    let parsed = ChatRequest::parse(&body)?;
    drop(body);
    let ignored = parsed.ignored_header();
    let told = answer(&shared, number, parsed.request, held).await;
    let mut response = told.unwrap_or_else(|error| Refusal(error).into_response());
    if let Some(ignored) = ignored.and_then(|names| HeaderValue::try_from(names).ok()) {
        response.headers_mut().insert(IGNORED_FIELDS, ignored);
    }
    Ok(response)
}

/// Answers a request that holds so much of the room for prompts: each of its choices has words of its own.
async fn answer(
    shared: &Shared,
    number: JobId,
    request: ChatRequest,
    mut held: OwnedSemaphorePermit,
) -> Result<Response, ApiError> {
    let model =
        shared.worker.model(&request.model).ok_or_else(|| ApiError::model_not_found(&request.model))?;
    let (delivery, n) = (request.delivery, request.n);
    let others = usize::from(n.get()) - 1;
    held.merge(shared.prompts.take(held.num_permits().saturating_mul(others))?);
    let place = [held, shared.answers.take(n.get().into())?];
    let fresh_seed = getrandom::u64().map_err(|_| ApiError::internal())?;
    let asked = Asked::from(&request);
    let head = CompletionHead { id: CompletionId(number), created: run::now(), model: request.model.clone() };
    let mut answers = Vec::with_capacity(n.get().into());
    for choice in 0..u32::from(n.get()) {
        answers.push(shared.worker.answer(Job {
            id: if choice == 0 { number } else { random_job_id()? },
            model: model.id().clone(),
            messages: request.messages.clone(),
            tools: request.tools.clone(),
            chat_template_kwargs: request.chat_template_kwargs.clone(),
            params: request.params(choice, model.context(), fresh_seed),
        }));
    }
    drop(request);
    let choices = Choices::new(answers, place);
    match delivery {
        Delivery::Whole => {
            whole(WholeAnswer::new(head, asked, n), choices).await.map(|told| Json(told).into_response())
        }
        Delivery::Stream { .. } => stream(StreamedAnswer::new(head, asked, n), choices).await,
    }
}

/// Gathers an answer.
async fn whole(mut told: WholeAnswer, mut choices: Choices) -> Result<ChatCompletion, ApiError> {
    loop {
        match told.hear(choices.next().await) {
            ControlFlow::Continue(more) => told = more,
            ControlFlow::Break(told) => return told,
        }
    }
}

/// Waits for the first word, then streams; an error before it keeps its status.
async fn stream(answer: StreamedAnswer, mut choices: Choices) -> Result<Response, ApiError> {
    let heard = timeout(HELD_BACK, choices.next()).await.ok();
    let (first, stream) = answer.open(heard)?;
    let rest = futures::stream::unfold((stream, choices), |(mut stream, mut choices)| async move {
        if stream.is_over() {
            return None;
        }
        let heard = timeout(KEEP_ALIVE_EVERY, choices.next()).await.ok();
        Some((stream.hear(heard), (stream, choices)))
    });
    let frames = futures::stream::once(async { first }).chain(rest).map(Ok::<_, Infallible>);
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_whole_or_not_at_all() {
        let key: ApiKey = "secret-key".parse().unwrap();
        for wrong in ["", "secret", "secret-key2", "secret-kez", "Secret-key"] {
            assert!(!key.is(wrong), "{wrong:?}");
        }
        assert!(key.is("secret-key"));
        assert!(!format!("{key:?}").contains("secret"));
        for bad in ["", "with space", "ü", &"x".repeat(API_KEY_BYTES_MAX + 1)] {
            assert!(bad.parse::<ApiKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_read_from_a_bearer_header_alone() {
        let key: ApiKey = "k".parse().unwrap();
        let check = |header: Option<&str>, code: Option<&str>| {
            let value = header.map(|header| (AUTHORIZATION, HeaderValue::from_str(header).unwrap()));
            let result = check_key(&key, &value.into_iter().collect());
            assert_eq!(result.err().and_then(|error| error.code), code, "{header:?}");
        };
        check(Some("Bearer k"), None);
        check(Some("bearer  k"), None);
        check(Some("Basic k"), Some("invalid_api_key"));
        check(Some("k"), Some("invalid_api_key"));
        check(None, Some("missing_api_key"));
    }
}
