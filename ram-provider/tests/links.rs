//! Shards of real models over links of every kind: however a model is cut and whatever carries its frames, each step
//! gives the whole model's logits, to the bit, and answers are the whole model's, word for word.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, say by their line what went wrong")]
#![allow(clippy::print_stdout, reason = "what a fast replay changes is told")]

mod splits;
mod wires;

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::{self, Timestamp, TokenCount};
use ram_pipeline::driver::{End, Request};
use ram_pipeline::link::alive::Pulse;
use ram_pipeline::link::{LinkError, greet};
use ram_pipeline::member::{Chain, Dialer, Member, MemberConfig, Peer, Report, Word};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_pipeline::worker::{Replay, WorkerConfig};
use ram_proto::frame::{
    Carries, Code, Frame, Head, Heartbeat, Hello, KvCacheInit, Logprob, ModelDigest, Of, PrefixHash, Spent,
    Step, StepResult, VERSION, Want, Welcome,
};
use ram_proto::tensor::{self, Dtype, Shape};
use ram_provider::stage::ModelStage;
use tokio::sync::{mpsc, watch};

use self::splits::{
    FAMILIES, SESSIONS, Said, conversation, fixture, of_eight_layers, opening, run, same, sampling, size,
    splits, stage, steps,
};
use self::wires::{Any, Kind, Wires, node};

const MODEL: ModelDigest = ModelDigest::from_bytes([5; 32]);
/// Tokens of an answer.
const COUNT: usize = 8;
/// Tokens of a piece of a prompt.
const PIECE: NonZeroU32 = NonZeroU32::new(8).unwrap();

type Split = [(u16, u16)];

/// A stage that is handed back when its member has ended.
struct Lent {
    stage: Option<ModelStage>,
    back: mpsc::UnboundedSender<ModelStage>,
    /// Each pass takes one of these, if there are any: it waits for the next one, or the end of them.
    turns: Option<std::sync::mpsc::Receiver<()>>,
}

impl Lent {
    fn stage(&mut self) -> &mut ModelStage {
        self.stage.as_mut().unwrap()
    }
}

impl Stage for Lent {
    fn open(&mut self, session: JobId, opening: &Opening) -> Result<(), Code> {
        self.stage().open(session, opening)
    }

    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code> {
        self.turns.as_ref().map(std::sync::mpsc::Receiver::recv);
        self.stage().forward(steps)
    }

    fn trim(&mut self, session: JobId, position: u32) {
        self.stage().trim(session, position);
    }

    fn close(&mut self, session: JobId) {
        self.stage().close(session);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let _ = self.back.send(self.stage.take().unwrap()); // A test that fails takes none back.
    }
}

/// A model, cut into runs of layers; each is loaded once and serves in many splits.
struct Cut<'a> {
    dir: &'a Path,
    layers: u16,
    loaded: Vec<ModelStage>,
    back: (mpsc::UnboundedSender<ModelStage>, mpsc::UnboundedReceiver<ModelStage>),
}

impl<'a> Cut<'a> {
    fn new(dir: &'a Path) -> Self {
        let (layers, _) = size(dir);
        Self { dir, layers, loaded: Vec::new(), back: mpsc::unbounded_channel() }
    }

    fn take(&mut self, range: (u16, u16)) -> ModelStage {
        let is_it = |stage: &ModelStage| {
            let layers = stage.model().shard().layers;
            (layers.first(), layers.end()) == range
        };
        match self.loaded.iter().position(is_it) {
            Some(at) => self.loaded.swap_remove(at),
            None => stage(self.dir, range, self.layers),
        }
    }

    fn lend(&mut self, range: (u16, u16)) -> Lent {
        Lent { stage: Some(self.take(range)), back: self.back.0.clone(), turns: None }
    }

    /// Waits until so many members have ended, and takes their stages back.
    async fn take_back(&mut self, count: usize) {
        for _ in 0..count {
            let mut stage = self.back.1.recv().await.unwrap();
            SESSIONS.into_iter().for_each(|session| stage.close(session)); // If nobody had the time to.
            self.loaded.push(stage);
        }
    }
}

/// A member, and the end of a link that is its to dial with next.
struct Node {
    member: Member,
    end: Arc<Mutex<Option<Any>>>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Node {
    fn new(split: &Split, place: usize, stage: Lent, replay: Replay) -> Self {
        let held = stage.stage.as_ref().unwrap();
        let width = u32::try_from(held.model().config().hidden_size).unwrap();
        let worker = WorkerConfig {
            room: held.room(),
            width,
            dtype: Dtype::F32,
            is_first: place == 0,
            is_last: place + 1 == split.len(),
            idle: Duration::from_secs(600),
            shards: NonZeroU16::new(u16::try_from(split.len()).unwrap()).unwrap(),
            goes_back: !held.model().is_recurrent(),
            log: units::Bytes::from_mib(1),
            replay,
        };
        let end = Arc::<Mutex<Option<Any>>>::default();
        let dials = end.clone();
        let dialer: Dialer = Arc::new(move |_: &Peer| {
            let end = dials.lock().unwrap().take();
            Box::pin(async move { end.ok_or(LinkError::Closed) })
        });
        let (reporter, reports) = mpsc::unbounded_channel();
        let config = MemberConfig { model: MODEL, worker, piece: PIECE };
        let member = Member::start(config, stage, dialer, || Timestamp::ZERO, reporter);
        Self { member, end, reports }
    }
}

/// Links the last nodes of a chain: all of them, or all but the head. Gives the links' ends that are the head's then:
/// what it dials the next one with, and what the last one dials it with.
async fn link(wires: &Wires, split: &Split, nodes: &[Node], epoch: Epoch) -> Option<(Any, Any)> {
    let (first, count) = (split.len() - nodes.len(), split.len());
    let peers: Vec<Peer> = (0..count)
        .map(|place| Peer {
            node: node(place),
            addresses: SocketAddr::from(([127, 0, 0, 1], 1)).into(), // Its links are made for it.
            layers: layers(split, place),
        })
        .collect();
    let (mut dials, mut hears) = (None, None);
    for from in (0..count).filter(|_| count > 1) {
        let to = (from + 1) % count;
        let (near, far) = wires.link(from, to).await;
        match from.checked_sub(first) {
            Some(from) => *nodes[from].end.lock().unwrap() = Some(near),
            None => dials = Some(near),
        }
        match to.checked_sub(first) {
            Some(to) => {
                let member = nodes[to].member.clone();
                tokio::spawn(async move { member.called(greet::hear(far).await.unwrap()) });
            }
            None => hears = Some(far),
        }
    }
    for (node, place) in nodes.iter().zip(first..) {
        node.member.join(Chain { epoch, peers: peers.clone(), place });
    }
    dials.zip(hears)
}

fn layers(split: &Split, place: usize) -> LayerRange {
    LayerRange::new(split[place].0, split[place].1).unwrap()
}

/// The head of a chain that asks for logits, which no answer needs: the first layers, and the links.
struct Asker {
    stage: ModelStage,
    width: u32,
    next: mpsc::Sender<Frame>,
    heard: mpsc::Receiver<Frame>,
    /// Keeps the link of results open.
    _results: mpsc::Sender<Frame>,
}

impl Asker {
    async fn greet(split: &Split, stage: ModelStage, (dials, hears): (Any, Any)) -> Self {
        let width = u32::try_from(stage.model().config().hidden_size).unwrap();
        let hello = |to, carries| Hello {
            version: VERSION,
            model: MODEL,
            layers: layers(split, to),
            epoch: Epoch::new(1),
            carries,
            dtype: Dtype::F32,
            width,
        };
        let welcome = Welcome { version: VERSION, credits: 0, kv_free: TokenCount::ZERO, sessions: 0 };
        let expected = hello(0, Carries::Results);
        let (next, results) = tokio::join!(
            greet::dial(dials, hello(1, Carries::Steps)),
            greet::accept(hears, &expected, welcome)
        );
        let (into, heard) = mpsc::channel(64);
        let [next, results] = [next.unwrap(), results.unwrap()].map(|open| {
            let ((outbox, out), (_, says)) = (mpsc::channel(64), watch::channel(Heartbeat::default()));
            let (pulse, into) = (Pulse { says, hop: watch::Sender::new(None) }, into.clone());
            tokio::spawn(open.converse(out, into, |frame| frame, pulse));
            outbox
        });
        Self { stage, width, next, heard, _results: results }
    }

    /// Goes through a conversation, batch by batch.
    async fn go_through(&mut self, conversation: &[Vec<Said>]) -> Vec<StageOutput> {
        let mut prefixes = [PrefixHash::EMPTY; SESSIONS.len()];
        for session in SESSIONS {
            let opening = opening(sampling());
            self.stage.open(session, &opening).unwrap();
            let Opening { positions, sampling, picks, .. } = opening;
            let init = KvCacheInit { of: of(session), positions, sampling, picks, resume: None };
            self.next.send(Head::KvCacheInit(init).into()).await.unwrap();
        }
        let mut given = Vec::new();
        for batch in conversation {
            let inputs = batch.iter().map(|said| Input::Tokens(said.tokens.clone())).collect();
            let outputs = self.stage.forward(&steps(batch, inputs)).unwrap();
            for (said, output) in batch.iter().zip(outputs) {
                let StageOutput::Hidden(numbers) = output else { panic!("{output:?}") };
                let at = SESSIONS.iter().position(|session| *session == said.session).unwrap();
                let after = prefixes[at].with(&said.tokens);
                let step = self.step(said, std::mem::replace(&mut prefixes[at], after), after);
                let payload = tensor::encode(Dtype::F32, &numbers).freeze();
                self.next.send(Frame { head: Head::ForwardPass(step), payload }).await.unwrap();
            }
            let mut results = Vec::new();
            for _ in batch {
                results.push(self.result().await);
            }
            // Those of two sessions may come in any order.
            given.extend(batch.iter().map(|said| {
                let at = results.iter().position(|(of, _)| *of == place_after(said)).unwrap();
                results.swap_remove(at).1
            }));
        }
        SESSIONS.into_iter().for_each(|session| self.stage.close(session));
        given
    }

    fn step(&self, said: &Said, prefix: PrefixHash, after: PrefixHash) -> Step {
        Step {
            of: of(said.session),
            position: said.position,
            shape: Shape { rows: u32::try_from(said.tokens.len()).unwrap(), cols: self.width },
            dtype: Dtype::F32,
            prefix,
            after,
            want: said.want,
            deadline_ms: u32::MAX,
            spent: Spent::default(),
        }
    }

    /// The next result, and of which session it is, up to where.
    async fn result(&mut self) -> ((JobId, u32), StageOutput) {
        loop {
            let Frame { head, payload } = self.heard.recv().await.expect("the links live");
            match head {
                Head::Heartbeat(_) | Head::Credit { .. } => {}
                Head::Result(result) => {
                    return ((result.of.session, result.position), output(result, &payload));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What a result says of its step.
fn output(StepResult { token, logprob, logits, .. }: StepResult, payload: &[u8]) -> StageOutput {
    match (token, logits) {
        (Some(token), None) => StageOutput::Token { token, logprob },
        (None, Some(shape)) => StageOutput::Logits(tensor::decode(Dtype::F32, shape, payload).unwrap()),
        (None, None) => StageOutput::Nothing,
        (Some(_), Some(_)) => panic!("both were never asked for"),
    }
}

fn place_after(said: &Said) -> (JobId, u32) {
    (said.session, said.position + u32::try_from(said.tokens.len()).unwrap())
}

const fn of(session: JobId) -> Of {
    Of { session, epoch: Epoch::new(1) }
}

/// What a chain gives for a conversation, step by step.
async fn gone_through(
    cut: &mut Cut<'_>,
    wires: &Wires,
    split: &Split,
    conversation: &[Vec<Said>],
) -> Vec<StageOutput> {
    let head = cut.take(split[0]);
    let behind = 1..split.len();
    let nodes: Vec<Node> =
        behind.map(|place| Node::new(split, place, cut.lend(split[place]), Replay::Exact)).collect();
    let ends = link(wires, split, &nodes, Epoch::new(1)).await.unwrap();
    let mut asker = Asker::greet(split, head, ends).await;
    let given = asker.go_through(conversation).await;
    cut.loaded.push(asker.stage);
    drop(nodes);
    cut.take_back(split.len() - 1).await;
    given
}

/// What is asked of a chain at once: prompts, and ways to pick the tokens of their answers.
fn questions(vocabulary: u32) -> [(Vec<u32>, Sampling); 2] {
    let prompt = |count: u32, step: u32| (0..count).map(|at| (at * step + 11) % vocabulary).collect();
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    let seeded = Sampling { temperature: 1.5, repetition_penalty: 1.2, frequency_penalty: 0.3, ..sampling() };
    [(prompt(21, 5), greedy), (prompt(5, 9), seeded)]
}

type Answer = Vec<StageOutput>;

/// A whole model's answer.
fn alone(stage: &mut ModelStage, (prompt, sampling): &(Vec<u32>, Sampling)) -> Answer {
    let session = SESSIONS[0];
    let opening = Opening { seen: prompt.clone(), ..opening(sampling.clone()) };
    stage.open(session, &opening).unwrap();
    let (mut answer, mut position, mut next) = (Vec::new(), 0, prompt.clone());
    while answer.len() < COUNT {
        let step = StageStep { session, position, input: Input::Tokens(next.clone()), want: Want::Token };
        let output = stage.forward(&[step]).unwrap().remove(0);
        let StageOutput::Token { token, .. } = output else { panic!("{output:?}") };
        position += u32::try_from(next.len()).unwrap();
        next = vec![token];
        answer.push(output);
    }
    stage.close(session);
    answer
}

fn ask(
    head: &Member,
    session: JobId,
    (prompt, sampling): &(Vec<u32>, Sampling),
) -> mpsc::UnboundedReceiver<Word> {
    head.submit(Request {
        session,
        prompt: prompt.clone(),
        tokens_max: TokenCount::new(COUNT as u64),
        sampling: sampling.clone(),
        deadline: Timestamp::from_millis(u64::MAX),
    })
}

/// So many words more of an answer.
async fn hear(words: &mut mpsc::UnboundedReceiver<Word>, count: usize) -> Answer {
    let mut answer = Vec::new();
    while answer.len() < count {
        match words.recv().await.unwrap() {
            Word::Token { token, logprob, .. } => answer.push(StageOutput::Token { token, logprob }),
            Word::End(end) => panic!("{end:?}"),
        }
    }
    answer
}

/// What a chain answers to questions, all of them at once.
async fn answers(
    cut: &mut Cut<'_>,
    wires: &Wires,
    split: &Split,
    questions: &[(Vec<u32>, Sampling); 2],
) -> Vec<Answer> {
    let places = 0..split.len();
    let nodes: Vec<Node> =
        places.map(|place| Node::new(split, place, cut.lend(split[place]), Replay::Exact)).collect();
    let _ = link(wires, split, &nodes, Epoch::new(1)).await;
    let asked = SESSIONS.into_iter().zip(questions);
    let asked: Vec<_> = asked.map(|(session, question)| ask(&nodes[0].member, session, question)).collect();
    let mut answers = Vec::new();
    for mut words in asked {
        answers.push(hear(&mut words, COUNT).await);
        assert_eq!(words.recv().await, Some(Word::End(End::Length)));
    }
    drop(nodes);
    cut.take_back(split.len()).await;
    answers
}

/// Checks a model over links of every kind: the logits of each split, and answers. In memory these are of each split,
/// too; over other links, which change nothing of who computes what when, of one split into each number of shards.
async fn check(dir: &Path) {
    let (mut cut, (layers, vocabulary)) = (Cut::new(dir), size(dir));
    let (conversation, questions) = (conversation(vocabulary), questions(vocabulary));
    let mut whole = cut.take((0, layers));
    let logits = run(&mut [&mut whole], &conversation);
    let expected = questions.each_ref().map(|question| alone(&mut whole, question));
    for &kind in Kind::ALL {
        let wires = Wires::new(kind, layers).await;
        for split in splits(layers).filter(|split| split.len() > 1) {
            let found = soon(Box::pin(gone_through(&mut cut, &wires, &split, &conversation))).await;
            assert!(same(&found, &logits), "{}, {kind:?}: {split:?}", dir.display());
        }
        let is_asked = |split: &Vec<(u16, u16)>| kind == Kind::Memory || is_even(split);
        for split in splits(layers).filter(is_asked) {
            let found = soon(Box::pin(answers(&mut cut, &wires, &split, &questions))).await;
            let is_same = found.iter().zip(&expected).all(|(found, expected)| same(found, expected));
            assert!(is_same, "{}, {kind:?}: {split:?}", dir.display());
        }
    }
}

/// Whether no run is longer than one before it, or shorter by more than one layer.
fn is_even(split: &Split) -> bool {
    let lengths = || split.iter().map(|(first, end)| end - first);
    lengths().is_sorted_by(|one, next| one >= next)
        && lengths().max() <= lengths().min().map(|least| least + 1)
}

/// Nothing in these tests takes long; whatever hangs fails.
async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), doing).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_every_kind_of_link_every_split_of_eight_layers_is_the_whole_model() {
    let [dense, _] = of_eight_layers();
    check(dense.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_every_kind_of_link_every_split_of_eight_layers_of_experts_is_the_whole_model() {
    let [_, experts] = of_eight_layers();
    check(experts.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_every_kind_of_link_every_split_of_a_model_of_each_family_is_the_whole_model() {
    for dir in FAMILIES.map(fixture) {
        check(&dir).await;
    }
}

/// The answer of three shards whose middle one is lost after half of the words, and by such a replay the one in its
/// place gets what it held.
async fn after_a_loss(dir: &Path, replay: Replay) -> Answer {
    let (split, epoch) = ([(0, 3), (3, 6), (6, 8)], Epoch::new(1));
    let (mut cut, wires) = (Cut::new(dir), Wires::new(Kind::Memory, 3).await);
    let question = &questions(size(dir).1)[0];
    let passes = question.0.len().div_ceil(PIECE.get() as usize) - 1 + COUNT / 2;
    let (turns, taken) = std::sync::mpsc::channel();
    (0..passes).for_each(|_| turns.send(()).unwrap());
    let mut lents = split.map(|range| cut.lend(range));
    lents[1].turns = Some(taken);
    let mut places = 0..;
    let mut nodes = lents.map(|lent| Node::new(&split, places.next().unwrap(), lent, replay));
    let _ = link(&wires, &split, &nodes, epoch).await;
    let mut words = ask(&nodes[0].member, SESSIONS[0], question);
    let mut answer = hear(&mut words, COUNT / 2).await;
    nodes[1] = Node::new(&split, 1, cut.lend(split[1]), replay);
    drop(turns); // The lost one ends with its pass.
    while nodes[0].reports.recv().await.unwrap() == Report::Linked(epoch) {}
    let _ = link(&wires, &split, &nodes, epoch.next()).await;
    answer.extend(hear(&mut words, COUNT - COUNT / 2).await);
    answer
}

/// By how much the most two answers of the same tokens differ in how likely these were.
fn difference(one: &Answer, other: &Answer) -> f32 {
    let likely = |output: &StageOutput| match output {
        StageOutput::Token { token, logprob: Some(Logprob { logprob, .. }) } => (*token, *logprob),
        other => panic!("{other:?}"),
    };
    let pairs = one.iter().map(likely).zip(other.iter().map(likely));
    pairs.fold(0.0, |most, ((token, one), (same, other))| {
        assert_eq!(token, same, "the same text");
        most.max((one - other).abs())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_in_pieces_of_any_length_gives_the_text_of_an_exact_one_and_on_the_processor_its_numbers() {
    for dir in &of_eight_layers() {
        let dir = dir.path();
        let (layers, vocabulary) = size(dir);
        let whole = alone(&mut stage(dir, (0, layers), layers), &questions(vocabulary)[0]);
        let ways = [1, 3, 512].map(|piece| Replay::Fast(NonZeroU32::new(piece).unwrap()));
        for replay in [Replay::Exact].into_iter().chain(ways) {
            let answer = soon(Box::pin(after_a_loss(dir, replay))).await;
            let most = difference(&answer, &whole);
            println!("{replay:?}: log-probabilities differ by {most:e} at most");
            assert!(same(&answer, &whole), "{replay:?}");
        }
    }
}
