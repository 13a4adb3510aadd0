//! `idempotency-key`: a request that is sent again is answered again, and charged once.
//!
//! Whoever sends the header wants one answer whatever happens to the line, so the job runs to its end even if the
//! client goes away; the client that comes back under the same key is told to wait a second while it runs, and has the
//! whole answer after that. Without the header a client that goes away cancels its job, as ever.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use std::{fmt, io};

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
use super::choices::Charged;
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
/// Frames of a stream that wait for whoever reads it: as many as replies may wait for a reader without a key.
const FRAMES_MAX: usize = 256;
/// Bytes of those frames: a reply's words, with what is written around them.
const FRAME_BYTES_MAX: usize = 512 << 10;
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
    let recorded = Recorded { status: parts.status, headers, body: Bytes::new() };
    let charged = parts.extensions.get::<Charged>().cloned().unwrap_or_default();
    if is_stream(&parts.headers) {
        let (reader, told) = frames();
        tokio::spawn(async move { running.end(pump(answer, reader, recorded, &charged).await) });
        return Response::from_parts(parts, told);
    }
    let Ok(whole) = body::to_bytes(answer, usize::MAX).await else {
        return Refusal(ApiError::internal()).into_response(); // our own bodies do not break off
    };
    let body = (whole.len() <= ANSWER_BYTES_MAX).then(|| whole.clone());
    running.end(recorded.end(body, &charged));
    Response::from_parts(parts, whole.into())
}

/// Takes a stream to its end, whether or not anybody still reads it: who falls too far behind is let go, and comes back
/// under the key.
async fn pump(answer: Body, reader: Reader, recorded: Recorded, charged: &Charged) -> End<Recorded> {
    let mut answer = answer.into_data_stream();
    let (mut reader, mut kept) = (Some(reader), Some(Vec::new()));
    while let Some(Ok(frame)) = answer.next().await {
        kept = kept.filter(|kept| kept.len() + frame.len() <= ANSWER_BYTES_MAX);
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&frame);
        }
        reader = reader.and_then(|reader| reader.send(frame));
    }
    recorded.end(kept.map(Bytes::from), charged)
}

/// Whoever reads a stream that is kept, as the one sees it who keeps it.
struct Reader {
    frames: mpsc::Sender<Bytes>,
    /// Bytes of the frames that wait.
    waiting: Arc<AtomicUsize>,
    is_cut: Arc<AtomicBool>,
}

/// A reader, and the body that it reads: that breaks off, and does not end, when the reader falls too far behind.
fn frames() -> (Reader, Body) {
    let (sender, mut frames) = mpsc::channel::<Bytes>(FRAMES_MAX);
    let (waiting, is_cut) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let reader = Reader { frames: sender, waiting: Arc::clone(&waiting), is_cut: Arc::clone(&is_cut) };
    let told = futures::stream::poll_fn(move |cx| {
        frames.poll_recv(cx).map(|frame| match frame {
            Some(frame) => {
                waiting.fetch_sub(frame.len(), Ordering::Relaxed);
                Some(Ok(frame))
            }
            // Once: nothing is asked of a body that has failed.
            None => is_cut.load(Ordering::Relaxed).then(|| Err(io::Error::from(io::ErrorKind::TimedOut))),
        })
    });
    (reader, Body::from_stream(told))
}

impl Reader {
    /// Sends a frame without waiting; `None` when the reader is gone, or too far behind and cut off.
    fn send(self, frame: Bytes) -> Option<Self> {
        let size = frame.len();
        let before = self.waiting.fetch_add(size, Ordering::Relaxed);
        let fits = before == 0 || before + size <= FRAME_BYTES_MAX;
        if fits && self.frames.try_send(frame).is_ok() {
            return Some(self);
        }
        self.is_cut.store(true, Ordering::Relaxed);
        None
    }
}

impl KeyedRequest {
    pub(super) fn new(key: String, caller: &Caller, client: IpAddr, body: &[u8]) -> Self {
        Self { owner: Owner::of(caller, client), key, fingerprint: Sha256::digest(body).into() }
    }
}

impl Recorded {
    /// How the request ended: one that was charged for, or may have been, is not run again. `None` is a body that was
    /// too long to keep.
    fn end(self, body: Option<Bytes>, charged: &Charged) -> End<Self> {
        match body {
            _ if !charged.get() => End::Forget,
            None => End::TooLong,
            Some(body) => {
                let recorded = Self { body, ..self };
                let bytes = recorded.size();
                End::Keep(recorded, bytes)
            }
        }
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

    fn recorded() -> Recorded {
        Recorded { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new() }
    }

    fn kept(end: &End<Recorded>) -> &[u8] {
        match end {
            End::Keep(recorded, _) => &recorded.body,
            End::Forget => panic!("it was forgotten"),
            End::TooLong => panic!("it was too long"),
        }
    }

    /// A body of so many frames.
    fn answer(frames: usize) -> Body {
        let frame = || Ok::<_, std::convert::Infallible>(Bytes::from_static(b"data: word\n\n"));
        Body::from_stream(futures::stream::repeat_with(frame).take(frames))
    }

    #[tokio::test]
    async fn a_reader_whose_line_is_silent_is_let_go_and_the_answer_is_kept_whole() {
        let (reader, told) = frames();
        let all = 10 * FRAMES_MAX;
        let end = pump(answer(all), reader, recorded(), &Charged::certain()).await;
        assert_eq!(kept(&end).len(), all * b"data: word\n\n".len());
        let mut told = told.into_data_stream();
        for _ in 0..FRAMES_MAX {
            assert!(told.next().await.unwrap().is_ok());
        }
        assert!(told.next().await.unwrap().is_err(), "the body breaks off, so no client takes it for whole");
    }

    #[tokio::test]
    async fn a_reader_who_keeps_up_reads_all_to_the_end() {
        let (reader, told) = frames();
        let charged = Charged::certain();
        let all = 10 * FRAMES_MAX;
        let slow = answer(all).into_data_stream().then(async |frame| {
            tokio::task::yield_now().await; // the reader has its turn
            frame
        });
        let pumped = pump(Body::from_stream(slow), reader, recorded(), &charged);
        let (end, whole) = tokio::join!(pumped, body::to_bytes(told, usize::MAX));
        assert_eq!(kept(&end), whole.unwrap());
    }

    #[tokio::test]
    async fn a_reader_is_behind_by_bytes_too() {
        let (reader, _told) = frames();
        let reader = reader.send(vec![0; FRAME_BYTES_MAX + 1].into()).unwrap(); // one always fits
        assert!(reader.send(Bytes::from_static(b"x")).is_none());
    }

    #[test]
    fn only_what_may_have_been_charged_is_kept() {
        let body = || Some(Bytes::new());
        assert!(matches!(recorded().end(body(), &Charged::default()), End::Forget));
        assert!(matches!(recorded().end(None, &Charged::default()), End::Forget));
        assert!(matches!(recorded().end(body(), &Charged::certain()), End::Keep(..)));
        assert!(matches!(recorded().end(None, &Charged::certain()), End::TooLong));
    }
}
