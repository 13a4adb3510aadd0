//! Bodies of the local server: read within bounds, and poured away when nobody wants them.
//!
//! A client that is refused while it still sends would meet a reset before it has read why, were its connection simply
//! closed. So what is left of its body is read and dropped for a while. There are no more such bodies than connections.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use futures::{Stream, StreamExt};
use ram_proto::openai::{ApiError, BodyIntake, DISCARD_BYTES_MAX, DISCARD_WITHIN};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::room::Room;

/// Reads a body that is no longer than it may be; also tells what it takes of the room beyond its free bytes.
pub(super) async fn read(
    request: Request,
    room: &Room,
    within: Duration,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let mut intake = BodyIntake::announced(announced)?;
    let mut share = room.take(0)?;
    let mut pieces = request.into_body().into_data_stream();
    let reading = timeout(within, async {
        while let Some(piece) = pieces.next().await {
            let paid = intake.push(&piece.map_err(|_| ApiError::broken_body())?)?;
            share.merge(room.take(paid)?);
        }
        Ok(())
    });
    reading.await.unwrap_or_else(|_| Err(ApiError::request_timeout()))?;
    Ok((intake.into_bytes(), share))
}

/// The request, whose body is poured away if nobody reads it to its end.
///
/// Not so for a client that waits to be asked for its body: it hears the refusal before it sends any.
pub(super) fn poured_away(request: Request) -> Request {
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return request;
    }
    request.map(|body| Body::from_stream(Unwanted(Some(body.into_data_stream()))))
}

/// A body that is read to its end by somebody, within bounds; `None` once it is.
struct Unwanted(Option<BodyDataStream>);

impl Stream for Unwanted {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(pieces) = &mut self.0 else { return Poll::Ready(None) };
        let polled = pieces.poll_next_unpin(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        let Some(pieces) = self.0.take().filter(|pieces| !pieces.is_end_stream()) else { return };
        let Ok(runtime) = Handle::try_current() else { return }; // the process ends
        // However it ends, the connection is over or free for the next request.
        runtime.spawn(timeout(DISCARD_WITHIN, pour_away(pieces)));
    }
}

async fn pour_away(mut pieces: BodyDataStream) {
    let mut poured = 0_usize;
    while let Some(Ok(piece)) = pieces.next().await {
        poured = poured.saturating_add(piece.len());
        if poured > DISCARD_BYTES_MAX {
            return;
        }
    }
}
