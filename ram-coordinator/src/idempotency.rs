//! One answer for one `idempotency-key`, however often it is asked for. Pure: no clock, no I/O.
//!
//! ```text
//! (caller, key) --first time--> Running --well, or after a charge--> Kept, for ten minutes
//!                                  |                                   |  bytes run short
//!                                  +--before any charge--> forgotten   v
//!                                                                    NotKept: known, and no more than that
//! ```
//!
//! All of it lives in memory: an answer is never written to a disk, and a restart forgets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ram_chain::account::KeyId;
use ram_core::units::Timestamp;

/// Most keys known at once, over all callers: 20 MB without their answers.
const KEYS_MAX: usize = 65_536;

/// Whose keys: two callers who choose the same key do not meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// The holder of a key with an account.
    Key(KeyId),
    /// Whoever uses the demo key at this address.
    Demo(IpAddr),
}

/// SHA-256 of a request's body.
pub(crate) type Fingerprint = [u8; 32];

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long an answer is kept.
    pub(crate) kept: Duration,
    /// Bytes of all answers.
    pub(crate) bytes: usize,
    /// Keys of one caller.
    pub(crate) keys_per_owner: usize,
}

/// The answers that are kept; `T` is one of them.
pub(crate) struct Answers<T> {
    bounds: Bounds,
    owners: HashMap<Owner, Owned<T>>,
    /// What has ended, oldest first, by a number that rises with each end.
    ended: BTreeMap<u64, Ended>,
    /// Those of them whose answer is still here.
    kept: BTreeSet<u64>,
    bytes: usize,
    keys: usize,
    numbers: u64,
}

struct Owned<T> {
    by_key: HashMap<Box<str>, Entry<T>>,
    ended: BTreeSet<u64>,
}

struct Ended {
    at: Timestamp,
    owner: Owner,
    key: Box<str>,
}

struct Entry<T> {
    fingerprint: Fingerprint,
    state: State<T>,
}

enum State<T> {
    Running,
    Kept { answer: Arc<T>, bytes: usize, number: u64 },
    NotKept { number: u64 },
}

/// What is to be done with a request.
pub(crate) enum Begin<T> {
    /// It is new: run it, and say how it ended under this ticket.
    Run(Ticket),
    /// The first one still runs.
    Running,
    /// The key stands for another body.
    Reused,
    /// It has been answered, with this.
    Replay(Arc<T>),
    /// It has been answered, and the answer is gone.
    NotKept,
    /// The caller has as many running as it may have.
    Full,
}

/// A request that runs.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    owner: Owner,
    key: Box<str>,
}

/// How a request ended.
pub(crate) enum End<T> {
    /// Before any charge: it may run again.
    Forget,
    /// With this answer, of so many bytes.
    Keep(T, usize),
    /// After a charge, with an answer that is too long to keep.
    TooLong,
}

impl<T> Answers<T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            owners: HashMap::new(),
            ended: BTreeMap::new(),
            kept: BTreeSet::new(),
            bytes: 0,
            keys: 0,
            numbers: 0,
        }
    }

    /// Whether anything is kept at all.
    pub(crate) fn is_on(&self) -> bool {
        !self.bounds.kept.is_zero()
    }

    /// A request under `key` comes in.
    pub(crate) fn begin(&mut self, owner: Owner, key: &str, body: Fingerprint, now: Timestamp) -> Begin<T> {
        self.expire(now);
        let owned = self.owners.get(&owner);
        if let Some(entry) = owned.and_then(|owned| owned.by_key.get(key)) {
            return match &entry.state {
                _ if entry.fingerprint != body => Begin::Reused,
                State::Running => Begin::Running,
                State::Kept { answer, .. } => Begin::Replay(Arc::clone(answer)),
                State::NotKept { .. } => Begin::NotKept,
            };
        }
        let oldest = owned.and_then(|owned| owned.ended.first().copied());
        if owned.is_some_and(|owned| owned.by_key.len() >= self.bounds.keys_per_owner) {
            let Some(number) = oldest else { return Begin::Full };
            self.forget_ended(number);
        }
        if self.keys >= KEYS_MAX {
            let Some((&number, _)) = self.ended.first_key_value() else { return Begin::Full };
            self.forget_ended(number);
        }
        let key: Box<str> = key.into();
        let fresh = || Owned { by_key: HashMap::new(), ended: BTreeSet::new() };
        let owned = self.owners.entry(owner.clone()).or_insert_with(fresh);
        owned.by_key.insert(key.clone(), Entry { fingerprint: body, state: State::Running });
        self.keys += 1;
        Begin::Run(Ticket { owner, key })
    }

    /// A request has ended.
    pub(crate) fn end(&mut self, ticket: Ticket, end: End<T>, now: Timestamp) {
        let Ticket { owner, key } = ticket;
        self.numbers += 1;
        let number = self.numbers;
        let state = match end {
            End::Forget => return self.remove(&owner, &key),
            End::Keep(answer, bytes) if bytes <= self.bounds.bytes => {
                self.bytes += bytes;
                self.kept.insert(number);
                State::Kept { answer: Arc::new(answer), bytes, number }
            }
            End::Keep(..) | End::TooLong => State::NotKept { number },
        };
        let Some(owned) = self.owners.get_mut(&owner) else { return };
        let Some(entry) = owned.by_key.get_mut(&key) else { return };
        entry.state = state;
        owned.ended.insert(number);
        self.ended.insert(number, Ended { at: now, owner, key });
        while self.bytes > self.bounds.bytes {
            let Some(&number) = self.kept.first() else { break };
            self.drop_answer(number);
        }
    }

    /// Forgets all whose time is over.
    fn expire(&mut self, now: Timestamp) {
        while let Some((&number, ended)) = self.ended.first_key_value() {
            if now.since(ended.at) < self.bounds.kept {
                break;
            }
            self.forget_ended(number);
        }
    }

    fn forget_ended(&mut self, number: u64) {
        if let Some(Ended { owner, key, .. }) = self.ended.remove(&number) {
            self.remove(&owner, &key);
        }
    }

    fn remove(&mut self, owner: &Owner, key: &str) {
        let Some(owned) = self.owners.get_mut(owner) else { return };
        let Some(entry) = owned.by_key.remove(key) else { return };
        self.keys -= 1;
        match entry.state {
            State::Running => {}
            State::Kept { bytes, number, .. } => {
                self.bytes -= bytes;
                self.kept.remove(&number);
                owned.ended.remove(&number);
                self.ended.remove(&number);
            }
            State::NotKept { number } => {
                owned.ended.remove(&number);
                self.ended.remove(&number);
            }
        }
        if owned.by_key.is_empty() {
            self.owners.remove(owner);
        }
    }

    /// Lets go of an answer, and still knows that there was one.
    fn drop_answer(&mut self, number: u64) {
        self.kept.remove(&number);
        let Some(Ended { owner, key, .. }) = self.ended.get(&number) else { return };
        let entry = self.owners.get_mut(owner).and_then(|owned| owned.by_key.get_mut(key));
        if let Some(entry) = entry
            && let State::Kept { bytes, .. } = entry.state
        {
            self.bytes -= bytes;
            entry.state = State::NotKept { number };
        }
    }
}

impl<T> fmt::Debug for Answers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("keys", &self.keys)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: Fingerprint = [1; 32];

    fn answers() -> Answers<&'static str> {
        Answers::new(Bounds { kept: Duration::from_secs(600), bytes: 100, keys_per_owner: 3 })
    }

    fn demo(number: u8) -> Owner {
        Owner::Demo(IpAddr::from([192, 0, 2, number]))
    }

    fn at(s: u64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn run(answers: &mut Answers<&'static str>, key: &str, s: u64) -> Ticket {
        match answers.begin(demo(1), key, BODY, at(s)) {
            Begin::Run(ticket) => ticket,
            _ => panic!("{key} does not run"),
        }
    }

    fn told(answers: &mut Answers<&'static str>, key: &str, s: u64) -> &'static str {
        match answers.begin(demo(1), key, BODY, at(s)) {
            Begin::Run(_) => "run",
            Begin::Running => "running",
            Begin::Reused => "reused",
            Begin::Replay(answer) => *answer,
            Begin::NotKept => "not kept",
            Begin::Full => "full",
        }
    }

    #[test]
    fn one_answer_is_given_however_often_it_is_asked_for() {
        let mut answers = answers();
        let ticket = run(&mut answers, "a", 0);
        assert_eq!(told(&mut answers, "a", 1), "running");
        answers.end(ticket, End::Keep("Paris", 5), at(2));
        assert_eq!(told(&mut answers, "a", 3), "Paris");
        assert!(matches!(answers.begin(demo(1), "a", [2; 32], at(3)), Begin::Reused));
        assert!(matches!(answers.begin(demo(2), "a", [2; 32], at(3)), Begin::Run(_)), "another's key");
        assert_eq!(told(&mut answers, "a", 601), "Paris");
        assert_eq!(told(&mut answers, "a", 602), "run");
    }

    #[test]
    fn what_failed_before_any_charge_may_run_again() {
        let mut answers = answers();
        let ticket = run(&mut answers, "a", 0);
        answers.end(ticket, End::Forget, at(1));
        run(&mut answers, "a", 2);
    }

    #[test]
    fn the_oldest_answer_makes_room_but_is_never_paid_twice() {
        let mut answers = answers();
        for (key, answer) in [("a", "A"), ("b", "B")] {
            let ticket = run(&mut answers, key, 0);
            answers.end(ticket, End::Keep(answer, 60), at(1));
        }
        assert_eq!((told(&mut answers, "a", 2), told(&mut answers, "b", 2)), ("not kept", "B"));
        let ticket = run(&mut answers, "c", 3);
        answers.end(ticket, End::Keep("C", 101), at(3));
        assert_eq!((told(&mut answers, "c", 4), told(&mut answers, "b", 4)), ("not kept", "B"));
    }

    #[test]
    fn a_caller_has_so_many_keys_and_no_more() {
        let mut answers = answers();
        let first = run(&mut answers, "a", 0);
        run(&mut answers, "b", 0);
        run(&mut answers, "c", 0);
        assert_eq!(told(&mut answers, "d", 1), "full");
        answers.end(first, End::Keep("A", 1), at(1));
        assert_eq!(told(&mut answers, "d", 2), "run");
        assert_eq!(told(&mut answers, "a", 2), "full", "it made room for another");
    }

    #[test]
    fn nothing_of_a_key_or_an_answer_is_shown() {
        let mut answers = answers();
        let ticket = run(&mut answers, "canary-key", 0);
        answers.end(ticket, End::Keep("canary-answer", 5), at(1));
        assert!(!format!("{answers:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn whatever_happens_the_bounds_hold_and_the_books_agree(
            steps in prop::collection::vec((0..3_u8, 0..8_u8, 0..4_u8, 0..120_usize, 0..400_u64), 1..120)
        ) {
            let mut answers: Answers<()> =
                Answers::new(Bounds { kept: Duration::from_secs(600), bytes: 200, keys_per_owner: 4 });
            let (mut now, mut running) = (0, Vec::new());
            for (owner, key, what, bytes, step) in steps {
                now += step;
                if let Begin::Run(ticket) = answers.begin(demo(owner), &key.to_string(), BODY, at(now)) {
                    running.push(ticket);
                }
                if what > 0 && let Some(ticket) = running.pop() {
                    let end = match what {
                        1 => End::Forget,
                        2 => End::TooLong,
                        _ => End::Keep((), bytes),
                    };
                    answers.end(ticket, end, at(now));
                }
                let entries = || answers.owners.values().flat_map(|owned| owned.by_key.values());
                prop_assert_eq!(entries().count(), answers.keys);
                prop_assert!(answers.owners.values().all(|owned| owned.by_key.len() <= 4));
                let kept: usize = entries().map(|entry| match entry.state {
                    State::Kept { bytes, .. } => bytes,
                    _ => 0,
                }).sum();
                prop_assert_eq!(kept, answers.bytes);
                prop_assert!(answers.bytes <= 200);
                prop_assert_eq!(answers.ended.len() + running.len(), answers.keys);
            }
        }
    }
}
