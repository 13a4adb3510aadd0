//! So many in a minute, for each caller: the generic cell rate algorithm, which remembers one instant a caller.
//!
//! A caller who was quiet for a minute may bring a minute's worth at once; after that each one takes its turn.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ram_core::units::Timestamp;

/// The minute that limits speak of, in microseconds.
const MINUTE_US: u64 = 60_000_000;
/// Most callers remembered at once: 10 MB. While so many are busy within one minute, another waits.
const CALLERS_MAX: usize = 100_000;
/// How long one more has to wait then, and how often those whose minute is over are looked for: that reads all.
const CROWDED_WAIT: Duration = Duration::from_secs(1);

/// So many in a minute for each `K`.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    per_minute: u32,
    callers: Mutex<Callers<K>>,
}

/// All callers that are remembered.
#[derive(Debug)]
struct Callers<K> {
    /// When each one has its whole minute again, in microseconds; forgotten once that is past.
    full_at: HashMap<K, u64>,
    /// When those whose minute is over were looked for, in microseconds.
    swept_at: Option<u64>,
}

/// What a caller has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// How many there are in a minute.
    pub(crate) limit: u32,
    /// How many of them are left now.
    pub(crate) remaining: u32,
    /// When all of them are there again.
    pub(crate) full_in: Duration,
}

/// A caller has nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooFast {
    /// When there is one again.
    pub(crate) wait: Duration,
    /// What the limit is.
    pub(crate) left: Left,
}

impl<K: Eq + Hash> Rates<K> {
    /// So many; 0 for any number.
    pub(crate) fn new(per_minute: u32) -> Self {
        let callers = Callers { full_at: HashMap::new(), swept_at: None };
        Self { per_minute, callers: Mutex::new(callers) }
    }

    /// Takes one; `None` where there is no limit.
    pub(crate) fn take(&self, caller: K, now: Timestamp) -> Option<Result<Left, TooFast>> {
        let each = self.each()?;
        let now = micros(now);
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = callers.full_at.get(&caller).copied().unwrap_or(0).max(now);
        if full_at - now + each > MINUTE_US {
            let wait = Duration::from_micros(full_at - now + each - MINUTE_US);
            return Some(Err(TooFast { wait, left: self.left(full_at - now, each) }));
        }
        if !callers.have_room_for(&caller, now) {
            let left = Left { limit: self.per_minute, remaining: 0, full_in: CROWDED_WAIT };
            return Some(Err(TooFast { wait: CROWDED_WAIT, left }));
        }
        callers.full_at.insert(caller, full_at + each);
        Some(Ok(self.left(full_at + each - now, each)))
    }

    /// Whether one is left, which is not taken.
    pub(crate) fn has_one(&self, caller: &K, now: Timestamp) -> bool {
        let Some(each) = self.each() else { return true };
        let now = micros(now);
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = callers.full_at.get(caller).copied().unwrap_or(0);
        full_at.saturating_sub(now) + each <= MINUTE_US && callers.have_room_for(caller, now)
    }

    /// The time that one of them stands for.
    fn each(&self) -> Option<u64> {
        MINUTE_US.checked_div(self.per_minute.into()).map(|each| each.max(1))
    }

    fn left(&self, ahead: u64, each: u64) -> Left {
        let remaining = MINUTE_US.saturating_sub(ahead) / each;
        Left {
            limit: self.per_minute,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX).min(self.per_minute),
            full_in: Duration::from_micros(ahead),
        }
    }
}

impl<K: Eq + Hash> Callers<K> {
    /// Whether this one is remembered or can be.
    fn have_room_for(&mut self, caller: &K, now: u64) -> bool {
        if self.full_at.len() < CALLERS_MAX || self.full_at.contains_key(caller) {
            return true;
        }
        // The difference, for a clock may have been set back.
        let may_sweep =
            self.swept_at.is_none_or(|at| u128::from(now.abs_diff(at)) >= CROWDED_WAIT.as_micros());
        if may_sweep {
            self.swept_at = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < CALLERS_MAX
    }
}

fn micros(at: Timestamp) -> u64 {
    at.as_millis().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_minutes_worth_comes_at_once_and_then_one_by_one() {
        let rates = Rates::new(60);
        for left in (0..60).rev() {
            assert_eq!(rates.take("a", at(0)).unwrap().unwrap().remaining, left);
        }
        let refused = rates.take("a", at(0)).unwrap().unwrap_err();
        assert_eq!((refused.wait, refused.left.remaining), (Duration::from_secs(1), 0));
        assert!(rates.take("a", at(999)).unwrap().is_err());
        assert!(rates.take("a", at(1000)).unwrap().is_ok());
        assert!(rates.take("a", at(1000)).unwrap().is_err());
        assert!(rates.take("b", at(1000)).unwrap().is_ok(), "another caller has a minute of its own");
        assert_eq!(rates.take("a", at(62_000)).unwrap().unwrap().remaining, 59);
    }

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let rates = Rates::new(0);
        assert_eq!(rates.take("a", at(0)), None);
        assert!(rates.has_one(&"a", at(0)));
    }

    #[test]
    fn asking_takes_nothing() {
        let rates = Rates::new(1);
        assert!(rates.has_one(&"a", at(0)) && rates.has_one(&"a", at(0)));
        assert!(rates.take("a", at(0)).unwrap().is_ok());
        assert!(!rates.has_one(&"a", at(0)) && rates.has_one(&"a", at(60_000)));
    }

    #[test]
    fn a_stranger_has_none_while_too_many_are_remembered_and_they_are_swept_once_a_second() {
        let rates = Rates::new(60);
        for caller in 0..CALLERS_MAX {
            assert!(rates.take(caller, at(0)).unwrap().is_ok());
        }
        let stranger = CALLERS_MAX;
        assert!(!rates.has_one(&stranger, at(500)), "nobody could count what it takes");
        assert!(rates.take(stranger, at(500)).unwrap().is_err());
        assert!(rates.has_one(&0, at(500)) && rates.take(0, at(500)).unwrap().is_ok());
        assert!(!rates.has_one(&stranger, at(1200)), "it is not a second since they were looked through");
        assert!(rates.has_one(&stranger, at(1500)));
        assert!(rates.take(stranger, at(1500)).unwrap().is_ok());
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_two_minutes_worth(limit in 1..100_u32, steps in prop::collection::vec(0..5000_u64, 1..300)) {
            let rates = Rates::new(limit);
            let (mut now, mut taken) = (0, Vec::new());
            for step in steps {
                now += step;
                if rates.take((), at(now)).unwrap().is_ok() {
                    taken.push(now);
                }
            }
            for (index, from) in taken.iter().enumerate() {
                let within = taken[index..].iter().take_while(|time| **time < from + 60_000).count();
                prop_assert!(within <= 2 * limit as usize);
            }
        }
    }
}
