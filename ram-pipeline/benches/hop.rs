//! How long a frame is on its way from one end of a link to the other, on one machine:
//! `cargo bench -p ram-pipeline --features tokio --bench hop`, with `-- --json` for other programs;
//! `--features iroh` for that, too.
//!
//! A step of one token, 16 KiB of activations, goes there and back; half of that time is shown. Each end has a thread
//! and a runtime of its own, as two nodes have; in the rows `together` both ends share a thread, so that no thread has
//! to be woken by another: what is left is the link's own work. Two more rows have nothing but the codec, and a frame
//! of 8 MiB.

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ram_core::id::{Epoch, JobId};
use ram_pipeline::link::alive::Watched;
use ram_pipeline::link::frames::{self, Outgoing};
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::Socket;
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{Link, tcp};
use ram_proto::control::shard::Addresses;
use ram_proto::frame::{Decoded, Decoder, Frame, Head, Limits, Of, PrefixHash, Spent, Step, Want};
use ram_proto::tensor::{Dtype, Shape};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One line of the table.
struct Row {
    what: &'static str,
    bytes: usize,
    /// One way, sorted.
    times: Vec<Duration>,
    target: Option<Duration>,
}

#[expect(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() -> Result<(), Failure> {
    let is_json = std::env::args().any(|argument| argument == "--json");
    // `cargo test` runs benches, too: once through everything is enough there.
    let is_test = !std::env::args().any(|argument| argument == "--bench");
    let (trips, long_trips) = if is_test { (20, 2) } else { (20_000, 60) };
    let mut rows = vec![codec(trips), bare(trips)?];
    for &kind in KINDS {
        rows.push(hops(kind, HIDDEN_BYTES, trips)?);
        rows.push(hops(kind, CHUNK_BYTES, long_trips)?);
        rows.push(together(kind, trips)?);
    }
    if !is_json {
        println!("{:<14} {:>9} {:>10} {:>10} {:>10}", "link", "payload", "p50 us", "p99 us", "target");
    }
    for Row { what, bytes, times, target } in rows {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let [p50, p99] = [50, 99].map(|percent| us(times[(times.len() - 1) * percent / 100]));
        let target = target.map(us);
        if is_json {
            let row = serde_json::json!({
                "link": what, "payload_bytes": bytes, "one_way_p50_us": p50, "one_way_p99_us": p99, "target_us": target,
            });
            println!("{row}");
        } else {
            let target = target.map_or_else(String::new, |target| format!("<= {target}"));
            println!("{what:<14} {bytes:>9} {p50:>10.1} {p99:>10.1} {target:>10}");
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    Tls,
    #[cfg(feature = "iroh")]
    Iroh,
}

const KINDS: &[Kind] = &[
    Kind::Tcp,
    Kind::Tls,
    #[cfg(feature = "iroh")]
    Kind::Iroh,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            #[cfg(feature = "iroh")]
            Self::Iroh => "iroh",
        }
    }

    const fn name_together(self) -> &'static str {
        match self {
            Self::Tcp => "tcp, together",
            Self::Tls => "tls, together",
            #[cfg(feature = "iroh")]
            Self::Iroh => "iroh, together",
        }
    }

    const fn target(self) -> Duration {
        Duration::from_micros(match self {
            Self::Tcp => 30,
            Self::Tls => 50,
            #[cfg(feature = "iroh")]
            Self::Iroh => 200,
        })
    }
}

/// A step as it goes between two shards: so many bytes of activations.
fn step(payload: usize) -> Frame {
    let rows = u32::try_from(payload / HIDDEN_BYTES).unwrap_or(u32::MAX);
    let step = Step {
        of: Of { session: JobId::from_bits(u128::MAX), epoch: Epoch::new(3) },
        position: 4_000,
        shape: Shape { rows, cols: 8_192 },
        dtype: Dtype::Bf16,
        prefix: PrefixHash::EMPTY,
        after: PrefixHash::EMPTY.with(&[1]),
        want: Want::Token,
        deadline_ms: 30_000,
        spent: Spent { compute_us: 12_345, queue_us: 678 },
    };
    Frame { head: Head::ForwardPass(step), payload: vec![7; payload].into() }
}

/// A frame into bytes and out of them again.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn codec(trips: usize) -> Row {
    let frame = step(HIDDEN_BYTES);
    let (mut prelude, mut decoder) = (BytesMut::new(), Decoder::new(Limits::FULL));
    let mut once = || {
        prelude.clear();
        let put = black_box(&frame).put_prelude(&mut prelude);
        put.expect("the frame is within the limits");
        // What the kernel does on a link, so it is not counted.
        let room = decoder.room();
        room.extend_from_slice(&prelude);
        room.extend_from_slice(&frame.payload);
        black_box(decoder.next_frame().expect("a frame of our own"));
    };
    let mut times = Vec::with_capacity(trips);
    for _ in 0..trips {
        let start = Instant::now();
        once();
        times.push(start.elapsed());
    }
    times.sort();
    Row { what: "codec", bytes: HIDDEN_BYTES, times, target: Some(Duration::from_micros(5)) }
}

/// As many bytes there and back between two threads that block.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn bare(trips: usize) -> Result<Row, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (warm, mut bytes) = (trips / 5, vec![7; HIDDEN_BYTES]);
    let far = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = vec![0; HIDDEN_BYTES];
        (0..warm + trips).try_for_each(|_| {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)
        })
    });
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(trips);
    for trip in 0..warm + trips {
        let start = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        if trip >= warm {
            times.push(start.elapsed() / 2);
        }
    }
    far.join().map_err(|_| "the other end panicked")??;
    times.sort();
    Ok(Row { what: "bare tcp", bytes: HIDDEN_BYTES, times, target: None })
}

/// Frames there and back.
fn hops(kind: Kind, payload: usize, trips: usize) -> Result<Row, Failure> {
    let (tell, told) = std::sync::mpsc::channel();
    let far = std::thread::spawn(move || runtime()?.block_on(echo(kind, &tell)));
    let times = runtime()?.block_on(measure(kind, told.recv()?, step(payload), trips));
    let mut times = times?;
    far.join().map_err(|_| "the other end panicked")??;
    times.sort();
    Ok(Row {
        what: kind.name(),
        bytes: payload,
        times,
        target: (payload == HIDDEN_BYTES).then_some(kind.target()),
    })
}

/// The same, with both ends on one thread.
fn together(kind: Kind, trips: usize) -> Result<Row, Failure> {
    let times = runtime()?.block_on(async {
        let (tell, told) = std::sync::mpsc::channel();
        let far = tokio::spawn(async move { echo(kind, &tell).await });
        let address = loop {
            match told.try_recv() {
                Ok(address) => break address,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let times = measure(kind, address, step(HIDDEN_BYTES), trips).await;
        far.await??;
        times
    });
    let mut times = times?;
    times.sort();
    Ok(Row { what: kind.name_together(), bytes: HIDDEN_BYTES, times, target: None })
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn echo(kind: Kind, tell: &Sender<Addresses>) -> Result<(), Failure> {
    match kind {
        Kind::Tcp => send_back(stream(tell).await?).await,
        Kind::Tls => {
            let door = Door::new(&identity(2), |_| true);
            send_back(tls::accept(&door, stream(tell).await?).await?).await
        }
        #[cfg(feature = "iroh")]
        Kind::Iroh => {
            let socket = socket(2).await?;
            tell.send(socket.addresses()?)?;
            let knock = socket.accept().await.ok_or("the socket is closed")?;
            send_back(knock.open().await?).await
        }
    }
}

/// Listens, tells where, and takes who comes.
async fn stream(tell: &Sender<Addresses>) -> Result<TcpStream, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    tell.send(listener.local_addr()?.into())?;
    Ok(tcp::accept(&listener).await?)
}

/// As a worker does it: heard by [`Watched`], which minds the peer's silence.
async fn send_back<L: Link>(link: L) -> Result<(), Failure> {
    let (incoming, mut outgoing) = frames::over(link, Limits::FULL);
    let mut incoming = Watched::new(incoming);
    while let Ok(Decoded::Known(frame)) = incoming.next().await {
        outgoing.send(&frame).await?;
    }
    Ok(())
}

async fn measure(kind: Kind, far: Addresses, frame: Frame, trips: usize) -> Result<Vec<Duration>, Failure> {
    let address = || far.iter().next().ok_or("nowhere")?.parse().map_err(Failure::from);
    match kind {
        Kind::Tcp => there_and_back(tcp::dial(address()?).await?, frame, trips).await,
        Kind::Tls => {
            let stream = tcp::dial(address()?).await?;
            let link = tls::dial(&identity(1), stream, identity(2).public()).await?;
            there_and_back(link, frame, trips).await
        }
        #[cfg(feature = "iroh")]
        Kind::Iroh => {
            let link = socket(1).await?.dial(identity(2).public(), &far).await?;
            there_and_back(link, frame, trips).await
        }
    }
}

#[cfg(feature = "iroh")]
async fn socket(number: u8) -> Result<Socket, Failure> {
    Ok(Socket::bind(&[number; 32], "127.0.0.1:0".parse()?, Vec::new(), |_| true).await?)
}

async fn there_and_back<L: Link>(link: L, frame: Frame, trips: usize) -> Result<Vec<Duration>, Failure> {
    let (incoming, mut outgoing) = frames::over(link, Limits::FULL);
    let mut incoming = Watched::new(incoming);
    let mut times = Vec::with_capacity(trips);
    for _ in 0..trips / 5 {
        trip(&mut incoming, &mut outgoing, &frame).await?;
    }
    for _ in 0..trips {
        times.push(trip(&mut incoming, &mut outgoing, &frame).await? / 2);
    }
    Ok(times)
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
async fn trip<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    incoming: &mut Watched<R>,
    outgoing: &mut Outgoing<W>,
    frame: &Frame,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    outgoing.send(frame).await?;
    let back = incoming.next().await?;
    let took = start.elapsed();
    let Decoded::Known(Frame { payload, .. }) = back else { return Err("another frame came back".into()) };
    same(&payload, &frame.payload).then_some(took).ok_or_else(|| "another payload came back".into())
}

fn same(a: &Bytes, b: &Bytes) -> bool {
    a.len() == b.len() && a.last() == b.last()
}

fn identity(number: u8) -> Identity {
    Identity::from_seed(&[number; 32])
}

/// A token's activations in a model that is 8192 wide, in bf16.
const HIDDEN_BYTES: usize = 16 << 10;
/// 512 tokens': a piece of a prompt.
const CHUNK_BYTES: usize = 8 << 20;
