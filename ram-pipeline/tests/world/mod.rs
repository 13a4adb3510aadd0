//! Workers over a toy model in a chain, and what is on its way between them.
#![allow(dead_code, reason = "each test has its own use of it")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, of which none is below zero"
)]

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_pipeline::worker::{Call, Effect, Event, Replay, Side, Worker, WorkerConfig};
use ram_proto::frame::{Code, Decoded, Decoder, Frame, Head, Limits, Want, Welcome};
use ram_proto::tensor::Dtype;

pub(crate) const WIDTH: u32 = 4;
pub(crate) const ROOM: u64 = 400;
pub(crate) const CREDITS: u32 = 3;

/// A stage whose output depends on all that its session put in before, and on nothing else.
pub(crate) struct Toy {
    number: u32,
    is_last: bool,
    pub(crate) sessions: BTreeMap<JobId, Kept>,
    /// Tokens that it was ever asked to compute.
    pub(crate) computed: usize,
}

/// What a toy keeps of a session.
pub(crate) struct Kept {
    opening: Opening,
    /// A number for each position.
    keys: Vec<u32>,
    /// Behind which positions tokens were picked.
    picked: Vec<usize>,
}

impl Kept {
    fn trim(&mut self, position: u32) {
        let position = position as usize;
        self.keys.truncate(position);
        self.picked.retain(|at| *at <= position);
    }
}

/// A whole number that f32 holds.
const fn mix(a: u32, b: u32) -> u32 {
    (a.wrapping_mul(0x9e37_79b1) ^ b.wrapping_mul(0x85eb_ca77)).wrapping_mul(0xc2b2_ae35) >> 9
}

fn number(x: f32) -> u32 {
    x as u32
}

impl Toy {
    pub(crate) fn new(number: u32, is_last: bool) -> Self {
        Self { number, is_last, sessions: BTreeMap::new(), computed: 0 }
    }
}

impl Stage for Toy {
    fn open(&mut self, session: JobId, opening: &Opening) -> Result<(), Code> {
        let kept = Kept { opening: opening.clone(), keys: Vec::new(), picked: Vec::new() };
        self.sessions.insert(session, kept);
        Ok(())
    }

    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code> {
        let step = |StageStep { session, position, input, want }: &StageStep| {
            let hidden = match input {
                Input::Tokens(tokens) => embed(tokens),
                Input::Hidden(hidden) => hidden.clone(),
            };
            // A session that was closed while its step waited for the stage.
            let Some(kept) = self.sessions.get_mut(session) else { return Ok(StageOutput::Nothing) };
            kept.trim(*position);
            let Kept { opening, keys, picked } = kept;
            assert_eq!(keys.len(), *position as usize, "a step goes on where the session is");
            let mut out = Vec::new();
            self.computed += hidden.len() / WIDTH as usize;
            for row in hidden.chunks(WIDTH as usize) {
                keys.push(row.iter().fold(self.number, |sum, x| mix(sum, number(*x))));
                assert!(keys.len() as u64 <= opening.positions.get(), "within what was reserved");
                let seen = keys.iter().fold(0, |sum, key| mix(sum, *key));
                out.extend((0..WIDTH).map(|lane| mix(seen, lane) as f32));
            }
            Ok(match want {
                _ if !self.is_last => StageOutput::Hidden(out),
                Want::Nothing => StageOutput::Nothing,
                Want::Logits => StageOutput::Logits(out),
                Want::Token => {
                    let pick = opening.picks.get() as usize + picked.len();
                    picked.push(keys.len());
                    StageOutput::Token { token: mix(number(out[out.len() - 1]), pick as u32), logprob: None }
                }
            })
        };
        steps.iter().map(step).collect()
    }

    fn trim(&mut self, session: JobId, position: u32) {
        self.sessions.get_mut(&session).expect("a session that is held").trim(position);
    }

    fn close(&mut self, session: JobId) {
        assert!(self.sessions.remove(&session).is_some(), "a session ends once");
    }
}

/// What the head's embedding makes of tokens.
pub(crate) fn embed(tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|token| (0..WIDTH).map(move |lane| mix(*token, lane) as f32)).collect()
}

/// The answer to a prompt, by all stages one after the other.
pub(crate) fn whole(stages: u32, prompt: &[u32], count: usize) -> Vec<u32> {
    let session = JobId::from_bits(1);
    let mut toys: Vec<Toy> = (1..=stages).map(|number| Toy::new(number, number == stages)).collect();
    for toy in &mut toys {
        toy.open(session, &opening()).expect("a toy takes all");
    }
    let (mut answer, mut position, mut next) = (Vec::new(), 0, prompt.to_vec());
    while answer.len() < count {
        let mut input = Input::Hidden(embed(&next));
        for toy in &mut toys {
            let step = StageStep { session, position, input: input.clone(), want: Want::Token };
            match toy.forward(&[step]).expect("a toy takes all").remove(0) {
                StageOutput::Hidden(hidden) => input = Input::Hidden(hidden),
                StageOutput::Token { token, .. } => answer.push(token),
                other => panic!("{other:?}"),
            }
        }
        position += next.len() as u32;
        next = vec![answer[answer.len() - 1]];
    }
    answer
}

fn opening() -> Opening {
    let (positions, picks) = (TokenCount::new(ROOM), TokenCount::ZERO);
    Opening { positions, sampling: Sampling::default(), seen: Vec::new(), picks }
}

/// One shard with its stage, and what is on its way to it.
pub(crate) struct Node {
    pub(crate) worker: Worker,
    pub(crate) toy: Toy,
    pub(crate) from_above: VecDeque<Frame>,
    from_below: VecDeque<Frame>,
    /// What the stage is busy with.
    computing: Option<Vec<StageStep>>,
    calls: VecDeque<Call>,
}

const WELCOME: Welcome = Welcome { version: 1, credits: CREDITS, kv_free: TokenCount::ZERO, sessions: 0 };

/// A chain, and what is on its way to the head.
pub(crate) struct Chain {
    pub(crate) nodes: Vec<Node>,
    pub(crate) to_head: VecDeque<Frame>,
    pub(crate) now: u64,
    log: u64,
    replay: Replay,
    room: u64,
}

/// Through bytes and back, as over a link.
fn over_the_wire(frame: &Frame) -> Frame {
    let mut decoder = Decoder::new(Limits::FULL);
    frame.put_prelude(decoder.room()).expect("short enough");
    decoder.room().extend_from_slice(&frame.payload);
    match decoder.next_frame() {
        Ok(Some(Decoded::Known(read))) => read,
        other => panic!("{other:?} of {frame:?}"),
    }
}

impl Chain {
    /// Of so many stages; `embeds` says that the first takes tokens.
    pub(crate) fn new(stages: u32, embeds: bool) -> Self {
        Self::with(stages, embeds, 1 << 20, Replay::Exact)
    }

    /// With logs of so many bytes, sent again so.
    pub(crate) fn with(stages: u32, embeds: bool, log: u64, replay: Replay) -> Self {
        Self::roomy(stages, embeds, (log, ROOM), replay)
    }

    /// With logs of so many bytes, and room for so many positions.
    pub(crate) fn roomy(stages: u32, embeds: bool, (log, room): (u64, u64), replay: Replay) -> Self {
        let node = |number| {
            let (is_first, is_last) = (embeds && number == 1, number == stages);
            let (room, idle) = (TokenCount::new(room), Duration::from_secs(600));
            let shards = NonZeroU16::new(stages as u16).expect("a chain has a shard");
            let (width, dtype) = (WIDTH, Dtype::F32);
            let (goes_back, log, replay) = (true, Bytes::new(log), replay);
            let config =
                WorkerConfig { room, width, dtype, is_first, is_last, idle, shards, goes_back, log, replay };
            let mut worker = Worker::new(config);
            worker.handle(Event::Welcomed(WELCOME), Timestamp::ZERO, &mut Vec::new());
            let (from_above, from_below, calls) = Default::default();
            Node { worker, toy: Toy::new(number, is_last), from_above, from_below, computing: None, calls }
        };
        let nodes = (1..=stages).map(node).collect();
        Self { nodes, to_head: VecDeque::new(), now: 0, log, replay, room }
    }

    fn handle(&mut self, at: usize, event: Event) {
        let mut effects = Vec::new();
        self.nodes[at].worker.handle(event, Timestamp::from_millis(self.now), &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { to: Side::Down, frame } => {
                    self.nodes[at + 1].from_above.push_back(over_the_wire(&frame));
                }
                Effect::Send { to: Side::Up, frame } if at > 0 => {
                    self.nodes[at - 1].from_below.push_back(over_the_wire(&frame));
                }
                Effect::Send { frame, .. } => self.to_head.push_back(over_the_wire(&frame)),
                Effect::Stage(call) => self.nodes[at].calls.push_back(call),
                Effect::HangUp(side) => panic!("shard {at} hangs up on {side:?}"),
            }
        }
        let Node { from_above, .. } = &self.nodes[(at + 1).min(self.nodes.len() - 1)];
        let steps = from_above
            .iter()
            .filter(|frame| matches!(frame.head, Head::ForwardPass(_) | Head::Replay(_)))
            .count();
        assert!(steps <= CREDITS as usize, "{steps} steps on their way");
    }

    /// A shard dies, and an empty one takes its place: those beside it hear of that, what was on its way is lost.
    pub(crate) fn kill(&mut self, at: usize) {
        let (count, sizes) = (self.nodes.len() as u32, (self.log, self.room));
        let fresh = Self::roomy(count, true, sizes, self.replay).nodes.swap_remove(at);
        self.nodes[at] = fresh;
        if let Some(above) = at.checked_sub(1) {
            self.nodes[above].from_below.clear();
            self.handle(above, Event::Lost(Side::Down));
        }
        if at + 1 < self.nodes.len() {
            self.nodes[at + 1].from_above.clear();
            self.handle(at + 1, Event::Lost(Side::Up));
        }
    }

    /// All links are made anew, in another epoch.
    pub(crate) fn rebuild(&mut self, epoch: Epoch) {
        self.to_head.retain(|frame| matches!(frame.head, Head::Result(_)));
        for at in 0..self.nodes.len() {
            self.nodes[at].from_above.clear();
            self.nodes[at].from_below.clear();
            self.handle(at, Event::Rebuilt(epoch));
        }
        for at in 1..self.nodes.len() {
            let welcome = Welcome { credits: CREDITS, ..self.nodes[at].worker.welcome() };
            self.handle(at - 1, Event::Welcomed(welcome));
        }
        // What was said of the links of before is not heard on the new ones.
        for node in &mut self.nodes {
            node.from_above.clear();
            node.from_below.clear();
        }
        self.to_head.retain(|frame| matches!(frame.head, Head::Result(_)));
    }

    /// Some time passes in which nobody wants anything.
    pub(crate) fn rests(&mut self) {
        self.now += 60_000;
        for at in 0..self.nodes.len() {
            self.handle(at, Event::Tick);
            while self.stage(at) {}
        }
    }

    /// How many things could happen next, at most.
    pub(crate) fn kinds(&self) -> usize {
        3 * self.nodes.len()
    }

    /// One of them; false when it cannot.
    pub(crate) fn happens(&mut self, kind: usize) -> bool {
        let at = kind / 3;
        let arrived = match kind % 3 {
            0 => self.nodes[at].from_above.pop_front().map(|frame| (Side::Up, frame)),
            1 => self.nodes[at].from_below.pop_front().map(|frame| (Side::Down, frame)),
            _ => return self.stage(at),
        };
        arrived.map(|(from, frame)| self.handle(at, Event::Arrived { from, frame })).is_some()
    }

    /// The stage begins or ends one thing.
    fn stage(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        if let Some(steps) = node.computing.take() {
            let outcome = node.toy.forward(&steps);
            self.handle(at, Event::Computed { outcome, took: Duration::from_millis(1) });
            return true;
        }
        match node.calls.pop_front() {
            None => return false,
            Some(Call::Open { session, opening }) => {
                node.toy.open(session, &opening).expect("a toy takes all");
            }
            Some(Call::Forward(steps)) => node.computing = Some(steps),
            Some(Call::Trim { session, position }) => node.toy.trim(session, position),
            Some(Call::Close(session)) => node.toy.close(session),
        }
        true
    }
}
