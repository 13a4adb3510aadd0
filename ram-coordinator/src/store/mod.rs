//! Money, keys and jobs, kept: the seam [`Store`], and what passes through it.
//!
//! One job takes one hold and resolves it once, by a settle or by a void. Every event is one double-entry
//! [`Entry`] whose postings sum to zero; a store that grows beyond one machine keeps the same tables (`migrations`).

pub mod sqlite;

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use ram_chain::account::{Account, Balance, Entry, KeyId, Overdrawn, Reference};
use ram_core::id::JobId;
use ram_core::units::{Timestamp, XRam};

use crate::keys::{KeyHash, KeyRecord};
use crate::state::{HoldError, HoldOrder, SettleOrder, Standing};

/// What a store will say. The work is queued when the method is called, in the order of the calls; awaiting only waits.
pub type Answer<T, E = StoreError> = BoxFuture<'static, Result<T, E>>;

/// Keeps money, keys and jobs. What it has answered survives a crash; what it has not answered may be lost.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Sets money aside for a job, if the payer has it.
    fn hold(&self, order: HoldOrder, lease: Lease) -> Answer<(), HoldError>;

    /// Vouches for holds once more; those that are not open any more stay as they are.
    fn renew(&self, jobs: Vec<JobId>, lease: Lease) -> Answer<()>;

    /// Pays for a job and releases the rest of its hold, in one transaction. A claim that comes late or twice is
    /// recorded and paid nothing.
    fn settle(&self, order: SettleOrder, at: Timestamp) -> Answer<Settled>;

    /// Notes a result that nobody pays for. The hold stays as it is.
    fn refuse(&self, order: SettleOrder, at: Timestamp) -> Answer<()>;

    /// Releases a hold whole. Does nothing when it is not open.
    fn void(&self, job: JobId, at: Timestamp) -> Answer<()>;

    /// Notes what a running job has delivered so far, in case nobody lives to settle it. Does nothing for one that has
    /// ended.
    fn checkpoint(&self, order: SettleOrder) -> Answer<()>;

    /// Resolves every open hold whose lease has ended: pays what its last checkpoint says was delivered and releases
    /// the rest, or, without one, releases it whole. Answers how many.
    fn resolve_expired(&self, now: Timestamp) -> Answer<u64>;

    /// Moves money from the treasury to a key, once for each reference; answers what the key can spend then.
    fn credit(&self, key: KeyId, credit: Credit, at: Timestamp) -> Answer<XRam>;

    /// Adds a key, with money to begin with unless that is nothing.
    fn create_key(&self, record: KeyRecord, hash: KeyHash, credit: Credit) -> Answer<()>;

    /// All keys, oldest first, and what each can spend.
    fn keys(&self) -> Answer<Vec<(KeyRecord, XRam)>>;

    /// The key with this hash.
    fn key_of(&self, hash: KeyHash) -> Answer<Option<KeyRecord>>;

    /// Refuses a key from `at` on, or says that there is none of this id.
    fn revoke_key(&self, id: KeyId, at: Timestamp) -> Answer<Option<KeyRecord>>;

    /// Notes what is thought of nodes, over what was noted of them before.
    fn note_standings(&self, standings: Vec<Standing>) -> Answer<()>;

    /// What is thought of nodes. What was noted before `since` says nothing any more, and is forgotten.
    fn standings(&self, since: Timestamp) -> Answer<Vec<Standing>>;

    /// The entries of a job, oldest first.
    fn entries_of(&self, job: JobId) -> Answer<Vec<Entry>>;

    /// What an account holds.
    fn balance(&self, account: Account) -> Answer<Balance>;

    /// Adds up the whole ledger: for tests, and for an operator who wants to know.
    fn audit(&self) -> Answer<Audit>;

    /// Does nothing, so that a probe sees whether anything can be done.
    fn ping(&self) -> Answer<()>;
}

/// For how long somebody vouches for a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// From now,
    pub at: Timestamp,
    /// until then.
    pub until: Timestamp,
}

/// Money that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// What the event is known by: whoever is not sure that it was booked says it again under the same reference.
    pub reference: Reference,
    /// How much.
    pub amount: XRam,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What was paid: the charge, or nothing for a claim that came late or twice.
    pub paid: XRam,
    /// What the payer has left, when it has an account of its own.
    pub remaining: Option<XRam>,
}

/// The ledger, added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Entries there are.
    pub entries: u64,
    /// Whether the postings of every single entry sum to zero.
    pub balanced: bool,
    /// Whether every projected balance is the sum of its postings.
    pub projected: bool,
    /// What stands in escrow, by its postings.
    pub escrow: Balance,
    /// What open holds have set aside.
    pub held: XRam,
}

impl Audit {
    /// Whether the books are right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.balanced && self.projected && i128::try_from(self.held.units()) == Ok(self.escrow.units())
    }
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database failed: the disk is full, gone, or held by somebody else.
    #[error("the database failed: {0}")]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// The database was written by a newer version of this software.
    #[error("the database has version {found}, and this software knows up to {known}; update it")]
    Newer {
        /// Version of the database.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// Something in the database is not what this software writes.
    #[error("the database holds something unreadable in {0}")]
    Broken(&'static str),
    /// A claim for a job that was never taken in.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// No key has this id.
    #[error("there is no key of this id")]
    UnknownKey,
    /// Somebody does not have the money.
    #[error(transparent)]
    Overdrawn(#[from] Overdrawn),
    /// The rules of the ledger forbid it otherwise: a fault of whoever asked.
    #[error(transparent)]
    Rule(#[from] ram_chain::account::HoldError),
}

impl From<StoreError> for HoldError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overdrawn(Overdrawn { balance, after, .. }) => Self::Insufficient {
                balance: balance.spendable(),
                needed: XRam::from_units(balance.units().abs_diff(after.units())),
            },
            other => {
                tracing::error!(error = %other, "the store did not take a hold");
                Self::Unavailable
            }
        }
    }
}
