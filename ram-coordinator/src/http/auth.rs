//! Who calls: `authorization: Bearer KEY`.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use ram_proto::openai::ApiError;

use crate::keys::{Caller, DEMO_KEY, KeyError};
use crate::run;

use super::error::Refusal;
use super::observe::Seen;
use super::{Gateway, client_of};

/// Longest header that can hold a key: ours take 77 bytes with their scheme.
const HEADER_BYTES_MAX: usize = 512;

/// When an address that has tried too many keys may try another.
pub(super) const GUESS_WAIT: Duration = Duration::from_secs(1);

/// Somebody whose key is good.
#[derive(Debug)]
pub(super) struct Called(pub(super) Caller);

impl FromRequestParts<Gateway> for Called {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        if let Some(caller) = parts.extensions.get::<Caller>() {
            return Ok(Self(caller.clone())); // a layer before has asked
        }
        let key = bearer(parts)?;
        let (client, front) = (client_of(parts), &gateway.front);
        if !front.may_guess(client) && key != DEMO_KEY && !gateway.keys.knows(key) {
            front.metrics.limited("unknown_keys");
            return Err(Refusal(ApiError::rate_limited(GUESS_WAIT)));
        }
        let caller = gateway.keys.caller(key, run::now()).await.inspect_err(|error| {
            if matches!(error, KeyError::Unknown) {
                front.guessed(client);
            }
        })?;
        if let Some(Seen(seen)) = parts.extensions.get() {
            let _ = seen.set(caller.clone()); // once is enough
        }
        parts.extensions.insert(caller.clone());
        Ok(Self(caller))
    }
}

/// The key in the header.
pub(super) fn bearer(parts: &Parts) -> Result<&str, ApiError> {
    let header = parts.headers.get(AUTHORIZATION).ok_or_else(ApiError::missing_key)?;
    let text = header.to_str().ok().filter(|text| text.len() <= HEADER_BYTES_MAX);
    let (scheme, key) = text.and_then(|text| text.split_once(' ')).ok_or_else(ApiError::invalid_key)?;
    let key = key.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !key.is_empty() {
        Ok(key)
    } else {
        Err(ApiError::missing_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn check(header: &str, expected: Result<&str, Option<&str>>) {
        let (parts, ()) = Request::builder().header(AUTHORIZATION, header).body(()).unwrap().into_parts();
        assert_eq!(bearer(&parts).map_err(|error| error.code), expected, "{header:?}");
    }

    #[test]
    fn a_key_is_read_from_a_bearer_header_alone() {
        check("Bearer abc", Ok("abc"));
        check("bearer  abc ", Ok("abc"));
        check("Basic abc", Err(Some("missing_api_key")));
        check("Bearer ", Err(Some("missing_api_key")));
        check("abc", Err(Some("invalid_api_key")));
        check(&format!("Bearer {}", "x".repeat(HEADER_BYTES_MAX)), Err(Some("invalid_api_key")));
    }
}
