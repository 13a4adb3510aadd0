//! Bodies: read within bounds of time and memory, and poured away when nobody wants them.
//!
//! A client that is refused while it still sends would meet a reset before it has read why, were its connection simply
//! closed. So what is left of its body is read and dropped for a while, with bounds on bytes, time and number.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use futures::StreamExt;
use hyper::body::{Frame, SizeHint};
use ram_proto::openai::{ApiError, BodyIntake, DISCARD_BYTES_MAX, DISCARD_WITHIN};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::front::Front;

/// When it may be worth another try while other bodies take all the room.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// Unwanted bodies at once; the sender of another meets a reset.
pub(super) const DISCARDS_MAX: usize = 256;

/// Reads a body that is no longer than it may be.
pub(super) async fn read(
    front: &Front,
    client: IpAddr,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let mut intake = BodyIntake::announced(announced)?;
    let mut share = front.bodies.none(client);
    let mut pieces = body.into_data_stream();
    let reading = timeout(front.limits.body_within, async {
        while let Some(piece) = pieces.next().await {
            let paid = intake.push(&piece.map_err(|_| ApiError::broken_body())?)?;
            if !share.grow(paid) {
                front.metrics.limited("bodies");
                return Err(ApiError::no_capacity(ROOM_WAIT));
            }
        }
        Ok(())
    });
    reading.await.unwrap_or_else(|_| Err(ApiError::request_timeout()))?;
    Ok(intake.into_bytes().into())
}

/// The request, whose body is poured away if nobody reads it to its end.
///
/// Not so for a client that waits to be asked for its body: it hears the refusal before it sends any.
pub(super) fn poured_away(request: Request, front: &Front) -> Request {
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return request;
    }
    let discards = Arc::clone(&front.discards);
    request.map(|body| Body::new(Unwanted { body: Some(body), discards }))
}

/// A body that is read to its end by somebody, within bounds.
struct Unwanted {
    body: Option<Body>,
    discards: Arc<Semaphore>,
}

impl HttpBody for Unwanted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let Ok(runtime) = Handle::try_current() else { return }; // the process ends
        if let Ok(permit) = Arc::clone(&self.discards).try_acquire_owned() {
            runtime.spawn(async move {
                // However it ends, the connection is over or free for the next request.
                let _ = timeout(DISCARD_WITHIN, pour_away(body)).await;
                drop(permit);
            });
        }
    }
}

async fn pour_away(body: Body) {
    let (mut pieces, mut poured) = (body.into_data_stream(), 0_usize);
    while let Some(Ok(piece)) = pieces.next().await {
        poured = poured.saturating_add(piece.len());
        if poured > DISCARD_BYTES_MAX {
            return;
        }
    }
}
