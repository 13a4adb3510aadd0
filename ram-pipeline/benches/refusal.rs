//! How soon somebody who is not to be on a link hears so, over TLS on one machine:
//! `cargo bench -p ram-pipeline --features tokio --bench refusal`, with `-- --json` for other programs.
//!
//! Timed from the first byte of the connection on, the handshake included, until the caller holds the answer or the
//! closed link. The caller is a stranger; or one who is known, and says what it should not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use ram_core::id::Epoch;
use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{LinkError, greet, tcp};
use ram_proto::frame::{Carries, Code, Hello, ModelDigest, Refusal, VERSION, Welcome};
use ram_proto::tensor::Dtype;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Who comes.
#[derive(Clone, Copy, PartialEq)]
enum Caller {
    Stranger,
    Garbage,
    TooLong,
    WrongModel,
    WrongLayers,
    WrongEpoch,
}

impl Caller {
    const ALL: [Self; 6] =
        [Self::Stranger, Self::Garbage, Self::TooLong, Self::WrongModel, Self::WrongLayers, Self::WrongEpoch];

    const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "a stranger",
            Self::Garbage => "garbage",
            Self::TooLong => "a frame of 4 GiB",
            Self::WrongModel => "a wrong model",
            Self::WrongLayers => "wrong layers",
            Self::WrongEpoch => "a wrong epoch",
        }
    }
}

#[expect(clippy::print_stdout, reason = "it is what a bench is for")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let is_json = std::env::args().any(|argument| argument == "--json");
    // `cargo test` runs benches, too: once through everything is enough there.
    let times = if std::env::args().any(|argument| argument == "--bench") { 300 } else { 3 };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(keep_the_door(listener));
    if !is_json {
        println!("{:<18} {:>10} {:>10} {:>10}", "who", "p50 us", "p99 us", "most us");
    }
    for caller in Caller::ALL {
        let mut took = Vec::with_capacity(times);
        for _ in 0..times {
            took.push(refused(caller, address).await?);
        }
        took.sort();
        let us = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        let (name, p50, p99, most) = (caller.name(), us(50), us(99), us(100));
        if is_json {
            println!("{}", serde_json::json!({ "who": name, "p50_us": p50, "p99_us": p99, "most_us": most }));
        } else {
            println!("{name:<18} {p50:>10.0} {p99:>10.0} {most:>10.0}");
        }
    }
    Ok(())
}

async fn keep_the_door(listener: TcpListener) {
    let known = identity(1).public();
    let door = std::sync::Arc::new(Door::new(&identity(2), move |key| *key == known));
    while let Ok(stream) = tcp::accept(&listener).await {
        let door = door.clone();
        tokio::spawn(async move {
            let link = tls::accept(&door, stream).await?;
            let welcome =
                Welcome { version: VERSION, credits: 4, kv_free: TokenCount::new(4096), sessions: 0 };
            greet::accept(link, &hello(), welcome).await.map(drop)
        });
    }
}

/// Comes, and is refused; in which time.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
async fn refused(caller: Caller, address: SocketAddr) -> Result<Duration, Failure> {
    let start = Instant::now();
    let stream = tcp::dial(address).await?;
    let own = identity(if caller == Caller::Stranger { 9 } else { 1 });
    let link = tls::dial(&own, stream, identity(2).public()).await;
    let told = match (caller, link) {
        // In TLS 1.3 who dials is done before the other end has seen its key.
        (Caller::Stranger, Err(_)) => None,
        (Caller::Stranger, Ok(mut link)) => {
            let heard = link.read(&mut [0]).await;
            if matches!(heard, Ok(1..)) { return Err("a stranger was answered".into()) } else { None }
        }
        (Caller::Garbage | Caller::TooLong, link) => {
            let mut link = link?;
            let mut words = BytesMut::new();
            match caller {
                Caller::Garbage => words.put_slice(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
                _ => words.put_u64(u64::MAX),
            }
            link.write_all(&words).await?;
            link.flush().await?;
            let mut heard = Vec::new();
            link.read_to_end(&mut heard).await?;
            heard.windows(8).any(|part| part == b"protocol").then_some(Code::Protocol)
        }
        (_, link) => {
            let hello = match caller {
                Caller::WrongModel => Hello { model: ModelDigest::from_bytes([8; 32]), ..hello() },
                Caller::WrongLayers => Hello { layers: LayerRange::new(0, 1)?, ..hello() },
                _ => Hello { epoch: Epoch::new(2), ..hello() },
            };
            match greet::dial(link?, hello).await {
                Err(LinkError::Refused(Refusal { code, .. })) => Some(code),
                _ => return Err(format!("{} was not refused", caller.name()).into()),
            }
        }
    };
    let took = start.elapsed();
    let expected = match caller {
        Caller::Stranger => None,
        Caller::Garbage | Caller::TooLong => Some(Code::Protocol),
        Caller::WrongModel => Some(Code::WrongModel),
        Caller::WrongLayers => Some(Code::WrongLayers),
        Caller::WrongEpoch => Some(Code::WrongEpoch),
    };
    if told == expected { Ok(took) } else { Err(format!("{} heard {told:?}", caller.name()).into()) }
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        model: ModelDigest::from_bytes([7; 32]),
        layers: LayerRange::new(3, 6).expect("three layers"),
        epoch: Epoch::new(1),
        carries: Carries::Steps,
        dtype: Dtype::F32,
        width: 192,
    }
}

fn identity(number: u8) -> Identity {
    Identity::from_seed(&[number; 32])
}
