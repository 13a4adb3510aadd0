//! The sessions that a shard holds: what room each has, how far it has come, and by which tokens.
//!
//! ```text
//! 0 ………… computed ………… accepted ………… room
//!   kept    steps on their way   reserved
//! ```
//!
//! A step is accepted where the one before it ended: at that position, behind those very tokens, in that epoch. So keys
//! and values that belong to other tokens are never gone on with. Room is reserved when a session begins; what does not
//! fit is refused then, and not in the middle of an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::frame::{Code, KvCacheInit, Mark, Of, Step, Trim};

/// All sessions of a shard.
#[derive(Clone, Debug)]
pub struct Ledger {
    room: TokenCount,
    reserved: TokenCount,
    idle: Duration,
    sessions: BTreeMap<JobId, Session>,
}

/// One session.
#[derive(Clone, Debug)]
struct Session {
    epoch: Epoch,
    room: TokenCount,
    computed: Mark,
    accepted: Mark,
    /// Steps that were accepted and are not computed.
    on_their_way: u32,
    used: Timestamp,
}

impl Ledger {
    /// An empty ledger over keys and values for so many positions; sessions of which nothing is heard for `idle` are
    /// given up.
    #[must_use]
    pub const fn new(room: TokenCount, idle: Duration) -> Self {
        Self { room, reserved: TokenCount::ZERO, idle, sessions: BTreeMap::new() }
    }

    /// Positions that nobody has reserved.
    #[must_use]
    pub fn free(&self) -> TokenCount {
        self.room.saturating_sub(self.reserved)
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How far a session has been computed.
    #[must_use]
    pub fn computed(&self, session: JobId) -> Option<Mark> {
        self.sessions.get(&session).map(|session| session.computed)
    }

    /// A session's epoch.
    #[must_use]
    pub fn epoch(&self, session: JobId) -> Option<Epoch> {
        self.sessions.get(&session).map(|session| session.epoch)
    }

    /// Reserves room for a session. One of the same id and an earlier epoch is void.
    ///
    /// # Errors
    /// [`Code::Busy`] when there is no room now, [`Code::WrongShape`] when there never is; [`Code::WrongEpoch`] when
    /// the session is here in this epoch or a later one.
    pub fn open(&mut self, init: &KvCacheInit, now: Timestamp) -> Result<(), Code> {
        let Of { session, epoch } = init.of;
        if self.sessions.get(&session).is_some_and(|held| held.epoch >= epoch) {
            return Err(Code::WrongEpoch);
        }
        if init.positions > self.room || u32::try_from(init.positions.get()).is_err() {
            return Err(Code::WrongShape);
        }
        let void = self.sessions.get(&session).map_or(TokenCount::ZERO, |held| held.room);
        if init.positions > self.free().saturating_add(void) {
            return Err(Code::Busy);
        }
        self.close(session);
        self.reserved = self.reserved.saturating_add(init.positions);
        let (computed, accepted) = Default::default();
        let held = Session { epoch, room: init.positions, computed, accepted, on_their_way: 0, used: now };
        self.sessions.insert(session, held);
        Ok(())
    }

    /// Accepts a step that has arrived.
    ///
    /// # Errors
    /// [`Code::UnknownSession`], [`Code::WrongEpoch`]; [`Code::WrongPrefix`] when it does not begin where the session
    /// is; [`Code::WrongShape`] when it has no tokens, or more than there is room for.
    pub fn accept(&mut self, step: &Step, now: Timestamp) -> Result<(), Code> {
        let held = self.held(step.of)?;
        let start = Mark { position: step.position, prefix: step.prefix };
        if start != held.accepted {
            return Err(Code::WrongPrefix);
        }
        let end = step.position.checked_add(step.shape.rows).filter(|_| step.shape.rows > 0);
        let fits = |end: &u32| u64::from(*end) <= held.room.get();
        let position = end.filter(fits).ok_or(Code::WrongShape)?;
        held.accepted = Mark { position, prefix: step.after };
        held.on_their_way += 1;
        held.used = now;
        Ok(())
    }

    /// Whether a step that was accepted is still wanted: its session is here, in its epoch, and was not cut back since.
    #[must_use]
    pub fn wants(&self, step: &Step) -> bool {
        let held = self.sessions.get(&step.of.session).filter(|held| held.epoch == step.of.epoch);
        held.is_some_and(|held| {
            held.on_their_way > 0 && held.computed == Mark { position: step.position, prefix: step.prefix }
        })
    }

    /// A step that was accepted has been computed. Steps of a session are computed in the order in which they came.
    pub fn complete(&mut self, step: &Step, now: Timestamp) {
        if !self.wants(step) {
            return;
        }
        if let Some(held) = self.sessions.get_mut(&step.of.session) {
            held.computed = Mark { position: step.position + step.shape.rows, prefix: step.after };
            held.on_their_way -= 1;
            held.used = now;
        }
    }

    /// Nobody waits for what was accepted and is not computed.
    ///
    /// # Errors
    /// [`Code::UnknownSession`], [`Code::WrongEpoch`].
    pub fn cancel(&mut self, of: Of, now: Timestamp) -> Result<(), Code> {
        let held = self.held(of)?;
        held.accepted = held.computed;
        held.on_their_way = 0;
        held.used = now;
        Ok(())
    }

    /// Takes a session back to a position that was computed, and on to an epoch. What was accepted is void.
    ///
    /// # Errors
    /// [`Code::UnknownSession`]; [`Code::WrongEpoch`] for an earlier epoch; [`Code::WrongPrefix`] for a position that
    /// was not computed, or the present one with other tokens.
    pub fn trim(&mut self, trim: &Trim, now: Timestamp) -> Result<(), Code> {
        let held = self.sessions.get_mut(&trim.of.session).ok_or(Code::UnknownSession)?;
        if trim.of.epoch < held.epoch {
            return Err(Code::WrongEpoch);
        }
        let to = Mark { position: trim.position, prefix: trim.prefix };
        let here = trim.position == held.computed.position;
        if trim.position > held.computed.position || (here && to != held.computed) {
            return Err(Code::WrongPrefix);
        }
        if trim.position == 0 && to != Mark::default() {
            return Err(Code::WrongPrefix);
        }
        (held.computed, held.accepted, held.on_their_way) = (to, to, 0);
        (held.epoch, held.used) = (trim.of.epoch, now);
        Ok(())
    }

    /// Gives a session's room back; says whether there was one.
    pub fn close(&mut self, session: JobId) -> bool {
        let closed = self.sessions.remove(&session);
        if let Some(held) = &closed {
            self.reserved = self.reserved.saturating_sub(held.room);
        }
        closed.is_some()
    }

    /// The sessions of earlier epochs than this one.
    #[must_use]
    pub fn before(&self, epoch: Epoch) -> Vec<JobId> {
        self.sessions.iter().filter(|(_, held)| held.epoch < epoch).map(|(session, _)| *session).collect()
    }

    /// Nobody waits for any step that is on its way: the links that they came over are gone.
    pub fn cancel_all(&mut self) {
        for held in self.sessions.values_mut() {
            (held.accepted, held.on_their_way) = (held.computed, 0);
        }
    }

    /// Gives up the sessions of which nothing was heard for too long, but for those with steps on their way; says
    /// which.
    pub fn expire(&mut self, now: Timestamp) -> Vec<JobId> {
        let idle = |held: &Session| held.on_their_way == 0 && now.since(held.used) >= self.idle;
        let expired: Vec<JobId> =
            self.sessions.iter().filter(|(_, held)| idle(held)).map(|(session, _)| *session).collect();
        for session in &expired {
            self.close(*session);
        }
        expired
    }

    fn held(&mut self, of: Of) -> Result<&mut Session, Code> {
        let held = self.sessions.get_mut(&of.session).ok_or(Code::UnknownSession)?;
        if held.epoch == of.epoch { Ok(held) } else { Err(Code::WrongEpoch) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ram_core::job::Sampling;
    use ram_proto::frame::{PrefixHash, Spent, Want};
    use ram_proto::tensor::{Dtype, Shape};

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn of(session: u128, epoch: u64) -> Of {
        Of { session: JobId::from_bits(session), epoch: Epoch::new(epoch) }
    }

    fn init(of: Of, positions: u64) -> KvCacheInit {
        let (positions, picks) = (TokenCount::new(positions), TokenCount::ZERO);
        KvCacheInit { of, positions, sampling: Sampling::default(), picks, resume: None }
    }

    fn step(of: Of, position: u32, rows: u32, prefix: PrefixHash, after: PrefixHash) -> Step {
        let (shape, dtype, want) = (Shape { rows, cols: 8 }, Dtype::F32, Want::Nothing);
        Step { of, position, shape, dtype, prefix, after, want, deadline_ms: 1000, spent: Spent::default() }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn what_does_not_fit_is_refused_at_the_beginning() {
        let mut ledger = Ledger::new(TokenCount::new(100), IDLE);
        assert_eq!(ledger.open(&init(of(1, 1), 101), at(0)), Err(Code::WrongShape));
        assert_eq!(ledger.open(&init(of(1, 1), 60), at(0)), Ok(()));
        assert_eq!(ledger.open(&init(of(2, 1), 41), at(0)), Err(Code::Busy));
        assert_eq!(ledger.open(&init(of(2, 1), 40), at(0)), Ok(()));
        assert_eq!(ledger.free(), TokenCount::ZERO);
        // A session that begins anew has the room that it had.
        assert_eq!(ledger.open(&init(of(1, 2), 61), at(0)), Err(Code::Busy));
        assert_eq!(ledger.open(&init(of(1, 2), 60), at(0)), Ok(()));
        assert_eq!(ledger.open(&init(of(1, 2), 60), at(0)), Err(Code::WrongEpoch));
        assert_eq!(ledger.open(&init(of(1, 1), 60), at(0)), Err(Code::WrongEpoch));
        assert!(ledger.close(JobId::from_bits(1)) && !ledger.close(JobId::from_bits(1)));
        assert_eq!(ledger.free(), TokenCount::new(60));
    }

    #[test]
    fn a_step_goes_on_where_the_session_is_or_is_refused() {
        let mut ledger = Ledger::new(TokenCount::new(100), IDLE);
        let (none, first, second) =
            (PrefixHash::EMPTY, PrefixHash::EMPTY.with(&[7; 10]), PrefixHash::EMPTY.with(&[7; 11]));
        ledger.open(&init(of(1, 4), 12), at(0)).unwrap();
        let mut check = |step, expected| assert_eq!(ledger.accept(&step, at(0)), expected, "{step:?}");
        check(step(of(2, 4), 0, 10, none, first), Err(Code::UnknownSession));
        check(step(of(1, 3), 0, 10, none, first), Err(Code::WrongEpoch));
        check(step(of(1, 5), 0, 10, none, first), Err(Code::WrongEpoch));
        check(step(of(1, 4), 1, 10, none, first), Err(Code::WrongPrefix));
        check(step(of(1, 4), 0, 10, second, first), Err(Code::WrongPrefix));
        check(step(of(1, 4), 0, 0, none, none), Err(Code::WrongShape));
        check(step(of(1, 4), 0, 13, none, first), Err(Code::WrongShape));
        check(step(of(1, 4), 0, u32::MAX, none, first), Err(Code::WrongShape));
        check(step(of(1, 4), 0, 10, none, first), Ok(()));
        check(step(of(1, 4), 0, 10, none, first), Err(Code::WrongPrefix));
        check(step(of(1, 4), 10, 1, none, second), Err(Code::WrongPrefix));
        check(step(of(1, 4), 10, 1, first, second), Ok(()));
    }

    #[test]
    fn a_session_goes_back_and_its_late_steps_are_not_wanted() {
        let mut ledger = Ledger::new(TokenCount::new(100), IDLE);
        let hash = |tokens: usize| PrefixHash::EMPTY.with(&vec![7; tokens]);
        let (first, late) =
            (step(of(1, 1), 0, 10, hash(0), hash(10)), step(of(1, 1), 10, 1, hash(10), hash(11)));
        ledger.open(&init(of(1, 1), 50), at(0)).unwrap();
        ledger.accept(&first, at(0)).unwrap();
        ledger.accept(&late, at(0)).unwrap();
        assert!(ledger.wants(&first) && !ledger.wants(&late), "steps are computed in order");
        ledger.complete(&first, at(0));
        assert!(ledger.wants(&late));
        let mut trim = |epoch, position, tokens| {
            ledger.trim(&Trim { of: of(1, epoch), position, prefix: hash(tokens) }, at(0))
        };
        assert_eq!(trim(2, 11, 11), Err(Code::WrongPrefix), "it was not computed");
        assert_eq!(trim(2, 10, 9), Err(Code::WrongPrefix), "other tokens stand there");
        assert_eq!(trim(2, 0, 1), Err(Code::WrongPrefix), "no tokens have one hash");
        assert_eq!(trim(0, 5, 5), Err(Code::WrongEpoch));
        assert_eq!(trim(2, 5, 5), Ok(()));
        assert!(!ledger.wants(&late));
        ledger.complete(&late, at(0));
        assert_eq!(ledger.computed(JobId::from_bits(1)), Some(Mark { position: 5, prefix: hash(5) }));
        assert_eq!(ledger.accept(&step(of(1, 2), 5, 1, hash(5), hash(6)), at(0)), Ok(()));
    }

    #[test]
    fn a_session_that_is_not_heard_of_is_given_up() {
        let mut ledger = Ledger::new(TokenCount::new(100), IDLE);
        for session in 1..=3 {
            ledger.open(&init(of(session, 1), 10), at(0)).unwrap();
        }
        let waits = step(of(1, 1), 0, 1, PrefixHash::EMPTY, PrefixHash::EMPTY.with(&[1]));
        ledger.accept(&waits, at(0)).unwrap();
        ledger.cancel(of(2, 1), at(30_000)).unwrap();
        assert_eq!(ledger.expire(at(59_999)), []);
        assert_eq!(ledger.expire(at(60_000)), [JobId::from_bits(3)]);
        assert_eq!(ledger.expire(at(90_000)), [JobId::from_bits(2)]);
        assert_eq!((ledger.len(), ledger.free()), (1, TokenCount::new(90)));
    }

    proptest! {
        /// Whatever comes in whatever order: no more is reserved than there is, what is reserved is what the sessions
        /// hold, and nothing is left of those that have ended.
        #[test]
        fn no_room_is_lost_and_none_is_given_twice(
            events in prop::collection::vec((0_u8..6, 1_u128..6, 0_u64..4, 0_u32..40, 1_u32..20), 0..200),
        ) {
            let mut ledger = Ledger::new(TokenCount::new(100), IDLE);
            // As a worker has them: what was accepted and did not go another way since.
            let mut accepted: Vec<Step> = Vec::new();
            for (now, (kind, session, epoch, position, tokens)) in (0_u64..).step_by(3000).zip(events) {
                let (now, of) = (at(now), of(session, epoch));
                let hash = |tokens: u32| PrefixHash::EMPTY.with(&vec![1; tokens as usize]);
                let step = step(of, position, tokens, hash(position), hash(position + tokens));
                let is_other_way = match kind {
                    0 => ledger.open(&init(of, u64::from(position + tokens)), now).is_ok(),
                    1 => {
                        if ledger.accept(&step, now).is_ok() {
                            accepted.push(step);
                        }
                        false
                    }
                    2 => {
                        if !accepted.is_empty() {
                            ledger.complete(&accepted.remove(position as usize % accepted.len()), now);
                        }
                        false
                    }
                    3 => ledger.trim(&Trim { of, position, prefix: hash(position) }, now).is_ok(),
                    4 => ledger.cancel(of, now).is_ok(),
                    _ => ledger.close(of.session),
                };
                if is_other_way {
                    accepted.retain(|step| step.of.session != of.session);
                }
                ledger.expire(now);
                let held: u64 = ledger.sessions.values().map(|held| held.room.get()).sum();
                prop_assert_eq!(held + ledger.free().get(), 100);
                for held in ledger.sessions.values() {
                    prop_assert!(held.computed.position <= held.accepted.position);
                    prop_assert!(u64::from(held.accepted.position) <= held.room.get());
                    prop_assert_eq!(held.computed.prefix, hash(held.computed.position));
                    prop_assert_eq!(held.on_their_way == 0, held.computed == held.accepted);
                }
            }
            for session in 1..6 {
                ledger.close(JobId::from_bits(session));
            }
            prop_assert_eq!((ledger.free(), ledger.is_empty()), (TokenCount::new(100), true));
        }
    }
}
