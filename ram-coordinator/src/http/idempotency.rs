//! `idempotency-key`: a request that is sent again is answered again, and charged once.
//!
//! Whoever sends the header wants one answer whatever happens to the line, so the job runs to its end even if the
//! client goes away; the client that comes back under the same key is told to wait a second while it runs, and has the
//! whole answer after that. Without the header a client that goes away cancels its job, as ever.

use std::fmt;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Duration;

use axum::body::{self, Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use ram_proto::openai::ApiError;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::idempotency::{Begin, End, Fingerprint, Owner, Ticket};
use crate::keys::Caller;
use crate::run;

use super::Gateway;
use super::chat::{ACCEL_BUFFERING, IGNORED_FIELDS};
use super::error::Refusal;
use super::observe::is_stream;

/// The header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is told again.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Says that trying again is of no use, as after a charge.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Longest key.
const KEY_BYTES_MAX: usize = 255;
/// Longest answer that is kept: 10,000 tokens as a stream. A longer one is delivered, known, and not kept.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Frames of a stream between whoever keeps it and whoever reads it.
const FRAMES_MAX: usize = 16;
/// When to ask again while the first request runs.
const RUNNING_WAIT: Duration = Duration::from_secs(1);
/// Headers that belong to an answer wherever it is told; the others belong to one request.
const KEPT_HEADERS: [HeaderName; 6] =
    [CONTENT_TYPE, CACHE_CONTROL, RETRY_AFTER, SHOULD_RETRY, IGNORED_FIELDS, ACCEL_BUFFERING];

/// A request under a key.
pub(super) struct KeyedRequest {
    owner: Owner,
    key: String,
    fingerprint: Fingerprint,
}

/// An answer that is kept. `Debug` shows no word of it.
pub(super) struct Recorded {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The key, if there is one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let fits = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    match key.to_str() {
        Ok(key) if fits => Ok(Some(key.to_owned())),
        _ => Err(ApiError::invalid_request(
            "idempotency-key",
            format!("the header `idempotency-key` is 1 to {KEY_BYTES_MAX} visible ASCII characters"),
        )),
    }
}

/// Answers a request once: by running it, or with what it was answered before.
pub(super) async fn once(
    gateway: &Gateway,
    request: KeyedRequest,
    run: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let KeyedRequest { owner, key, fingerprint } = request;
    let begin = {
        let mut answers = gateway.front.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if !answers.is_on() {
            let message = "this network keeps no answers; leave the header `idempotency-key` away";
            return Refusal(ApiError::unsupported("idempotency-key", message)).into_response();
        }
        answers.begin(owner, &key, fingerprint, run::now())
    };
    let refused = match begin {
        Begin::Run(ticket) => {
            let running = RunningKey { gateway: gateway.clone(), ticket: Some(ticket) };
            // In a task of its own: it goes on when whoever asked goes away.
            let answer = tokio::spawn(async move { record(run.await, running).await });
            return answer.await.unwrap_or_else(|_| Refusal(ApiError::internal()).into_response());
        }
        Begin::Replay(recorded) => {
            gateway.front.metrics.replays.inc();
            return recorded.tell();
        }
        Begin::Running => in_use(),
        Begin::Reused => reused(),
        Begin::NotKept => not_kept(),
        Begin::Full => ApiError::rate_limited(RUNNING_WAIT),
    };
    Refusal(refused).into_response()
}

fn in_use() -> ApiError {
    ApiError {
        status: 409,
        code: Some("idempotency_key_in_use"),
        retry_after: Some(RUNNING_WAIT),
        ..ApiError::invalid_request("idempotency-key", "the first request under this key still runs")
    }
}

fn reused() -> ApiError {
    let message = "this key stands for a request with another body; take a new key";
    ApiError {
        status: 422,
        code: Some("idempotency_key_reused"),
        should_retry: Some(false),
        ..ApiError::invalid_request("idempotency-key", message)
    }
}

fn not_kept() -> ApiError {
    let message = "this request was answered and charged, and its answer is not kept any more; take a new key to \
                   ask again";
    ApiError {
        status: 409,
        code: Some("idempotency_answer_not_kept"),
        should_retry: Some(false),
        ..ApiError::invalid_request("idempotency-key", message)
    }
}

/// A request that runs; forgotten if nobody says how it ended.
struct RunningKey {
    gateway: Gateway,
    ticket: Option<Ticket>,
}

impl RunningKey {
    fn end(mut self, end: End<Recorded>) {
        self.resolve(end);
    }

    fn resolve(&mut self, end: End<Recorded>) {
        if let Some(ticket) = self.ticket.take() {
            let mut answers = self.gateway.front.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.end(ticket, end, run::now());
        }
    }
}

impl Drop for RunningKey {
    fn drop(&mut self) {
        self.resolve(End::Forget);
    }
}

/// Passes an answer on and keeps it.
async fn record(response: Response, running: RunningKey) -> Response {
    let (parts, answer) = response.into_parts();
    let kept = |name: &HeaderName| Some((name.clone(), parts.headers.get(name)?.clone()));
    let headers: HeaderMap = KEPT_HEADERS.iter().filter_map(kept).collect();
    let mut recorded = Recorded { status: parts.status, headers, body: Bytes::new() };
    if is_stream(&parts.headers) {
        let (frames, told) = mpsc::channel(FRAMES_MAX);
        tokio::spawn(pump(answer, frames, recorded, running));
        let told = futures::stream::unfold(told, async |mut told| Some((told.recv().await?, told)));
        return Response::from_parts(parts, Body::from_stream(told.map(Ok::<_, std::convert::Infallible>)));
    }
    let Ok(whole) = body::to_bytes(answer, usize::MAX).await else {
        return Refusal(ApiError::internal()).into_response(); // our own bodies do not break off
    };
    recorded.body = whole.clone();
    running.end(match recorded {
        recorded if !recorded.is_final() => End::Forget,
        recorded if whole.len() > ANSWER_BYTES_MAX => {
            drop(recorded);
            End::TooLong
        }
        recorded => {
            let bytes = recorded.size();
            End::Keep(recorded, bytes)
        }
    });
    Response::from_parts(parts, whole.into())
}

/// Passes a stream on, to its end, whether or not anybody still reads it.
async fn pump(answer: Body, frames: mpsc::Sender<Bytes>, mut recorded: Recorded, running: RunningKey) {
    let mut answer = answer.into_data_stream();
    let (mut kept, mut is_charged, mut is_long) = (Vec::new(), false, false);
    while let Some(Ok(frame)) = answer.next().await {
        is_charged |= says_something(&frame);
        is_long |= kept.len() + frame.len() > ANSWER_BYTES_MAX;
        if is_long {
            kept = Vec::new();
        } else {
            kept.extend_from_slice(&frame);
        }
        let _ = frames.send(frame).await; // whoever read may have left
    }
    recorded.body = kept.into();
    let bytes = recorded.size();
    running.end(match (is_charged, is_long) {
        (false, _) => End::Forget,
        (true, true) => End::TooLong,
        (true, false) => End::Keep(recorded, bytes),
    });
}

/// Whether a frame is more than a comment or an error: then tokens were delivered, and will be charged.
fn says_something(frame: &[u8]) -> bool {
    frame.starts_with(b"data: ") && !frame.starts_with(b"data: {\"error\"")
}

impl KeyedRequest {
    pub(super) fn new(key: String, caller: &Caller, client: IpAddr, body: &[u8]) -> Self {
        Self { owner: Owner::of(caller, client), key, fingerprint: Sha256::digest(body).into() }
    }
}

impl Recorded {
    /// Whether the request was charged for, or may have been: then it is not run again. An error of ours that clients
    /// shall not retry is one that came after a charge.
    fn is_final(&self) -> bool {
        let after_charge = self.headers.get(SHOULD_RETRY).is_some_and(|retry| retry == "false");
        self.status.is_success() || (self.status.is_server_error() && after_charge)
    }

    /// About how much memory it takes.
    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        size_of::<Self>() + headers + self.body.len()
    }

    fn tell(&self) -> Response {
        let mut response = (self.status, self.headers.clone(), self.body.clone()).into_response();
        if !self.headers.contains_key(CONTENT_TYPE) {
            response.headers_mut().remove(CONTENT_TYPE);
        }
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("status", &self.status).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::job::Failure;
    use ram_proto::openai::sse;

    fn check(value: &[u8], good: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        match key(&headers) {
            Ok(found) => assert!(good && found.unwrap().as_bytes() == value),
            Err(error) => assert!(!good && error.param.as_deref() == Some("idempotency-key")),
        }
    }

    #[test]
    fn a_key_is_up_to_255_visible_characters() {
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        check(b"stainless-node-retry-7", true);
        check(&[b'k'; KEY_BYTES_MAX], true);
        check(&[b'k'; KEY_BYTES_MAX + 1], false);
        check(b"", false);
        check(b"two words", false);
        check("schlüssel".as_bytes(), false);
    }

    #[test]
    fn only_what_may_have_been_charged_is_kept() {
        let check = |response: Response, is_final: bool| {
            let (parts, _) = response.into_parts();
            let recorded = Recorded { status: parts.status, headers: parts.headers, body: Bytes::new() };
            assert_eq!(recorded.is_final(), is_final, "{}", parts.status);
        };
        check("an answer".into_response(), true);
        check(Refusal(ApiError::from(Failure::ProviderLost)).into_response(), false);
        check(Refusal(ApiError::from(Failure::ProviderLost).after_charge()).into_response(), true);
        check(Refusal(ApiError::insufficient_quota("poor")).into_response(), false);
        check(Refusal(ApiError::malformed_body("no")).into_response(), false);
    }

    #[test]
    fn words_are_told_from_comments_and_errors() {
        assert!(says_something(b"data: {\"id\":1}\n\n"));
        assert!(!says_something(sse::KEEP_ALIVE.as_bytes()));
        assert!(!says_something(sse::error(&ApiError::timeout()).as_bytes()));
    }
}
