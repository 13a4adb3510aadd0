//! What a pipeline keeps of its stages' speed, over TLS on one machine:
//! `cargo bench -p ram-pipeline --features tokio --bench saturation`, with `-- --json` for other programs.
//!
//! Four members, each with a thread for its links and one for its stage, as nodes have them. Their stages sleep for 5
//! ms a pass, however many tokens are in it, as reading weights takes; so four of them fit on any machine, and what is
//! lost is lost by everything else: frames, links, threads, and the order in which steps are taken. One session can get
//! one token in four passes, and all sessions together one in each pass of a stage; more where passes have several.
//! What a pass really took is measured, for sleep is no clock.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_pipeline::driver::Request;
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{Link, greet, tcp};
use ram_pipeline::member::{Chain, Dialer, Member, MemberConfig, Peer, Report, Word};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_pipeline::worker::{Replay, WorkerConfig};
use ram_proto::frame::{Code, ModelDigest};
use ram_proto::tensor::Dtype;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const STAGES: u16 = 4;
const PASS: Duration = Duration::from_millis(5);
/// A model that is 4096 wide, in f32: 16 KiB a token.
const WIDTH: u32 = 4096;

/// A stage that takes its time, and does nothing.
struct Sleeper {
    is_last: bool,
    passes: Arc<Passes>,
}

/// What a stage has done.
#[derive(Default)]
struct Passes {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Stage for Sleeper {
    fn open(&mut self, _: JobId, _: &Opening) -> Result<(), Code> {
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a bench reads the clock, and this stage is slow on purpose"
    )]
    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code> {
        let start = Instant::now();
        std::thread::sleep(PASS);
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.passes.count.fetch_add(1, Ordering::Relaxed);
        self.passes.nanos.fetch_add(took, Ordering::Relaxed);
        let output = |step: &StageStep| match &step.input {
            _ if self.is_last => StageOutput::Token { token: 1, logprob: None },
            Input::Tokens(tokens) => StageOutput::Hidden(vec![0.5; tokens.len() * WIDTH as usize]),
            Input::Hidden(hidden) => StageOutput::Hidden(hidden.clone()),
        };
        Ok(steps.iter().map(output).collect())
    }

    fn trim(&mut self, _: JobId, _: u32) {}

    fn close(&mut self, _: JobId) {}
}

struct Group {
    members: Vec<Member>,
    passes: Vec<Arc<Passes>>,
    jobs: u128,
}

#[expect(clippy::print_stdout, reason = "it is what a bench is for")]
#[tokio::main]
async fn main() -> Result<(), Failure> {
    let is_json = std::env::args().any(|argument| argument == "--json");
    // `cargo test` runs benches, too: once through everything is enough there.
    let tokens = if std::env::args().any(|argument| argument == "--bench") { 100 } else { 2 };
    let mut group = Group::new().await?;
    if !is_json {
        println!("{:>8} {:>12} {:>14} {:>8}", "sessions", "tokens/s", "stages could", "share");
    }
    group.run(1, 2).await?; // warms up
    for sessions in [1_u32, 2, 4, 5, 8, 16] {
        let (rate, possible) = group.run(sessions, tokens).await?;
        let share = rate / possible;
        if is_json {
            let row = serde_json::json!({
                "sessions": sessions, "tokens_per_s": rate, "possible_per_s": possible, "share": share,
            });
            println!("{row}");
        } else {
            println!("{sessions:>8} {rate:>12.1} {possible:>14.1} {share:>8.3}");
        }
    }
    Ok(())
}

impl Group {
    async fn new() -> Result<Self, Failure> {
        let (reporter, mut reports) = mpsc::unbounded_channel();
        let (mut members, mut peers, mut passes) = (Vec::new(), Vec::new(), Vec::new());
        for place in 0..STAGES {
            let identity = Arc::new(Identity::from_seed(&[u8::try_from(place)? + 1; 32]));
            let own = Arc::<Passes>::default();
            let stage = Sleeper { is_last: place + 1 == STAGES, passes: own.clone() };
            let reports = reporter.clone();
            let links = thread_for_links();
            let within = links.enter();
            let member = Member::start(config(place), stage, dialer(&identity), || Timestamp::ZERO, reports);
            drop(within);
            let listening = listen(identity.clone(), member.clone());
            let address = links.spawn(listening).await??;
            let layers = LayerRange::new(place, place + 1)?;
            peers.push(Peer { node: identity.public(), addresses: address.into(), layers });
            members.push(member);
            passes.push(own);
        }
        for (place, member) in members.iter().enumerate() {
            member.join(Chain { epoch: Epoch::new(1), peers: peers.clone(), place });
        }
        for _ in 0..STAGES {
            match reports.recv().await {
                Some(Report::Linked(_)) => {}
                other => return Err(format!("the chain was not linked: {other:?}").into()),
            }
        }
        Ok(Self { members, passes, jobs: 0 })
    }

    /// Tokens a second of so many sessions, and what their stages could have given: a token in all passes of one
    /// session; with as many sessions as stages and more, one in each pass of the slowest.
    #[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
    async fn run(&mut self, sessions: u32, tokens: u32) -> Result<(f64, f64), Failure> {
        for passes in &self.passes {
            passes.count.store(0, Ordering::Relaxed);
            passes.nanos.store(0, Ordering::Relaxed);
        }
        let mut answers: Vec<_> = (0..sessions).map(|_| self.submit(tokens + 1)).collect();
        for answer in &mut answers {
            next(answer).await?; // the prompt is read
        }
        let start = Instant::now();
        for _ in 0..tokens {
            for answer in &mut answers {
                next(answer).await?;
            }
        }
        let rate = f64::from(sessions * tokens) / start.elapsed().as_secs_f64();
        let mean = |passes: &Arc<Passes>| {
            let count = u32::try_from(passes.count.load(Ordering::Relaxed)).unwrap_or(u32::MAX).max(1);
            (Duration::from_nanos(passes.nanos.load(Ordering::Relaxed)) / count).as_secs_f64()
        };
        let all: f64 = self.passes.iter().map(mean).sum();
        let slowest = self.passes.iter().map(mean).fold(0.0, f64::max);
        Ok((rate, (f64::from(sessions) / all).min(1.0 / slowest)))
    }

    fn submit(&mut self, tokens: u32) -> mpsc::UnboundedReceiver<Word> {
        self.jobs += 1;
        self.members[0].submit(Request {
            session: JobId::from_bits(self.jobs),
            prompt: vec![1; 8],
            tokens_max: TokenCount::new(tokens.into()),
            sampling: Sampling::default(),
            deadline: Timestamp::from_millis(u64::MAX),
        })
    }
}

async fn next(answer: &mut mpsc::UnboundedReceiver<Word>) -> Result<(), Failure> {
    match answer.recv().await {
        Some(Word::Token { .. }) => Ok(()),
        other => Err(format!("an answer ended: {other:?}").into()),
    }
}

fn config(place: u16) -> MemberConfig {
    let worker = WorkerConfig {
        room: TokenCount::new(1 << 16),
        width: WIDTH,
        dtype: Dtype::F32,
        is_first: place == 0,
        is_last: place + 1 == STAGES,
        idle: Duration::from_secs(600),
        shards: NonZeroU16::new(STAGES).expect("not zero"),
        goes_back: true,
        log: Bytes::from_mib(1),
        replay: Replay::Exact,
    };
    MemberConfig {
        model: ModelDigest::from_bytes([7; 32]),
        worker,
        piece: NonZeroU32::new(8).expect("not zero"),
    }
}

fn dialer(identity: &Arc<Identity>) -> Dialer {
    let identity = identity.clone();
    Arc::new(move |peer: &Peer| {
        let (identity, peer) = (identity.clone(), peer.clone());
        Box::pin(async move {
            let address = peer.addresses.iter().next().and_then(|address| address.parse().ok());
            let stream = tcp::dial(address.expect("these listen at a number")).await?;
            let link: Box<dyn Link> = Box::new(tls::dial(&identity, stream, peer.node).await?);
            Ok(link)
        })
    })
}

/// A runtime with one thread, as long as the program runs.
fn thread_for_links() -> Handle {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        tell.send(runtime.handle().clone()).expect("somebody waits for it");
        runtime.block_on(std::future::pending::<()>());
    });
    told.recv().expect("it is told at once")
}

async fn listen(identity: Arc<Identity>, member: Member) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, door) = (listener.local_addr()?, Arc::new(Door::new(&identity, |_| true)));
    tokio::spawn(async move {
        while let Ok(stream) = tcp::accept(&listener).await {
            let (member, door) = (member.clone(), door.clone());
            tokio::spawn(async move {
                let link: Box<dyn Link> = Box::new(tls::accept(&door, stream).await?);
                member.called(greet::hear(link).await?);
                Ok::<_, ram_pipeline::link::LinkError>(())
            });
        }
    });
    Ok(address)
}
