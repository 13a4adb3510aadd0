//! A link while it lives: HEARTBEAT each [`HEARTBEAT_MS`], and an end to it when the peer is silent for
//! [`HEARTBEAT_LOST_MS`].
//!
//! Silence is counted in bytes, not in frames: behind a long frame on a slow wire no heartbeat can come, and yet the
//! peer lives. A peer that is gone properly is noticed at once, for the stream ends.
//!
//! Heartbeats tell the time, too, and so how far away the other end is.
//!
//! [`Open::converse`] is a whole link; [`Watched`] is its hearing half, for who wants to have the halves apart.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ram_proto::frame::{
    Clock, Code, Decoded, Echo, Frame, HEARTBEAT_LOST_MS, HEARTBEAT_MS, Head, Heartbeat, Refusal,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, Sleep};

use super::frames::{Incoming, Outgoing};
use super::greet::{LINGER, Open};
use super::{Link, LinkError, within};

/// What heartbeats say of this end, and what they tell of the other one.
#[derive(Debug)]
pub struct Pulse {
    /// How busy this end is.
    pub says: watch::Receiver<Heartbeat>,
    /// How long a heartbeat is on its way, once that is known: half the way there and back.
    pub hop: watch::Sender<Option<Duration>>,
}

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
    /// wrapped as the owner likes it. `pulse` is what heartbeats say, and what is learnt by them.
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
        pulse: Pulse,
    ) -> Result<(), LinkError> {
        let Self { incoming, mut outgoing, .. } = self;
        let (unknown, distance) = (Notify::new(), Mutex::new(Distance::new(Instant::now())));
        let heard = |clock| {
            let hop = lock(&distance).heard(clock, Instant::now());
            pulse.hop.send_if_modified(|told| hop.is_some() && std::mem::replace(told, hop) != hop);
        };
        let listening = listen(Watched::new(incoming), &inbox, wrap, &unknown, heard);
        tokio::pin!(listening);
        let says =
            || Heartbeat { clock: Some(lock(&distance).clock(Instant::now())), ..*pulse.says.borrow() };
        tokio::select! {
            biased;
            ended = &mut listening => return ended,
            said = speak(&mut outgoing, &mut outbox, says, &unknown) => said?,
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
    heard: impl Fn(Clock),
) -> Result<(), LinkError> {
    loop {
        match watched.next().await? {
            Decoded::Known(mut frame) => {
                if let Head::Heartbeat(heartbeat) = &mut frame.head
                    && let Some(clock) = heartbeat.clock.take()
                {
                    heard(clock);
                }
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
    says: impl Fn() -> Heartbeat,
    unknown: &Notify,
) -> Result<(), LinkError> {
    let mut pulse = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Nothing is sent within the choice: a frame that is begun goes to its end.
        let frame = tokio::select! {
            biased;
            _ = pulse.tick() => Head::Heartbeat(says()).into(),
            () = unknown.notified() => Head::Error(UNSUPPORTED).into(),
            frame = outbox.recv() => match frame {
                Some(frame) => frame,
                None => return outgoing.finish().await,
            },
        };
        outgoing.send(&frame).await?;
    }
}

/// What two ends that tell each other the time know of the way between them.
#[derive(Debug)]
struct Distance {
    start: Instant,
    /// The last heartbeat of the other end, and when it came.
    heard: Option<(u32, Instant)>,
    hops: VecDeque<Duration>,
}

impl Distance {
    const fn new(start: Instant) -> Self {
        Self { start, heard: None, hops: VecDeque::new() }
    }

    fn clock(&self, now: Instant) -> Clock {
        let echo = self.heard.map(|(at_us, came)| Echo { at_us, held_us: micros(now - came) });
        Clock { at_us: micros(now - self.start), echo }
    }

    /// Half the way there and back: the shortest one lately, for a heartbeat may wait behind a long frame.
    fn heard(&mut self, clock: Clock, now: Instant) -> Option<Duration> {
        self.heard = Some((clock.at_us, now));
        if let Some(Echo { at_us, held_us }) = clock.echo {
            let since = micros(now - self.start).wrapping_sub(at_us);
            // What was held for longer than it was away is not true.
            if let Some(way) = since.checked_sub(held_us) {
                self.hops.truncate(HOPS - 1);
                self.hops.push_front(Duration::from_micros(way.into()) / 2);
            }
        }
        self.hops.iter().min().copied()
    }
}

/// The low bits of a time.
fn micros(time: Duration) -> u32 {
    let low = time.as_micros() & u128::from(u32::MAX);
    u32::try_from(low).unwrap_or_default()
}

fn lock(distance: &Mutex<Distance>) -> MutexGuard<'_, Distance> {
    distance.lock().unwrap_or_else(PoisonError::into_inner) // Numbers, each good by itself.
}

/// Heartbeats of which the quickest counts.
const HOPS: usize = 8;
const LOST: Duration = Duration::from_millis(HEARTBEAT_LOST_MS);
const UNSUPPORTED: Refusal = Refusal { of: None, code: Code::Unsupported, retry_after_ms: None };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two ends whose clocks begin at other times, over a way of these delays.
        #[test]
        fn two_clocks_tell_half_the_way(
            (there, back) in (0..2_000_000_u64, 0..2_000_000_u64),
            (ours, theirs) in (0..9_000_000_000_u64, 0..9_000_000_000_u64),
            held in 0..3_000_000_u64,
        ) {
            let us = Duration::from_micros;
            let start = Instant::now();
            let now = start + us(ours.max(theirs));
            let (mut near, mut far) = (Distance::new(now - us(ours)), Distance::new(now - us(theirs)));
            prop_assert_eq!(far.heard(near.clock(now), now + us(there)), None);
            let answer = far.clock(now + us(there + held));
            let hop = near.heard(answer, now + us(there + held + back)).unwrap();
            prop_assert!(hop.abs_diff(us(there + back) / 2) <= us(2), "{hop:?}");
            // A slower one does not make it longer, a false one tells nothing.
            let slow = near.heard(answer, now + us(there + held + back + 7));
            prop_assert_eq!(slow, Some(hop));
            let echo = answer.echo.map(|echo| Echo { held_us: u32::MAX, ..echo });
            prop_assert_eq!(near.heard(Clock { echo, ..answer }, now + us(there + held + back)), Some(hop));
        }
    }
}
