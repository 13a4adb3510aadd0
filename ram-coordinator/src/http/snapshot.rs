//! What the network shows of itself, built a few times a second at most: a flood of readers costs the loop nothing.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use ram_proto::openai::ApiError;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::run::Gone;

use super::error::Refusal;

/// Times that a view is built in a second. So a few readers see the network as it is, and ten thousand see it as it
/// was less than a second ago.
const BUILDS_PER_SECOND: u32 = 4;
/// The second that they are counted in.
const SECOND: Duration = Duration::from_secs(1);

/// One view, as it was last built.
#[derive(Debug)]
pub(super) struct Snapshot {
    builds_per_second: u32,
    latest: Mutex<Option<Built>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { builds_per_second: BUILDS_PER_SECOND, latest: Mutex::default() }
    }
}

#[derive(Debug)]
struct Built {
    json: Bytes,
    second_began: Instant,
    builds: u32,
}

impl Snapshot {
    /// A view so large that it is built once a second.
    pub(super) fn of_many() -> Self {
        Self { builds_per_second: 1, latest: Mutex::default() }
    }

    /// The view: as it was, or built anew. Whoever comes while it is being built waits for that.
    pub(super) async fn take<T: Serialize>(
        &self,
        build: impl AsyncFnOnce() -> Result<T, Gone>,
    ) -> Result<Response, Refusal> {
        let mut latest = self.latest.lock().await;
        let now = Instant::now();
        let this_second = latest.as_ref().filter(|built| now - built.second_began < SECOND);
        let (second_began, builds) = match this_second {
            Some(built) if built.builds >= self.builds_per_second => return Ok(told(built.json.clone())),
            Some(built) => (built.second_began, built.builds + 1),
            None => (now, 1),
        };
        let view = build().await?;
        let json = Bytes::from(serde_json::to_vec(&view).map_err(|_| ApiError::internal())?);
        *latest = Some(Built { json: json.clone(), second_began, builds });
        Ok(told(json))
    }
}

fn told(json: Bytes) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_flood_builds_a_view_a_few_times_a_second() {
        for (snapshot, each_second) in [(Snapshot::default(), BUILDS_PER_SECOND), (Snapshot::of_many(), 1)] {
            let builds = AtomicU32::new(0);
            let take = || snapshot.take(async || Ok(builds.fetch_add(1, Ordering::Relaxed)));
            for second in 1..=3 {
                for _ in 0..1000 {
                    assert!(take().await.is_ok());
                }
                assert_eq!(builds.load(Ordering::Relaxed), second * each_second);
                tokio::time::advance(SECOND).await;
            }
        }
    }

    #[tokio::test]
    async fn a_view_that_cannot_be_built_is_tried_again() {
        let snapshot = Snapshot::default();
        assert!(snapshot.take(async || Err::<(), _>(Gone)).await.is_err());
        assert!(snapshot.take(async || Ok(1)).await.is_ok());
    }
}
