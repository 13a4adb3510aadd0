//! What every request gets: a number, the address of its client, a line in the log, and its place in the metrics.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use ram_proto::openai::ApiError;
use ram_proto::routes;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::keys::Caller;
use crate::metrics::Metrics;
use crate::run;

use super::error::Refusal;
use super::{Client, Gateway, Peer, RequestId, body};

/// Header that names a request, in its answer and in our logs. A job has its request's number.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header with the client's own name for a request, which is sent back and goes nowhere else, as OpenAI has it.
pub(super) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
/// Longest such name.
const CLIENT_REQUEST_ID_BYTES_MAX: usize = 128;
/// What is asked for so often that its lines would drown the others.
const PROBES: [&str; 3] = [routes::HEALTH, routes::READY, routes::METRICS];

/// Where the line in the log learns who called, once that is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(pub(super) Arc<OnceLock<Caller>>);

/// Lets a request through and takes note of it.
pub(super) async fn observe(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let front = &gateway.front;
    let Ok(number) = run::random_job_id() else {
        return Refusal(ApiError::internal()).into_response();
    };
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| peer.ip());
    let client = front.client(peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), request.headers());
    let seen = Seen::default();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let named = client_request_id(request.headers());
    request.extensions_mut().insert(RequestId(number));
    request.extensions_mut().insert(Client(client));
    request.extensions_mut().insert(seen.clone());
    let mut response = next.run(body::poured_away(request, front)).await;

    let id = HeaderValue::try_from(format!("req_{number}")).expect("hexadecimal digits are visible ASCII");
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(named) = named {
        response.headers_mut().insert(CLIENT_REQUEST_ID, named);
    }
    let (status, took) = (response.status().as_u16(), began.elapsed());
    front.metrics.request(route.as_deref(), method.as_str(), status, took);
    let line = Line {
        request: format_args!("req_{number}"),
        route: route.as_deref().unwrap_or("-"),
        status,
        ms: took.as_millis(),
        caller: seen.0.get(),
        client: front.log_addresses.then_some(client),
    };
    line.write();
    counted(response, &front.metrics)
}

/// A line in the log about one request. The method and the path as it was sent are not in it: a stranger chose them.
struct Line<'a> {
    request: fmt::Arguments<'a>,
    route: &'a str,
    status: u16,
    ms: u128,
    caller: Option<&'a Caller>,
    client: Option<IpAddr>,
}

impl Line<'_> {
    fn write(&self) {
        let Self { request, route, status, ms, .. } = self;
        let caller = match self.caller {
            Some(Caller::Demo) => "demo",
            Some(Caller::Key(id)) => id.as_str(),
            None => "-",
        };
        let client = self.client.map(tracing::field::display);
        if PROBES.contains(route) {
            debug!(%request, route, status, ms, client, "request");
        } else {
            info!(%request, route, status, ms, caller, client, "request");
        }
    }
}

/// The client's own name for the request, if it is one.
fn client_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers.get(CLIENT_REQUEST_ID)?;
    let fits = (1..=CLIENT_REQUEST_ID_BYTES_MAX).contains(&named.len());
    (fits && named.as_bytes().iter().all(u8::is_ascii_graphic)).then(|| named.clone())
}

/// The answer; while it is a stream of events, it is counted as one that is open.
fn counted(response: Response, metrics: &Arc<Metrics>) -> Response {
    if !is_stream(response.headers()) {
        return response;
    }
    metrics.streams.inc();
    let open = OpenStream(Arc::clone(metrics));
    response.map(|body| Body::new(Counted { body, _open: open }))
}

/// Whether an answer is a stream of events.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

struct OpenStream(Arc<Metrics>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

/// A body that is counted while it is open.
struct Counted {
    body: Body,
    _open: OpenStream,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(named: &'static [u8], expected: Option<&[u8]>) {
        let mut headers = HeaderMap::new();
        headers.insert(CLIENT_REQUEST_ID, HeaderValue::from_bytes(named).unwrap());
        assert_eq!(client_request_id(&headers).as_ref().map(HeaderValue::as_bytes), expected);
    }

    #[test]
    fn a_clients_own_name_for_a_request_is_sent_back_if_it_is_sane() {
        check(b"my-request-7", Some(b"my-request-7"));
        check(b"", None);
        check(b"two words", None);
        check(b"\xff", None);
        check(&[b'x'; CLIENT_REQUEST_ID_BYTES_MAX + 1], None);
    }
}
