//! Members of a group over real links: a toy model in shards answers as the whole does, in memory, over TCP, TLS
//! and QUIC, and goes on when a shard is killed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ram_core::id::{Epoch, JobId, NodeKey};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_pipeline::driver::{End, Request};
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::Socket;
use ram_pipeline::link::memory::{self, Cable, Wire};
use ram_pipeline::link::tls::{self, Door, Identity};
use ram_pipeline::link::{Link, LinkError, greet, tcp};
use ram_pipeline::member::{Chain, Dialer, Member, MemberConfig, Peer, Report, Word};
use ram_pipeline::worker::{Replay, WorkerConfig};
use ram_proto::control::shard::Addresses;
use ram_proto::frame::{Carries, Code, HEARTBEAT_LOST_MS, HEARTBEAT_MS, Hello, ModelDigest, VERSION};
use ram_proto::tensor::Dtype;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::world::{ROOM, Toy, WIDTH, whole};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Tcp,
    Tls,
    #[cfg(feature = "iroh")]
    Iroh,
}

/// Where members in memory listen, and the cables of their links.
type Street = Arc<Mutex<(HashMap<SocketAddr, mpsc::UnboundedSender<Box<dyn Link>>>, Vec<Cable>)>>;

/// How a node reaches others.
#[derive(Clone)]
enum Way {
    Memory(Street),
    Tcp,
    Tls(Arc<Identity>),
    #[cfg(feature = "iroh")]
    Iroh(Socket),
}

/// A node with one member.
struct Node {
    member: Member,
    peer: Peer,
    accepts: AbortHandle,
}

/// A group, and what its maker hears.
struct Group {
    kind: Kind,
    street: Street,
    nodes: Vec<Node>,
    epoch: Epoch,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
    reporter: mpsc::UnboundedSender<(usize, Report)>,
    made: u8,
}

const MODEL: ModelDigest = ModelDigest::from_bytes([7; 32]);

fn config(stages: usize, place: usize) -> MemberConfig {
    let worker = WorkerConfig {
        room: TokenCount::new(ROOM),
        width: WIDTH,
        dtype: Dtype::F32,
        is_first: place == 0,
        is_last: place + 1 == stages,
        idle: Duration::from_secs(600),
        shards: NonZeroU16::new(u16::try_from(stages).unwrap()).unwrap(),
        goes_back: true,
        log: Bytes::from_mib(1),
        replay: Replay::Exact,
    };
    MemberConfig { model: MODEL, worker, piece: NonZeroU32::new(8).unwrap() }
}

impl Group {
    async fn new(kind: Kind, stages: usize) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        let (street, epoch) = (Street::default(), Epoch::new(0));
        let mut group = Self { kind, street, nodes: Vec::new(), epoch, reports, reporter, made: 0 };
        for place in 0..stages {
            let node = group.node(stages, place).await;
            group.nodes.push(node);
        }
        group.join();
        group
    }

    async fn node(&mut self, stages: usize, place: usize) -> Node {
        self.made += 1;
        let identity = Arc::new(Identity::from_seed(&[self.made; 32]));
        let layers = u16::try_from(place).unwrap();
        let layers = LayerRange::new(layers, layers + 1).unwrap();
        let (reports, mut own) = mpsc::unbounded_channel();
        let toy = Toy::new(u32::try_from(place).unwrap() + 1, place + 1 == stages);
        let way = self.way(&identity).await;
        let dialer = dialer(way.clone());
        let member = Member::start(config(stages, place), toy, dialer, || Timestamp::ZERO, reports);
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            while let Some(report) = own.recv().await {
                let _ = reporter.send((place, report));
            }
        });
        let (addresses, accepts) = self.listen(way, member.clone()).await;
        Node { member, peer: Peer { node: identity.public(), addresses, layers }, accepts }
    }

    #[cfg_attr(not(feature = "iroh"), expect(clippy::unused_async, reason = "only iroh has a socket by now"))]
    async fn way(&self, identity: &Arc<Identity>) -> Way {
        match self.kind {
            Kind::Memory => Way::Memory(self.street.clone()),
            Kind::Tcp => Way::Tcp,
            Kind::Tls => Way::Tls(identity.clone()),
            #[cfg(feature = "iroh")]
            Kind::Iroh => {
                let listen = "127.0.0.1:0".parse().unwrap();
                let socket = Socket::bind(&[self.made; 32], listen, Vec::new(), |_| true).await;
                Way::Iroh(socket.unwrap())
            }
        }
    }

    /// Takes links, greets whoever made them, and hands them to the member.
    async fn listen(&self, way: Way, member: Member) -> (Addresses, AbortHandle) {
        let hear = |member: Member, link: Box<dyn Link>| async move {
            if let Ok(caller) = greet::hear(link).await {
                member.called(caller);
            }
        };
        let door = match way {
            Way::Memory(street) => {
                let address = SocketAddr::from(([127, 0, 0, 1], u16::from(self.made)));
                let (door, mut links) = mpsc::unbounded_channel();
                street.lock().unwrap().0.insert(address, door);
                let task = tokio::spawn(async move {
                    while let Some(link) = links.recv().await {
                        tokio::spawn(hear(member.clone(), link));
                    }
                });
                return (address.into(), task.abort_handle());
            }
            #[cfg(feature = "iroh")]
            Way::Iroh(socket) => {
                let addresses = socket.addresses().unwrap();
                let task = tokio::spawn(async move {
                    while let Some(knock) = socket.accept().await {
                        let member = member.clone();
                        tokio::spawn(async move {
                            if let Ok(link) = knock.open().await {
                                hear(member, Box::new(link)).await;
                            }
                        });
                    }
                });
                return (addresses, task.abort_handle());
            }
            Way::Tcp => None,
            Way::Tls(identity) => Some(Arc::new(Door::new(&identity, |_: &NodeKey| true))),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let stream = tcp::accept(&listener).await.unwrap();
                let (member, door) = (member.clone(), door.clone());
                tokio::spawn(async move {
                    let link: Box<dyn Link> = match door {
                        Some(door) => Box::new(tls::accept(&door, stream).await.unwrap()),
                        None => Box::new(stream),
                    };
                    hear(member, link).await;
                });
            }
        });
        (address.into(), task.abort_handle())
    }

    /// Has all make their links in another epoch.
    fn join(&mut self) {
        self.epoch = self.epoch.next();
        let peers: Vec<Peer> = self.nodes.iter().map(|node| node.peer.clone()).collect();
        for (place, node) in self.nodes.iter().enumerate() {
            node.member.join(Chain { epoch: self.epoch, peers: peers.clone(), place });
        }
    }

    /// A member is gone, with all that it held; another one takes its place.
    async fn replace(&mut self, place: usize) {
        let fresh = self.node(self.nodes.len(), place).await;
        let lost = std::mem::replace(&mut self.nodes[place], fresh);
        lost.accepts.abort();
        drop(lost);
        // Those beside it notice, by the links.
        loop {
            let (_, report) = self.reports.recv().await.unwrap();
            if matches!(report, Report::Lost(epoch, _) if epoch == self.epoch) {
                break;
            }
        }
        self.join();
    }

    fn submit(&self, number: u32) -> (Vec<u32>, mpsc::UnboundedReceiver<Word>) {
        let prompt: Vec<u32> = (0..20 + number).map(|at| at * (number + 3)).collect();
        let request = Request {
            session: JobId::from_bits(number.into()),
            prompt: prompt.clone(),
            tokens_max: TokenCount::new(COUNT as u64),
            sampling: Sampling::default(),
            deadline: Timestamp::from_millis(u64::MAX),
        };
        (prompt, self.nodes[0].member.submit(request))
    }
}

fn address(peer: &Peer) -> SocketAddr {
    peer.addresses.iter().next().unwrap().parse().unwrap()
}

fn dialer(way: Way) -> Dialer {
    Arc::new(move |peer: &Peer| {
        let (way, peer) = (way.clone(), peer.clone());
        Box::pin(async move {
            let link: Box<dyn Link> = match way {
                Way::Memory(street) => {
                    let (here, there, cable) = memory::pair(Wire::default(), Wire::default());
                    let mut street = street.lock().unwrap();
                    street.1.push(cable);
                    let door = street.0.get(&address(&peer)).cloned();
                    let is_open = door.is_some_and(|door| door.send(Box::new(there)).is_ok());
                    if !is_open {
                        return Err(LinkError::Closed);
                    }
                    Box::new(here)
                }
                Way::Tcp => Box::new(tcp::dial(address(&peer)).await?),
                Way::Tls(identity) => {
                    let stream = tcp::dial(address(&peer)).await?;
                    Box::new(tls::dial(&identity, stream, peer.node).await?)
                }
                #[cfg(feature = "iroh")]
                Way::Iroh(socket) => Box::new(socket.dial(peer.node, &peer.addresses).await?),
            };
            Ok(link)
        })
    })
}

/// The rest of an answer.
async fn rest(words: &mut mpsc::UnboundedReceiver<Word>) -> (Vec<u32>, End) {
    let mut tokens = Vec::new();
    loop {
        match words.recv().await.expect("an answer has an end") {
            Word::Token { token, .. } => tokens.push(token),
            Word::End(end) => return (tokens, end),
        }
    }
}

/// Nothing in these tests takes long; whatever hangs fails.
async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), doing).await.expect("it hangs")
}

const COUNT: usize = 12;
const KINDS: &[Kind] = &[
    Kind::Memory,
    Kind::Tcp,
    Kind::Tls,
    #[cfg(feature = "iroh")]
    Kind::Iroh,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_links_are_those_of_the_whole_model() {
    for (kind, stages) in KINDS.iter().flat_map(|&kind| (1..=4).map(move |stages| (kind, stages))) {
        soon(async {
            let group = Group::new(kind, stages).await;
            let asked: Vec<_> = (0..6).map(|number| group.submit(number)).collect();
            for (prompt, mut words) in asked {
                let expected = whole(u32::try_from(stages).unwrap(), &prompt, COUNT);
                assert_eq!(rest(&mut words).await, (expected, End::Length), "{kind:?}, {stages} shards");
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_go_on_when_a_shard_is_killed() {
    for (kind, lost, after) in KINDS.iter().flat_map(|&kind| {
        [1, 2, 3].into_iter().flat_map(move |lost| [0, 1, 5].map(|after| (kind, lost, after)))
    }) {
        // It may be killed before it has its links: by QUIC nobody says so for it, and that takes some attempts' time.
        #[cfg(feature = "iroh")]
        if (kind, after) == (Kind::Iroh, 0) {
            continue;
        }
        soon(async {
            let mut group = Group::new(kind, 4).await;
            let (prompt, mut words) = group.submit(1);
            let others: Vec<_> = (2..5).map(|number| group.submit(number)).collect();
            let mut answer = Vec::new();
            while answer.len() < after {
                match words.recv().await.unwrap() {
                    Word::Token { token, .. } => answer.push(token),
                    Word::End(end) => panic!("{end:?}"),
                }
            }
            group.replace(lost).await;
            let (more, end) = rest(&mut words).await;
            answer.extend(more);
            assert_eq!((answer, end), (whole(4, &prompt, COUNT), End::Length), "{kind:?}, {lost} lost");
            for (prompt, mut words) in others {
                assert_eq!(rest(&mut words).await, (whole(4, &prompt, COUNT), End::Length));
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_missed_by_its_neighbours_and_takes_up_a_later_epoch() {
    soon(async {
        let mut group = Group::new(Kind::Tcp, 3).await;
        let (prompt, mut words) = group.submit(1);
        assert!(matches!(words.recv().await, Some(Word::Token { .. })));
        let mut linked = 0;
        while linked < 3 {
            linked += usize::from(matches!(group.reports.recv().await, Some((_, Report::Linked(_)))));
        }
        group.nodes[1].member.leave();
        let mut missed = Vec::new();
        while missed.len() < 2 {
            let Some((place, report)) = group.reports.recv().await else { panic!() };
            assert!(
                matches!(report, Report::Lost(epoch, _) if epoch == group.epoch && place != 1),
                "{report:?}"
            );
            missed.push(place);
        }
        group.join();
        let (more, end) = rest(&mut words).await;
        assert_eq!((&more[..], end), (&whole(3, &prompt, COUNT)[COUNT - more.len()..], End::Length));
        while group.nodes[1].member.status().kv_free != TokenCount::new(ROOM) {
            tokio::task::yield_now().await; // Its next heartbeat says so: the answer is over.
        }
    })
    .await;
}

/// How long it takes until each of three members says that it has lost a neighbour, after this was done to all cables.
async fn missed_after(fault: impl Fn(&Cable)) -> Vec<Duration> {
    let mut group = Group::new(Kind::Memory, 3).await;
    for _ in 0..3 {
        assert!(matches!(group.reports.recv().await, Some((_, Report::Linked(_)))));
    }
    tokio::time::sleep(Duration::from_millis(10_700)).await;
    let (start, mut missed) = (Instant::now(), HashMap::new());
    group.street.lock().unwrap().1.iter().for_each(fault);
    while missed.len() < 3 {
        let Some((place, Report::Lost(..))) = group.reports.recv().await else { panic!() };
        missed.entry(place).or_insert_with(|| start.elapsed());
    }
    missed.into_values().collect()
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_falls_silent_is_missed_in_time_and_one_that_is_cut_off_at_once() {
    let silent = missed_after(|cable| {
        cable.stall(memory::Way::There);
        cable.stall(memory::Way::Back);
    });
    let (lost, beat) = (Duration::from_millis(HEARTBEAT_LOST_MS), Duration::from_millis(HEARTBEAT_MS));
    assert_eq!(lost, Duration::from_millis(3_500));
    for after in silent.await {
        assert!((lost - beat..=lost).contains(&after), "{after:?} since its last frame or a little later");
    }
    assert_eq!(missed_after(Cable::cut).await, [Duration::ZERO; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_drops_the_words_frees_the_room() {
    soon(async {
        let group = Group::new(Kind::Memory, 2).await;
        for number in 0..30 {
            let (_, mut words) = group.submit(number);
            assert!(matches!(words.recv().await, Some(Word::Token { .. })), "there is room for each");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_of_the_chain_is_refused() {
    soon(async {
        let mut group = Group::new(Kind::Tls, 3).await;
        while !matches!(group.reports.recv().await, Some((0, Report::Linked(_)))) {}
        let (address, Peer { node, layers, .. }) =
            (address(&group.nodes[1].peer), group.nodes[1].peer.clone());
        let good = Hello {
            version: VERSION,
            model: MODEL,
            layers,
            epoch: group.epoch,
            carries: Carries::Steps,
            dtype: Dtype::F32,
            width: WIDTH,
        };
        let stranger = Identity::from_seed(&[99; 32]);
        let call = async |hello: Hello| {
            let link = tls::dial(&stranger, tcp::dial(address).await.unwrap(), node).await.unwrap();
            match greet::dial(link, hello).await {
                Err(LinkError::Refused(refusal)) => refusal.code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(call(good.clone()).await, Code::Protocol, "another key than the chain's");
        assert_eq!(call(Hello { epoch: Epoch::new(0), ..good.clone() }).await, Code::WrongEpoch);
        assert_eq!(
            call(Hello { model: ModelDigest::from_bytes([8; 32]), ..good.clone() }).await,
            Code::WrongModel
        );
        assert_eq!(call(Hello { width: WIDTH + 1, ..good.clone() }).await, Code::WrongShape);
        let (prompt, mut words) = group.submit(1);
        assert_eq!(rest(&mut words).await, (whole(3, &prompt, COUNT), End::Length), "nothing was harmed");
    })
    .await;
}
