-- Room for what later releases record of a verdict. Every column is nullable or has a constant default, so that no row is
-- rewritten and the INSERT of an older worker still works. There are no CHECK constraints: each would read the whole table
-- under an exclusive lock.
ALTER TABLE verdicts
    ADD COLUMN findings   jsonb,                  -- what the policy found, strongest first
    ADD COLUMN views      jsonb,                  -- per detector and label: the view with the highest score
    ADD COLUMN evidence   jsonb,                  -- what the file itself says of its origin
    ADD COLUMN damage     text,                   -- what is wrong with a file that still shows something
    ADD COLUMN md5        bytea,
    ADD COLUMN hashes     jsonb,                  -- per view: perceptual hash and quality
    ADD COLUMN object_at  timestamptz,            -- when the object was last modified, as the store says
    ADD COLUMN deleted_at timestamptz,            -- when the object was removed from its bucket
    ADD COLUMN revision   integer NOT NULL DEFAULT 1,
    ADD COLUMN cause      text,                   -- of the last revision; null for the first judgement
    ADD COLUMN judged_at  timestamptz;            -- of the last revision; null for the first judgement: see decided_at

-- The states of a verdict before its last revision.
CREATE TABLE verdict_history (
    verdict_id uuid NOT NULL,
    revision   integer NOT NULL,
    outcome    text NOT NULL,
    reason     text,
    label      text,
    score      real,
    findings   jsonb,
    policy     jsonb NOT NULL,
    cause      text,
    actor      text,                              -- the person whose decision it was
    decided_at timestamptz NOT NULL,
    judged_at  timestamptz NOT NULL,
    PRIMARY KEY (verdict_id, revision)
);

-- The canonical text of each policy that judged, so that a verdict can be explained years later.
CREATE TABLE policies (
    sha256     text PRIMARY KEY,                  -- hexadecimal, as in verdicts.policy
    text       text NOT NULL,
    first_used timestamptz NOT NULL DEFAULT now()
);
