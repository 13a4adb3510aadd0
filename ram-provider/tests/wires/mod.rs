//! Real links of every kind between the nodes of a chain, which are known by their places in it.

use ram_core::id::NodeKey;
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::Socket;
use ram_pipeline::link::memory::{self, Wire};
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{Link, tcp};
use tokio::net::{TcpListener, TcpStream};

/// What links are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Tcp,
    Tls,
    #[cfg(feature = "iroh")]
    Iroh,
}

impl Kind {
    pub(crate) const ALL: &[Self] = &[
        Self::Memory,
        Self::Tcp,
        Self::Tls,
        #[cfg(feature = "iroh")]
        Self::Iroh,
    ];
}

/// An end of a link of any kind.
pub(crate) type Any = Box<dyn Link>;

/// What links so many nodes.
pub(crate) struct Wires {
    kind: Kind,
    #[cfg(feature = "iroh")]
    sockets: Vec<Socket>,
}

impl Wires {
    #[cfg(not(feature = "iroh"))]
    #[expect(clippy::unused_async, reason = "only iroh has sockets before its links")]
    pub(crate) async fn new(kind: Kind, _nodes: u16) -> Self {
        Self { kind }
    }

    #[cfg(feature = "iroh")]
    pub(crate) async fn new(kind: Kind, nodes: u16) -> Self {
        let mut sockets = Vec::new();
        for place in (0..nodes).filter(|_| kind == Kind::Iroh) {
            let listen = "127.0.0.1:0".parse().unwrap();
            sockets.push(Socket::bind(&seed(place.into()), listen, Vec::new(), |_| true).await.unwrap());
        }
        Self { kind, sockets }
    }

    /// A link between two nodes: the end of who dialled, and of who accepted.
    pub(crate) async fn link(&self, from: usize, to: usize) -> (Any, Any) {
        match self.kind {
            Kind::Memory => {
                let (near, far, _) = memory::pair(Wire::default(), Wire::default());
                (Box::new(near), Box::new(far))
            }
            Kind::Tcp => {
                let (near, far) = over_tcp().await;
                (Box::new(near), Box::new(far))
            }
            Kind::Tls => {
                let (near, far) = over_tcp().await;
                let known = node(from);
                let door = Door::new(&identity(to), move |key: &NodeKey| *key == known);
                let (own, peer) = (identity(from), node(to));
                let (near, far) = tokio::join!(tls::dial(&own, near, peer), tls::accept(&door, far));
                (Box::new(near.unwrap()), Box::new(far.unwrap()))
            }
            #[cfg(feature = "iroh")]
            Kind::Iroh => {
                let (near, far) = (&self.sockets[from], &self.sockets[to]);
                let addresses = far.addresses().unwrap();
                let (near, far) = tokio::join!(near.dial(node(to), &addresses), async {
                    far.accept().await.unwrap().open().await
                });
                (Box::new(near.unwrap()), Box::new(far.unwrap()))
            }
        }
    }
}

/// The key of the node at a place.
pub(crate) fn node(place: usize) -> NodeKey {
    identity(place).public()
}

fn identity(place: usize) -> Identity {
    Identity::from_seed(&seed(place))
}

fn seed(place: usize) -> [u8; 32] {
    [u8::try_from(place).unwrap() + 1; 32]
}

async fn over_tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(tcp::dial(listener.local_addr().unwrap()), tcp::accept(&listener));
    (near.unwrap(), far.unwrap())
}
