//! Which web pages may call the gateway from a browser: those on the operator's list, by exact origin, or none.
//!
//! Keys travel in a header that a page sets itself, never in a cookie, so no answer allows credentials.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::WebOrigin;

use super::admission::{RATE_LIMIT, RATE_REMAINING, RATE_RESET};
use super::chat::IGNORED_FIELDS;
use super::idempotency::REPLAYED;
use super::observe::{CLIENT_REQUEST_ID, REQUEST_ID};

/// How long a browser need not ask again: the most that Chromium remembers.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(7200);
/// Tells official clients whether to try again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The layer that answers browsers; none when no page may call.
pub(super) fn layer(origins: &[WebOrigin]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| HeaderValue::try_from(origin.as_str()).ok()).collect();
    let exposed = [
        REQUEST_ID,
        CLIENT_REQUEST_ID,
        IGNORED_FIELDS,
        REPLAYED,
        RETRY_AFTER,
        SHOULD_RETRY,
        RATE_LIMIT,
        RATE_REMAINING,
        RATE_RESET,
    ];
    (!origins.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::GET, Method::POST])
            // Official clients send some twenty headers about themselves, more with each version.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed)
            .max_age(ASKED_AGAIN_AFTER)
    })
}
