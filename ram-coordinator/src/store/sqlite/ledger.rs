//! What each kind of work does to the tables of `migrations`, within a transaction that somebody else commits.
//!
//! The rules are those of `ram-chain`: [`Hold`] says which entry to write, [`Balances`] whether it may be written.

use ram_chain::account::{
    Account, Balance, Balances, Claim, Entry, EntryId, Hold, HoldError, HoldRecord, HoldState, KeyId, Payer,
    Posting,
};
use ram_chain::blob;
use ram_chain::pricing::FeeSplit;
use ram_core::id::{Attempt, JobId};
use ram_core::job::Usage;
use ram_core::reputation::Reputation;
use ram_core::units::{Timestamp, TokenCount, XRam};
use ram_core::validate::{Unrewarded, Verdict};
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use tracing::{error, warn};

use super::whole_or_nothing;
use crate::keys::{KeyHash, KeyRecord};
use crate::state::{self, HoldOrder, SettleOrder, Standing};
use crate::store::{Audit, Credit, Lease, Settled, StoreError};

type Outcome<T> = Result<T, StoreError>;

/// Most holds that one sweep resolves, so that it does not keep jobs waiting; the next sweep takes the rest.
const SWEEP_MAX: u32 = 1000;
/// Most nodes whose standing is kept over a start, those of the last deeds: 6 MB, and as many as the core remembers.
const STANDINGS_MAX: u32 = 100_000;

pub(super) fn hold(db: &Connection, order: &HoldOrder, lease: Lease) -> Outcome<()> {
    let payer = match &order.payer {
        state::Payer::Demo(_) => Payer::Demo,
        state::Payer::Key(id) => Payer::User(id.parse().map_err(|_| StoreError::UnknownKey)?),
    };
    let (hold, entry) = Hold::open(order.job, payer, order.amount, lease.at, lease.until)?;
    db.prepare_cached("INSERT INTO jobs (job, model, at) VALUES (:job, :model, :at)")?.execute(
        named_params! {
            ":job": job_blob(order.job),
            ":model": order.model.as_str(),
            ":at": time(lease.at),
        },
    )?;
    book(db, &entry, None)?;
    keep_hold(db, hold.record())
}

pub(super) fn renew(db: &Connection, jobs: &[JobId], lease: Lease) -> Outcome<()> {
    let mut renew = db.prepare_cached(
        "UPDATE holds SET lease_until = max(lease_until, :until) WHERE job = :job AND state = 'open'",
    )?;
    for job in jobs {
        renew.execute(named_params! { ":job": job_blob(*job), ":until": time(lease.until) })?;
    }
    Ok(())
}

pub(super) fn settle(
    db: &Connection,
    order: &SettleOrder,
    fees: FeeSplit,
    at: Timestamp,
) -> Outcome<Settled> {
    let mut hold = hold_of(db, order.job)?.ok_or(StoreError::UnknownJob(order.job))?;
    let claim = Claim { attempt: order.attempt, provider: order.provider, charge: order.charge };
    let paid = match hold.settle(claim, fees, at) {
        Ok(settlement) => {
            book(db, &settlement.entry, escrow_of(&hold))?;
            keep_hold(db, hold.record())?;
            order.charge
        }
        Err(HoldError::AlreadySettled { .. } | HoldError::AlreadyVoided) => XRam::ZERO, // late, or twice
        Err(error) => return Err(error.into()),
    };
    keep_result(db, order, paid, at)?;
    let remaining = match &hold.record().payer {
        Payer::Demo => None,
        payer @ Payer::User(_) => Some(balance(db, &payer.account())?.spendable()),
    };
    Ok(Settled { paid, remaining })
}

pub(super) fn refuse(db: &Connection, order: &SettleOrder, at: Timestamp) -> Outcome<()> {
    keep_result(db, order, XRam::ZERO, at)
}

pub(super) fn void(db: &Connection, job: JobId, at: Timestamp) -> Outcome<()> {
    let Some(mut hold) = hold_of(db, job)? else { return Ok(()) };
    match hold.void(at) {
        Ok(entry) => {
            book(db, &entry, escrow_of(&hold))?;
            keep_hold(db, hold.record())
        }
        Err(HoldError::AlreadySettled { .. } | HoldError::AlreadyVoided) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn checkpoint(db: &Connection, order: &SettleOrder) -> Outcome<()> {
    db.prepare_cached(
        "INSERT INTO checkpoints (job, attempt, provider, prompt, completion, charge)
         SELECT job, :attempt, :provider, :prompt, :completion, :charge FROM holds
         WHERE job = :job AND state = 'open'
         ON CONFLICT (job) DO UPDATE
         SET attempt = excluded.attempt, provider = excluded.provider, prompt = excluded.prompt,
             completion = excluded.completion, charge = excluded.charge",
    )?
    .execute(named_params! {
        ":job": job_blob(order.job),
        ":attempt": order.attempt.get(),
        ":provider": order.provider.to_string(),
        ":prompt": tokens(order.usage.prompt),
        ":completion": tokens(order.usage.completion),
        ":charge": blob::from_xram(order.charge),
    })?;
    Ok(())
}

pub(super) fn resolve_expired(db: &Connection, fees: FeeSplit, now: Timestamp) -> Outcome<u64> {
    let jobs: Vec<[u8; 16]> = db
        .prepare_cached(
            "SELECT job FROM holds WHERE state = 'open' AND lease_until <= :now ORDER BY lease_until, job LIMIT :most",
        )?
        .query_map(named_params! { ":now": time(now), ":most": SWEEP_MAX }, |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut resolved = 0;
    for job in jobs {
        resolved += u64::from(resolve(db, JobId::from_bits(u128::from_be_bytes(job)), fees, now)?);
    }
    Ok(resolved)
}

/// Resolves one hold by its checkpoint or, where there is none or it cannot be paid, in full. Answers whether: one that
/// does not even read is left as it is and told of, for no bad row may keep all the others waiting.
fn resolve(db: &Connection, job: JobId, fees: FeeSplit, now: Timestamp) -> Outcome<bool> {
    let release = |db: &Connection| void(db, job, now);
    let by_checkpoint = whole_or_nothing(db, |db| match checkpoint_of(db, job)? {
        Some(delivered) => settle(db, &delivered, fees, now).map(drop),
        None => release(db),
    });
    let resolved = by_checkpoint.or_else(|error| match error {
        StoreError::Failed(_) => Err(error), // not the row's fault
        error => {
            warn!(%job, %error, "what a job has delivered cannot be paid; its hold is released");
            whole_or_nothing(db, release)
        }
    });
    match resolved {
        Ok(()) => Ok(true),
        Err(error @ StoreError::Failed(_)) => Err(error),
        Err(error) => {
            error!(%job, %error, "a hold whose lease has ended cannot be resolved, and stays");
            Ok(false)
        }
    }
}

pub(super) fn credit(db: &Connection, key: &KeyId, credit: Credit, at: Timestamp) -> Outcome<XRam> {
    let known = "SELECT 1 FROM keys WHERE id = :id";
    if !db.prepare_cached(known)?.exists(named_params! { ":id": key.as_str() })? {
        return Err(StoreError::UnknownKey);
    }
    deposit(db, key, credit, at)?;
    Ok(balance(db, &Account::User(key.clone()))?.spendable())
}

pub(super) fn create_key(db: &Connection, record: &KeyRecord, hash: KeyHash, credit: Credit) -> Outcome<()> {
    db.prepare_cached(
        "INSERT INTO keys (id, kind, hash, name, hint, created_at) VALUES (:id, :kind, :hash, :name, :hint, :at)",
    )?
    .execute(named_params! {
        ":id": record.id.as_str(),
        ":kind": record.kind.as_str(),
        ":hash": hash.as_bytes(),
        ":name": record.name,
        ":hint": record.hint,
        ":at": time(record.created_at),
    })?;
    if credit.amount == XRam::ZERO { Ok(()) } else { deposit(db, &record.id, credit, record.created_at) }
}

pub(super) fn keys(db: &Connection) -> Outcome<Vec<(KeyRecord, XRam)>> {
    let keys: Vec<KeyRecord> = db
        .prepare_cached(
            "SELECT id, kind, name, hint, created_at, revoked_at FROM keys ORDER BY created_at, id",
        )?
        .query_and_then((), key)?
        .collect::<Outcome<_>>()?;
    keys.into_iter()
        .map(|key| {
            let spendable = balance(db, &Account::User(key.id.clone()))?.spendable();
            Ok((key, spendable))
        })
        .collect()
}

pub(super) fn key_of(db: &Connection, hash: KeyHash) -> Outcome<Option<KeyRecord>> {
    db.prepare_cached("SELECT id, kind, name, hint, created_at, revoked_at FROM keys WHERE hash = :hash")?
        .query_and_then(named_params! { ":hash": hash.as_bytes() }, key)?
        .next()
        .transpose()
}

pub(super) fn revoke_key(db: &Connection, id: &KeyId, at: Timestamp) -> Outcome<Option<KeyRecord>> {
    db.prepare_cached(
        "UPDATE keys SET revoked_at = coalesce(revoked_at, :at) WHERE id = :id
         RETURNING id, kind, name, hint, created_at, revoked_at",
    )?
    .query_and_then(named_params! { ":id": id.as_str(), ":at": time(at) }, key)?
    .next()
    .transpose()
}

pub(super) fn entries_of(db: &Connection, job: JobId) -> Outcome<Vec<Entry>> {
    let heads: Vec<(i64, EntryId, Timestamp)> = db
        .prepare_cached("SELECT seq, name, at FROM entries WHERE job = :job ORDER BY seq")?
        .query_and_then(named_params! { ":job": job_blob(job) }, |row| {
            Ok((row.get(0)?, parsed(row, 1, "entries.name")?, instant(row, 2, "entries.at")?))
        })?
        .collect::<Outcome<_>>()?;
    heads
        .into_iter()
        .map(|(seq, id, at)| {
            Entry::new(id, at, postings(db, seq)?).map_err(|_| StoreError::Broken("postings"))
        })
        .collect()
}

pub(super) fn note_standings(db: &Connection, standings: &[Standing]) -> Outcome<()> {
    let mut note = db.prepare_cached(
        "INSERT INTO reputation (provider, level, at) VALUES (:provider, :level, :at)
         ON CONFLICT (provider) DO UPDATE SET level = excluded.level, at = excluded.at",
    )?;
    for Standing { provider, reputation } in standings {
        let (level, at) = reputation.parts();
        note.execute(named_params! { ":provider": provider.to_string(), ":level": level, ":at": time(at) })?;
    }
    Ok(())
}

pub(super) fn standings(db: &Connection, since: Timestamp) -> Outcome<Vec<Standing>> {
    db.prepare_cached(
        "DELETE FROM reputation
         WHERE at < max(:since, coalesce((SELECT at FROM reputation ORDER BY at DESC LIMIT 1 OFFSET :most), 0))",
    )?
    .execute(named_params! { ":since": time(since), ":most": STANDINGS_MAX })?;
    db.prepare_cached("SELECT provider, level, at FROM reputation ORDER BY provider")?
        .query_and_then((), |row| {
            let reputation = Reputation::from_parts(row.get(1)?, instant(row, 2, "reputation.at")?);
            Ok(Standing { provider: parsed(row, 0, "reputation.provider")?, reputation })
        })?
        .collect()
}

/// What an account holds: the projected row of a user or provider, the sum of its postings for any other.
pub(super) fn balance(db: &Connection, account: &Account) -> Outcome<Balance> {
    if is_projected(account) {
        let row = db
            .prepare_cached("SELECT balance FROM balances WHERE account = :account")?
            .query_row(named_params! { ":account": account.to_string() }, |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        return row.map_or(Ok(Balance::ZERO), |blob| {
            blob::to_balance(&blob).map_err(|_| StoreError::Broken("balances.balance"))
        });
    }
    db.prepare_cached("SELECT delta FROM postings WHERE account = :account")?
        .query_and_then(named_params! { ":account": account.to_string() }, |row| {
            signed(row, 0, "postings.delta")
        })?
        .try_fold(Balance::ZERO, |sum, delta| Ok(sum.saturating_add(delta?)))
}

pub(super) fn audit(db: &Connection) -> Outcome<Audit> {
    let mut sums = std::collections::BTreeMap::<Account, Balance>::new();
    let (mut entries, mut balanced, mut current, mut sum) = (0, true, None, Balance::ZERO);
    let mut postings = db.prepare("SELECT entry, account, delta FROM postings ORDER BY entry")?;
    let mut rows = postings.query(())?;
    while let Some(row) = rows.next()? {
        let entry: i64 = row.get(0)?;
        if current.replace(entry) != Some(entry) {
            entries += 1;
            balanced &= sum == Balance::ZERO;
        }
        let delta = signed(row, 2, "postings.delta")?;
        sum = sum.saturating_add(delta);
        let total = sums.entry(parsed(row, 1, "postings.account")?).or_default();
        *total = total.saturating_add(delta);
    }
    balanced &= sum == Balance::ZERO;
    let projected = sums
        .iter()
        .filter(|(account, _)| is_projected(account))
        .try_fold(true, |all, (account, sum)| Ok::<_, StoreError>(all && balance(db, account)? == *sum))?;
    let held = db
        .prepare("SELECT amount FROM holds WHERE state = 'open'")?
        .query_and_then((), |row| amount(row, 0, "holds.amount"))?
        .sum::<Outcome<XRam>>()?;
    let escrow = sums.get(&Account::Escrow).copied().unwrap_or_default();
    Ok(Audit { entries, balanced, projected, escrow, held })
}

/// Writes an entry and what it makes of the balances. `known` is one that has no row.
fn book(db: &Connection, entry: &Entry, known: Option<(Account, Balance)>) -> Outcome<()> {
    let touched = || entry.postings().iter().map(|posting| &posting.account);
    let rows: Vec<(Account, Balance)> = touched()
        .filter(|account| is_projected(account))
        .map(|account| Ok((account.clone(), balance(db, account)?)))
        .collect::<Outcome<_>>()?;
    let mut balances: Balances = known.into_iter().chain(rows).collect();
    balances.apply(entry)?;
    write_entry(db, entry)?;
    let mut keep = db.prepare_cached(
        "INSERT INTO balances (account, balance) VALUES (:account, :balance)
         ON CONFLICT (account) DO UPDATE SET balance = excluded.balance",
    )?;
    for account in touched().filter(|account| is_projected(account)) {
        let balance = blob::from_balance(balances.of(account));
        keep.execute(named_params! { ":account": account.to_string(), ":balance": balance })?;
    }
    Ok(())
}

fn write_entry(db: &Connection, entry: &Entry) -> Outcome<()> {
    let id = entry.id();
    db.prepare_cached(
        "INSERT INTO entries (name, kind, job, attempt, at) VALUES (:name, :kind, :job, :attempt, :at)",
    )?
    .execute(named_params! {
        ":name": id.to_string(),
        ":kind": id.kind().as_str(),
        ":job": id.job().map(job_blob),
        ":attempt": id.attempt().map(Attempt::get),
        ":at": time(entry.at()),
    })?;
    let seq = db.last_insert_rowid();
    let mut post = db.prepare_cached(
        "INSERT INTO postings (entry, line, account, delta) VALUES (:entry, :line, :account, :delta)",
    )?;
    for (line, Posting { account, delta }) in (0_i64..).zip(entry.postings()) {
        post.execute(named_params! {
            ":entry": seq,
            ":line": line,
            ":account": account.to_string(),
            ":delta": blob::from_balance(delta.signed()),
        })?;
    }
    Ok(())
}

fn deposit(db: &Connection, key: &KeyId, credit: Credit, at: Timestamp) -> Outcome<()> {
    let entry = Entry::deposit(credit.reference, Account::User(key.clone()), credit.amount, at)
        .map_err(HoldError::Entry)?;
    let booked = "SELECT 1 FROM entries WHERE name = :name";
    if db.prepare_cached(booked)?.exists(named_params! { ":name": entry.id().to_string() })? {
        return Ok(());
    }
    book(db, &entry, None)
}

/// What is known of the escrow without adding it up: it is the sum of all open holds, so it has at least this one.
fn escrow_of(hold: &Hold) -> Option<(Account, Balance)> {
    let units = i128::try_from(hold.record().amount.units()).ok()?;
    Some((Account::Escrow, Balance::from_units(units)))
}

/// Whether an account has a row in `balances`.
fn is_projected(account: &Account) -> bool {
    matches!(account, Account::User(_) | Account::Provider(_))
}

fn hold_of(db: &Connection, job: JobId) -> Outcome<Option<Hold>> {
    db.prepare_cached(
        "SELECT payer, amount, lease_until, state, attempt, charge FROM holds WHERE job = :job",
    )?
    .query_and_then(named_params! { ":job": job_blob(job) }, |row| {
        let payer = match parsed(row, 0, "holds.payer")? {
            Account::User(key) => Payer::User(key),
            Account::Demo => Payer::Demo,
            _ => return Err(StoreError::Broken("holds.payer")),
        };
        let state = match row.get_ref(3)?.as_str() {
            Ok("open") => HoldState::Open,
            Ok("voided") => HoldState::Voided,
            Ok("settled") => HoldState::Settled {
                attempt: Attempt::new(row.get(4)?).ok_or(StoreError::Broken("holds.attempt"))?,
                charge: amount(row, 5, "holds.charge")?,
            },
            _ => return Err(StoreError::Broken("holds.state")),
        };
        let (amount, lease_until) = (amount(row, 1, "holds.amount")?, instant(row, 2, "holds.lease_until")?);
        Ok(Hold::restore(HoldRecord { job, payer, amount, lease_until, state }))
    })?
    .next()
    .transpose()
}

fn checkpoint_of(db: &Connection, job: JobId) -> Outcome<Option<SettleOrder>> {
    db.prepare_cached(
        "SELECT attempt, provider, prompt, completion, charge FROM checkpoints WHERE job = :job",
    )?
    .query_and_then(named_params! { ":job": job_blob(job) }, |row| {
        let usage = Usage {
            prompt: count(row, 2, "checkpoints.prompt")?,
            completion: count(row, 3, "checkpoints.completion")?,
            reasoning: TokenCount::ZERO,
        };
        Ok(SettleOrder {
            job,
            attempt: Attempt::new(row.get(0)?).ok_or(StoreError::Broken("checkpoints.attempt"))?,
            provider: parsed(row, 1, "checkpoints.provider")?,
            usage,
            charge: amount(row, 4, "checkpoints.charge")?,
            verdict: Verdict::Unrewarded(Unrewarded::Unjudged),
        })
    })?
    .next()
    .transpose()
}

fn keep_hold(db: &Connection, record: &HoldRecord) -> Outcome<()> {
    let (state, settled) = match record.state {
        HoldState::Open => ("open", None),
        HoldState::Voided => ("voided", None),
        HoldState::Settled { attempt, charge } => ("settled", Some((attempt, charge))),
    };
    db.prepare_cached(
        "INSERT INTO holds (job, payer, amount, lease_until, state, attempt, charge)
         VALUES (:job, :payer, :amount, :lease_until, :state, :attempt, :charge)
         ON CONFLICT (job) DO UPDATE
         SET state = excluded.state, attempt = excluded.attempt, charge = excluded.charge",
    )?
    .execute(named_params! {
        ":job": job_blob(record.job),
        ":payer": record.payer.account().to_string(),
        ":amount": blob::from_xram(record.amount),
        ":lease_until": time(record.lease_until),
        ":state": state,
        ":attempt": settled.map(|(attempt, _)| attempt.get()),
        ":charge": settled.map(|(_, charge)| blob::from_xram(charge)),
    })?;
    if record.state != HoldState::Open {
        db.prepare_cached("DELETE FROM checkpoints WHERE job = :job")?
            .execute(named_params! { ":job": job_blob(record.job) })?;
    }
    Ok(())
}

fn keep_result(db: &Connection, order: &SettleOrder, paid: XRam, at: Timestamp) -> Outcome<()> {
    db.prepare_cached(
        "INSERT INTO results (job, attempt, provider, prompt, completion, reasoning, claimed, paid, at, verdict)
         VALUES (:job, :attempt, :provider, :prompt, :completion, :reasoning, :claimed, :paid, :at, :verdict)
         ON CONFLICT DO NOTHING",
    )?
    .execute(named_params! {
        ":job": job_blob(order.job),
        ":attempt": order.attempt.get(),
        ":provider": order.provider.to_string(),
        ":prompt": tokens(order.usage.prompt),
        ":completion": tokens(order.usage.completion),
        ":reasoning": tokens(order.usage.reasoning),
        ":claimed": blob::from_xram(order.charge),
        ":paid": blob::from_xram(paid),
        ":at": time(at),
        ":verdict": order.verdict.code(),
    })?;
    Ok(())
}

fn postings(db: &Connection, entry: i64) -> Outcome<Vec<Posting>> {
    db.prepare_cached("SELECT account, delta FROM postings WHERE entry = :entry ORDER BY line")?
        .query_and_then(named_params! { ":entry": entry }, |row| {
            let account = parsed(row, 0, "postings.account")?;
            let units = signed(row, 1, "postings.delta")?.units();
            let amount = XRam::from_units(units.unsigned_abs());
            Ok(if units < 0 { Posting::debit(account, amount) } else { Posting::credit(account, amount) })
        })?
        .collect()
}

fn key(row: &Row<'_>) -> Outcome<KeyRecord> {
    let revoked: Option<i64> = row.get(5)?;
    Ok(KeyRecord {
        id: parsed(row, 0, "keys.id")?,
        kind: parsed(row, 1, "keys.kind")?,
        name: row.get(2)?,
        hint: row.get(3)?,
        created_at: instant(row, 4, "keys.created_at")?,
        revoked_at: revoked.map(|_| instant(row, 5, "keys.revoked_at")).transpose()?,
    })
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize, name: &'static str) -> Outcome<T> {
    row.get_ref(column)?.as_str().ok().and_then(|text| text.parse().ok()).ok_or(StoreError::Broken(name))
}

fn amount(row: &Row<'_>, column: usize, name: &'static str) -> Outcome<XRam> {
    let blob: Vec<u8> = row.get(column)?;
    blob::to_xram(&blob).map_err(|_| StoreError::Broken(name))
}

fn signed(row: &Row<'_>, column: usize, name: &'static str) -> Outcome<Balance> {
    let blob: Vec<u8> = row.get(column)?;
    blob::to_balance(&blob).map_err(|_| StoreError::Broken(name))
}

fn instant(row: &Row<'_>, column: usize, name: &'static str) -> Outcome<Timestamp> {
    let millis: i64 = row.get(column)?;
    u64::try_from(millis).map(Timestamp::from_millis).map_err(|_| StoreError::Broken(name))
}

/// An instant as SQL's signed number, which lasts for another 292 million years.
fn time(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

fn count(row: &Row<'_>, column: usize, name: &'static str) -> Outcome<TokenCount> {
    let count: i64 = row.get(column)?;
    u64::try_from(count).map(TokenCount::new).map_err(|_| StoreError::Broken(name))
}

fn tokens(count: TokenCount) -> i64 {
    i64::try_from(count.get()).unwrap_or(i64::MAX)
}

fn job_blob(job: JobId) -> [u8; 16] {
    job.bits().to_be_bytes()
}
