//! Links by iroh, in a process of their own, whose sockets are all there are: none leads anywhere but to loopback.
//!
//! A socket that is bound to a loopback address cannot send to another host, and a process has no other ways out. While
//! a node looks for its own addresses it asks its system, by a socket that lives for that moment, which way it would go
//! out: nothing is sent by that, and here it is over.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, say by their line what went wrong")]

use ram_core::id::{Epoch, JobId};
use ram_pipeline::link::frames;
use ram_pipeline::link::iroh::Socket;
use ram_pipeline::link::tls::Identity;
use ram_proto::frame::{Decoded, Frame, Head, Limits, Of};

#[tokio::test]
async fn without_relays_nothing_leads_to_another_host() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let near = Socket::bind(&[1; 32], listen, Vec::new(), |_| false).await.unwrap();
    let far = Socket::bind(&[2; 32], listen, Vec::new(), |_| true).await.unwrap();
    let key = Identity::from_seed(&[2; 32]).public();
    let addresses = far.addresses().unwrap();
    assert!(addresses.iter().all(|address| address.starts_with("127.0.0.1:")), "{addresses:?}");
    let (near, far) =
        tokio::join!(near.dial(key, &addresses), async { far.accept().await.unwrap().open().await });
    let (mut near, mut far) =
        (frames::over(near.unwrap(), Limits::FULL), frames::over(far.unwrap(), Limits::FULL));
    let of = Of { session: JobId::from_bits(1), epoch: Epoch::new(1) };
    let frame = Frame { head: Head::Close(of), payload: vec![7; 100_000].into() };
    for _ in 0..10 {
        let (sent, heard) = tokio::join!(near.1.send(&frame), far.0.next());
        sent.unwrap();
        assert!(heard.unwrap() == Decoded::Known(frame.clone()));
        let sockets = sockets();
        assert_eq!(sockets.len(), 2, "one for each node: {sockets:?}");
        assert!(sockets.iter().all(|address| address == "0100007F"), "{sockets:?}");
    }
}

/// The local addresses of all of this process's sockets of the internet, as the kernel writes them.
fn sockets() -> Vec<String> {
    let inodes: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables = ["udp", "udp6", "tcp", "tcp6", "raw", "raw6"];
    let tables = tables.map(|table| std::fs::read_to_string(format!("/proc/self/net/{table}")));
    let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (address, _port) = fields[1].split_once(':')?;
            inodes.iter().any(|inode| inode == fields[9]).then(|| address.to_owned())
        })
        .collect()
}
