//! A connection as the gateway holds it: its bytes are counted, and a peer that stops reading is cut off.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::metrics::Metrics;

/// A stream that fails once its peer has read nothing for too long.
///
/// Its clock runs only while something waits to be written, so that a peer may be silent for as long as it likes.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, patience: Duration, metrics: Arc<Metrics>) -> Self {
        Self { stream, patience, stalled: None, metrics }
    }

    /// Takes note of what a write came to, and gives up when none came to anything for too long.
    fn watch(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Poll::Pending = written else {
            self.stalled = None;
            if let Poll::Ready(Ok(bytes)) = written {
                self.metrics.bytes_sent.inc_by(bytes as u64);
            }
            return written;
        };
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| {
            self.metrics.stalled.inc();
            Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing"))
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.metrics.bytes_received.inc_by((buffer.filled().len() - before) as u64);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_cut_off_after_a_minute() {
        let (ours, _theirs) = duplex(8);
        let mut watched = Watched::new(ours, PATIENCE, Arc::default());
        let began = Instant::now();
        let error = watched.write_all(&[0; 9]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, PATIENCE));
        assert_eq!(watched.metrics.bytes_sent.get(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_reads_is_served_to_the_end() {
        let (ours, mut theirs) = duplex(8);
        let mut watched = Watched::new(ours, PATIENCE, Arc::default());
        let writing = tokio::spawn(async move { watched.write_all(&[7; 64]).await });
        let mut read = [0; 8];
        for _ in 0..8 {
            sleep(PATIENCE - Duration::from_secs(1)).await;
            theirs.read_exact(&mut read).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }
}
