//! Frames over a byte stream: [`Incoming`] and [`Outgoing`] are its two halves.
//!
//! A payload is copied nowhere here: it is read into the buffer that it is handed out with, and written from where it
//! lies. All else of a frame lives in buffers that are used again.

use std::io::IoSlice;

use bytes::BytesMut;
use ram_proto::frame::{Decoded, Decoder, Frame, Limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{Link, LinkError};

/// Takes a link apart: frames that come, under these limits, and frames that go.
pub fn over<L: Link>(link: L, limits: Limits) -> (Incoming<ReadHalf<L>>, Outgoing<WriteHalf<L>>) {
    let (reader, writer) = tokio::io::split(link);
    (Incoming::new(reader, limits), Outgoing::new(writer))
}

/// Frames that come.
#[derive(Debug)]
pub struct Incoming<R> {
    reader: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// For a stream of which nothing was read.
    #[must_use]
    pub fn new(reader: R, limits: Limits) -> Self {
        Self { reader, decoder: Decoder::new(limits) }
    }

    /// The next frame. Nothing is lost when the future is dropped before its end.
    ///
    /// A frame of a type that is unknown here is to be answered with ERROR `unsupported`.
    ///
    /// # Errors
    /// [`LinkError`]; after one there is nothing more to be had.
    pub async fn next(&mut self) -> Result<Decoded, LinkError> {
        loop {
            if let Some(frame) = self.arrived()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// The next frame, if all of it is here.
    pub(super) fn arrived(&mut self) -> Result<Option<Decoded>, LinkError> {
        Ok(self.decoder.next_frame()?)
    }

    /// Reads what has come, or waits for something; cancel-safe.
    pub(super) async fn read(&mut self) -> Result<(), LinkError> {
        match self.reader.read_buf(self.decoder.room()).await? {
            0 => Err(LinkError::Closed),
            _ => Ok(()),
        }
    }

    /// Reads and forgets what comes, until the other end closes.
    pub(super) async fn drain(&mut self) {
        let mut bin = BytesMut::with_capacity(BIN_BYTES);
        while matches!(self.reader.read_buf(&mut bin).await, Ok(1..)) {
            bin.clear();
        }
    }

    pub(super) const fn decoder(&mut self) -> &mut Decoder {
        &mut self.decoder
    }
}

/// Frames that go.
#[derive(Debug)]
pub struct Outgoing<W> {
    writer: W,
    /// All of a frame but its payload.
    prelude: BytesMut,
    /// Whether part of a frame may have gone without the rest.
    is_torn: bool,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// For a stream to which nothing was written.
    #[must_use]
    pub fn new(writer: W) -> Self {
        Self { writer, prelude: BytesMut::new(), is_torn: false }
    }

    /// Sends a frame, and waits until the system has all of it.
    ///
    /// When the future is dropped before its end, part of the frame may have gone: the link is closed then, for the
    /// other end would take the next frame for the rest of this one.
    ///
    /// # Errors
    /// [`LinkError::TooLong`], and the link is as it was before; any other, and nothing more can be sent.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        if self.is_torn {
            return Err(LinkError::Closed);
        }
        self.prelude.clear();
        frame.put_prelude(&mut self.prelude).map_err(LinkError::TooLong)?;
        self.is_torn = true;
        let mut slices = [IoSlice::new(&self.prelude), IoSlice::new(&frame.payload)];
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0); // Takes away an empty payload.
        while !rest.is_empty() {
            match self.writer.write_vectored(rest).await? {
                0 => return Err(LinkError::Closed),
                written => IoSlice::advance_slices(&mut rest, written),
            }
        }
        self.writer.flush().await?;
        self.is_torn = false;
        Ok(())
    }

    /// Says that nothing more will come.
    ///
    /// # Errors
    /// [`LinkError`], when the link was closed already.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        self.is_torn = true;
        Ok(self.writer.shutdown().await?)
    }
}

/// Read at once of what nobody wants.
const BIN_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use ram_proto::frame::Head;

    use super::*;

    /// A writer that takes a few bytes at a time, of one slice or of several, and then no more for a while.
    #[derive(Default)]
    struct Narrow {
        taken: Vec<u8>,
        is_vectored: bool,
        wakes: usize,
        stops_at: Option<usize>,
    }

    impl Narrow {
        fn take(
            &mut self,
            bytes: impl Iterator<Item = u8>,
            cx: &Context<'_>,
        ) -> Poll<std::io::Result<usize>> {
            if self.stops_at.is_some_and(|stop| self.taken.len() >= stop) {
                return Poll::Pending;
            }
            self.wakes += 1;
            if self.wakes.is_multiple_of(3) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = self.taken.len();
            self.taken.extend(bytes.take(7));
            Poll::Ready(Ok(self.taken.len() - before))
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.take(bytes.iter().copied(), cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<std::io::Result<usize>> {
            self.take(slices.iter().flat_map(|slice| slice.iter().copied()), cx)
        }

        fn is_write_vectored(&self) -> bool {
            self.is_vectored
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn goaway(payload: &'static [u8]) -> Frame {
        Frame { head: Head::Goaway, payload: Bytes::from_static(payload) }
    }

    #[tokio::test]
    async fn a_frame_is_whole_however_little_the_writer_takes() {
        for is_vectored in [false, true] {
            let mut outgoing = Outgoing::new(Narrow { is_vectored, ..Narrow::default() });
            let frames = [goaway(b"a payload of more than one piece"), goaway(b""), goaway(b"x")];
            for frame in &frames {
                outgoing.send(frame).await.unwrap();
            }
            let mut incoming = Incoming::new(&outgoing.writer.taken[..], Limits::FULL);
            for frame in frames {
                assert_eq!(incoming.next().await.unwrap(), Decoded::Known(frame));
            }
            assert!(matches!(incoming.next().await, Err(LinkError::Closed)));
        }
    }

    #[tokio::test]
    async fn after_half_a_frame_no_other_is_sent() {
        let mut outgoing = Outgoing::new(Narrow { stops_at: Some(9), ..Narrow::default() });
        let frame = goaway(b"will not go");
        tokio::select! {
            biased;
            _ = outgoing.send(&frame) => unreachable!("the writer takes no more"),
            () = std::future::ready(()) => {}
        }
        outgoing.writer.stops_at = None;
        assert!(matches!(outgoing.send(&frame).await, Err(LinkError::Closed)));
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_leaves_the_link_as_it_was() {
        let mut outgoing = Outgoing::new(Vec::new());
        let payload = Bytes::from(vec![0; ram_proto::frame::PAYLOAD_BYTES_MAX + 1]);
        let refused = outgoing.send(&Frame { head: Head::Goaway, payload }).await;
        assert!(matches!(refused, Err(LinkError::TooLong(_))));
        outgoing.send(&goaway(b"short")).await.unwrap();
        assert_eq!(
            Incoming::new(&outgoing.writer[..], Limits::FULL).next().await.unwrap(),
            Decoded::Known(goaway(b"short"))
        );
    }
}
