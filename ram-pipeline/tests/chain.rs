//! Chains of workers over a toy model, under seeds: whatever is delivered, computed or heard of in whatever order, each
//! session gets the tokens that it gets from the model alone.

#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod world;

use bytes::Bytes;
use proptest::prelude::*;
use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::TokenCount;
use ram_proto::frame::{
    Code, Frame, Head, KvCacheInit, Of, PrefixHash, Refusal, Spent, Step, StepResult, Trim, Want,
};
use ram_proto::tensor::{self, Dtype, Shape};

use self::world::{CREDITS, Chain, ROOM, WIDTH, embed, whole};

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
    chain: Chain,
    refusals: Vec<Refusal>,
    credit: u32,
    asked: Vec<Asked>,
}

impl World {
    fn new(stages: u32, wishes: &[Wish]) -> Self {
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
            chain: Chain::new(stages, false),
            refusals: Vec::new(),
            credit: CREDITS,
            asked: asked.collect(),
        };
        for asked in &world.asked {
            let most = asked.wish.prompt.len() + asked.wish.count;
            let init = KvCacheInit {
                of: asked.of,
                positions: TokenCount::new(most as u64),
                sampling: Sampling::default(),
                picks: TokenCount::ZERO,
                resume: None,
            };
            world.chain.nodes[0].from_above.push_back(Head::KvCacheInit(init).into());
        }
        world
    }

    /// Sends a piece of a session if there is one to be sent.
    fn send(&mut self, number: usize) -> bool {
        let asked = &mut self.asked[number];
        if let Some((_, kind)) = asked.wish.breaks.take_if(|(left, _)| *left == 0).filter(|_| !asked.ended) {
            let first = &mut self.chain.nodes[0].from_above;
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
        self.chain.nodes[0].from_above.push_back(Frame { head: Head::ForwardPass(step), payload });
        true
    }

    fn at_head(&mut self) -> bool {
        let Some(frame) = self.chain.to_head.pop_front() else { return false };
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
                    self.chain.nodes[0].from_above.push_back(Head::Close(asked.of).into());
                } else if let Some((_, back)) = asked.wish.back.take_if(|(after, _)| *after == answered) {
                    let to = asked.sent - back.min(asked.sent);
                    asked.tokens.truncate(to.max(asked.wish.prompt.len()).min(asked.sent));
                    let frame = asked.back_to(to.min(asked.tokens.len() - 1));
                    self.chain.nodes[0].from_above.push_back(frame);
                }
            }
            other => panic!("{other:?}"),
        }
        true
    }

    /// One thing of what could happen next, by `choice`; false when nothing could.
    fn happens(&mut self, choice: usize) -> bool {
        self.chain.now += 1;
        let (inside, asked) = (self.chain.kinds(), self.asked.len());
        let kinds = inside + asked + 1;
        (0..kinds).map(|turn| (choice + turn) % kinds).any(|kind| match kind {
            kind if kind < inside => self.chain.happens(kind),
            kind if kind < inside + asked => self.send(kind - inside),
            _ => self.at_head(),
        })
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
        for node in &world.chain.nodes {
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
        world.chain.nodes[0].from_above.push_back(frame.clone());
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
        Head::KvCacheInit(KvCacheInit { of, positions, sampling: Sampling::default(), picks, resume: None })
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
