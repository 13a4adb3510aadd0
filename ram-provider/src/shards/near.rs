//! Files of models for other nodes on this network, and from them.
//!
//! ```text
//! gives  hear_any -> Asker, from an address nearby -> Cache::open_blob by its hash -> PIECE, PIECE, …
//! asks   Hub -> Neighbours::open -> each in turn: dial, FETCH -> PIECE, PIECE, … -> Read
//! ```
//!
//! What is given is what the hub gives to anybody, named by the hash of its content; whoever asks learns whether it is
//! here, and whoever is asked learns that it is wanted. It is given to addresses of this network alone, and to few at
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use ram_core::id::{ContentHash, NodeKey};
use ram_core::layers::LayerRange;
use ram_infer::hub::cache::Cache;
use ram_infer::hub::{self, NearFile};
use ram_pipeline::link::fetch::{self, Asker};
use ram_pipeline::link::{Link, LinkError};
use ram_pipeline::member::Peer;
use ram_proto::control::shard::{NEAR_MAX, Near};
use ram_proto::frame::Code;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info};

use super::ways::Ways;

/// Files that go out at once: two fill a home's wire.
const GIVEN_MAX: usize = 2;
/// Pieces of a file that wait for whoever reads it.
const PIECES_MAX: usize = 2;

/// Whether an address is of this machine or its network: loopback, private (RFC 1918), link-local, unique-local.
pub(super) fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST || v6.is_unicast_link_local() || v6.is_unique_local(),
    }
}

/// What this node gives to others.
#[derive(Debug)]
pub(super) struct Pantry {
    cache: Cache,
    turns: Arc<Semaphore>,
}

impl Pantry {
    pub(super) fn new(cache: Cache) -> Self {
        Self { cache, turns: Arc::new(Semaphore::new(GIVEN_MAX)) }
    }

    /// Gives a file to who asks for it, or says why not.
    pub(super) async fn give(&self, asker: Asker<Box<dyn Link>>) {
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            asker.refuse(Code::Busy).await;
            return;
        };
        let (cache, within) = (self.cache.clone(), Handle::current());
        // Disks block, and so does the cipher; the links' own thread has frames to carry.
        let giving = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            within.block_on(give(&cache, asker))
        });
        if let Ok(Err(error)) = giving.await {
            debug!(%error, "a file was not given");
        }
    }
}

async fn give(cache: &Cache, asker: Asker<Box<dyn Link>>) -> Result<(), LinkError> {
    let fetch = asker.fetch();
    let found = cache.open_blob(&fetch.content).and_then(|(mut file, size)| {
        file.seek(SeekFrom::Start(fetch.from)).ok()?;
        Some((file, size))
    });
    match found {
        Some((mut file, size)) => asker.give(size.get(), &mut file).await,
        None => Err(asker.refuse(Code::UnknownContent).await),
    }
}

/// Nodes that may have files of a model, for as long as it is fetched.
pub(crate) struct Neighbours {
    ways: Arc<Ways>,
    links: Handle,
    nodes: Vec<Peer>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Those that are not asked again: not there, broken off, or not what they said.
    out: BTreeSet<NodeKey>,
    /// Who gave what.
    given: BTreeMap<ContentHash, NodeKey>,
}

impl Neighbours {
    pub(super) fn new(ways: Arc<Ways>, links: Handle, near: &[Near]) -> Self {
        // A file has no layers: what is asked for is named by its hash alone.
        let layers = LayerRange::new(0, 1).expect("one layer");
        let peer = |near: &Near| Peer { node: near.node, addresses: near.addresses.clone(), layers };
        let nodes = near.iter().take(NEAR_MAX).map(peer).collect();
        Self { ways, links, nodes, book: Mutex::default() }
    }

    fn ask(&self, peer: &Peer, wanted: &NearFile<'_>) -> Result<Pieces, Option<LinkError>> {
        let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
        let (ways, peer) = (self.ways.clone(), peer.clone());
        let (content, from, size) = (wanted.content, wanted.from.get(), wanted.size.get());
        self.links.spawn(async move {
            let coming = async { fetch::ask(ways.dial(&peer).await?, content, from).await };
            let mut coming = match coming.await {
                Ok(coming) if coming.size() == size => coming,
                Ok(_) => return drop(sender.send(Err(LinkError::OutOfTurn("a file of its size"))).await),
                Err(error) => return drop(sender.send(Err(error)).await),
            };
            loop {
                let next = coming.next().await.transpose();
                let is_last = !matches!(next, Some(Ok(_)));
                let taken = match next {
                    Some(next) => sender.send(next).await.is_ok(),
                    None => false,
                };
                if is_last || !taken {
                    return;
                }
            }
        });
        // Without one the node's links have ended.
        match pieces.blocking_recv() {
            Some(Ok(first)) => Ok(Pieces { first, pieces }),
            Some(Err(error)) => Err(Some(error)),
            None => Err(None),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner) // entries are whole
    }
}

impl hub::Near for Neighbours {
    fn open(&self, wanted: &NearFile<'_>) -> Option<Box<dyn Read + Send>> {
        for peer in &self.nodes {
            if self.book().out.contains(&peer.node) {
                continue;
            }
            match self.ask(peer, wanted) {
                Ok(pieces) => {
                    info!(file = wanted.name, from = %peer.node, "fetching from a neighbour");
                    let before = self.book().given.insert(wanted.content, peer.node);
                    if before == Some(peer.node) && wanted.from.get() > 0 {
                        self.book().out.insert(peer.node); // once more for the rest, and then no more
                    }
                    return Some(Box::new(pieces));
                }
                // It may have other files, and this one later.
                Err(Some(LinkError::Refused(refusal)))
                    if matches!(refusal.code, Code::UnknownContent | Code::Busy) => {}
                Err(error) => {
                    debug!(?error, neighbour = %peer.node, "a neighbour gives nothing");
                    self.book().out.insert(peer.node);
                }
            }
        }
        None
    }

    fn blame(&self, content: &ContentHash) {
        let mut book = self.book();
        if let Some(node) = book.given.remove(content) {
            book.out.insert(node);
        }
    }
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// A file that comes in pieces.
struct Pieces {
    first: Bytes,
    pieces: mpsc::Receiver<Result<Bytes, LinkError>>,
}

impl Read for Pieces {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.first.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(next)) => self.first = next,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let length = room.len().min(self.first.len());
        self.first.copy_to_slice(&mut room[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_this_machine_and_its_network_alone() {
        let near = |address: &str| is_near(address.parse().unwrap());
        for address in ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.7", "169.254.9.9", "::1"] {
            assert!(near(address), "{address}");
        }
        for address in ["fe80::1", "fd00::7", "::ffff:192.168.1.7"] {
            assert!(near(address), "{address}");
        }
        for address in
            ["8.8.8.8", "172.32.0.1", "100.64.0.1", "0.0.0.0", "2001:db8::1", "::", "::ffff:8.8.8.8"]
        {
            assert!(!near(address), "{address}");
        }
    }
}
