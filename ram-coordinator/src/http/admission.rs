//! Before a chat is handled: who asks, how often, how much, and whether it was asked before.

use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ram_proto::openai::ApiError;

use crate::rate::{Left, TooFast};

use super::auth::Called;
use super::error::Refusal;
use super::idempotency::{self, KeyedRequest};
use super::{Gateway, body, client_of};

/// OpenAI's header for how many requests there are in a minute.
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
/// OpenAI's header for how many of them are left.
pub(super) const RATE_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
/// OpenAI's header for when all of them are there again, such as `1m30s`.
pub(super) const RATE_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// Lets a chat request in, with its whole body, or says why not.
pub(super) async fn admit(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Called(caller) = match Called::from_request_parts(&mut parts, &gateway).await {
        Ok(called) => called,
        Err(refusal) => return refusal.into_response(),
    };
    let front = &gateway.front;
    let client = client_of(&parts);
    let left = match front.count(&caller, client) {
        Some(Err(TooFast { wait, left })) => {
            front.metrics.limited("requests");
            let mut response = Refusal(ApiError::rate_limited(wait)).into_response();
            tell(left, response.headers_mut());
            return response;
        }
        Some(Ok(left)) => Some(left),
        None => None,
    };
    let mut response = match body::read(front, client, &parts.headers, body).await {
        Ok(body) => once(&gateway, caller, parts, body, next).await,
        Err(error) => Refusal(error).into_response(),
    };
    if let Some(left) = left {
        tell(left, response.headers_mut());
    }
    response
}

async fn once(
    gateway: &Gateway,
    caller: crate::keys::Caller,
    parts: Parts,
    body: axum::body::Bytes,
    next: Next,
) -> Response {
    let key = match idempotency::key(&parts.headers) {
        Ok(key) => key,
        Err(error) => return Refusal(error).into_response(),
    };
    let client = client_of(&parts);
    let keyed = key.map(|key| KeyedRequest::new(key, &caller, client, &body));
    let request = Request::from_parts(parts, body.into());
    match keyed {
        None => next.run(request).await,
        Some(keyed) => idempotency::once(gateway, keyed, async move { next.run(request).await }).await,
    }
}

fn tell(left: Left, headers: &mut HeaderMap) {
    headers.insert(RATE_LIMIT, left.limit.into());
    headers.insert(RATE_REMAINING, left.remaining.into());
    if let Ok(reset) = HeaderValue::try_from(span(left.full_in)) {
        headers.insert(RATE_RESET, reset);
    }
}

/// A span of time as OpenAI writes it: `250ms`, `1s`, `1m30s`.
fn span(wait: Duration) -> String {
    let seconds = wait.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, 0) => format!("{}ms", wait.subsec_millis()),
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_written_as_openai_writes_it() {
        let check = |ms, expected: &str| assert_eq!(span(Duration::from_millis(ms)), expected);
        check(0, "0ms");
        check(250, "250ms");
        check(1000, "1s");
        check(59_999, "59s");
        check(90_000, "1m30s");
    }
}
