//! Hundreds of answers at once over four shards, of which one dies again and again, the head among them: each answer is
//! the whole model's, nobody hears a token twice, and no room is lost.
//!
//! `RAM_SIEGE_SESSIONS=1000` asks for a thousand answers, and has a shard die two hundred times: a fifth as often.
//!
//! A head that dies takes its driver along: then every answer is begun anew at the next one, and what was heard before
//! is passed over, as a coordinator does it.

mod world;

use std::num::NonZeroU32;

use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Timestamp, TokenCount};
use ram_pipeline::driver::{Driver, Effect, End, Event, Request};
use ram_pipeline::worker::Replay;

use self::world::{CREDITS, Chain, whole};

const STAGES: u32 = 4;
/// Answers, where nobody says how many.
const SESSIONS: usize = 200;
/// Positions of each shard: for all sessions at once.
const ROOM: u64 = 1 << 16;

/// One answer.
struct Answer {
    prompt: Vec<u32>,
    count: usize,
    heard: Vec<u32>,
    /// Tokens that the present head has told.
    told: usize,
    ended: bool,
}

struct Siege {
    chain: Chain,
    driver: Driver,
    answers: Vec<Answer>,
    epoch: Epoch,
    /// xorshift64 (Marsaglia 2003).
    dice: u64,
}

impl Siege {
    fn new(seed: u64, replay: Replay) -> Self {
        let chain = Chain::roomy(STAGES, true, (1 << 24, ROOM), replay);
        let epoch = Epoch::new(1);
        let mut siege = Self { chain, driver: driver(epoch), answers: Vec::new(), epoch, dice: seed };
        for number in 0..sessions() {
            let length = 1 + siege.roll(24);
            let prompt = (0..length).map(|n| u32::try_from(n * 31 + number * 7).expect("small")).collect();
            let count = 4 + siege.roll(12);
            siege.answers.push(Answer { prompt, count, heard: Vec::new(), told: 0, ended: false });
        }
        (0..sessions()).for_each(|number| siege.submit(number));
        siege
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        usize::try_from(self.dice % sides as u64).expect("a small number")
    }

    fn submit(&mut self, number: usize) {
        let answer = &mut self.answers[number];
        answer.told = 0;
        let request = Request {
            session: JobId::from_bits(number as u128),
            prompt: answer.prompt.clone(),
            tokens_max: TokenCount::new(answer.count as u64),
            sampling: Sampling::default(),
            deadline: Timestamp::from_millis(u64::MAX),
        };
        self.handle(Event::Submit(request));
    }

    fn handle(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.driver.handle(event, Timestamp::from_millis(self.chain.now), &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.chain.nodes[0].from_above.push_back(frame),
                Effect::Token { session, token, .. } => {
                    let answer = self.answer(session);
                    assert!(!answer.ended, "nothing comes after the end");
                    match answer.heard.get(answer.told) {
                        Some(before) => assert_eq!(token, *before, "the same once more"),
                        None => answer.heard.push(token),
                    }
                    answer.told += 1;
                }
                Effect::Ended { session, end } => {
                    let answer = self.answer(session);
                    assert_eq!((end, answer.told), (End::Length, answer.count));
                    assert!(!std::mem::replace(&mut answer.ended, true), "it ends once");
                }
            }
        }
    }

    fn answer(&mut self, session: JobId) -> &mut Answer {
        &mut self.answers[usize::try_from(session.bits()).expect("a number of ours")]
    }

    /// A shard dies, a moment passes, and another takes its place.
    fn kill(&mut self, at: usize) {
        let is_head = at == 0;
        self.chain.kill(at);
        if is_head {
            self.driver = driver(self.epoch); // it knows of nothing
            self.chain.to_head.clear();
        }
        for _ in 0..50 {
            self.happens();
        }
        self.epoch = self.epoch.next();
        self.chain.rebuild(self.epoch);
        if is_head {
            self.chain.to_head.clear(); // what was on its way to the one before
        }
        self.handle(Event::Rebuilt { epoch: self.epoch, credits: CREDITS });
        let open: Vec<usize> =
            (0..self.answers.len()).filter(|n| is_head && !self.answers[*n].ended).collect();
        open.into_iter().for_each(|number| self.submit(number));
    }

    fn happens(&mut self) -> bool {
        self.chain.now += 1;
        let kinds = self.chain.kinds() + 1;
        let first = self.roll(kinds);
        (0..kinds).map(|turn| (first + turn) % kinds).any(|kind| {
            if kind < kinds - 1 {
                return self.chain.happens(kind);
            }
            self.chain.to_head.pop_front().map(|frame| self.handle(Event::Arrived(frame))).is_some()
        })
    }

    fn heard(&self) -> usize {
        self.answers.iter().map(|answer| answer.heard.len()).sum()
    }
}

fn driver(epoch: Epoch) -> Driver {
    Driver::new(epoch, NonZeroU32::new(8).expect("not zero"), CREDITS)
}

fn sessions() -> usize {
    let given = std::env::var("RAM_SIEGE_SESSIONS").ok();
    given.map_or(SESSIONS, |text| text.parse().expect("RAM_SIEGE_SESSIONS is a number"))
}

fn besiege(seed: u64, replay: Replay) {
    let kills = sessions() / 5;
    let mut siege = Siege::new(seed, replay);
    let all: usize = siege.answers.iter().map(|answer| answer.count).sum();
    let mut heads = 0;
    for kill in 0..kills {
        // Spread over the whole time, from the first prompt on.
        while siege.heard() * kills < all * kill {
            assert!(siege.happens(), "it hangs before kill {kill}");
        }
        let at = siege.roll(STAGES as usize);
        heads += usize::from(at == 0);
        siege.kill(at);
    }
    while siege.happens() {}
    assert!(heads > kills / 8, "the head died {heads} times");
    assert_eq!(siege.driver.running(), 0);
    for answer in &siege.answers {
        assert!(answer.ended);
        assert_eq!(answer.heard, whole(STAGES, &answer.prompt, answer.count));
    }
    siege.chain.rests();
    for node in &siege.chain.nodes {
        assert_eq!(node.worker.ledger().free(), TokenCount::new(ROOM));
        assert!(node.toy.sessions.is_empty());
    }
}

#[test]
fn deaths_among_many_answers_change_none_of_them() {
    besiege(1, Replay::Exact);
}

#[test]
fn nor_do_they_where_replays_go_in_pieces() {
    besiege(2, Replay::Fast(NonZeroU32::new(16).expect("not zero")));
}
