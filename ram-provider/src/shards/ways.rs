//! The ways to other nodes, by the form of their addresses.
//!
//! ```text
//! HOST:PORT                              TLS 1.3 over TCP, names looked up; one after the other
//! iroh:NUMBER:PORT, iroh:https://RELAY   QUIC (feature `iroh`); all of a node's at once
//! ```
//!
//! Those of a form that this node cannot go by are passed over: the others may lead there.

use std::io;
use std::sync::Arc;
#[cfg(feature = "iroh")]
use std::sync::OnceLock;
use std::time::Duration;

use ram_core::id::NodeKey;
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::Socket;
use ram_pipeline::link::tls::{self, Identity};
use ram_pipeline::link::{Link, LinkError, tcp};
use ram_pipeline::member::{Dialer, Peer};
use ram_proto::control::shard::{ADDRESSES_MAX, Addresses};
use tokio::net::lookup_host;

/// How this node goes to others.
pub(super) struct Ways {
    identity: Identity,
    #[cfg(feature = "iroh")]
    socket: OnceLock<Socket>,
}

impl Ways {
    /// By TLS over TCP alone.
    pub(super) const fn new(identity: Identity) -> Self {
        Self {
            identity,
            #[cfg(feature = "iroh")]
            socket: OnceLock::new(),
        }
    }

    /// This node, for others.
    pub(super) fn node(&self) -> NodeKey {
        self.identity.public()
    }

    /// Goes by iroh, too, from now on.
    #[cfg(feature = "iroh")]
    pub(super) fn open(&self, socket: Socket) -> io::Result<()> {
        self.socket.set(socket).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// These, and those by iroh; of each kind as many as there is room for, and half of all at least.
    pub(super) fn addresses(&self, by_tls: &Addresses) -> Addresses {
        let by_iroh = self.by_iroh();
        let room = ADDRESSES_MAX.saturating_sub(by_iroh.len()).max(ADDRESSES_MAX / 2);
        let all = by_tls.iter().take(room).map(str::to_owned).chain(by_iroh).take(ADDRESSES_MAX);
        Addresses::new(all.collect()).unwrap_or_else(|_| by_tls.clone())
    }

    #[cfg(feature = "iroh")]
    fn by_iroh(&self) -> Vec<String> {
        let told = self.socket.get().and_then(|socket| socket.addresses().ok());
        told.iter().flat_map(Addresses::iter).map(|address| format!("{IROH}{address}")).collect()
    }

    #[cfg(not(feature = "iroh"))]
    #[expect(clippy::unused_self, reason = "with the feature it has a socket")]
    const fn by_iroh(&self) -> Vec<String> {
        Vec::new()
    }

    /// Goes to peers by these ways.
    pub(super) fn dialer(self: &Arc<Self>) -> Dialer {
        let ways = self.clone();
        Arc::new(move |peer: &Peer| {
            let (ways, peer) = (ways.clone(), peer.clone());
            Box::pin(async move { ways.dial(&peer).await })
        })
    }

    /// Tries the addresses of a peer in their order, those of iroh last and all at once; the first behind which it
    /// proves its key is taken.
    ///
    /// # Errors
    /// That of the last one.
    pub(super) async fn dial(&self, peer: &Peer) -> Result<Box<dyn Link>, LinkError> {
        let mut failure = LinkError::Io(io::ErrorKind::Unsupported.into());
        for address in peer.addresses.iter().filter(|address| !address.starts_with(IROH)) {
            match self.dial_at(peer.node, address).await {
                Ok(link) => return Ok(link),
                Err(error) => failure = error,
            }
        }
        #[cfg(feature = "iroh")]
        if let Some(socket) = self.socket.get() {
            let by_iroh = peer.addresses.iter().filter_map(|address| address.strip_prefix(IROH));
            if let Ok(addresses) = Addresses::new(by_iroh.map(str::to_owned).collect()) {
                return Ok(Box::new(socket.dial(peer.node, &addresses).await?));
            }
        }
        Err(failure)
    }

    async fn dial_at(&self, node: NodeKey, address: &str) -> Result<Box<dyn Link>, LinkError> {
        let found = tokio::time::timeout(ADDRESS_WAIT, lookup_host(address)).await;
        let mut failure = LinkError::Closed;
        for address in found.map_err(|_| LinkError::Silent)??.take(ADDRESSES_MAX) {
            match tokio::time::timeout(ADDRESS_WAIT, tcp::dial(address)).await {
                Ok(Ok(stream)) => match tls::dial(&self.identity, stream, node).await {
                    Ok(link) => return Ok(Box::new(link)),
                    Err(error) => failure = error, // Another machine, where each home has the same addresses.
                },
                Ok(Err(error)) => failure = error,
                Err(_) => failure = LinkError::Silent,
            }
        }
        Err(failure)
    }

    /// Ends what ends with a word to the other ends, which else would have to wait for silence.
    #[cfg(feature = "iroh")]
    pub(super) async fn close(&self) {
        if let Some(socket) = self.socket.get() {
            let _ = tokio::time::timeout(ADDRESS_WAIT, socket.close()).await; // They notice silence, too.
        }
    }

    #[cfg(not(feature = "iroh"))]
    #[expect(clippy::unused_async, reason = "with the feature it has a socket")]
    pub(super) async fn close(&self) {}
}

/// What stands before the addresses by iroh: of numbers they look like those by TCP.
const IROH: &str = "iroh:";
/// How long one address of a peer is waited for: a lost packet, once round the earth. Some lead nowhere, as those of
/// another home's network do.
const ADDRESS_WAIT: Duration = Duration::from_secs(1);
