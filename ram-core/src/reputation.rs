//! How far a node is trusted: a score that its deeds move and that time draws back to the middle.
//!
//! ```text
//! 0 ----------- FLOOR ------------- NEUTRAL ------------------------- 1000 ‰
//!  gets no work until time has        a node that nothing is known of
//!  brought it back over the floor
//! ```
//!
//! A good result closes a small part of the gap to the top; a fault takes a fixed step down. What is left of good and
//! bad deeds halves every [`HALF_LIFE`], so that nobody is locked out for ever, and waiting is never worse than coming
//! back under a new key. Integers only: the same deeds at the same times give the same score on any machine.

use std::time::Duration;

use crate::units::{Permille, Timestamp};

/// What a node has that nothing is known of.
pub const NEUTRAL: Permille = Permille::new(500);
/// Below this a node gets no work. A stranger's first lie leads there; failures alone never do, for a network of one
/// machine needs that machine once it is mended.
pub const FLOOR: Permille = Permille::new(250);
/// The time in which the distance from [`NEUTRAL`] halves: after a lie a node is back in half a day, and a month later
/// nobody knows.
pub const HALF_LIFE: Duration = Duration::from_secs(2 * 24 * 3600);

/// Parts of a thousandth in which scores are kept, so that slow movements are not rounded away.
const FINE: u32 = 1000;
const TOP: u32 = 1000 * FINE;
const MIDDLE: u32 = NEUTRAL.get() * FINE;
/// Time passes in steps of a minute; what is left of one waits for the next, so that it does not matter how often
/// somebody looks.
const STEP_MS: u64 = 60_000;
/// What a step leaves of the distance from the middle, of 2^32: 2^(-1/2880), for 2880 minutes are a half-life.
const STEP_LEAVES: u64 = 4_293_933_724;
/// After so many steps nothing is left: 2^-32 of any distance.
const STEPS_MAX: u64 = 32 * 2880;

/// What a good result closes of the gap to the top: from the middle, 140 of them make half the way.
const SERVED_PART: u32 = 200;
/// What a result that earns no reward takes: little, for its user may have asked for it.
const UNREWARDED_STEP: u32 = 5 * FINE;
/// What a failure takes. Machines fail; one that mostly does is chosen last.
const FAILED_STEP: u32 = 25 * FINE;
/// What a lie takes: three, and the best name is gone.
const REFUSED_STEP: u32 = 300 * FINE;

/// What a node did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// It gave a good result.
    Served,
    /// It gave a result that is paid and not rewarded. Takes back what was earned, but never leads below the middle: a
    /// user can ask for such results, and must not be able to lock a node out.
    Unrewarded,
    /// It failed a job by its own fault, or vanished with it. Never leads below the floor.
    Failed,
    /// It claimed what cannot be.
    Refused,
}

/// How far a node was trusted at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reputation {
    /// Thousandths of a thousandth, 0 to [`TOP`].
    level: u32,
    at: Timestamp,
}

impl Reputation {
    /// Of a node that nothing is known of.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self { level: MIDDLE, at: now }
    }

    /// As [`Self::parts`] told it; a level above the top is the top.
    #[must_use]
    pub fn from_parts(level: u32, at: Timestamp) -> Self {
        Self { level: level.min(TOP), at }
    }

    /// The score in millionths and the time at which it was that, to be kept.
    #[must_use]
    pub const fn parts(self) -> (u32, Timestamp) {
        (self.level, self.at)
    }

    /// The score at `now`.
    #[must_use]
    pub fn score(self, now: Timestamp) -> Permille {
        Permille::new(self.faded(now).level / FINE)
    }

    /// The reputation at `now`, when time has done its part. A time before its own changes nothing.
    #[must_use]
    pub fn faded(self, now: Timestamp) -> Self {
        let steps = now.as_millis().saturating_sub(self.at.as_millis()) / STEP_MS;
        let at = self.at.after(Duration::from_millis(steps * STEP_MS));
        let left = if steps >= STEPS_MAX { 0 } else { power(STEP_LEAVES, steps) };
        let distance = |far: u32| {
            let faded = (u64::from(far) * left) >> 32;
            u32::try_from(faded).unwrap_or(far)
        };
        let level = if self.level >= MIDDLE {
            MIDDLE + distance(self.level - MIDDLE)
        } else {
            MIDDLE - distance(MIDDLE - self.level)
        };
        Self { level, at }
    }

    /// The reputation after a deed.
    #[must_use]
    pub fn after(self, deed: Deed, now: Timestamp) -> Self {
        let Self { level, at } = self.faded(now);
        let level = match deed {
            Deed::Served => level + (TOP - level) / SERVED_PART,
            Deed::Unrewarded => level.saturating_sub(UNREWARDED_STEP).max(level.min(MIDDLE)),
            Deed::Failed => level.saturating_sub(FAILED_STEP).max(level.min(FLOOR.get() * FINE)),
            Deed::Refused => level.saturating_sub(REFUSED_STEP),
        };
        Self { level, at }
    }

    /// Whether it says no more of a node at `now` than that nothing is known of it.
    #[must_use]
    pub fn is_neutral(self, now: Timestamp) -> bool {
        self.faded(now).level.abs_diff(MIDDLE) < FINE
    }
}

/// `base` / 2^32 to the power of `exponent`, times 2^32, rounded down at each of its few multiplications.
fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut product = 1_u64 << 32;
    while exponent > 0 {
        if exponent % 2 == 1 {
            product = (product * base) >> 32; // at most 2^32 times less than 2^32
        }
        base = (base * base) >> 32;
        exponent /= 2;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn any_deed() -> impl Strategy<Value = Deed> {
        prop_oneof![Just(Deed::Served), Just(Deed::Unrewarded), Just(Deed::Failed), Just(Deed::Refused)]
    }

    fn any_reputation() -> impl Strategy<Value = Reputation> {
        (0..=TOP).prop_map(|level| Reputation::from_parts(level, START))
    }

    fn times(mut reputation: Reputation, count: u32, deed: Deed) -> u32 {
        for _ in 0..count {
            reputation = reputation.after(deed, START);
        }
        reputation.score(START).get()
    }

    #[test]
    fn good_work_raises_slowly_and_lies_cost_steeply() {
        let stranger = Reputation::new(START);
        assert_eq!(times(stranger, 0, Deed::Served), 500);
        assert_eq!(times(stranger, 140, Deed::Served), 752);
        assert_eq!(times(stranger, 5000, Deed::Served), 999);
        assert_eq!(times(stranger, 1, Deed::Refused), 200);
        assert_eq!(times(stranger, 4, Deed::Failed), 400);
        assert_eq!(times(stranger, 100, Deed::Failed), FLOOR.get());
    }

    #[test]
    fn half_of_what_was_done_is_left_after_the_half_life() {
        let check = |level: u32, wait: Duration, expected: u32| {
            let then = Reputation::from_parts(level * FINE, START).score(START.after(wait)).get();
            assert!(then.abs_diff(expected) <= 1, "{level} became {then}");
        };
        check(0, HALF_LIFE, 250);
        check(1000, HALF_LIFE, 750);
        check(900, HALF_LIFE * 2, 600);
        check(0, Duration::from_secs(60 * 24 * 3600), 500);
        check(0, Duration::from_secs(u64::MAX / 1000), 500);
    }

    #[test]
    fn who_lied_once_works_again_within_a_day_and_who_lied_always_within_three() {
        let is_trusted = |reputation: Reputation, hours: u64| {
            reputation.score(START.after(Duration::from_secs(hours * 3600))) >= FLOOR
        };
        let once = Reputation::new(START).after(Deed::Refused, START);
        assert!(!is_trusted(once, 0) && is_trusted(once, 24));
        let always = Reputation::from_parts(0, START);
        assert!(!is_trusted(always, 24) && is_trusted(always, 72));
    }

    #[test]
    fn no_number_of_junk_answers_brings_a_node_below_the_middle() {
        assert_eq!(times(Reputation::from_parts(900 * FINE, START), 1000, Deed::Unrewarded), 500);
        assert_eq!(times(Reputation::from_parts(300 * FINE, START), 1000, Deed::Unrewarded), 300);
    }

    proptest! {
        #[test]
        fn a_score_stays_within_its_bounds(
            deeds in proptest::collection::vec((any_deed(), 0u64..90_000_000), 0..200),
        ) {
            let (mut reputation, mut now) = (Reputation::new(START), START);
            for (deed, wait) in deeds {
                now = now.after(Duration::from_millis(wait));
                reputation = reputation.after(deed, now);
                prop_assert!(reputation.score(now) <= Permille::ONE);
            }
        }

        #[test]
        fn a_better_name_stays_the_better_one(low in any_reputation(), high in any_reputation(), deed in any_deed(), wait: u32) {
            prop_assume!(low.level <= high.level);
            let now = START.after(Duration::from_millis(wait.into()));
            prop_assert!(low.after(deed, now).level <= high.after(deed, now).level);
            prop_assert!(low.score(now) <= high.score(now));
        }

        #[test]
        fn better_deeds_make_better_names(reputation in any_reputation()) {
            let after = |deed| reputation.after(deed, START).level;
            prop_assert!(after(Deed::Served) >= reputation.level && reputation.level >= after(Deed::Unrewarded));
            prop_assert!(after(Deed::Unrewarded) >= after(Deed::Failed));
            prop_assert!(after(Deed::Failed) >= after(Deed::Refused));
        }

        #[test]
        fn the_order_in_which_two_good_jobs_are_told_is_nothing(reputation in any_reputation(), a: u32, b: u32) {
            let now = START.after(Duration::from_millis(a.max(b).into()));
            let at = |wait: u32| START.after(Duration::from_millis(wait.into()));
            let told = |first, then| reputation.after(Deed::Served, at(first)).after(Deed::Served, at(then)).score(now).get();
            prop_assert!(told(a, b).abs_diff(told(b, a)) <= 5, "by more than one job is worth");
        }

        #[test]
        fn time_passes_the_same_in_one_step_and_in_two(reputation in any_reputation(), first: u32, then: u32) {
            let middle = START.after(Duration::from_millis(first.into()));
            let end = middle.after(Duration::from_millis(then.into()));
            let (two, one) = (reputation.faded(middle).score(end).get(), reputation.score(end).get());
            prop_assert!(two.abs_diff(one) <= 1, "{two} and {one}");
        }

        #[test]
        fn time_leads_to_the_middle_and_never_past_it(reputation in any_reputation(), wait: u32) {
            let level = reputation.faded(START.after(Duration::from_millis(wait.into()))).level;
            let (low, high) = (reputation.level.min(MIDDLE), reputation.level.max(MIDDLE));
            prop_assert!((low..=high).contains(&level));
        }

        #[test]
        fn what_is_kept_reads_back(reputation in any_reputation()) {
            let (level, at) = reputation.parts();
            prop_assert_eq!(Reputation::from_parts(level, at), reputation);
        }
    }
}
