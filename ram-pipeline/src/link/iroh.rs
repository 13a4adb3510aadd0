//! QUIC by iroh: between machines behind address translation, with both ends known by their node keys (feature `iroh`).
//!
//! ```text
//! dials                                         accepts
//!   | -- QUIC, TLS 1.3 with raw keys, ALPN ------> |   by whichever address works: direct, or a relay of one's own
//!   |    the one key that was named, or the end    |   a key that the Socket opens to, or the end of it
//!   | -- one stream both ways, and a byte -------> |   the other end hears of a stream by its first byte
//!   | -- frames ---------------------------------- |
//! ```
//!
//! As with [`tls`](super::tls), who dials is done before the other end has judged its key: if that one refuses it, the
//! first read says so. A connection has one link, and is closed with it.
//!
//! Nothing is sent to anybody but the peers that are dialled or knock, the relays that a [`Socket`] was given, and,
//! where these have names, the name servers of this system: no discovery, no mapping of ports, no servers of iroh's
//! makers, no public name servers. A relay sees who speaks to whom, and ciphertext.
//!
//! Where a process dies without a word, no system says so for it as with TCP: [`alive`](super::alive) notices.
//!
//! Start at [`Socket::bind`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use iroh::dns::DnsResolver;
use iroh::endpoint::{
    ConnectOptions, ConnectWithOptsError, ConnectingError, Connection, ConnectionError, Incoming,
    QuicTransportConfig, ReadError, RecvStream, SendStream, TransportError, TransportErrorCode, VarInt,
    WriteError, presets,
};
use iroh::{Endpoint, EndpointAddr, PublicKey, RelayMode, RelayUrl, SecretKey, TransportAddr};
use ram_core::id::NodeKey;
use ram_proto::control::shard::{ADDRESSES_MAX, AddressError, Addresses};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

use super::tls::ALPN;
use super::{GREETING, Link, LinkError, within};

/// A relay of one's own, by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay(RelayUrl);

/// Why a text is no relay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a relay is a URL with http or https and a host")]
pub struct RelayError;

impl FromStr for Relay {
    type Err = RelayError;

    fn from_str(text: &str) -> Result<Self, RelayError> {
        let url: RelayUrl = text.parse().map_err(|_| RelayError)?;
        let is_good = matches!(url.scheme(), "http" | "https") && url.has_host();
        is_good.then_some(Self(url)).ok_or(RelayError)
    }
}

/// This node's end of all its links by iroh.
///
/// It is closed when it and all of its links are dropped.
#[derive(Clone, Debug)]
pub struct Socket(Arc<Shared>);

/// Somebody whose handshake has yet to be done: not known, and holding up nobody.
#[derive(Debug)]
pub struct Knock {
    incoming: Incoming,
    socket: Socket,
}

impl Socket {
    /// Binds `listen`, as the node whose key has this `seed` (RFC 8032, section 5.1.5), and keeps in touch with the
    /// nearest of its `relays`; without any, nodes reach each other by their own addresses alone. Opens to the keys of
    /// which `opens_to` says so, as of the moment when they knock.
    ///
    /// # Errors
    /// [`LinkError::Io`]: the address is not to be had.
    pub async fn bind(
        seed: &[u8; 32],
        listen: SocketAddr,
        relays: Vec<Relay>,
        opens_to: impl Fn(&NodeKey) -> bool + Send + Sync + 'static,
    ) -> Result<Self, LinkError> {
        let mode = match relays.len() {
            0 => RelayMode::Disabled,
            _ => RelayMode::custom(relays.iter().map(|relay| relay.0.clone())),
        };
        let builder = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(seed))
            .alpns(vec![ALPN.to_vec()])
            .relay_mode(mode)
            .dns_resolver(DnsResolver::builder().with_system_defaults().disable_fallback().build())
            .transport_config(one_stream())
            .max_tls_tickets(0)
            .clear_ip_transports()
            .bind_addr(listen)
            .map_err(world)?;
        // Its future is of more than 20 KiB, which whoever awaits this one need not hold.
        let endpoint = Box::pin(builder.bind()).await.map_err(world)?;
        Ok(Self(Arc::new(Shared { endpoint, relays, opens_to: Box::new(opens_to) })))
    }

    /// Where others can dial this node, as far as is known by now: by its relay, by its own addresses, by those that
    /// its relay sees; as many as others are told.
    ///
    /// # Errors
    /// [`AddressError`]: by none.
    pub fn addresses(&self) -> Result<Addresses, AddressError> {
        let found = self.0.endpoint.addr();
        let direct = found.ip_addrs().map(ToString::to_string);
        let all = found.relay_urls().map(ToString::to_string).chain(direct);
        Addresses::new(all.take(ADDRESSES_MAX).collect())
    }

    /// Makes a link to the one peer that is meant, by whichever of these addresses leads to it. Taken are direct ones
    /// of numbers, and relays that are this node's, too: no other relay is ever spoken to, whoever names it.
    ///
    /// # Errors
    /// [`LinkError`]: [`LinkError::Stranger`] if somebody else is there, [`LinkError::Io`] if no address is of use.
    /// That the other end does not want this node is told by the first read, at the latest.
    pub async fn dial(&self, peer: NodeKey, addresses: &Addresses) -> Result<IrohLink, LinkError> {
        // What is no point of the curve is nobody's key.
        let id = PublicKey::from_bytes(peer.as_bytes()).map_err(|_| LinkError::Stranger)?;
        let known = addresses.iter().filter_map(|address| self.0.known(address));
        let address = EndpointAddr::from_parts(id, known);
        within(GREETING, async {
            let connecting = self.0.endpoint.connect_with_opts(address, ALPN, ConnectOptions::new()).await;
            let connection = connecting.map_err(unreachable)?.await.map_err(unshaken)?;
            let (mut send, recv) = connection.open_bi().await.map_err(lost)?;
            send.write_all(&[OPENING]).await.map_err(io::Error::from)?;
            Ok(IrohLink { send, recv, _connection: connection, peer, _socket: self.clone() })
        })
        .await
    }

    /// Ends all its links, and waits until the other ends have heard of it.
    pub async fn close(&self) {
        self.0.endpoint.close().await;
    }

    /// Takes the next knock, whoever's it is; `None` once the socket is closed.
    pub async fn accept(&self) -> Option<Knock> {
        let incoming = self.0.endpoint.accept().await?;
        Some(Knock { incoming, socket: self.clone() })
    }
}

impl Knock {
    /// Makes a link, if the peer is one that the socket opens to.
    ///
    /// # Errors
    /// [`LinkError`]: [`LinkError::Stranger`] if it is not.
    pub async fn open(self) -> Result<IrohLink, LinkError> {
        let Self { incoming, socket } = self;
        within(GREETING, async {
            let connection = incoming.accept().map_err(lost)?.await.map_err(unshaken)?;
            let peer = NodeKey::from_bytes(*connection.remote_id().as_bytes());
            if !(socket.0.opens_to)(&peer) {
                connection.close(NOT_LET_IN, b"");
                return Err(LinkError::Stranger);
            }
            let (send, mut recv) = connection.accept_bi().await.map_err(lost)?;
            match recv.read_u8().await? {
                OPENING => Ok(IrohLink { send, recv, _connection: connection, peer, _socket: socket }),
                _ => Err(LinkError::OutOfTurn("the opening byte")),
            }
        })
        .await
    }
}

/// A private link over QUIC.
#[derive(Debug)]
pub struct IrohLink {
    send: SendStream,
    recv: RecvStream,
    peer: NodeKey,
    /// Closed when dropped, and the other end is told so by the socket, which goes after it.
    _connection: Connection,
    _socket: Socket,
}

impl Link for IrohLink {
    fn peer(&self) -> Option<NodeKey> {
        Some(self.peer)
    }
}

impl AsyncRead for IrohLink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, into)
    }
}

impl AsyncWrite for IrohLink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

/// What a socket, its knocks and its links have in common.
struct Shared {
    endpoint: Endpoint,
    relays: Vec<Relay>,
    opens_to: Box<dyn Fn(&NodeKey) -> bool + Send + Sync>,
}

impl Shared {
    fn known(&self, address: &str) -> Option<TransportAddr> {
        if let Ok(direct) = address.parse() {
            return Some(TransportAddr::Ip(direct));
        }
        let relay = address.parse().ok()?;
        self.relays.contains(&relay).then_some(TransportAddr::Relay(relay.0))
    }
}

impl Drop for Shared {
    /// Peers hear of an end only while the endpoint lives: it is let live until they have.
    fn drop(&mut self) {
        if let Ok(runtime) = Handle::try_current() {
            let endpoint = self.endpoint.clone();
            runtime.spawn(async move { endpoint.close().await });
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.endpoint.id()).finish_non_exhaustive()
    }
}

/// What is known of a link's end, in an error of a stream.
pub(super) fn reason(error: &io::Error) -> Option<LinkError> {
    let source = error.get_ref()?;
    let (read, write) = (source.downcast_ref(), source.downcast_ref());
    match (read, write) {
        (Some(ReadError::ConnectionLost(why)), _) | (_, Some(WriteError::ConnectionLost(why))) => {
            Some(lost(why.clone()))
        }
        _ => None,
    }
}

/// Why there is no connection any more.
fn lost(why: ConnectionError) -> LinkError {
    use ConnectionError::{ApplicationClosed, ConnectionClosed, TimedOut, TransportError, VersionMismatch};
    let in_tls = |code: TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    match &why {
        ApplicationClosed(close) if close.error_code == NOT_LET_IN => LinkError::Unwelcome,
        // Before the handshake is confirmed, QUIC tells nobody what an application says (RFC 9000, section 10.2.3).
        ConnectionClosed(close) if close.error_code == TransportErrorCode::APPLICATION_ERROR => {
            LinkError::Unwelcome
        }
        ConnectionClosed(close) if close.error_code == TransportErrorCode::crypto(UNKNOWN_CA) => {
            LinkError::Unwelcome
        }
        ConnectionClosed(close) if in_tls(close.error_code) => LinkError::Insecure(why.into()),
        TransportError(error) if is_stranger(error) => LinkError::Stranger,
        TransportError(_) | VersionMismatch => LinkError::Insecure(why.into()),
        TimedOut => LinkError::Silent,
        _ => LinkError::Closed,
    }
}

/// Whether what TLS found is that the key is not the one that was named.
fn is_stranger(error: &TransportError) -> bool {
    let of_tls = error.crypto.as_ref().and_then(|error| error.downcast_ref());
    of_tls == Some(&rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
}

/// Why a handshake was not begun.
fn unreachable(error: ConnectWithOptsError) -> LinkError {
    match error {
        ConnectWithOptsError::EndpointClosed { .. } => LinkError::Closed,
        _ => world(error),
    }
}

/// Why a handshake came to nothing.
fn unshaken(error: ConnectingError) -> LinkError {
    match error {
        ConnectingError::ConnectionError { source, .. } => lost(source),
        ConnectingError::HandshakeFailure { .. } => LinkError::Insecure(io::Error::other(error)),
        _ => world(error),
    }
}

fn world(error: impl std::error::Error + Send + Sync + 'static) -> LinkError {
    LinkError::Io(io::Error::other(error))
}

/// One stream is all that a connection is for: a peer can open no other, and send no datagrams.
fn one_stream() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .build()
}

/// The first byte of a stream, before all frames.
const OPENING: u8 = 1;
/// What the connection of somebody who is not let in is closed with.
const NOT_LET_IN: VarInt = VarInt::from_u32(1);
/// The alert by which TLS says that a key is not the one that was named (RFC 8446, section 6.2).
const UNKNOWN_CA: u8 = 48;
