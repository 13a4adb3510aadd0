//! Connections of the local server: so many at once, none whose head dribbles, none that stops reading.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ram_proto::openai::{HEAD_BYTES_MAX, HEADERS_MAX};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tracing::warn;

use super::LocalLimits;

/// How long to wait after the operating system refused a connection: it is out of file handles.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What the listener needs to know.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) router: Router,
    pub(super) limits: LocalLimits,
}

impl Door {
    /// Accepts connections until `closing`, then waits for the open ones. Dropping this closes them all.
    pub(super) async fn open(self, listener: TcpListener, mut closing: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let is_full = connections.len() >= self.limits.connections_max;
            let accepted = tokio::select! {
                Some(_) = connections.join_next() => continue, // its place is free
                accepted = listener.accept(), if !is_full => accepted,
                _ = closing.wait_for(|closing| *closing) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(self.clone().serve(stream, closing.clone()));
                }
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection to its end.
    async fn serve(self, stream: TcpStream, mut closing: watch::Receiver<bool>) {
        if stream.set_nodelay(true).is_err() {
            return; // already gone; and with Nagle's delay each token would wait 40 ms
        }
        let stream = Watched::new(stream, self.limits.write_stall);
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_within)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX);
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return, // how it ended is the client's affair
            _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

/// A stream that fails once its peer has read nothing for too long. Its clock runs only while something waits to be
/// written, so that a peer may be silent for as long as it likes.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    const fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
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
    async fn a_peer_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (ours, mut theirs) = duplex(8);
        let mut watched = Watched::new(ours, PATIENCE);
        let began = Instant::now();
        let writing = tokio::spawn(async move { watched.write_all(&[7; 32]).await });
        let mut read = [0; 8];
        for _ in 0..2 {
            sleep(PATIENCE / 2).await;
            theirs.read_exact(&mut read).await.unwrap();
        }
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, 2 * PATIENCE));
    }
}
