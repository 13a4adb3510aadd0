//! What nodes have done, by their keys: it stays while a node is away and, through the store, while we are.
//!
//! Only nodes that have done something are known here; of all others nothing is, which is [`NEUTRAL`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ram_core::id::ProviderId;
use ram_core::reputation::{Deed, NEUTRAL, Reputation};
use ram_core::units::{Permille, Timestamp};

use super::event::Standing;

/// Most nodes whose deeds are remembered, here or away: 100 bytes each, 10 MB.
pub(super) const KNOWN_MAX: usize = 100_000;
/// How often changes are written down: a crash forgets the deeds of a minute.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// The reputations of all nodes that we know anything of.
#[derive(Debug, Default)]
pub(super) struct Standings {
    known: BTreeMap<ProviderId, Reputation>,
    /// Those that have changed since they were last written down.
    changed: BTreeSet<ProviderId>,
    noted_at: Timestamp,
}

impl Standings {
    /// How far a node is trusted.
    pub(super) fn of(&self, provider: ProviderId, now: Timestamp) -> Permille {
        self.known.get(&provider).map_or(NEUTRAL, |reputation| reputation.score(now))
    }

    /// A node did something.
    pub(super) fn note(&mut self, provider: ProviderId, deed: Deed, now: Timestamp) {
        let before = self.known.get(&provider).copied().unwrap_or_else(|| Reputation::new(now));
        self.insert(provider, before.after(deed, now), now);
        self.changed.insert(provider);
    }

    /// Takes in what an earlier process wrote down. What was done since then counts, too.
    pub(super) fn remember(&mut self, standings: Vec<Standing>, now: Timestamp) {
        for Standing { provider, reputation } in standings {
            if !self.known.contains_key(&provider) {
                self.insert(provider, reputation, now);
            }
        }
    }

    /// What is to be written down, if it is time.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Standing> {
        if now.since(self.noted_at) < NOTED_EVERY { Vec::new() } else { self.unwritten(now) }
    }

    /// What is to be written down, be it time or not.
    pub(super) fn unwritten(&mut self, now: Timestamp) -> Vec<Standing> {
        self.noted_at = now;
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .filter_map(|provider| Some(Standing { provider, reputation: *self.known.get(&provider)? }))
            .collect()
    }

    fn insert(&mut self, provider: ProviderId, reputation: Reputation, now: Timestamp) {
        self.known.insert(provider, reputation);
        if self.known.len() > KNOWN_MAX {
            self.known.retain(|_, reputation| !reputation.is_neutral(now));
        }
        if self.known.len() > KNOWN_MAX {
            self.forget_a_tenth(now);
        }
    }

    /// Whoever is nearest to the middle loses least by being forgotten, and we lose least by forgetting it.
    fn forget_a_tenth(&mut self, now: Timestamp) {
        let distance = |reputation: &Reputation| reputation.score(now).get().abs_diff(NEUTRAL.get());
        let mut known: Vec<(u32, ProviderId)> =
            self.known.iter().map(|(&provider, reputation)| (distance(reputation), provider)).collect();
        let (nearest, ..) = known.select_nth_unstable(KNOWN_MAX / 10);
        for (_, provider) in nearest {
            self.known.remove(provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(number: usize) -> ProviderId {
        format!("p_{number:032x}").parse().unwrap()
    }

    #[test]
    fn the_nodes_that_are_remembered_are_bounded_and_liars_are_forgotten_last() {
        let (mut standings, now) = (Standings::default(), Timestamp::from_millis(1_000_000));
        standings.note(provider(0), Deed::Refused, now);
        for number in 1..=KNOWN_MAX + 3 {
            standings.known.insert(provider(number), Reputation::from_parts(600_000, now));
        }
        standings.note(provider(KNOWN_MAX + 9), Deed::Failed, now);
        assert!(standings.known.len() <= KNOWN_MAX);
        assert!(standings.of(provider(0), now) < NEUTRAL, "a liar is not forgotten for a crowd");
        let much_later = now.after(Duration::from_secs(3600 * 24 * 365));
        for number in KNOWN_MAX + 10..=2 * KNOWN_MAX {
            standings.known.insert(provider(number), Reputation::from_parts(600_000, now));
        }
        standings.note(provider(1), Deed::Served, much_later);
        assert_eq!(standings.known.len(), 1, "a year later nobody else is more than a stranger");
    }

    #[test]
    fn what_changed_is_written_down_once_and_reads_back() {
        let (mut standings, now) = (Standings::default(), Timestamp::from_millis(1_000_000));
        standings.note(provider(1), Deed::Refused, now);
        assert_eq!(standings.due(Timestamp::ZERO), []);
        let written = standings.due(now);
        assert_eq!(written.len(), 1);
        assert_eq!(standings.due(now.after(NOTED_EVERY)), []);
        let mut restarted = Standings::default();
        restarted.note(provider(2), Deed::Served, now);
        restarted.remember(written, now);
        assert_eq!(restarted.of(provider(1), now), standings.of(provider(1), now));
    }
}
