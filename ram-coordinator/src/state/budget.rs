//! What the shared demo key may spend: so many tokens per address and UTC day, and so many in all.
//!
//! A published key is no key, so the budget hangs on the address: an IPv4 address, or the /64 that one IPv6 subscriber
//! has. It lives in memory and starts anew with the process; the global budget bounds what a restart can give away.

use std::collections::HashMap;
use std::net::IpAddr;

use ram_core::units::{Timestamp, TokenCount};

use crate::address::subscriber;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Most addresses remembered for a day: 6 MB. Whoever comes after those waits for tomorrow.
const ADDRESSES_MAX: usize = 100_000;

/// The demo key's budget.
#[derive(Debug)]
pub(super) struct DemoBudget {
    per_address: TokenCount,
    in_all: TokenCount,
    day: u64,
    spent: TokenCount,
    spent_by: HashMap<IpAddr, TokenCount>,
}

impl DemoBudget {
    pub(super) fn new(per_address: TokenCount, in_all: TokenCount) -> Self {
        Self { per_address, in_all, day: 0, spent: TokenCount::ZERO, spent_by: HashMap::new() }
    }

    /// Takes `tokens` from today's budget, or nothing when they are not all there.
    #[must_use]
    pub(super) fn take(&mut self, address: IpAddr, tokens: TokenCount, now: Timestamp) -> bool {
        let day = now.as_millis() / DAY_MS;
        if day != self.day {
            self.day = day;
            self.spent = TokenCount::ZERO;
            self.spent_by.clear();
        }
        let subscriber = subscriber(address);
        let by_address = self.spent_by.get(&subscriber).copied().unwrap_or_default() + tokens;
        let known = self.spent_by.contains_key(&subscriber);
        let full = !known && self.spent_by.len() >= ADDRESSES_MAX;
        if full || by_address > self.per_address || self.spent + tokens > self.in_all {
            return false;
        }
        self.spent += tokens;
        self.spent_by.insert(subscriber, by_address);
        true
    }

    /// Gives back what a job took at `taken` and did not use. What was taken yesterday is simply gone.
    pub(super) fn give_back(&mut self, address: IpAddr, tokens: TokenCount, taken: Timestamp) {
        if taken.as_millis() / DAY_MS != self.day {
            return;
        }
        if let Some(spent) = self.spent_by.get_mut(&subscriber(address)) {
            *spent = spent.saturating_sub(tokens);
            self.spent = self.spent.saturating_sub(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> DemoBudget {
        DemoBudget::new(TokenCount::new(100), TokenCount::new(250))
    }

    fn take(budget: &mut DemoBudget, address: &str, tokens: u64, now: Timestamp) -> bool {
        budget.take(address.parse().unwrap(), TokenCount::new(tokens), now)
    }

    #[test]
    fn an_address_has_its_share_of_the_day_and_no_more() {
        let (mut budget, now) = (budget(), Timestamp::ZERO);
        assert!(take(&mut budget, "10.0.0.1", 100, now));
        assert!(!take(&mut budget, "10.0.0.1", 1, now));
        assert!(take(&mut budget, "10.0.0.1", 100, Timestamp::from_millis(DAY_MS)));
    }

    #[test]
    fn many_addresses_cannot_pass_the_global_budget() {
        let (mut budget, now) = (budget(), Timestamp::ZERO);
        let taken = (0..100).filter(|n| take(&mut budget, &format!("10.0.1.{n}"), 50, now)).count();
        assert_eq!(taken, 5);
    }

    #[test]
    fn one_subscriber_is_one_address_however_it_is_written() {
        let (mut budget, now) = (budget(), Timestamp::ZERO);
        assert!(take(&mut budget, "2001:db8::1", 100, now));
        assert!(!take(&mut budget, "2001:db8::2", 1, now));
        assert!(take(&mut budget, "10.0.0.1", 100, now));
        assert!(!take(&mut budget, "::ffff:10.0.0.1", 1, now));
    }

    #[test]
    fn what_was_not_used_comes_back_once() {
        let (mut budget, now) = (budget(), Timestamp::ZERO);
        assert!(take(&mut budget, "10.0.0.1", 100, now));
        budget.give_back("10.0.0.1".parse().unwrap(), TokenCount::new(60), now);
        assert!(take(&mut budget, "10.0.0.1", 60, now));
        assert!(!take(&mut budget, "10.0.0.1", 1, now));
        let tomorrow = Timestamp::from_millis(DAY_MS);
        assert!(take(&mut budget, "10.0.0.1", 100, tomorrow));
        budget.give_back("10.0.0.1".parse().unwrap(), TokenCount::new(50), now); // yesterday's
        assert!(!take(&mut budget, "10.0.0.1", 1, tomorrow));
    }
}
