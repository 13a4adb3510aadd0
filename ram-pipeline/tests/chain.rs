//! Chains of workers over a toy model, under seeds: whatever is delivered, computed or heard of in whatever order, each
//! session gets the tokens that it gets from the model alone.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, of which none is below zero"
)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Timestamp, TokenCount};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_pipeline::worker::{Call, Effect, Event, Side, Worker, WorkerConfig};
use ram_proto::frame::{
    Code, Decoded, Decoder, Frame, Head, KvCacheInit, Limits, Of, PrefixHash, Refusal, Spent, Step,
    StepResult, Trim, Want, Welcome,
};
use ram_proto::tensor::{self, Dtype, Shape};

const WIDTH: u32 = 4;
const ROOM: u64 = 400;
const CREDITS: u32 = 3;

/// A stage whose output depends on all that its session put in before, and on nothing else.
struct Toy {
    number: u32,
    is_last: bool,
    sessions: BTreeMap<JobId, (Opening, Vec<u32>)>,
}

/// A whole number that f32 holds.
const fn mix(a: u32, b: u32) -> u32 {
    (a.wrapping_mul(0x9e37_79b1) ^ b.wrapping_mul(0x85eb_ca77)).wrapping_mul(0xc2b2_ae35) >> 9
}

fn number(x: f32) -> u32 {
    x as u32
}

impl Toy {
    fn new(number: u32, is_last: bool) -> Self {
        Self { number, is_last, sessions: BTreeMap::new() }
    }
}

impl Stage for Toy {
    fn open(&mut self, session: JobId, opening: &Opening) -> Result<(), Code> {
        self.sessions.insert(session, (opening.clone(), Vec::new()));
        Ok(())
    }

    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code> {
        let step = |StageStep { session, position, input, want }: &StageStep| {
            let Input::Hidden(hidden) = input else { return Err(Code::WrongShape) };
            // A session that was closed while its step waited for the stage.
            let Some((opening, kept)) = self.sessions.get_mut(session) else {
                return Ok(StageOutput::Nothing);
            };
            kept.truncate(*position as usize);
            assert_eq!(kept.len(), *position as usize, "a step goes on where the session is");
            let mut out = Vec::new();
            for row in hidden.chunks(WIDTH as usize) {
                kept.push(row.iter().fold(self.number, |sum, x| mix(sum, number(*x))));
                assert!(kept.len() as u64 <= opening.positions.get(), "within what was reserved");
                let seen = kept.iter().fold(0, |sum, key| mix(sum, *key));
                out.extend((0..WIDTH).map(|lane| mix(seen, lane) as f32));
            }
            Ok(match want {
                _ if !self.is_last => StageOutput::Hidden(out),
                Want::Nothing => StageOutput::Nothing,
                Want::Logits => StageOutput::Logits(out),
                Want::Token => {
                    let picks = opening.picks.get();
                    opening.picks = TokenCount::new(picks + 1);
                    StageOutput::Token { token: number(out[out.len() - 1]), logprob: None }
                }
            })
        };
        steps.iter().map(step).collect()
    }

    fn trim(&mut self, session: JobId, position: u32) {
        self.sessions.get_mut(&session).expect("a session that is held").1.truncate(position as usize);
    }

    fn close(&mut self, session: JobId) {
        assert!(self.sessions.remove(&session).is_some(), "a session ends once");
    }
}

/// What the head's embedding makes of tokens.
fn embed(tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|token| (0..WIDTH).map(move |lane| mix(*token, lane) as f32)).collect()
}

/// The answer to a prompt, by all stages one after the other.
fn whole(stages: u32, prompt: &[u32], count: usize) -> Vec<u32> {
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
struct Node {
    worker: Worker,
    toy: Toy,
    from_above: VecDeque<Frame>,
    from_below: VecDeque<Frame>,
    /// What the stage is busy with.
    computing: Option<Vec<StageStep>>,
    calls: VecDeque<Call>,
}

/// What the head wants of a session.
#[derive(Clone, Debug)]
struct Wish {
    prompt: Vec<u32>,
    /// The prompt's pieces have so many tokens.
    piece: usize,
    count: usize,
    /// After so many tokens of the answer it goes back by so many, once.
    back: Option<(usize, usize)>,
    /// After so many pieces nobody waits any more, with steps on their way.
    breaks: Option<(usize, Break)>,
}

/// What the head does when nobody waits.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// It goes on from the last result.
    Cancel,
    /// It ends.
    Close,
}

/// A session as the head sees it.
struct Asked {
    wish: Wish,
    of: Of,
    /// Prompt and answer.
    tokens: Vec<u32>,
    sent: usize,
    /// Up to where results have come.
    heard: usize,
    waits: bool,
    ended: bool,
}

impl Asked {
    /// Goes back to a position, in a new epoch.
    fn back_to(&mut self, position: usize) -> Frame {
        self.of.epoch = self.of.epoch.next();
        (self.sent, self.heard, self.waits) = (position, position, false);
        let prefix = PrefixHash::EMPTY.with(&self.tokens[..position]);
        Head::Trim(Trim { of: self.of, position: position as u32, prefix }).into()
    }
}

struct World {
    nodes: Vec<Node>,
    to_head: VecDeque<Frame>,
    refusals: Vec<Refusal>,
    credit: u32,
    asked: Vec<Asked>,
    now: u64,
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

impl World {
    fn new(stages: u32, wishes: &[Wish]) -> Self {
        let node = |number| {
            let is_last = number == stages;
            let (room, idle) = (TokenCount::new(ROOM), Duration::from_secs(600));
            let config = WorkerConfig { room, width: WIDTH, dtype: Dtype::F32, is_last, idle };
            let mut worker = Worker::new(config);
            let welcome = Welcome { version: 1, credits: CREDITS, kv_free: TokenCount::ZERO };
            worker.handle(Event::Welcomed(welcome), Timestamp::ZERO, &mut Vec::new());
            let (from_above, from_below, calls) = Default::default();
            Node { worker, toy: Toy::new(number, is_last), from_above, from_below, computing: None, calls }
        };
        let asked = wishes.iter().zip(1..).map(|(wish, session)| Asked {
            wish: wish.clone(),
            of: Of { session: JobId::from_bits(session), epoch: Epoch::new(1) },
            tokens: wish.prompt.clone(),
            sent: 0,
            heard: 0,
            waits: false,
            ended: false,
        });
        let mut world = Self {
            nodes: (1..=stages).map(node).collect(),
            to_head: VecDeque::new(),
            refusals: Vec::new(),
            credit: CREDITS,
            asked: asked.collect(),
            now: 0,
        };
        for asked in &world.asked {
            let most = asked.wish.prompt.len() + asked.wish.count;
            let init = KvCacheInit {
                of: asked.of,
                positions: TokenCount::new(most as u64),
                sampling: Sampling::default(),
                picks: TokenCount::ZERO,
            };
            world.nodes[0].from_above.push_back(Head::KvCacheInit(init).into());
        }
        world
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
        let steps = from_above.iter().filter(|frame| matches!(frame.head, Head::ForwardPass(_))).count();
        assert!(steps <= CREDITS as usize, "{steps} steps on their way");
    }

    /// Sends a piece of a session if there is one to be sent.
    fn send(&mut self, number: usize) -> bool {
        let asked = &mut self.asked[number];
        if let Some((_, kind)) = asked.wish.breaks.take_if(|(left, _)| *left == 0).filter(|_| !asked.ended) {
            let first = &mut self.nodes[0].from_above;
            match kind {
                Break::Close => {
                    asked.ended = true;
                    first.push_back(Head::Close(asked.of).into());
                }
                Break::Cancel => {
                    first.push_back(Head::Cancel(asked.of).into());
                    first.push_back(asked.back_to(asked.heard));
                }
            }
            return true;
        }
        if self.credit == 0 || asked.ended || asked.waits {
            return false;
        }
        let end = asked.tokens.len().min(asked.sent + asked.wish.piece);
        let tokens = &asked.tokens[asked.sent..end];
        asked.waits = end == asked.tokens.len();
        let step = Step {
            of: asked.of,
            position: asked.sent as u32,
            shape: Shape { rows: tokens.len() as u32, cols: WIDTH },
            dtype: Dtype::F32,
            prefix: PrefixHash::EMPTY.with(&asked.tokens[..asked.sent]),
            after: PrefixHash::EMPTY.with(&asked.tokens[..end]),
            want: if asked.waits { Want::Token } else { Want::Nothing },
            deadline_ms: u32::MAX,
            spent: Spent::default(),
        };
        let payload = tensor::encode(Dtype::F32, &embed(tokens)).freeze();
        asked.sent = end;
        if let Some((left, _)) = &mut asked.wish.breaks {
            *left -= 1;
        }
        self.credit -= 1;
        self.nodes[0].from_above.push_back(Frame { head: Head::ForwardPass(step), payload });
        true
    }

    fn at_head(&mut self) -> bool {
        let Some(frame) = self.to_head.pop_front() else { return false };
        match frame.head {
            Head::Credit { steps } => self.credit += steps,
            Head::Error(refusal) => self.refusals.push(refusal),
            Head::Heartbeat(_) => {}
            Head::Result(StepResult { of, position, token, .. }) => {
                let asked = self.asked.iter_mut().find(|asked| asked.of.session == of.session);
                let asked = asked.expect("a session that was asked for");
                if asked.ended || of != asked.of {
                    return true;
                }
                asked.heard = position as usize;
                let Some(token) = token else { return true };
                assert_eq!(position as usize, asked.tokens.len(), "a token comes once, in its place");
                asked.tokens.push(token);
                asked.waits = false;
                let answered = asked.tokens.len() - asked.wish.prompt.len();
                if answered == asked.wish.count {
                    asked.ended = true;
                    self.nodes[0].from_above.push_back(Head::Close(asked.of).into());
                } else if let Some((_, back)) = asked.wish.back.take_if(|(after, _)| *after == answered) {
                    let to = asked.sent - back.min(asked.sent);
                    asked.tokens.truncate(to.max(asked.wish.prompt.len()).min(asked.sent));
                    let frame = asked.back_to(to.min(asked.tokens.len() - 1));
                    self.nodes[0].from_above.push_back(frame);
                }
            }
            other => panic!("{other:?}"),
        }
        true
    }

    /// One thing of what could happen next, by `choice`; false when nothing could.
    fn happens(&mut self, choice: usize) -> bool {
        self.now += 1;
        let (nodes, asked) = (self.nodes.len(), self.asked.len());
        let kinds = 3 * nodes + asked + 1;
        (0..kinds).map(|turn| (choice + turn) % kinds).any(|kind| match kind {
            kind if kind < 3 * nodes => {
                let at = kind / 3;
                match kind % 3 {
                    0 => self.nodes[at].from_above.pop_front().map(|frame| (Side::Up, frame)),
                    1 => self.nodes[at].from_below.pop_front().map(|frame| (Side::Down, frame)),
                    _ => return self.stage(at),
                }
                .map(|(from, frame)| self.handle(at, Event::Arrived { from, frame }))
                .is_some()
            }
            kind if kind < 3 * nodes + asked => self.send(kind - 3 * nodes),
            _ => self.at_head(),
        })
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

fn wish() -> impl Strategy<Value = Wish> {
    let back = prop::option::of((1_usize..6, 1_usize..8));
    let prompt = prop::collection::vec(0_u32..1000, 1..40);
    let kind = prop_oneof![Just(Break::Cancel), Just(Break::Close)];
    let breaks = prop::option::of((1_usize..6, kind));
    (prompt, 1_usize..25, 1_usize..12, back, breaks).prop_map(|(prompt, piece, count, back, breaks)| Wish {
        prompt,
        piece,
        count,
        back,
        breaks,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_chain_answers_as_the_whole_does(
        stages in 1_u32..6,
        wishes in prop::collection::vec(wish(), 1..7),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
    ) {
        let mut world = World::new(stages, &wishes);
        for choice in choices.iter().cycle().take(100_000) {
            if !world.happens(choice.index(10_000)) {
                break;
            }
        }
        prop_assert!(world.refusals.is_empty(), "{:?}", world.refusals);
        for (asked, wish) in world.asked.iter().zip(&wishes) {
            prop_assert!(asked.ended, "a session hangs");
            let expected = whole(stages, &wish.prompt, wish.count);
            let answer = &asked.tokens[wish.prompt.len()..];
            prop_assert_eq!(answer, &expected[..answer.len()]);
        }
        for node in &world.nodes {
            prop_assert_eq!(node.worker.ledger().free(), TokenCount::new(ROOM));
            prop_assert!(node.toy.sessions.is_empty());
        }
        prop_assert_eq!(world.credit, CREDITS);
    }
}

#[test]
fn what_a_shard_cannot_do_is_told_to_the_head() {
    let wish = Wish { prompt: vec![1, 2, 3], piece: 8, count: 2, back: None, breaks: None };
    let check = |head: Head, payload: &[u8], expected: Code| {
        let mut world = World::new(3, std::slice::from_ref(&wish));
        let frame = Frame { head, payload: Bytes::copy_from_slice(payload) };
        world.nodes[0].from_above.push_back(frame.clone());
        while world.happens(0) {}
        let codes: Vec<Code> = world.refusals.iter().map(|refusal| refusal.code).collect();
        assert_eq!(codes, [expected]);
        assert!(world.asked[0].ended, "others go on");
        let spent = u32::from(matches!(frame.head, Head::ForwardPass(_)));
        assert_eq!(world.credit, CREDITS + spent, "a refused step gives its credit back");
    };
    let of = |session, epoch| Of { session: JobId::from_bits(session), epoch: Epoch::new(epoch) };
    let init = |of, positions| {
        let (positions, picks) = (TokenCount::new(positions), TokenCount::ZERO);
        Head::KvCacheInit(KvCacheInit { of, positions, sampling: Sampling::default(), picks })
    };
    check(init(of(9, 1), ROOM + 1), &[], Code::WrongShape);
    check(init(of(9, 1), ROOM), &[], Code::Busy);
    check(init(of(9, 1), 10), &[1, 2, 3], Code::WrongShape);
    check(init(of(1, 1), 10), &[], Code::WrongEpoch);
    let step = |of, rows, dtype| {
        let (prefix, after, spent) = (PrefixHash::EMPTY, PrefixHash::EMPTY.with(&[7]), Spent::default());
        let shape = Shape { rows, cols: WIDTH };
        Head::ForwardPass(Step {
            of,
            position: 0,
            shape,
            dtype,
            prefix,
            after,
            want: Want::Token,
            deadline_ms: 9,
            spent,
        })
    };
    check(step(of(9, 1), 1, Dtype::F32), &[0; 16], Code::UnknownSession);
    check(step(of(1, 2), 1, Dtype::F32), &[0; 16], Code::WrongEpoch);
    check(step(of(1, 1), 1, Dtype::F16), &[0; 8], Code::WrongShape);
    check(step(of(1, 1), 1, Dtype::F32), &[0; 15], Code::WrongShape);
    check(step(of(1, 1), u32::MAX, Dtype::F32), &[0; 16], Code::WrongShape);
    let back = Trim { of: of(1, 2), position: 3, prefix: PrefixHash::EMPTY };
    check(Head::Trim(back), &[], Code::WrongPrefix);
    check(Head::Cancel(of(9, 1)), &[], Code::UnknownSession);
}
