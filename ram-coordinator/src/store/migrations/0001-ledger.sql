-- Version 1. Money is a 16-byte big-endian blob (ram_chain::blob): an INTEGER ends at 9.2 xRAM, a NUMERIC is a float.
-- Instants are milliseconds since 1970 UTC. No table holds a word of a prompt or an answer, nor a key.

-- Who may call. Of a key only its hash is kept.
CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('live', 'agent')),
    hash       BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    name       TEXT NOT NULL,
    hint       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

-- What was asked for.
CREATE TABLE jobs (
    job   BLOB PRIMARY KEY CHECK (length(job) = 16),
    model TEXT NOT NULL,
    at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Money that is set aside for it. `payer` is an account.
CREATE TABLE holds (
    job         BLOB PRIMARY KEY REFERENCES jobs (job),
    payer       TEXT NOT NULL,
    amount      BLOB NOT NULL CHECK (length(amount) = 16),
    lease_until INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('open', 'settled', 'voided')),
    attempt     INTEGER CHECK ((attempt IS NULL) = (state <> 'settled')),
    charge      BLOB CHECK ((charge IS NULL) = (state <> 'settled') AND charge <= amount)
) STRICT, WITHOUT ROWID;
CREATE INDEX open_holds ON holds (lease_until) WHERE state = 'open';

-- What a running job has delivered so far: a crash costs its provider what came after this, and nothing else.
CREATE TABLE checkpoints (
    job        BLOB PRIMARY KEY REFERENCES jobs (job),
    attempt    INTEGER NOT NULL,
    provider   TEXT NOT NULL,
    prompt     INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    charge     BLOB NOT NULL CHECK (length(charge) = 16)
) STRICT, WITHOUT ROWID;

-- What came of it: every claim that was made, also the late ones, which are paid nothing.
CREATE TABLE results (
    job        BLOB NOT NULL REFERENCES jobs (job),
    attempt    INTEGER NOT NULL,
    provider   TEXT NOT NULL,
    prompt     INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    reasoning  INTEGER NOT NULL,
    claimed    BLOB NOT NULL CHECK (length(claimed) = 16),
    paid       BLOB NOT NULL CHECK (length(paid) = 16),
    at         INTEGER NOT NULL,
    PRIMARY KEY (job, attempt, provider)
) STRICT, WITHOUT ROWID;

-- The ledger: one entry for each event, under a name that is written once; its postings sum to zero.
CREATE TABLE entries (
    seq     INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    kind    TEXT NOT NULL,
    job     BLOB REFERENCES jobs (job),
    attempt INTEGER,
    at      INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_of_job ON entries (job) WHERE job IS NOT NULL;
CREATE UNIQUE INDEX resolved_once ON entries (job) WHERE kind IN ('settle', 'void');

-- `delta` is signed, from the account's point of view.
CREATE TABLE postings (
    entry   INTEGER NOT NULL REFERENCES entries (seq),
    line    INTEGER NOT NULL,
    account TEXT NOT NULL,
    delta   BLOB NOT NULL CHECK (length(delta) = 16),
    PRIMARY KEY (entry, line)
) STRICT, WITHOUT ROWID;
CREATE INDEX postings_of_account ON postings (account);

-- What is written stays written: a mistake is mended by another entry.
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
CREATE TRIGGER postings_stay BEFORE UPDATE ON postings BEGIN SELECT RAISE(ABORT, 'postings are immutable'); END;
CREATE TRIGGER postings_last BEFORE DELETE ON postings BEGIN SELECT RAISE(ABORT, 'postings are immutable'); END;

-- Sums of the postings of users and providers, kept in the transaction that posts. The network's own accounts have no
-- row here: every job would write to it, and nobody asks for their balance before an entry is made.
CREATE TABLE balances (
    account TEXT PRIMARY KEY,
    balance BLOB NOT NULL CHECK (length(balance) = 16 AND balance >= x'80000000000000000000000000000000')
) STRICT, WITHOUT ROWID;
