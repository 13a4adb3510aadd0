//! A link while it lives: HEARTBEAT each [`HEARTBEAT_MS`], and an end to it when the peer is silent for
//! [`HEARTBEAT_LOST_MS`].
//!
//! Silence is counted in bytes, not in frames: behind a long frame on a slow wire no heartbeat can come, and yet the
//! peer lives. A peer that is gone properly is noticed at once, for the stream ends.
//!
//! [`Open::converse`] is a whole link; [`Watched`] is its hearing half, for who wants to have the halves apart.

use std::pin::Pin;
use std::time::Duration;

use ram_proto::frame::{Code, Decoded, Frame, HEARTBEAT_LOST_MS, HEARTBEAT_MS, Head, Heartbeat, Refusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, Sleep};

use super::frames::{Incoming, Outgoing};
use super::greet::{LINGER, Open};
use super::{Link, LinkError, within};

/// Frames that come, and the end of them when nothing does.
#[derive(Debug)]
pub struct Watched<R> {
    incoming: Incoming<R>,
    heard: Instant,
    /// Rings when silence may have been too long. It is set anew only when it has rung: not once for each frame.
    alarm: Pin<Box<Sleep>>,
}

impl<R: AsyncRead + Unpin> Watched<R> {
    /// Begins to listen now.
    #[must_use]
    pub fn new(incoming: Incoming<R>) -> Self {
        Self { incoming, heard: Instant::now(), alarm: Box::pin(tokio::time::sleep(LOST)) }
    }

    /// The next frame. Nothing is lost when the future is dropped before its end, the time of silence included.
    ///
    /// What came while nobody listened is no silence.
    ///
    /// # Errors
    /// [`LinkError::Silent`], and all of [`Incoming::next`].
    pub async fn next(&mut self) -> Result<Decoded, LinkError> {
        loop {
            if let Some(frame) = self.incoming.arrived()? {
                return Ok(frame);
            }
            tokio::select! {
                biased;
                read = self.incoming.read() => {
                    read?;
                    self.heard = Instant::now();
                }
                () = self.alarm.as_mut() => {
                    let lost = self.heard + LOST;
                    if lost <= Instant::now() {
                        return Err(LinkError::Silent);
                    }
                    self.alarm.as_mut().reset(lost);
                }
            }
        }
    }
}

impl<L: Link> Open<L> {
    /// Carries frames both ways until the link ends: those of `outbox` are sent, those that come go into `inbox`, each
    /// wrapped as the owner likes it. `status` is what heartbeats say.
    ///
    /// Frames of unknown types are answered. While `inbox` is full nothing is read: so the peer is slowed down.
    ///
    /// Returns without an error when the owner has enough: all of `outbox` was sent, or nobody takes from `inbox`.
    ///
    /// # Errors
    /// [`LinkError`]: why the link ended.
    pub async fn converse<E>(
        self,
        mut outbox: mpsc::Receiver<Frame>,
        inbox: mpsc::Sender<E>,
        wrap: impl Fn(Frame) -> E,
        status: watch::Receiver<Heartbeat>,
    ) -> Result<(), LinkError> {
        let Self { incoming, mut outgoing, .. } = self;
        let unknown = Notify::new();
        let listening = listen(Watched::new(incoming), &inbox, wrap, &unknown);
        tokio::pin!(listening);
        tokio::select! {
            biased;
            ended = &mut listening => return ended,
            said = speak(&mut outgoing, &mut outbox, &status, &unknown) => said?,
        }
        // The last words would be taken back if the socket were closed with something unread.
        let _ = within(LINGER, listening).await;
        Ok(())
    }
}

async fn listen<R: AsyncRead + Unpin, E>(
    mut watched: Watched<R>,
    inbox: &mpsc::Sender<E>,
    wrap: impl Fn(Frame) -> E,
    unknown: &Notify,
) -> Result<(), LinkError> {
    loop {
        match watched.next().await? {
            Decoded::Known(frame) => {
                if inbox.send(wrap(frame)).await.is_err() {
                    return Ok(());
                }
            }
            // Many of them before the next answer are answered once: it names none.
            Decoded::Unknown => unknown.notify_one(),
        }
    }
}

/// Sends until there is nothing more to come.
async fn speak<W: AsyncWrite + Unpin>(
    outgoing: &mut Outgoing<W>,
    outbox: &mut mpsc::Receiver<Frame>,
    status: &watch::Receiver<Heartbeat>,
    unknown: &Notify,
) -> Result<(), LinkError> {
    let mut pulse = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Nothing is sent within the choice: a frame that is begun goes to its end.
        let frame = tokio::select! {
            biased;
            _ = pulse.tick() => Head::Heartbeat(*status.borrow()).into(),
            () = unknown.notified() => Head::Error(UNSUPPORTED).into(),
            frame = outbox.recv() => match frame {
                Some(frame) => frame,
                None => return outgoing.finish().await,
            },
        };
        outgoing.send(&frame).await?;
    }
}

const LOST: Duration = Duration::from_millis(HEARTBEAT_LOST_MS);
const UNSUPPORTED: Refusal = Refusal { of: None, code: Code::Unsupported, retry_after_ms: None };
