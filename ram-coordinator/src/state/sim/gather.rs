//! Models that several nodes hold together: heads die in mid-answer, shards in mid-load, and the user notices nothing
//! but a pause.

use std::collections::BTreeSet;

use ram_core::units::ByteRate;
use ram_proto::control::shard::{
    Addresses, Lending, LinkShard, LoadShard, Neighbour, ShardFailed, ShardFailure, ShardLinked, ShardLost,
    ShardReady, ShardReport,
};
use ram_proto::frame::ModelDigest;
use ram_proto::tensor::Dtype;

use super::*;

/// No node of these evenings has it whole, and none has memory for all of it.
const SHARED: &str = "llama-3.2-1b";
const LENT: Bytes = Bytes::from_gib(1);

/// A coordinator and nodes that lend memory, on an evening that goes more or less well.
struct Evening {
    night: Night,
    /// Words on their way to the coordinator, in order for each socket.
    wire: BTreeMap<ConnId, VecDeque<ToCoordinator>>,
    /// What each node was given to write, and how much of it is written.
    writes: Vec<Vec<Writes>>,
    told: BTreeMap<JobId, Told>,
    /// How often an answer went on at another head.
    resumed: u32,
    /// How often a node was told of others that may have files of what it is to load.
    neighbours: u32,
    /// Whether nodes do as they are told.
    is_quiet: bool,
}

struct Writes {
    job: JobId,
    attempt: Attempt,
    seq: u32,
    words: usize,
}

/// What became of a job.
#[derive(Default)]
struct Told {
    text: String,
    starts: u32,
    end: Option<Result<Usage, JobError>>,
    resolved: u32,
}

/// The answer to a job: whoever writes it, it is the same.
fn answer(job: JobId) -> Vec<String> {
    let count = 6 + job.bits() % 9;
    (0..count).map(|n| format!("{}é{n} ", job.bits() * 7 % 100)).collect()
}

impl Evening {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut night = Night::new(seed, nodes);
        night.coordinator.config.limits.queue_wait = Duration::from_secs(30);
        let writes = (0..nodes).map(|_| Vec::new()).collect();
        let (wire, told) = Default::default();
        let mut evening = Self { night, wire, writes, told, resumed: 0, neighbours: 0, is_quiet: true };
        (0..nodes).for_each(|n| evening.connect(n));
        evening.rest();
        evening
    }

    fn roll(&mut self, sides: u64) -> usize {
        usize::try_from(self.night.dice.roll(sides)).unwrap()
    }

    fn connect(&mut self, n: usize) {
        self.night.next_conn += 1;
        let conn = ConnId(self.night.next_conn);
        if let Some(ghost) = self.night.nodes[n].conn.replace(conn) {
            self.wire.remove(&ghost);
        }
        self.writes[n].clear();
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&conn.0.to_be_bytes());
        self.happen(Event::SocketOpened { conn, nonce: Nonce::from_bytes(nonce) });
    }

    fn kill(&mut self, n: usize) {
        if let Some(conn) = self.night.nodes[n].conn.take() {
            self.wire.remove(&conn);
            self.writes[n].clear();
            self.happen(Event::SocketClosed { conn });
        }
    }

    fn submit(&mut self, number: u128) -> JobId {
        let job = JobId::from_bits(number);
        self.told.insert(job, Told::default());
        let model = SHARED.parse().unwrap();
        let submission = Submission { model, ..submission(job, Payer::Key("key".to_owned())) };
        self.happen(Event::Submit(Box::new(submission)));
        job
    }

    fn happen(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.night.coordinator.handle(event, self.night.now, &mut effects);
        effects.into_iter().for_each(|effect| self.perform(effect));
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => {
                if let Some(n) = self.night.nodes.iter().position(|node| node.conn == Some(conn)) {
                    self.hear(n, conn, *message);
                }
            }
            Effect::Close { conn } => drop(self.wire.remove(&conn)),
            Effect::Hold(order) => {
                self.night.store.push_back(Event::Held { job: order.job, result: Ok(()) });
            }
            Effect::Settle(order) => {
                self.told.get_mut(&order.job).unwrap().resolved += 1;
                self.night.store.push_back(Event::Settled { job: order.job, remaining: None });
            }
            Effect::Void { job } => self.told.get_mut(&job).unwrap().resolved += 1,
            Effect::Refuse(order) => panic!("{}: an honest answer was refused", order.job),
            Effect::Reply { job, reply } => {
                let told = self.told.get_mut(&job).unwrap();
                assert!(told.end.is_none(), "{job}: a word after the end");
                match reply {
                    Reply::Started { .. } => told.starts += u32::from(!told.text.is_empty()),
                    Reply::Delta { content, .. } => told.text += content.as_str(),
                    Reply::Sealed { .. } => panic!("{job}: a box, and words were asked for"),
                    Reply::Done { usage, .. } => told.end = Some(Ok(usage)),
                    Reply::Failed { error, .. } => told.end = Some(Err(error)),
                }
            }
            Effect::NoteStandings(_) | Effect::Checkpoint(_) => {}
        }
    }

    fn hear(&mut self, n: usize, conn: ConnId, message: ToProvider) {
        let goes_wrong = !self.is_quiet && self.night.dice.one_in(12);
        let words = match message {
            ToProvider::Challenge { nonce, .. } => {
                let mut register = self.night.register(n, nonce);
                if let ToCoordinator::Register(register) = &mut register {
                    register.spec.offers.clear();
                }
                let weights_per_s = ByteRate::new(100_000_000_000);
                let lends = Some(Lending { memory: LENT, weights_per_s });
                let addresses = Addresses::new(vec![format!("10.0.0.{n}:7070")]).ok();
                vec![
                    register,
                    ToCoordinator::ShardReport(ShardReport { lends, addresses, ..ShardReport::default() }),
                ]
            }
            ToProvider::LoadShard(LoadShard { group, layers, .. }) if goes_wrong => {
                let failure = ShardFailure::Unavailable;
                vec![ToCoordinator::ShardFailed(ShardFailed { group, layers, failure })]
            }
            ToProvider::LoadShard(LoadShard { group, layers, positions, near, .. }) => {
                let own = NodeKey::from_bytes(self.night.nodes[n].identity.node_public());
                let known: BTreeSet<NodeKey> = near.iter().map(|near| near.node).collect();
                assert!(!known.contains(&own) && known.len() == near.len(), "{near:?}");
                self.neighbours += u32::from(!near.is_empty());
                vec![ToCoordinator::ShardReady(ShardReady {
                    group,
                    layers,
                    addresses: Addresses::new(vec!["192.0.2.1:7".to_owned()]).unwrap(),
                    digest: ModelDigest::from_bytes([7; 32]),
                    width: 2048,
                    dtype: Dtype::F32,
                    kv_free: positions,
                })]
            }
            ToProvider::LinkShard(LinkShard { group, epoch, .. }) if goes_wrong => {
                let neighbour = Neighbour::Down;
                vec![ToCoordinator::ShardLost(ShardLost { group, epoch, neighbour })]
            }
            ToProvider::LinkShard(LinkShard { group, epoch, .. }) => {
                vec![ToCoordinator::ShardLinked(ShardLinked { group, epoch })]
            }
            ToProvider::Run { attempt, job, group } => {
                assert!(group.is_some(), "nobody has it whole");
                self.resumed += u32::from(!self.told[&job.id].text.is_empty());
                self.writes[n].push(Writes { job: job.id, attempt, seq: 0, words: 0 });
                vec![ToCoordinator::Accepted { job: job.id, attempt, prompt: TokenCount::new(12) }]
            }
            ToProvider::Cancel { job, attempt } => {
                self.writes[n].retain(|writes| (writes.job, writes.attempt) != (job, attempt));
                Vec::new()
            }
            _ => Vec::new(),
        };
        self.wire.entry(conn).or_default().extend(words);
    }

    /// A node writes some words of its first answer, or that this is all.
    fn write(&mut self, n: usize) {
        let count = 1 + self.roll(3);
        let Some(conn) = self.night.nodes[n].conn else { return };
        let Some(writes) = self.writes[n].first_mut() else { return };
        let (job, attempt, words) = (writes.job, writes.attempt, answer(writes.job));
        let some: Vec<String> = words.iter().skip(writes.words).take(count).cloned().collect();
        let word = if some.is_empty() {
            self.writes[n].remove(0);
            ToCoordinator::Finished { job, attempt, outcome: done(words.len() as u64) }
        } else {
            writes.words += some.len();
            writes.seq += 1;
            let mut run = FakeRun { accepted: true, seq: writes.seq - 1, tokens: 0 };
            run.chunk(job, attempt, some.len() as u64, &some.concat())
        };
        self.wire.entry(conn).or_default().push_back(word);
    }

    /// One message arrives, or the store answers.
    fn deliver(&mut self) -> bool {
        if let Some(event) = self.night.store.pop_front() {
            self.happen(event);
            return true;
        }
        let busy: Vec<ConnId> =
            self.wire.iter().filter(|(_, queue)| !queue.is_empty()).map(|(conn, _)| *conn).collect();
        if busy.is_empty() {
            return false;
        }
        let conn = busy[self.roll(busy.len() as u64)];
        if let Some(message) = self.wire.get_mut(&conn).and_then(VecDeque::pop_front) {
            self.happen(Event::FromProvider { conn, message: Box::new(message) });
        }
        true
    }

    /// Until nothing is on its way.
    fn rest(&mut self) {
        while self.deliver() {}
    }

    fn later(&mut self, millis: u64) {
        self.night.now = self.night.now.after(Duration::from_millis(millis));
        self.happen(Event::Tick);
    }

    fn step(&mut self, number: u128) {
        self.night.now = self.night.now.after(Duration::from_millis(self.night.dice.roll(100)));
        let n = self.roll(self.writes.len() as u64);
        match self.roll(100) {
            0..6 => drop(self.submit(number)),
            6..8 => self.kill(n),
            8..16 if self.night.nodes[n].conn.is_none() => self.connect(n),
            16..24 => self.happen(Event::Tick),
            24..26 => {
                if let Some(job) = self.told.keys().nth(n).copied().filter(|job| self.told[job].end.is_none())
                {
                    self.told.get_mut(&job).unwrap().end = Some(Err(JobError::Draining)); // nobody listens
                    self.happen(Event::Abandon { job });
                }
            }
            26..60 => self.write(n),
            _ => drop(self.deliver()),
        }
    }

    /// All nodes come back and do as they are told: what is open ends.
    fn morning(&mut self) {
        self.is_quiet = true;
        for n in 0..self.writes.len() {
            self.kill(n);
            self.connect(n);
        }
        for _ in 0..600 {
            self.rest();
            (0..self.writes.len()).for_each(|n| self.write(n));
            self.later(500);
        }
        assert_eq!(self.night.coordinator.open_jobs(), 0, "a job outlived every limit");
    }

    fn check(&self) {
        for (job, told) in &self.told {
            let whole = answer(*job).concat();
            assert_eq!(told.starts, 0, "{job}: it began once more under the user's eyes");
            assert!(whole.starts_with(&told.text), "{job}: {:?} is no part of {whole:?}", told.text);
            assert_eq!(told.resolved, u32::from(told.held()), "{job}: its hold was resolved so often");
            match told.end.as_ref() {
                Some(Ok(usage)) => {
                    assert_eq!(told.text, whole, "{job}: done");
                    assert_eq!(usage.completion.get(), answer(*job).len() as u64, "{job}: each word once");
                }
                Some(Err(_)) => {}
                None => panic!("{job}: never ended"),
            }
        }
    }
}

impl Told {
    /// Whether money was ever set aside for it: not if it was refused at the door.
    fn held(&self) -> bool {
        let refused = |error: &JobError| {
            matches!(error, JobError::NoCapacity(_) | JobError::DoesNotFit { .. } | JobError::QueueFull(_))
                || matches!(error, JobError::TooManyOpen { .. })
        };
        !matches!(&self.end, Some(Err(error)) if refused(error) && self.resolved == 0)
    }
}

#[test]
fn a_model_that_fits_nowhere_is_held_together_and_answers() {
    let mut evening = Evening::new(1, 4);
    let job = evening.submit(1);
    evening.rest();
    let pipelines = evening.night.coordinator.pipelines().pipelines;
    assert_eq!(pipelines.len(), 1);
    let layers: Vec<_> = pipelines[0].shards.iter().map(|shard| shard.layers).collect();
    assert!(layers.len() > 1 && layers[0].first() == 0 && layers[layers.len() - 1].end() == 16, "{layers:?}");
    assert_eq!((pipelines[0].state, pipelines[0].running), (ram_proto::rest::PipelineState::Ready, 1));
    evening.morning();
    evening.check();
    assert!(matches!(evening.told[&job].end, Some(Ok(_))));
    assert!(evening.neighbours > 0, "who loads after others is told of them");
}

#[test]
fn who_is_refused_hears_what_is_missing() {
    let mut evening = Evening::new(1, 1);
    let job = evening.submit(1);
    let Some(Err(error @ JobError::DoesNotFit { .. })) = &evening.told[&job].end else {
        panic!("one gigabyte is too little")
    };
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_head_dies_in_mid_answer_and_the_answer_goes_on() {
    let mut evening = Evening::new(1, 6);
    let job = evening.submit(1);
    evening.rest();
    let head = evening.writes.iter().position(|writes| !writes.is_empty()).unwrap();
    evening.write(head);
    evening.write(head);
    evening.rest();
    let half = evening.told[&job].text.clone();
    assert!(!half.is_empty() && half != answer(job).concat());
    evening.kill(head);
    evening.rest();
    let next = evening.writes.iter().position(|writes| !writes.is_empty()).expect("another head took over");
    assert_ne!(next, head);
    while !evening.writes[next].is_empty() {
        evening.write(next);
        evening.rest();
    }
    evening.check();
    assert!(matches!(evening.told[&job].end, Some(Ok(_))));
    assert_eq!(evening.resumed, 1);
}

#[test]
fn another_text_than_before_is_cut_where_it_differs() {
    let mut evening = Evening::new(1, 6);
    let job = evening.submit(1);
    evening.rest();
    let head = evening.writes.iter().position(|writes| !writes.is_empty()).unwrap();
    evening.write(head);
    evening.rest();
    evening.kill(head);
    evening.rest();
    let next = evening.writes.iter().position(|writes| !writes.is_empty()).unwrap();
    let conn = evening.night.nodes[next].conn.unwrap();
    let mut run = FakeRun::default();
    let word = run.chunk(job, evening.writes[next][0].attempt, 1, "something else");
    evening.wire.entry(conn).or_default().push_back(word);
    evening.rest();
    let told = &evening.told[&job];
    let failure = Failure::Internal;
    assert_eq!(told.end, Some(Err(JobError::Provider { failure })));
    assert!(answer(job).concat().starts_with(&told.text));
    assert_eq!(told.resolved, 1, "what the user has is paid");
}

#[test]
fn whatever_dies_each_word_is_heard_once_and_each_hold_resolved_once() {
    let (first, evenings) = (number("RAM_SIM_SEED", 0), number("RAM_SIM_SEEDS", 60));
    let (mut resumed, mut whole) = (0, 0);
    for seed in first..first + evenings {
        let _seed = Seed(seed);
        let mut evening = Evening::new(seed, 4 + usize::try_from(seed % 3).unwrap());
        evening.is_quiet = false;
        for number in 1..300 {
            evening.step(number);
        }
        evening.morning();
        evening.check();
        resumed += evening.resumed;
        whole += evening.told.values().filter(|told| matches!(told.end, Some(Ok(_)))).count();
    }
    assert!(evenings < 60 || (resumed > 30 && whole > 300), "too quiet: {resumed} resumed, {whole} whole");
}
