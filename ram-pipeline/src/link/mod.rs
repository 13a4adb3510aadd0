//! The links of a pipeline: byte streams between two nodes, and frames over them (features `tokio` and `iroh`).
//!
//! | room | what stands there |
//! |---|---|
//! | [`frames`] | frames out of bytes and back, over any [`Link`] |
//! | [`greet`] | HELLO and WELCOME: who may go on, within a limit of time |
//! | [`fetch`] | FETCH and PIECE: one file of a model, by the hash of its content |
//! | [`alive`] | heartbeats, silence, and a link as a whole while it lives |
//! | [`memory`] | within a process, with delay, rate and faults: for tests and simulations |
//! | [`tcp`] | plain TCP: for loopback and machines that trust their wire |
//! | [`tls`] | TLS 1.3 with both ends pinned by their node keys: between machines |
//! | `iroh` | QUIC through address translation, pinned likewise (feature `iroh`) |
//!
//! ```text
//! dials    tls::dial(&identity, tcp::dial(address)?, key)?  -> greet::dial(link, hello)?   -> Open
//! accepts  tls::accept(&door, tcp::accept(&listener)?)?     -> greet::hear(link)?.welcome() -> Open
//! or       socket.dial(key, addresses)?, socket.accept()?.open()?, likewise
//! both     Open::converse(outbox, inbox, …)                    frames both ways until one end has enough
//! ```
//!
//! Start at [`greet::dial`] and [`greet::hear`]. Which of the peer's frames makes sense when is the business of
//! [`worker`](crate::worker) and [`driver`](crate::driver).

pub mod alive;
pub mod fetch;
pub mod frames;
pub mod greet;
#[cfg(feature = "iroh")]
pub mod iroh;
pub mod memory;
pub mod tcp;
pub mod tls;

use std::time::Duration;
use std::{fmt, io};

use ram_core::id::NodeKey;
use ram_proto::frame::{Code, FrameError, Refusal};
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes both ways, between two nodes.
pub trait Link: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin + 'static {
    /// Who is at the other end, where the link proves it.
    fn peer(&self) -> Option<NodeKey>;
}

impl<L: Link + ?Sized> Link for Box<L> {
    fn peer(&self) -> Option<NodeKey> {
        (**self).peer()
    }
}

/// Why a link is of no more use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer is wrong: what it sent is no frame.
    #[error("the peer sent what is no frame")]
    Frame(#[from] FrameError),
    /// The peer is wrong: a frame came where another one had its turn.
    #[error("the peer spoke out of its turn: {0} was expected")]
    OutOfTurn(&'static str),
    /// The peer is not whom we look for, by its HELLO; it was told so.
    #[error("the peer was refused: {0:?}")]
    Declined(Code),
    /// The peer is not whom we look for, by its key.
    #[error("the peer's key is not one that is expected here")]
    Stranger,
    /// The peer does not look for us, by our HELLO.
    #[error("the peer refused: {:?}", .0.code)]
    Refused(Refusal),
    /// The peer does not look for us, by our key.
    #[error("the peer does not know this node's key")]
    Unwelcome,
    /// The peer speaks no TLS of ours, or somebody changed what it said.
    #[error("no private channel with the peer")]
    Insecure(#[source] io::Error),
    /// Nothing came from the peer for as long as is waited for it.
    #[error("the peer was silent for too long")]
    Silent,
    /// The link was closed by the other end, or broke.
    #[error("the link is closed")]
    Closed,
    /// The world failed: no way to the peer, for one.
    #[error("the link failed")]
    Io(#[source] io::Error),
    /// We are wrong: no reader would take such a frame.
    #[error("a frame is too long to be sent")]
    TooLong(#[source] FrameError),
}

impl LinkError {
    /// Whether the peer did what no honest one of this version does.
    #[must_use]
    pub const fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::OutOfTurn(_) | Self::Insecure(_))
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        if let Some(fault) = tls::fault(&error) {
            return match fault {
                tls::Fault::Stranger => Self::Stranger,
                tls::Fault::Unwelcome => Self::Unwelcome,
                tls::Fault::Other => Self::Insecure(error),
            };
        }
        #[cfg(feature = "iroh")]
        if let Some(reason) = iroh::reason(&error) {
            return reason;
        }
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// How long a stranger may take for a handshake, and again for its HELLO: several times the slowest way round the
/// earth with a lost packet, and short enough that silent ones do not pile up.
pub const GREETING_MS: u64 = 5_000;

const GREETING: Duration = Duration::from_millis(GREETING_MS);

/// What `doing` comes to, if the peer lets it come to something soon enough.
async fn within<T>(
    limit: Duration,
    doing: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(limit, doing).await.unwrap_or(Err(LinkError::Silent))
}
