//! A provider's socket: text frames to control messages, and back.
//!
//! Nothing is decided here. Frames are read, bounded and handed to the loop; what the loop wants said is written. A
//! peer that breaks the rules loses its socket and nothing else: the loop sees it closed.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use prometheus_client::metrics::counter::Counter;
use ram_proto::control::{self, ControlError, Decoded, TO_COORDINATOR_BYTES_MAX, ToCoordinator, ToProvider};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use crate::http::Place;
use crate::metrics::{Direction, Metrics};
use crate::run::{Gone, Handle};
use crate::state::ConnId;

/// Bytes that a socket reads at once: with tungstenite's usual 128 KiB ten thousand idle providers would take 1.3 GB.
const READ_BUFFER_BYTES: usize = 4096;
/// Longest message of a stranger: a registration with 64 offers takes 10 KiB.
const UNREGISTERED_BYTES_MAX: usize = 64 << 10;
/// Seconds in a row in which a provider may reach the bound on its messages: more is no burst but a flood.
const FLOODED_SECONDS_MAX: u32 = 30;
/// How long one message may take to leave: a peer that reads no faster is as good as gone.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// The second that messages are counted in.
const SECOND: Duration = Duration::from_secs(1);
/// How many words of our own (`unsupported`) may wait to be sent; a peer that makes more of them waits.
const ANSWERS_MAX: usize = 4;

/// Why a socket is closed by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Closing {
    #[error("the message does not read: {0}")]
    Malformed(&'static str),
    #[error("binary frames are not spoken here")]
    Binary,
    #[error("the message is too long")]
    TooLong,
    #[error("too many messages")]
    Flood,
    #[error("the session has ended")]
    Ended,
    #[error("the peer is gone")]
    Gone,
}

/// What a provider's socket needs of the coordinator.
#[derive(Clone, Debug)]
pub struct Socket {
    handle: Handle,
    /// Messages that the provider may send in a second.
    messages_per_second: u32,
    received: Counter,
    sent: Counter,
}

impl Socket {
    /// A socket to this loop.
    #[must_use]
    pub fn new(handle: Handle, messages_per_second: u32, metrics: &Metrics) -> Self {
        let (received, sent) = (metrics.messages(Direction::In), metrics.messages(Direction::Out));
        Self { handle, messages_per_second, received, sent }
    }
}

/// Answers the upgrade and serves the socket until it closes; until then it keeps the connection's place.
pub fn serve(upgrade: WebSocketUpgrade, ours: Socket, place: Option<Place>) -> Response {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(TO_COORDINATOR_BYTES_MAX)
        .max_frame_size(TO_COORDINATOR_BYTES_MAX)
        .on_upgrade(|socket| async move {
            session(socket, ours).await;
            drop(place);
        })
}

async fn session(socket: WebSocket, ours: Socket) {
    let Socket { handle, messages_per_second, received, sent } = ours;
    let Ok((conn, outbox)) = handle.socket_opened().await else { return };
    debug!(conn = conn.0, "a provider's socket opened");
    let (sink, stream) = socket.split();
    let (answers, answered) = mpsc::channel(ANSWERS_MAX);
    let (registered, is_registered) = watch::channel(false);
    let pace = Pace::new(messages_per_second);
    let reader = Reader { conn, handle: handle.clone(), stream, answers, is_registered, pace, received };
    let mut writer = Writer { sink, outbox, answered, registered, sent };
    let closing = tokio::select! {
        closing = reader.run() => closing,
        closing = writer.run() => closing,
    };
    writer.close(closing).await;
    info!(conn = conn.0, %closing, "a provider's socket closed");
    handle.socket_closed(conn).await;
}

/// What comes in.
struct Reader {
    conn: ConnId,
    handle: Handle,
    stream: SplitStream<WebSocket>,
    answers: mpsc::Sender<Box<ToProvider>>,
    is_registered: watch::Receiver<bool>,
    pace: Pace,
    received: Counter,
}

impl Reader {
    async fn run(mut self) -> Closing {
        while let Some(Ok(message)) = self.stream.next().await {
            self.received.inc();
            if !self.pace.wait().await {
                return Closing::Flood;
            }
            let text = match message {
                Message::Text(text) => text,
                Message::Binary(_) => return Closing::Binary,
                Message::Ping(_) | Message::Pong(_) => continue, // answered by the library
                Message::Close(_) => return Closing::Gone,
            };
            if text.len() > UNREGISTERED_BYTES_MAX && !*self.is_registered.borrow() {
                return Closing::TooLong;
            }
            let taken = match control::decode::<ToCoordinator>(&text) {
                Ok(Decoded::Known(message)) => self.handle.provider_said(self.conn, message).await,
                Ok(Decoded::Unknown { of }) => {
                    let answer = Box::new(ToProvider::Unsupported { of });
                    self.answers.send(answer).await.map_err(|_| Gone)
                }
                Err(ControlError::Malformed { of, .. }) => return Closing::Malformed(of),
                Err(ControlError::TooLong { .. }) => return Closing::TooLong,
                Err(_) => return Closing::Malformed("a JSON object with a `type`"),
            };
            if taken.is_err() {
                return Closing::Ended;
            }
        }
        Closing::Gone
    }
}

/// What goes out.
struct Writer {
    sink: SplitSink<WebSocket, Message>,
    outbox: mpsc::Receiver<Box<ToProvider>>,
    answered: mpsc::Receiver<Box<ToProvider>>,
    registered: watch::Sender<bool>,
    sent: Counter,
}

impl Writer {
    async fn run(&mut self) -> Closing {
        loop {
            let message = tokio::select! {
                biased;
                message = self.outbox.recv() => message,
                Some(answer) = self.answered.recv() => Some(answer),
            };
            let Some(message) = message else { return Closing::Ended };
            if matches!(*message, ToProvider::Registered { .. }) {
                self.registered.send_replace(true);
            }
            let frame = Message::Text(control::encode(&*message).into());
            match timeout(SEND_WITHIN, self.sink.send(frame)).await {
                Ok(Ok(())) => {
                    self.sent.inc();
                }
                Ok(Err(_)) | Err(_) => return Closing::Gone,
            }
        }
    }

    async fn close(&mut self, closing: Closing) {
        let code = match closing {
            Closing::Malformed(_) | Closing::Flood => close_code::POLICY,
            Closing::Binary => close_code::UNSUPPORTED,
            Closing::TooLong => close_code::SIZE,
            Closing::Ended => close_code::AWAY,
            Closing::Gone => return,
        };
        let frame = CloseFrame { code, reason: closing.to_string().into() };
        // Best effort: the socket closes either way.
        let _ = timeout(SEND_WITHIN, self.sink.send(Message::Close(Some(frame)))).await;
    }
}

/// A bound on messages per second: who is faster waits out the second, in its own socket. Who is faster second after
/// second is no provider of ours.
struct Pace {
    per_second: u32,
    second_ends: Instant,
    left: u32,
    flooded: u32,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { per_second, second_ends: Instant::now() + SECOND, left: per_second, flooded: 0 }
    }

    /// Counts a message, and waits if there were too many; `false` when there have been too many for too long.
    #[must_use]
    async fn wait(&mut self) -> bool {
        let must_wait = self.left == 0 && Instant::now() < self.second_ends;
        if must_wait {
            self.flooded += 1;
            sleep_until(self.second_ends).await;
        }
        let now = Instant::now();
        if now >= self.second_ends {
            let flooded = if must_wait { self.flooded } else { 0 };
            *self = Self { flooded, ..Self::new(self.per_second) };
        }
        self.left = self.left.saturating_sub(1);
        self.flooded < FLOODED_SECONDS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_SECOND: u32 = 2000;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_read_at_the_bounded_pace() {
        let (mut pace, start) = (Pace::new(PER_SECOND), Instant::now());
        for _ in 0..3 * PER_SECOND {
            assert!(pace.wait().await);
        }
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_that_does_not_end_is_cut_off() {
        let (mut pace, start) = (Pace::new(PER_SECOND), Instant::now());
        while pace.wait().await {}
        assert_eq!(start.elapsed().as_secs(), u64::from(FLOODED_SECONDS_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn bursts_with_rests_between_them_are_no_flood() {
        let mut pace = Pace::new(PER_SECOND);
        for _ in 0..3 * FLOODED_SECONDS_MAX {
            for _ in 0..=PER_SECOND {
                assert!(pace.wait().await);
            }
            tokio::time::advance(2 * SECOND).await;
        }
    }
}
