//! Plain TCP. Nobody is known by it, and whoever is on the way reads along and writes: it is for loopback, and for
//! machines on a wire that all who can reach it are trusted with. Between any others, put [`tls`](super::tls) over it.
//!
//! Small frames go at once (NODELAY). Whether the peer lives is [`alive`](super::alive)'s business, which asks more
//! often than the system's keepalive would.

use std::net::SocketAddr;

use ram_core::id::NodeKey;
use tokio::net::{TcpListener, TcpStream};

use super::{GREETING, Link, LinkError, within};

impl Link for TcpStream {
    /// Nobody that is proven.
    fn peer(&self) -> Option<NodeKey> {
        None
    }
}

/// Opens a link.
///
/// # Errors
/// [`LinkError::Io`]: nobody listens there, or there is no way; [`LinkError::Silent`].
pub async fn dial(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let stream = within(GREETING, async { Ok(TcpStream::connect(address).await?) }).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Takes the next link, whoever made it.
///
/// # Errors
/// [`LinkError`]: of this one link, or for want of room for another; the listener goes on.
pub async fn accept(listener: &TcpListener) -> Result<TcpStream, LinkError> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
