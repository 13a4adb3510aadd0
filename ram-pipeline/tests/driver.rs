//! A head's driver over chains of workers, under seeds: every request gets the answer that the whole model gives,
//! whatever is asked beside it, or ends with a reason.

mod world;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use proptest::prelude::*;
use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Timestamp, TokenCount};
use ram_pipeline::driver::{Driver, Effect, End, Event, Request};
use ram_pipeline::worker::Replay;
use ram_proto::frame::Code;

use self::world::{CREDITS, Chain, ROOM, whole};

/// What somebody wants.
#[derive(Clone, Debug)]
struct Wish {
    prompt: Vec<u32>,
    count: u64,
    /// After so many tokens it is enough.
    enough: Option<usize>,
    /// Nobody waits any longer than so many milliseconds.
    patience: u64,
}

fn number(session: JobId) -> usize {
    usize::try_from(session.bits()).expect("a small number")
}

struct World {
    chain: Chain,
    driver: Driver,
    wishes: Vec<Wish>,
    /// The next wish.
    next: usize,
    answers: BTreeMap<JobId, (Vec<u32>, Option<End>)>,
    /// Shards that will die, as numbers for whatever chain there is.
    deaths: Vec<usize>,
    epoch: Epoch,
    /// Whether a shard died and the chain is not whole again.
    broken: bool,
}

impl World {
    fn new(stages: u32, piece: u32, wishes: Vec<Wish>, deaths: Vec<usize>) -> Self {
        Self::over(Chain::new(stages, true), piece, wishes, deaths)
    }

    fn over(chain: Chain, piece: u32, wishes: Vec<Wish>, deaths: Vec<usize>) -> Self {
        let (piece, epoch) = (NonZeroU32::new(piece).expect("a piece has a token"), Epoch::new(1));
        let driver = Driver::new(epoch, piece, CREDITS);
        Self { chain, driver, wishes, next: 0, answers: BTreeMap::new(), deaths, epoch, broken: false }
    }

    fn handle(&mut self, event: Event) {
        let (mut effects, now) = (Vec::new(), Timestamp::from_millis(self.chain.now));
        self.driver.handle(event, now, &mut effects);
        let mut enough = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.chain.nodes[0].from_above.push_back(frame),
                Effect::Token { session, token, .. } => {
                    let (answer, end) = self.answers.get_mut(&session).expect("a session that was asked for");
                    assert!(end.is_none(), "nothing comes after the end");
                    answer.push(token);
                    if self.wishes[number(session)].enough == Some(answer.len()) {
                        enough.push(session);
                    }
                }
                Effect::Ended { session, end } => {
                    let ended =
                        self.answers.get_mut(&session).expect("a session that was asked for").1.replace(end);
                    assert_eq!(ended, None, "it ends once");
                }
            }
        }
        for session in enough {
            self.handle(Event::Enough(session));
        }
    }

    fn submit(&mut self) -> bool {
        let Some(wish) = self.wishes.get(self.next) else { return false };
        let session = JobId::from_bits(self.next as u128);
        let request = Request {
            session,
            prompt: wish.prompt.clone(),
            tokens_max: TokenCount::new(wish.count),
            sampling: Sampling::default(),
            deadline: Timestamp::from_millis(self.chain.now.saturating_add(wish.patience)),
        };
        self.next += 1;
        self.answers.insert(session, (Vec::new(), None));
        self.handle(Event::Submit(request));
        true
    }

    /// A shard behind the head's own dies, if one is to.
    fn dies(&mut self) {
        let behind = self.chain.nodes.len() - 1;
        if behind > 0
            && let Some(death) = self.deaths.pop()
        {
            self.broken = true;
            self.chain.kill(1 + death % behind);
        }
    }

    /// There is another chain, if the one before was broken.
    fn is_whole_again(&mut self) -> bool {
        let was_broken = std::mem::take(&mut self.broken);
        if was_broken {
            self.epoch = self.epoch.next();
            self.chain.rebuild(self.epoch);
            self.handle(Event::Rebuilt { epoch: self.epoch, credits: CREDITS });
        }
        was_broken
    }

    fn happens(&mut self, choice: usize) -> bool {
        self.chain.now += 1;
        if choice % 37 == 5 {
            self.dies();
        }
        let inside = self.chain.kinds();
        let kinds = inside + 3;
        (0..kinds).map(|turn| (choice + turn) % kinds).any(|kind| match kind {
            kind if kind < inside => self.chain.happens(kind),
            kind if kind == inside => self.submit(),
            kind if kind == inside + 1 => self.is_whole_again(),
            _ => self.chain.to_head.pop_front().map(|frame| self.handle(Event::Arrived(frame))).is_some(),
        })
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    let prompt = prop::collection::vec(0_u32..1000, 1..60);
    let patience = prop_oneof![4 => Just(u64::MAX), 1 => 1_u64..300];
    (prompt, 1_u64..12, prop::option::weighted(0.3, 1_usize..6), patience)
        .prop_map(|(prompt, count, enough, patience)| Wish { prompt, count, enough, patience })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_request_gets_its_own_answer_whatever_shards_die(
        (stages, piece) in (1_u32..6, 1_u32..30),
        wishes in prop::collection::vec(wish(), 1..16),
        deaths in prop::collection::vec(any::<usize>(), 0..6),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
        log in prop_oneof![3 => Just(1_u64 << 20), 1 => 0_u64..3000],
        at_once in prop::option::of(1_u32..40),
    ) {
        let replay = at_once.and_then(NonZeroU32::new).map_or(Replay::Exact, Replay::Fast);
        let chain = Chain::with(stages, true, log, replay);
        let mut world = World::over(chain, piece, wishes.clone(), deaths);
        for choice in choices.iter().cycle().take(200_000) {
            if !world.happens(choice.index(10_000)) {
                break;
            }
        }
        prop_assert_eq!((world.driver.running(), world.answers.len()), (0, wishes.len()));
        for (wish, (answer, end)) in wishes.iter().zip(world.answers.values()) {
            let expected = whole(stages, &wish.prompt, usize::try_from(wish.count).unwrap());
            prop_assert_eq!(&answer[..], &expected[..answer.len()]);
            let most = wish.prompt.len() as u64 + wish.count;
            match end.expect("each ends") {
                End::Length => prop_assert_eq!(answer.len(), expected.len()),
                End::Enough => prop_assert_eq!(Some(answer.len()), wish.enough),
                End::Failed(Code::Busy) => prop_assert!(answer.is_empty() && wishes.len() > 1 && most <= ROOM),
                End::Failed(Code::DeadlineExceeded) => prop_assert!(wish.patience < 300),
                End::Failed(code) => prop_assert!(false, "{code:?}"),
            }
        }
        world.chain.rests();
        for node in &world.chain.nodes {
            prop_assert_eq!(node.worker.ledger().free(), TokenCount::new(ROOM));
            prop_assert!(node.toy.sessions.is_empty());
        }
    }
}

#[test]
fn a_lost_shard_costs_what_its_own_layers_take() {
    let check = |stages: u32, dies: &[usize], replay| {
        let wish = Wish { prompt: (0..20).collect(), count: 9, enough: None, patience: u64::MAX };
        let chain = Chain::with(stages, true, 1 << 20, replay);
        let mut world = World::over(chain, 8, vec![wish.clone()], Vec::new());
        world.submit();
        while world.answers[&JobId::from_bits(0)].0.len() < 4 {
            assert!(world.happens(0));
        }
        let before: Vec<usize> = world.chain.nodes.iter().map(|node| node.toy.computed).collect();
        for at in dies {
            world.chain.kill(*at);
        }
        world.broken = true;
        while world.happens(0) {}
        assert_eq!(world.answers[&JobId::from_bits(0)].0, whole(stages, &wish.prompt, 9));
        for (at, (node, before)) in world.chain.nodes.iter().zip(before).enumerate() {
            // Those that live compute again what was on its way, at most.
            let computed = node.toy.computed;
            let expected = if dies.contains(&at) { 20 + 8..=20 + 8 } else { 20 + 8..=20 + 9 };
            assert!(expected.contains(&computed), "shard {at}: {computed} tokens, {before} before");
        }
    };
    let eight = NonZeroU32::new(8).expect("not zero");
    for replay in [Replay::Exact, Replay::Fast(eight)] {
        for dies in [&[1][..], &[2], &[3], &[1, 2], &[1, 3], &[2, 3], &[1, 2, 3]] {
            check(4, dies, replay);
        }
    }
}

#[test]
fn a_request_that_makes_no_sense_is_refused_at_once() {
    let check = |prompt: &[u32], count, expected| {
        let wish = Wish { prompt: prompt.to_vec(), count, enough: None, patience: u64::MAX };
        let mut world = World::new(2, 8, vec![wish], Vec::new());
        world.submit();
        while world.happens(0) {}
        assert_eq!(world.answers[&JobId::from_bits(0)], (Vec::new(), Some(End::Failed(expected))));
    };
    check(&[], 3, Code::WrongShape);
    check(&[1], 0, Code::WrongShape);
    check(&[1], u64::MAX, Code::WrongShape);
    check(&[1; 300], 101, Code::WrongShape);
}

#[test]
fn what_is_being_answered_is_not_begun_again() {
    let piece = NonZeroU32::new(8).expect("not zero");
    let mut driver = Driver::new(Epoch::new(1), piece, CREDITS);
    let (prompt, tokens_max, sampling) = (vec![1, 2], TokenCount::new(3), Sampling::default());
    let deadline = Timestamp::from_millis(100);
    let request = Request { session: JobId::from_bits(1), prompt, tokens_max, sampling, deadline };
    let mut effects = Vec::new();
    driver.handle(Event::Submit(request.clone()), Timestamp::ZERO, &mut effects);
    assert_eq!(std::mem::take(&mut effects).len(), 2, "room and a piece");
    driver.handle(Event::Submit(request), Timestamp::ZERO, &mut effects);
    assert_eq!((effects, driver.running()), (Vec::new(), 1));
}

#[test]
fn without_another_chain_every_answer_ends_with_a_reason() {
    let wish = Wish { prompt: vec![5; 20], count: 9, enough: None, patience: 500 };
    let broken = || {
        let mut world = World::new(3, 4, vec![wish.clone(); 3], Vec::new());
        while world.submit() {}
        for choice in 0..40 {
            world.happens(choice * 7);
        }
        world.chain.kill(2);
        while world.happens(0) {}
        assert_eq!(world.driver.running(), 3);
        world
    };
    let check = |mut world: World, event, code| {
        world.handle(event);
        assert_eq!(world.driver.running(), 0);
        assert!(world.answers.values().all(|(_, end)| *end == Some(End::Failed(code))));
    };
    check(broken(), Event::Hopeless(Code::LinkLost), Code::LinkLost);
    let mut late = broken();
    late.chain.now = 499;
    late.handle(Event::Tick);
    assert_eq!(late.driver.running(), 3);
    late.chain.now = 600;
    check(late, Event::Tick, Code::DeadlineExceeded);
}
