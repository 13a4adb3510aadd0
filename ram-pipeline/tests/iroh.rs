//! Links by iroh: who is let in, and which relays are spoken to. What all links have in common is in `link.rs`.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, say by their line what went wrong")]

use ram_core::id::NodeKey;
use ram_pipeline::link::iroh::{IrohLink, Relay, RelayError, Socket};
use ram_pipeline::link::tls::{ALPN, Identity};
use ram_pipeline::link::{Link, LinkError};
use ram_proto::control::shard::Addresses;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::watch;

type Made = Result<IrohLink, LinkError>;

/// A socket on loopback, without relays.
async fn socket(number: u8, opens_to: impl Fn(&NodeKey) -> bool + Send + Sync + 'static) -> Socket {
    let listen = "127.0.0.1:0".parse().unwrap();
    Socket::bind(&[number; 32], listen, Vec::new(), opens_to).await.unwrap()
}

fn key(number: u8) -> NodeKey {
    Identity::from_seed(&[number; 32]).public()
}

/// What two sockets come to of which the first looks for `peer` and finds the second.
async fn link(near: &Socket, far: &Socket, peer: NodeKey) -> (Made, Made) {
    let addresses = far.addresses().unwrap();
    tokio::join!(near.dial(peer, &addresses), async { far.accept().await.unwrap().open().await })
}

#[tokio::test]
async fn both_ends_know_each_other_by_the_keys_of_their_seeds() {
    let (near, far) = (socket(1, |_| false).await, socket(2, |_| true).await);
    let (near, far) = link(&near, &far, key(2)).await;
    assert_eq!((near.unwrap().peer(), far.unwrap().peer()), (Some(key(2)), Some(key(1))));
}

#[tokio::test]
async fn a_stranger_that_knocks_is_refused_before_a_frame_is_read() {
    for _ in 0..20 {
        let (stranger, far) = (socket(3, |_| true).await, socket(2, |who| *who == key(1)).await);
        let (near, far) = link(&stranger, &far, key(2)).await;
        assert!(matches!(far, Err(LinkError::Stranger)), "{far:?}");
        let end = match near {
            Ok(mut link) => LinkError::from(link.read_u8().await.unwrap_err()),
            Err(error) => error,
        };
        assert!(matches!(end, LinkError::Unwelcome), "{end:?}");
    }
}

#[tokio::test]
async fn somebody_else_than_was_meant_is_refused() {
    let (near, other) = (socket(1, |_| true).await, socket(3, |_| true).await);
    let (near, other) = link(&near, &other, key(2)).await;
    assert!(matches!(near, Err(LinkError::Stranger)), "{near:?}");
    assert!(matches!(other, Err(LinkError::Unwelcome)), "{other:?}");
    // Two is the y of no point of the curve: nobody can prove that key.
    let mut two = [0; 32];
    two[0] = 2;
    let (near, far) = (socket(1, |_| true).await, socket(2, |_| true).await);
    let nobody = near.dial(NodeKey::from_bytes(two), &far.addresses().unwrap()).await;
    assert!(matches!(nobody, Err(LinkError::Stranger)), "{nobody:?}");
}

#[tokio::test]
async fn a_socket_opens_as_of_the_moment_when_somebody_knocks() {
    let (allow, allowed) = watch::channel(Vec::new());
    let (near, far) = (socket(1, |_| true).await, socket(2, move |who| allowed.borrow().contains(who)).await);
    for is_allowed in [false, true, false] {
        allow.send_replace(if is_allowed { vec![key(1)] } else { Vec::new() });
        let (_near, far) = link(&near, &far, key(2)).await;
        assert_eq!(far.is_ok(), is_allowed, "{far:?}");
    }
}

#[tokio::test]
async fn another_protocol_is_not_spoken() {
    use iroh::endpoint::presets::Minimal;
    let far = socket(2, |_| true).await;
    let builder = iroh::Endpoint::builder(Minimal).clear_ip_transports();
    let near = builder.bind_addr("127.0.0.1:0").unwrap().bind().await.unwrap();
    let id = iroh::PublicKey::from_bytes(key(2).as_bytes()).unwrap();
    let direct = far.addresses().unwrap().iter().next().unwrap().parse().unwrap();
    let at = iroh::EndpointAddr::new(id).with_ip_addr(direct);
    let knock = async { far.accept().await.unwrap().open().await };
    let (near_end, far_end) = tokio::join!(near.connect(at.clone(), b"h2"), knock);
    assert!(near_end.is_err());
    assert!(matches!(far_end, Err(LinkError::Insecure(_))), "{far_end:?}");
    // Ours is, but a stream begins as it should.
    let knock = async { far.accept().await.unwrap().open().await };
    let talk = async {
        let connection = near.connect(at, ALPN).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(b"?").await.unwrap();
        connection.closed().await;
    };
    let ((), far_end) = tokio::join!(talk, knock);
    assert!(matches!(far_end, Err(LinkError::OutOfTurn(_))), "{far_end:?}");
    near.close().await;
}

#[tokio::test]
async fn no_relay_is_spoken_to_but_ones_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let addresses = Addresses::new(vec![url.clone()]).unwrap();
    let near = socket(1, |_| true).await;
    let nowhere = near.dial(key(2), &addresses).await;
    assert!(matches!(nowhere, Err(LinkError::Io(_))), "{nowhere:?}");
    // Who has it as a relay goes there, and only then.
    let listen = "127.0.0.1:0".parse().unwrap();
    let relays = vec![url.parse().unwrap()];
    let _with_relay = Socket::bind(&[3; 32], listen, relays, |_| true).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut said = [0; 4];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"GET ");
}

#[test]
fn a_relay_is_a_url() {
    for good in ["https://relay.example", "http://127.0.0.1:3340/", "https://relay.example:8443/at"] {
        assert!(good.parse::<Relay>().is_ok(), "{good}");
    }
    for bad in
        ["", "relay.example", "127.0.0.1:3340", "ftp://relay.example", "file:///etc/passwd", "https://"]
    {
        assert_eq!(bad.parse::<Relay>(), Err(RelayError), "{bad}");
    }
}
