//! The store in one SQLite file: what a coordinator on one machine needs, with nothing to install.
//!
//! One thread owns the connection. It takes all work that waits, does it in one transaction, commits, and only then
//! answers: one `fsync` for many jobs, and no answer that a crash could make untrue. Start at [`SqliteStore::open`];
//! what each kind of work does stands in `ledger`.

mod ledger;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use ram_chain::account::{Account, Balance, Entry, KeyId};
use ram_chain::pricing::FeeSplit;
use ram_core::id::JobId;
use ram_core::units::{Timestamp, XRam};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::{Answer, Audit, Credit, Lease, Settled, Store, StoreError};
use crate::keys::{KeyHash, KeyRecord};
use crate::state::{HoldError, HoldOrder, SettleOrder, Standing};

/// How the tables came to be: the migration at index n brings a database from version n to n + 1, in a transaction of
/// its own. What has been released is never changed; `migrations/README.md` says how one is added.
const MIGRATIONS: [&str; 2] =
    [include_str!("migrations/0001-ledger.sql"), include_str!("migrations/0002-reputation.sql")];
/// Most work in one transaction: bounds how long the first of it waits for the rest.
const BATCH_MAX: usize = 512;
/// How long to wait for another process, such as `keys create`, to finish writing.
const BUSY_WITHIN: Duration = Duration::from_secs(5);
/// Prepared statements that are kept: about twice as many as there are.
const STATEMENTS_MAX: usize = 64;

/// A store in one SQLite file. Cheap to clone; the file closes after the last clone and the last work are gone.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    inbox: Sender<Work>,
}

/// Something to do within a transaction, or a reason why there is none.
type Work = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Acknowledge + Send>;
/// Answers, once the transaction is on the disk or known to be lost.
type Acknowledge = Box<dyn FnOnce(Result<(), StoreError>)>;

/// SQLite gave up a whole transaction, and all work in it.
#[derive(Debug, thiserror::Error)]
#[error("the database undid all work of a moment: its disk is full or failing")]
struct Undone;

impl SqliteStore {
    /// Opens a database, making it or bringing it up to date as needed. A new file is the owner's alone.
    ///
    /// # Errors
    /// [`StoreError::Failed`], or [`StoreError::Newer`] for a database that this software is too old for.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        make_private(path).map_err(|error| StoreError::Failed(Arc::new(error)))?;
        Self::over(Connection::open(path)?)
    }

    /// Opens a database in memory, which goes with its last clone.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::over(Connection::open_in_memory()?)
    }

    fn over(mut connection: Connection) -> Result<Self, StoreError> {
        prepare(&connection)?;
        migrate(&mut connection)?;
        let (inbox, work) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write(connection, &work))
            .map_err(|error| StoreError::Failed(Arc::new(error)))?;
        Ok(Self { inbox })
    }

    /// Queues work, and answers when it is durable. What fails leaves no trace; its neighbours are not touched.
    ///
    /// The queue has no bound of its own: what stands in it are at most two orders of each open job and one question of
    /// each open connection, and both are bounded.
    fn call<T, E>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |transaction| {
            let result = transaction.and_then(|transaction| whole_or_nothing(transaction, work));
            Box::new(move |committed| {
                let _ = answer.send(committed.and(result)); // whoever asked may have left
            })
        });
        let queued = self.inbox.send(work);
        Box::pin(async move {
            queued.map_err(|_| StoreError::Closed)?;
            Ok(answered.await.map_err(|_| StoreError::Closed)??)
        })
    }
}

impl Store for SqliteStore {
    fn hold(&self, order: HoldOrder, lease: Lease) -> Answer<(), HoldError> {
        self.call(move |db| ledger::hold(db, &order, lease))
    }

    fn renew(&self, jobs: Vec<JobId>, lease: Lease) -> Answer<()> {
        self.call(move |db| ledger::renew(db, &jobs, lease))
    }

    fn settle(&self, order: SettleOrder, at: Timestamp) -> Answer<Settled> {
        self.call(move |db| ledger::settle(db, &order, FeeSplit::default(), at))
    }

    fn refuse(&self, order: SettleOrder, at: Timestamp) -> Answer<()> {
        self.call(move |db| ledger::refuse(db, &order, at))
    }

    fn void(&self, job: JobId, at: Timestamp) -> Answer<()> {
        self.call(move |db| ledger::void(db, job, at))
    }

    fn checkpoint(&self, order: SettleOrder) -> Answer<()> {
        self.call(move |db| ledger::checkpoint(db, &order))
    }

    fn resolve_expired(&self, now: Timestamp) -> Answer<u64> {
        self.call(move |db| ledger::resolve_expired(db, FeeSplit::default(), now))
    }

    fn credit(&self, key: KeyId, credit: Credit, at: Timestamp) -> Answer<XRam> {
        self.call(move |db| ledger::credit(db, &key, credit, at))
    }

    fn create_key(&self, record: KeyRecord, hash: KeyHash, credit: Credit) -> Answer<()> {
        self.call(move |db| ledger::create_key(db, &record, hash, credit))
    }

    fn keys(&self) -> Answer<Vec<(KeyRecord, XRam)>> {
        self.call(ledger::keys)
    }

    fn key_of(&self, hash: KeyHash) -> Answer<Option<KeyRecord>> {
        self.call(move |db| ledger::key_of(db, hash))
    }

    fn revoke_key(&self, id: KeyId, at: Timestamp) -> Answer<Option<KeyRecord>> {
        self.call(move |db| ledger::revoke_key(db, &id, at))
    }

    fn note_standings(&self, standings: Vec<Standing>) -> Answer<()> {
        self.call(move |db| ledger::note_standings(db, &standings))
    }

    fn standings(&self, since: Timestamp) -> Answer<Vec<Standing>> {
        self.call(move |db| ledger::standings(db, since))
    }

    fn entries_of(&self, job: JobId) -> Answer<Vec<Entry>> {
        self.call(move |db| ledger::entries_of(db, job))
    }

    fn balance(&self, account: Account) -> Answer<Balance> {
        self.call(move |db| ledger::balance(db, &account))
    }

    fn audit(&self) -> Answer<Audit> {
        self.call(ledger::audit)
    }

    fn ping(&self) -> Answer<()> {
        self.call(|db| Ok(db.query_row("SELECT 1", (), |_| Ok(()))?))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// The thread: takes what waits, does it in one transaction, commits, answers.
fn write(mut connection: Connection, inbox: &Receiver<Work>) {
    while let Ok(first) = inbox.recv() {
        let batch = std::iter::once(first).chain(inbox.try_iter()).take(BATCH_MAX);
        let (acknowledgements, committed) = match connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
        {
            Ok(transaction) => {
                let done = batch.map(|work| work(standing(&transaction).map(|()| &*transaction))).collect();
                (done, standing(&transaction).and_then(|()| Ok(transaction.commit()?)))
            }
            Err(error) => {
                let error = StoreError::from(error);
                let refused: Vec<Acknowledge> = batch.map(|work| work(Err(error.clone()))).collect();
                (refused, Ok(()))
            }
        };
        for acknowledge in acknowledgements {
            acknowledge(committed.clone());
        }
    }
}

/// Whether a batch's transaction still stands. On a full or failing disk SQLite undoes all of it by itself, and what is
/// done after that would be committed at once and answered as lost.
fn standing(transaction: &Connection) -> Result<(), StoreError> {
    if transaction.is_autocommit() { Err(StoreError::Failed(Arc::new(Undone))) } else { Ok(()) }
}

/// Does one piece of work within a transaction so that its failure undoes it alone.
fn whole_or_nothing<T>(
    transaction: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    transaction.prepare_cached("SAVEPOINT work")?.execute(())?;
    let result = work(transaction);
    if result.is_err() {
        standing(transaction)?;
        transaction.prepare_cached("ROLLBACK TO work")?.execute(())?;
    }
    transaction.prepare_cached("RELEASE work")?.execute(())?;
    result
}

fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_WITHIN)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // WAL: readers in other processes never block. FULL: a commit is on the disk before it is answered.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// Brings a database up to date, one version at a time. The version is read within each transaction: another process
/// may have done the same meanwhile.
fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > known {
            return Err(StoreError::Newer { found, known });
        }
        let Some(migration) = MIGRATIONS.get(found as usize) else { return Ok(()) };
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
    }
}

/// Makes the folder and the file, where they are missing, so that their owner alone can read them.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new();
    file.append(true).create(true);
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        file.mode(0o600);
        folder.mode(0o700);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        folder.create(parent)?;
    }
    file.open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyKind;
    use crate::state::Payer;
    use proptest::prelude::*;
    use ram_chain::account::{self, EntryKind, Ledger, LedgerError, Reference};
    use ram_core::id::{Attempt, NodeKey, ProviderId};
    use ram_core::job::Usage;
    use ram_core::reputation::Reputation;
    use ram_core::units::TokenCount;
    use ram_core::validate::{Refused, Verdict};

    const LEASE: Lease = Lease { at: Timestamp::from_millis(1000), until: Timestamp::from_millis(2000) };

    fn wait<T, E: std::fmt::Debug>(answer: Answer<T, E>) -> Result<T, E> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
    }

    fn job(number: u8) -> JobId {
        JobId::from_bits(number.into())
    }

    fn key_id(number: u8) -> KeyId {
        format!("key_{number}").parse().unwrap()
    }

    fn payer(number: u8) -> Payer {
        match number {
            0 => Payer::Demo(std::net::Ipv4Addr::LOCALHOST.into()),
            _ => Payer::Key(key_id(number).to_string()),
        }
    }

    fn provider(number: u8) -> ProviderId {
        NodeKey::from_bytes([number; 32]).provider_id()
    }

    fn attempt(number: u8) -> Attempt {
        Attempt::new(u32::from(number) + 1).unwrap()
    }

    fn units(units: u128) -> XRam {
        XRam::from_units(units)
    }

    fn hold(number: u8, from: u8, amount: u128) -> HoldOrder {
        let model = "ram-demo".parse().unwrap();
        HoldOrder { job: job(number), payer: payer(from), amount: units(amount), model }
    }

    fn claim(number: u8, try_: u8, by: u8, charge: u128) -> SettleOrder {
        let usage = Usage { prompt: TokenCount::new(3), completion: TokenCount::new(5), ..Usage::default() };
        let (attempt, provider) = (attempt(try_), provider(by));
        let verdict = Verdict::Good;
        SettleOrder { job: job(number), attempt, provider, usage, charge: units(charge), verdict }
    }

    /// A store in which keys 1 to 3 have `amount` each.
    fn funded(store: SqliteStore, amount: u128) -> SqliteStore {
        for number in 1..=3 {
            let record = KeyRecord {
                id: key_id(number),
                kind: KeyKind::Live,
                name: "a key".to_owned(),
                hint: "xram_live_…".to_owned(),
                created_at: LEASE.at,
                revoked_at: None,
            };
            let credit = Credit { reference: Reference::from_bits(number.into()), amount: units(amount) };
            wait(store.create_key(record, KeyHash::of(&format!("secret {number}")), credit)).unwrap();
        }
        store
    }

    fn in_memory(amount: u128) -> SqliteStore {
        funded(SqliteStore::in_memory().unwrap(), amount)
    }

    #[test]
    fn a_job_is_held_settled_and_split_nine_to_one() {
        let store = in_memory(1000);
        wait(store.hold(hold(1, 1, 100), LEASE)).unwrap();
        let settled = wait(store.settle(claim(1, 0, 7, 40), LEASE.at)).unwrap();
        assert_eq!(settled, Settled { paid: units(40), remaining: Some(units(960)) });
        let balance = |account| wait(store.balance(account)).unwrap().units();
        assert_eq!(balance(Account::Provider(provider(7))), 36);
        assert_eq!((balance(Account::Fees), balance(Account::Escrow)), (4, 0));
        let kinds: Vec<EntryKind> =
            wait(store.entries_of(job(1))).unwrap().iter().map(|entry| entry.id().kind()).collect();
        assert_eq!(kinds, [EntryKind::Hold, EntryKind::Settle]);
        assert!(wait(store.audit()).unwrap().is_sound());
    }

    #[test]
    fn who_has_too_little_is_told_how_much_and_nothing_changes() {
        let store = in_memory(50);
        let refused = wait(store.hold(hold(1, 1, 51), LEASE));
        assert_eq!(refused, Err(HoldError::Insufficient { balance: units(50), needed: units(51) }));
        assert_eq!(wait(store.entries_of(job(1))).unwrap(), []);
        wait(store.hold(hold(1, 1, 50), LEASE)).unwrap();
    }

    #[test]
    fn a_late_or_doubled_claim_is_kept_and_paid_nothing() {
        let store = in_memory(1000);
        wait(store.hold(hold(1, 1, 100), LEASE)).unwrap();
        wait(store.settle(claim(1, 1, 7, 40), LEASE.at)).unwrap();
        for (try_, by) in [(0, 8), (1, 7), (2, 9)] {
            let late = wait(store.settle(claim(1, try_, by, 100), LEASE.at)).unwrap();
            assert_eq!(late, Settled { paid: XRam::ZERO, remaining: Some(units(960)) });
        }
        assert_eq!(wait(store.balance(Account::Provider(provider(8)))).unwrap(), Balance::ZERO);
        assert_eq!(
            wait(store.call::<u32, StoreError>(|db| {
                Ok(db.query_row("SELECT count(*) FROM results", (), |row| row.get(0))?)
            }))
            .unwrap(),
            3,
            "the doubled claim is the same claim"
        );
    }

    #[test]
    fn a_charge_above_its_hold_is_refused_and_the_hold_stays() {
        let store = in_memory(1000);
        wait(store.hold(hold(1, 1, 100), LEASE)).unwrap();
        assert!(matches!(wait(store.settle(claim(1, 0, 7, 101), LEASE.at)), Err(StoreError::Rule(_))));
        assert_eq!(wait(store.audit()).unwrap().held, units(100));
        assert!(matches!(wait(store.settle(claim(2, 0, 7, 1), LEASE.at)), Err(StoreError::UnknownJob(_))));
    }

    #[test]
    fn a_renewed_hold_outlives_its_first_lease_and_no_more() {
        let store = in_memory(1000);
        wait(store.hold(hold(1, 1, 100), LEASE)).unwrap();
        wait(store.renew(vec![job(1), job(2)], Lease { until: Timestamp::from_millis(3000), ..LEASE }))
            .unwrap();
        assert_eq!(wait(store.resolve_expired(Timestamp::from_millis(2999))).unwrap(), 0);
        assert_eq!(wait(store.resolve_expired(Timestamp::from_millis(3000))).unwrap(), 1);
        assert_eq!(wait(store.balance(Account::User(key_id(1)))).unwrap(), Balance::from_units(1000));
    }

    #[test]
    fn a_job_that_nobody_lives_to_settle_is_paid_by_its_last_checkpoint() {
        let store = in_memory(1000);
        for number in [1, 2, 3] {
            wait(store.hold(hold(number, 1, 100), LEASE)).unwrap();
        }
        wait(store.checkpoint(claim(1, 0, 7, 20))).unwrap();
        wait(store.checkpoint(claim(1, 0, 7, 40))).unwrap();
        wait(store.checkpoint(claim(2, 0, 7, 40))).unwrap();
        wait(store.settle(claim(2, 0, 7, 60), LEASE.at)).unwrap();
        wait(store.checkpoint(claim(2, 0, 7, 99))).unwrap(); // too late to mean anything
        assert_eq!(wait(store.resolve_expired(LEASE.until)).unwrap(), 2);
        assert_eq!(wait(store.balance(Account::User(key_id(1)))).unwrap(), Balance::from_units(900));
        assert_eq!(wait(store.balance(Account::Provider(provider(7)))).unwrap(), Balance::from_units(90));
        let audit = wait(store.audit()).unwrap();
        assert!(audit.is_sound() && audit.held == XRam::ZERO, "{audit:?}");
    }

    #[test]
    fn one_bad_row_keeps_no_other_hold_from_being_resolved() {
        let store = in_memory(1000);
        for number in 1..=4 {
            wait(store.hold(hold(number, 1, 100), LEASE)).unwrap();
        }
        wait(store.checkpoint(claim(1, 0, 7, 40))).unwrap();
        wait(store.checkpoint(claim(2, 0, 7, 101))).unwrap(); // more than was held
        wait(store.checkpoint(claim(4, 0, 7, 40))).unwrap();
        wait(store.call::<_, StoreError>(|db| {
            db.execute(
                "UPDATE checkpoints SET provider = 'nobody' WHERE charge = ?1 AND job = ?2",
                (ram_chain::blob::from_xram(units(40)), job(1).bits().to_be_bytes()),
            )?;
            Ok(db.execute("UPDATE holds SET payer = 'fees' WHERE job = ?1", (job(3).bits().to_be_bytes(),))?)
        }))
        .unwrap();
        assert_eq!(wait(store.resolve_expired(LEASE.until)).unwrap(), 3);
        assert_eq!(wait(store.resolve_expired(LEASE.until)).unwrap(), 0, "the one that does not read stays");
        assert_eq!(wait(store.balance(Account::Provider(provider(7)))).unwrap(), Balance::from_units(36));
        let audit = wait(store.audit()).unwrap();
        assert!(audit.is_sound() && audit.held == units(100), "{audit:?}");
    }

    #[test]
    fn a_credit_said_twice_is_booked_once() {
        let store = in_memory(10);
        let credit = Credit { reference: Reference::from_bits(99), amount: units(5) };
        assert_eq!(wait(store.credit(key_id(1), credit, LEASE.at)).unwrap(), units(15));
        assert_eq!(wait(store.credit(key_id(1), credit, LEASE.at)).unwrap(), units(15));
        assert!(matches!(wait(store.credit(key_id(9), credit, LEASE.at)), Err(StoreError::UnknownKey)));
    }

    #[test]
    fn one_failure_in_a_batch_leaves_its_neighbours_alone() {
        let store = in_memory(100);
        let answers: Vec<_> = (1..=20).map(|number| store.hold(hold(number, 1, 10), LEASE)).collect();
        let taken = answers.into_iter().map(wait).filter(Result::is_ok).count();
        assert_eq!(taken, 10);
        assert!(wait(store.audit()).unwrap().is_sound());
    }

    #[test]
    fn on_a_full_disk_nothing_that_is_answered_as_lost_has_happened() {
        let store = in_memory(1000);
        wait(store.call::<_, StoreError>(|db| {
            let pages: u32 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
            db.execute_batch("CREATE TABLE ballast (bytes BLOB)")?;
            db.pragma_update_and_check(None, "max_page_count", pages + 20, |_| Ok(()))?;
            Ok(())
        }))
        .unwrap();
        // One batch: what waits while the thread is busy. A statement of one row that finds no room ends it all.
        let (go, begin) = mpsc::channel::<()>();
        let busy = store.call::<_, StoreError>(move |_| {
            let _ = begin.recv(); // until all the others wait
            Ok(())
        });
        let before = store.hold(hold(1, 1, 10), LEASE);
        let full = store.call::<_, StoreError>(|db| {
            Ok(db.execute("INSERT INTO ballast VALUES (zeroblob(10000000))", ())?)
        });
        let after: Vec<_> = (2..=4).map(|number| store.hold(hold(number, 1, 10), LEASE)).collect();
        go.send(()).unwrap();
        wait(busy).ok(); // taken alone, or with the rest
        assert!(wait(full).is_err());
        assert!(wait(before).is_err());
        for answer in after {
            assert_eq!(wait(answer), Err(HoldError::Unavailable));
        }
        assert_eq!(wait(store.audit()).unwrap().held, XRam::ZERO);
        wait(store.hold(hold(5, 1, 10), LEASE)).unwrap();
    }

    #[test]
    fn what_was_answered_is_there_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let store = funded(SqliteStore::open(&path).unwrap(), 1000);
        for number in 1..=20 {
            wait(store.hold(hold(number, 1, 10), LEASE)).unwrap();
        }
        std::mem::forget(store); // a crash closes nothing
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(wait(store.audit()).unwrap().held, units(200));
        assert_eq!(wait(store.resolve_expired(LEASE.until)).unwrap(), 20);
        assert_eq!(wait(store.balance(Account::User(key_id(1)))).unwrap(), Balance::from_units(1000));
    }

    #[test]
    fn the_database_itself_refuses_to_rewrite_the_past() {
        let store = in_memory(1000);
        for sql in [
            "UPDATE entries SET at = 0",
            "DELETE FROM entries",
            "UPDATE postings SET account = 'fees'",
            "DELETE FROM postings",
        ] {
            let refused = wait(store.call::<_, StoreError>(move |db| Ok(db.execute(sql, ())?)));
            assert!(matches!(refused, Err(StoreError::Failed(_))), "{sql}");
        }
    }

    #[test]
    fn a_newer_database_is_left_alone_and_a_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        drop(SqliteStore::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::Newer { found: 99, known: 2 })));
        let garbage = folder.path().join("garbage.db");
        fs::write(
            &garbage,
            "this is no database, and it is long enough to look like a header of one".repeat(9),
        )
        .unwrap();
        assert!(matches!(SqliteStore::open(&garbage), Err(StoreError::Failed(_))));
    }

    /// A database as an older version wrote it, in a folder that goes with the test.
    fn older(dump: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        Connection::open(&path).unwrap().execute_batch(dump).unwrap();
        (folder, path)
    }

    #[test]
    fn an_older_database_is_brought_up_to_date_without_loss() {
        let (_folder, path) = older(include_str!("fixtures/version-1.sql"));
        let rows = |db: &Connection, sql: &str| db.query_row(sql, (), |row| row.get::<_, u32>(0)).unwrap();
        let count = |db: &Connection| {
            ["keys", "jobs", "holds", "checkpoints", "results", "entries", "postings", "balances"]
                .map(|table| rows(db, &format!("SELECT count(*) FROM {table}")))
        };
        let before = count(&Connection::open(&path).unwrap());
        assert_eq!(before, [3, 5, 5, 1, 3, 11, 26, 5]);
        let store = SqliteStore::open(&path).unwrap();
        let db = Connection::open(&path).unwrap();
        assert_eq!(count(&db), before);
        assert_eq!(rows(&db, "PRAGMA user_version"), u32::try_from(MIGRATIONS.len()).unwrap());
        assert_eq!(rows(&db, "SELECT count(*) FROM results WHERE verdict IS NULL"), 3, "nobody judged them");
        assert!(wait(store.audit()).unwrap().is_sound());
        assert_eq!(wait(store.balance(Account::User(key_id(1)))).unwrap(), Balance::from_units(760));
        // Both open holds go on where they stood: one is paid by its checkpoint, one is settled and judged.
        wait(store.settle(claim(4, 0, 7, 10), LEASE.at)).unwrap();
        assert_eq!(wait(store.resolve_expired(LEASE.until)).unwrap(), 1);
        assert_eq!(wait(store.balance(Account::User(key_id(1)))).unwrap(), Balance::from_units(930));
        assert_eq!(rows(&db, "SELECT count(*) FROM results WHERE verdict = 'good'"), 1);
        assert_eq!(rows(&db, "SELECT count(*) FROM results WHERE verdict = 'unjudged'"), 1);
        drop(SqliteStore::open(&path).unwrap()); // and a second time there is nothing to do
    }

    #[test]
    fn an_older_database_makes_the_same_tables_as_a_new_one() {
        let schema = |path: &Path| -> Vec<String> {
            let db = Connection::open(path).unwrap();
            let mut tables =
                db.prepare("SELECT sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name").unwrap();
            tables.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        let (folder, path) = older(include_str!("fixtures/version-1.sql"));
        let new = folder.path().join("new.db");
        drop((SqliteStore::open(&path).unwrap(), SqliteStore::open(&new).unwrap()));
        assert_eq!(schema(&path), schema(&new));
    }

    #[test]
    fn a_refused_result_is_kept_with_its_verdict_and_the_hold_goes_on() {
        let store = in_memory(1000);
        wait(store.hold(hold(1, 1, 100), LEASE)).unwrap();
        let claimed = TokenCount::new(5);
        let verdict = Verdict::Refused(Refused::Empty { claimed });
        wait(store.refuse(SettleOrder { verdict, ..claim(1, 0, 7, 40) }, LEASE.at)).unwrap();
        assert_eq!(wait(store.audit()).unwrap().held, units(100));
        wait(store.settle(claim(1, 1, 8, 40), LEASE.at)).unwrap();
        let verdicts: Vec<(String, bool)> = wait(store.call::<_, StoreError>(|db| {
            let mut results =
                db.prepare("SELECT verdict, paid > zeroblob(16) FROM results ORDER BY attempt")?;
            Ok(results.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
        }))
        .unwrap();
        assert_eq!(verdicts, [("refused_empty".to_owned(), false), ("good".to_owned(), true)]);
        assert_eq!(wait(store.balance(Account::Provider(provider(7)))).unwrap(), Balance::ZERO);
    }

    #[test]
    fn what_is_thought_of_nodes_is_kept_and_fades_out_of_the_store() {
        let store = in_memory(1000);
        let at = Timestamp::from_millis;
        let standing = |number, level, then| Standing {
            provider: provider(number),
            reputation: Reputation::from_parts(level, at(then)),
        };
        wait(store.note_standings(vec![standing(1, 300_000, 10), standing(2, 900_000, 20)])).unwrap();
        wait(store.note_standings(vec![standing(2, 910_000, 30)])).unwrap();
        let mut kept = wait(store.standings(at(0))).unwrap();
        kept.sort_by_key(|standing| standing.reputation.parts());
        assert_eq!(kept, [standing(1, 300_000, 10), standing(2, 910_000, 30)]);
        assert_eq!(wait(store.standings(at(20))).unwrap(), [standing(2, 910_000, 30)]);
        assert_eq!(wait(store.standings(at(0))).unwrap(), [standing(2, 910_000, 30)]);
    }

    #[cfg(unix)]
    #[test]
    fn a_new_database_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/ledger.db");
        drop(SqliteStore::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Hold { job: u8, payer: u8, amount: u128 },
        Settle { job: u8, attempt: u8, provider: u8, charge: u128 },
        Void { job: u8 },
        Expire,
        Reopen,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..12, 0u8..4, 0u128..200).prop_map(|(job, payer, amount)| Step::Hold { job, payer, amount }),
            4 => (0u8..12, 0u8..3, 0u8..3, 0u128..220)
                .prop_map(|(job, attempt, provider, charge)| Step::Settle { job, attempt, provider, charge }),
            2 => (0u8..12).prop_map(|job| Step::Void { job }),
            1 => Just(Step::Expire),
            1 => Just(Step::Reopen),
        ]
    }

    /// Takes one step in both books, which must agree on what came of it.
    fn take(
        store: &SqliteStore,
        ledger: &mut Ledger,
        step: Step,
        now: Timestamp,
    ) -> Result<(), TestCaseError> {
        let lease = Lease { at: now, until: now.after(Duration::from_secs(10)) };
        match step {
            Step::Hold { job: number, payer: from, amount } => {
                let who = if from == 0 { account::Payer::Demo } else { account::Payer::User(key_id(from)) };
                let theirs = ledger.open_hold(job(number), who, units(amount), now, lease.until);
                let ours = wait(store.hold(hold(number, from, amount), lease));
                prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            }
            Step::Settle { job: number, attempt: try_, provider: by, charge } => {
                let claimed =
                    account::Claim { attempt: attempt(try_), provider: provider(by), charge: units(charge) };
                let theirs = ledger.settle(job(number), claimed, now);
                let ours = wait(store.settle(claim(number, try_, by, charge), now));
                match theirs {
                    Ok(_) => prop_assert_eq!(ours.unwrap().paid, units(charge)),
                    Err(
                        LedgerError::NoHold(_)
                        | LedgerError::Hold(account::HoldError::ChargeAboveHold { .. }),
                    ) => {
                        prop_assert!(ours.is_err());
                    }
                    Err(_) => prop_assert_eq!(ours.unwrap().paid, XRam::ZERO),
                }
            }
            Step::Void { job: number } => {
                let _ = ledger.void(job(number), now); // the store shrugs where the ledger says why not
                wait(store.void(job(number), now)).unwrap();
            }
            Step::Expire => {
                let theirs = ledger.void_expired(now).unwrap();
                prop_assert_eq!(wait(store.resolve_expired(now)).unwrap(), theirs.len() as u64);
            }
            Step::Reopen => {}
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_store_keeps_the_same_books_as_the_ledger_in_memory(
            steps in proptest::collection::vec(any_step(), 0..40),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger.db");
            let mut store = funded(SqliteStore::open(&path).unwrap(), 500);
            let mut ledger = Ledger::default();
            for number in 1..=3 {
                let reference = Reference::from_bits(number.into());
                ledger.deposit(reference, Account::User(key_id(number)), units(500), LEASE.at).unwrap();
            }
            for (number, step) in (1u64..).zip(steps) {
                if matches!(step, Step::Reopen) {
                    store = SqliteStore::open(&path).unwrap();
                }
                take(&store, &mut ledger, step, Timestamp::from_millis(number * 1000))?;
            }
            prop_assert!(wait(store.audit()).unwrap().is_sound());
            for (account, balance) in ledger.balances().iter() {
                prop_assert_eq!(wait(store.balance(account.clone())).unwrap(), balance, "{}", account);
            }
        }
    }
}
