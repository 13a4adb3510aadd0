//! A link within a process, with delay, rate and faults: what tests and simulations run over.
//!
//! ```text
//! written at t  -->  on the wire from max(t, when it is free), for bytes / rate  -->  there, `delay` later
//! ```
//!
//! Each direction is a wire of its own. Under tokio's paused clock all of it is exact and the same in each run; times
//! are those of tokio's timers, to the millisecond. Every write is a piece that arrives whole.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use ram_core::id::NodeKey;
use ram_core::units::{self, ByteRate};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Link;
use crate::plan;

/// What one direction is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// How long a byte is on its way.
    pub delay: Duration,
    /// Bytes a second, if there is a limit.
    pub rate: Option<ByteRate>,
}

impl From<plan::Link> for Wire {
    /// As the planner thinks of it.
    fn from(link: plan::Link) -> Self {
        Self { delay: link.delay, rate: Some(link.rate) }
    }
}

/// A direction of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From its first end to its second.
    There,
    /// From its second end to its first.
    Back,
}

/// Makes a link: its two ends, and the cable between them, for who wants to do it harm. To be called within a tokio
/// runtime that has a clock.
#[must_use]
pub fn pair(there: Wire, back: Wire) -> (MemoryLink, MemoryLink, Cable) {
    let (there, back) = (Pipe::new(there), Pipe::new(back));
    let first = MemoryLink::new(Arc::clone(&there), Arc::clone(&back));
    let second = MemoryLink::new(Arc::clone(&back), Arc::clone(&there));
    (first, second, Cable { there, back })
}

/// What lies between the two ends.
#[derive(Clone, Debug)]
pub struct Cable {
    there: Arc<Mutex<Pipe>>,
    back: Arc<Mutex<Pipe>>,
}

impl Cable {
    /// Breaks both directions, at once and for both ends; what is on its way is lost.
    pub fn cut(&self) {
        for pipe in [&self.there, &self.back] {
            let mut pipe = lock(pipe);
            pipe.is_cut = true;
            pipe.pieces.clear();
            pipe.wake();
        }
    }

    /// From now on what is written this way is lost, and neither end is told.
    pub fn stall(&self, way: Way) {
        lock(self.pipe(way)).is_stalled = true;
    }

    /// Changes a bit in the next piece that is written this way.
    pub fn corrupt(&self, way: Way) {
        lock(self.pipe(way)).is_corrupt = true;
    }

    const fn pipe(&self, way: Way) -> &Arc<Mutex<Pipe>> {
        match way {
            Way::There => &self.there,
            Way::Back => &self.back,
        }
    }
}

/// An end of a link. Dropped, it closes both directions.
#[derive(Debug)]
pub struct MemoryLink {
    outward: Arc<Mutex<Pipe>>,
    inward: Arc<Mutex<Pipe>>,
    /// Rings when the next piece arrives.
    alarm: Pin<Box<Sleep>>,
}

impl MemoryLink {
    fn new(outward: Arc<Mutex<Pipe>>, inward: Arc<Mutex<Pipe>>) -> Self {
        Self { outward, inward, alarm: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        lock(&self.outward).finish();
        let mut inward = lock(&self.inward);
        inward.is_unread = true;
        inward.pieces.clear();
        inward.wake();
    }
}

impl Link for MemoryLink {
    /// Nobody that is proven.
    fn peer(&self) -> Option<NodeKey> {
        None
    }
}

impl AsyncRead for MemoryLink {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inward, alarm, .. } = self.get_mut();
        let mut pipe = lock(inward);
        loop {
            if pipe.is_cut {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let due = match pipe.pieces.front() {
                Some(piece) => piece.arrives,
                None => {
                    pipe.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            if due <= Instant::now() {
                pipe.take(into);
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            if alarm.deadline() != due {
                alarm.as_mut().reset(due);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for MemoryLink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.outward);
        if pipe.is_cut || pipe.is_unread || pipe.is_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_BYTES.saturating_sub(pipe.unread);
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut piece = BytesMut::new();
        for slice in slices {
            piece.extend_from_slice(&slice[..slice.len().min(room - piece.len())]);
        }
        let written = piece.len();
        if written > 0 {
            pipe.put(piece);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.outward).finish();
        Poll::Ready(Ok(()))
    }
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    wire: Wire,
    /// What is on its way, in order. An empty piece is the end of the stream.
    pieces: VecDeque<Piece>,
    /// Bytes of those.
    unread: usize,
    /// When the wire has sent all that it was given.
    free: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Nothing more will be written; nobody will read.
    is_finished: bool,
    is_unread: bool,
    is_cut: bool,
    is_stalled: bool,
    is_corrupt: bool,
}

struct Piece {
    arrives: Instant,
    bytes: Bytes,
}

impl fmt::Debug for Piece {
    /// Its length alone: activations are prompts, in other words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} bytes at {:?})", self.bytes.len(), self.arrives)
    }
}

impl Pipe {
    fn new(wire: Wire) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            wire,
            pieces: VecDeque::new(),
            unread: 0,
            free: None,
            reader: None,
            writer: None,
            is_finished: false,
            is_unread: false,
            is_cut: false,
            is_stalled: false,
            is_corrupt: false,
        }))
    }

    fn put(&mut self, mut piece: BytesMut) {
        if self.is_stalled {
            return;
        }
        if std::mem::take(&mut self.is_corrupt)
            && let Some(last) = piece.last_mut()
        {
            *last ^= 1;
        }
        let now = Instant::now();
        let bytes = units::Bytes::new(piece.len() as u64);
        let takes = self.wire.rate.map_or(Duration::ZERO, |rate| rate.time_for(bytes));
        let sent = self.free.map_or(now, |free| free.max(now)) + takes;
        self.free = Some(sent);
        self.unread += piece.len();
        self.pieces.push_back(Piece { arrives: sent + self.wire.delay, bytes: piece.freeze() });
        self.wake();
    }

    /// The end of the stream goes the way of all that was written before.
    fn finish(&mut self) {
        if !self.is_finished {
            self.put(BytesMut::new());
            self.is_finished = true;
        }
    }

    /// Hands out what has arrived of the first piece.
    fn take(&mut self, into: &mut ReadBuf<'_>) {
        let Some(piece) = self.pieces.front_mut() else { return };
        let count = piece.bytes.len().min(into.remaining());
        into.put_slice(&piece.bytes[..count]);
        piece.bytes.advance(count);
        // What is left of the end of a stream is the end of the stream.
        if piece.bytes.is_empty() && count > 0 {
            self.pieces.pop_front();
        }
        self.unread -= count;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// No code that holds the lock can leave a pipe half-changed.
fn lock(pipe: &Mutex<Pipe>) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What may be written before it is read: a fast wire's bytes for as long as a long way takes.
const WINDOW_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ram_core::units::ByteRate;
    use ram_proto::frame::{Decoded, Frame, Head, Limits};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::link::{LinkError, frames};

    const MS: Duration = Duration::from_millis(1);

    fn slow(delay_ms: u32, rate: u64) -> Wire {
        Wire { delay: delay_ms * MS, rate: Some(ByteRate::new(rate)) }
    }

    /// A frame that takes this many bytes in all.
    fn frame_of(bytes: usize) -> Frame {
        let frame = |payload: usize| Frame { head: Head::Goaway, payload: vec![7; payload].into() };
        let mut prelude = BytesMut::new();
        frame(0).put_prelude(&mut prelude).unwrap();
        frame(bytes - prelude.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_takes_the_delay_and_its_bytes_and_those_behind_it_wait_for_the_wire() {
        let (near, far, _) = pair(slow(40, 100_000), Wire::default());
        let (_, mut outgoing) = frames::over(near, Limits::FULL);
        let (mut incoming, _back) = frames::over(far, Limits::FULL);
        let start = Instant::now();
        for bytes in [1_000, 500, 20_000] {
            outgoing.send(&frame_of(bytes)).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "what is written waits for nobody");
        for (bytes, at_ms) in [(1_000, 50), (500, 55), (20_000, 255)] {
            assert_eq!(incoming.next().await.unwrap(), Decoded::Known(frame_of(bytes)));
            assert_eq!(start.elapsed(), at_ms * MS);
        }
        // The wire has long been free: the delay and its own bytes again.
        tokio::time::advance(1_000 * MS).await;
        let start = Instant::now();
        outgoing.send(&frame_of(1_000)).await.unwrap();
        incoming.next().await.unwrap();
        assert_eq!(start.elapsed(), 50 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn each_direction_is_a_wire_of_its_own() {
        let (mut near, mut far, _) = pair(slow(10, 1_000), slow(70, 1_000_000));
        let start = Instant::now();
        near.write_all(&[1; 20]).await.unwrap();
        far.read_exact(&mut [0; 20]).await.unwrap();
        assert_eq!(start.elapsed(), 30 * MS);
        far.write_all(&[2; 1_000]).await.unwrap();
        near.read_exact(&mut [0; 1_000]).await.unwrap();
        assert_eq!(start.elapsed(), (30 + 71) * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_goes_is_seen_after_all_that_it_said() {
        let (mut near, mut far, _) = pair(slow(10, 1_000), Wire::default());
        let start = Instant::now();
        near.write_all(&[1; 20]).await.unwrap();
        drop(near);
        let mut all = Vec::new();
        assert_eq!(far.read_to_end(&mut all).await.unwrap(), 20);
        assert_eq!(start.elapsed(), 30 * MS);
        assert_eq!(far.write(&[3]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_is_seen_by_both_ends_at_once() {
        let (mut near, mut far, cable) = pair(slow(10, 1_000), slow(10, 1_000));
        far.write_all(&[1; 20]).await.unwrap();
        let start = Instant::now();
        let mut byte = [0; 1];
        let (seen, ()) = tokio::join!(near.read(&mut byte), async { cable.cut() });
        assert_eq!(seen.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (read, written) = (far.read(&mut byte).await, far.write(&[1]).await);
        assert!(matches!(LinkError::from(read.unwrap_err()), LinkError::Closed));
        assert!(matches!(LinkError::from(written.unwrap_err()), LinkError::Closed));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_of_one_direction_and_told_to_nobody() {
        let (mut near, mut far, cable) = pair(Wire::default(), Wire::default());
        near.write_all(b"before").await.unwrap();
        cable.stall(Way::There);
        near.write_all(b"after").await.unwrap();
        near.shutdown().await.unwrap();
        far.write_all(b"back").await.unwrap();
        let mut read = [0; 6];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"before");
        assert!(tokio::time::timeout(1_000_000 * MS, far.read(&mut read)).await.is_err());
        near.read_exact(&mut read[..4]).await.unwrap();
        assert_eq!(&read[..4], b"back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bit_is_changed_once() {
        let (mut near, mut far, cable) = pair(Wire::default(), Wire::default());
        cable.corrupt(Way::There);
        near.write_all(&[2, 2]).await.unwrap();
        near.write_all(&[2, 2]).await.unwrap();
        let mut read = [0; 4];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [2, 3, 2, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_writes_too_much_waits_for_the_reader() {
        let (mut near, mut far, _) = pair(slow(5, u64::MAX), Wire::default());
        let all = vec![1; WINDOW_BYTES + 1];
        let (written, read) = tokio::join!(near.write_all(&all), async {
            tokio::time::sleep(3_000 * MS).await;
            let mut bytes = vec![0; WINDOW_BYTES + 1];
            far.read_exact(&mut bytes).await.map(|_| Instant::now())
        });
        written.unwrap();
        read.unwrap();
        let mut near = std::pin::pin!(near.write_all(&all));
        assert!(tokio::time::timeout(MS, &mut near).await.is_err());
    }
}
