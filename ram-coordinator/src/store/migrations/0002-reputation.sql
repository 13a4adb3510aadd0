-- Version 2. Results are judged, and what nodes did is remembered.

-- What a result is worth: `good`, or the name of a finding (ram_core::validate::Verdict::code). Of those that are not good
-- no reward is ever paid. NULL: version 1 did not judge.
ALTER TABLE results ADD COLUMN verdict TEXT;

-- How far each node is trusted that has ever done anything: millionths (ram_core::reputation), and when it was that many.
CREATE TABLE reputation (
    provider TEXT PRIMARY KEY,
    level    INTEGER NOT NULL CHECK (level BETWEEN 0 AND 1000000),
    at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
