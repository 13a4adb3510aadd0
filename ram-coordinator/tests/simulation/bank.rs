//! The store, by `ram-chain`'s own rules: one queue, one commit for all that waits, and only then the answers.
//!
//! A commit may be slow or fail; a power cut loses what was not committed and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ram_chain::account::{
    self, Account, Balance, Claim, Entry, HoldError as RuleBroken, HoldState, KeyId, Ledger, LedgerError,
    Overdrawn, Reference,
};
use ram_chain::pricing::FeeSplit;
use ram_coordinator::state::{HoldError, HoldOrder, Payer, SettleOrder};
use ram_core::id::{Attempt, JobId, ProviderId};
use ram_core::units::{Timestamp, XRam};

/// For how long a hold is vouched for, as in the coordinator's loop.
const LEASE: Duration = Duration::from_secs(120);

/// Work for the store.
#[derive(Clone, Debug)]
pub enum Order {
    Hold(HoldOrder),
    /// With the number of tries before this one.
    Settle(SettleOrder, usize),
    Void(JobId),
    Checkpoint(SettleOrder),
    Renew(Vec<JobId>),
    ResolveExpired,
}

/// What the store says of an order that somebody waits for.
#[derive(Debug)]
pub enum Answer {
    Held {
        job: JobId,
        result: Result<(), HoldError>,
    },
    Settled {
        job: JobId,
        remaining: Option<XRam>,
    },
    /// The disk was full.
    NotSettled(SettleOrder, usize),
}

/// Who was paid for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paid {
    pub provider: ProviderId,
    pub attempt: Attempt,
    pub charge: XRam,
}

/// The ledger on its disk, and what waits to be written there.
#[derive(Debug)]
pub struct Bank {
    ledger: Ledger,
    leases: BTreeMap<JobId, Timestamp>,
    checkpoints: BTreeMap<JobId, SettleOrder>,
    paid: BTreeMap<JobId, Paid>,
    pub queue: VecDeque<Order>,
    pub is_committing: bool,
    pub fails_until: Timestamp,
    pub slow_until: Timestamp,
}

impl Bank {
    /// A bank in which each key has `amount`.
    pub fn new(keys: &[&str], amount: XRam, now: Timestamp) -> Self {
        let mut ledger = Ledger::new(FeeSplit::default());
        for (number, key) in (1..).zip(keys) {
            let account = Account::User(key_id(key));
            ledger.deposit(Reference::from_bits(number), account, amount, now).expect("a deposit is good");
        }
        Self {
            ledger,
            leases: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            paid: BTreeMap::new(),
            queue: VecDeque::new(),
            is_committing: false,
            fails_until: Timestamp::ZERO,
            slow_until: Timestamp::ZERO,
        }
    }

    /// Commits all that waits, or, while the disk fails, nothing of it.
    pub fn commit(&mut self, now: Timestamp) -> Vec<Answer> {
        self.is_committing = false;
        let orders = std::mem::take(&mut self.queue);
        if now < self.fails_until {
            return orders.into_iter().filter_map(refused).collect();
        }
        let answers = orders.into_iter().filter_map(|order| self.carry_out(order, now)).collect();
        self.ledger.audit().expect("the books are right after each commit");
        answers
    }

    /// The power is gone: so is what was not committed.
    pub fn lose_power(&mut self) {
        self.queue.clear();
        self.is_committing = false;
    }

    pub fn resolve_expired(&mut self, now: Timestamp) {
        let expired: Vec<JobId> =
            self.leases.iter().filter(|(_, until)| **until <= now).map(|(&job, _)| job).collect();
        for job in expired {
            match self.checkpoints.get(&job).cloned() {
                Some(delivered) => drop(self.settle(&delivered, now)),
                None => self.void(job, now),
            }
        }
    }

    pub fn paid_for(&self, job: JobId) -> Option<Paid> {
        self.paid.get(&job).copied()
    }

    /// What was set aside for a job and what became of it.
    pub fn hold_of(&self, job: JobId) -> Option<(XRam, HoldState)> {
        self.ledger.hold(job).map(|hold| (hold.record().amount, hold.record().state))
    }

    pub fn open_holds(&self) -> usize {
        self.leases.len()
    }

    /// What all providers have earned.
    pub fn earned(&self) -> XRam {
        let of_providers = |(account, balance): (&Account, Balance)| {
            matches!(account, Account::Provider(_)).then(|| balance.spendable())
        };
        self.ledger.balances().iter().filter_map(of_providers).sum()
    }

    fn carry_out(&mut self, order: Order, now: Timestamp) -> Option<Answer> {
        match order {
            Order::Hold(order) => {
                let (job, result) = (order.job, self.hold(&order, now));
                Some(Answer::Held { job, result })
            }
            Order::Settle(order, _) => {
                let remaining = self.settle(&order, now);
                Some(Answer::Settled { job: order.job, remaining })
            }
            Order::Void(job) => {
                self.void(job, now);
                None
            }
            Order::Checkpoint(order) => {
                if self.leases.contains_key(&order.job) {
                    self.checkpoints.insert(order.job, order);
                }
                None
            }
            Order::Renew(jobs) => {
                for job in jobs {
                    if let Some(until) = self.leases.get_mut(&job) {
                        *until = now.after(LEASE);
                    }
                }
                None
            }
            Order::ResolveExpired => {
                self.resolve_expired(now);
                None
            }
        }
    }

    fn hold(&mut self, order: &HoldOrder, now: Timestamp) -> Result<(), HoldError> {
        let payer = match &order.payer {
            Payer::Demo(_) => account::Payer::Demo,
            Payer::Key(key) => account::Payer::User(key_id(key)),
        };
        let until = now.after(LEASE);
        match self.ledger.open_hold(order.job, payer, order.amount, now, until) {
            Ok(entry) => {
                check_balanced(&entry);
                self.leases.insert(order.job, until);
                Ok(())
            }
            Err(LedgerError::Overdrawn(Overdrawn { balance, .. })) => {
                Err(HoldError::Insufficient { balance: balance.spendable(), needed: order.amount })
            }
            Err(error) => panic!("job {}: no hold, because {error}", order.job.bits()),
        }
    }

    /// Pays, unless the hold is resolved: then the claim is late and is paid nothing.
    fn settle(&mut self, order: &SettleOrder, now: Timestamp) -> Option<XRam> {
        let SettleOrder { job, attempt, provider, charge, .. } = *order;
        match self.ledger.settle(job, Claim { attempt, provider, charge }, now) {
            Ok(settlement) => {
                check_balanced(&settlement.entry);
                self.resolved(job);
                let before = self.paid.insert(job, Paid { provider, attempt, charge });
                assert_eq!(before, None, "job {}: paid twice", job.bits());
            }
            Err(LedgerError::Hold(RuleBroken::AlreadySettled { .. } | RuleBroken::AlreadyVoided)) => {}
            Err(error) => panic!("job {}: not settled, because {error}", job.bits()),
        }
        let hold = self.ledger.hold(job)?.record();
        let is_users = matches!(hold.payer, account::Payer::User(_));
        is_users.then(|| self.ledger.balances().of(&hold.payer.account()).spendable())
    }

    fn void(&mut self, job: JobId, now: Timestamp) {
        if self.leases.contains_key(&job) {
            check_balanced(&self.ledger.void(job, now).expect("an open hold can be released"));
            self.resolved(job);
        }
    }

    fn resolved(&mut self, job: JobId) {
        let lease = self.leases.remove(&job);
        assert!(lease.is_some(), "job {}: its hold is resolved twice", job.bits());
        self.checkpoints.remove(&job);
    }
}

fn refused(order: Order) -> Option<Answer> {
    match order {
        Order::Hold(order) => Some(Answer::Held { job: order.job, result: Err(HoldError::Unavailable) }),
        Order::Settle(order, tries) => Some(Answer::NotSettled(order, tries)),
        Order::Void(_) | Order::Checkpoint(_) | Order::Renew(_) | Order::ResolveExpired => None,
    }
}

fn check_balanced(entry: &Entry) {
    let sum = |sum: Balance, posting: &account::Posting| sum.saturating_add(posting.delta.signed());
    assert_eq!(entry.postings().iter().fold(Balance::ZERO, sum), Balance::ZERO, "{}", entry.id());
}

fn key_id(key: &str) -> KeyId {
    key.parse().expect("the keys of the simulation are well formed")
}
