-- The same columns and tables as in Postgres.
ALTER TABLE verdicts ADD COLUMN findings text;
ALTER TABLE verdicts ADD COLUMN views text;
ALTER TABLE verdicts ADD COLUMN evidence text;
ALTER TABLE verdicts ADD COLUMN damage text;
ALTER TABLE verdicts ADD COLUMN md5 blob;
ALTER TABLE verdicts ADD COLUMN hashes text;
ALTER TABLE verdicts ADD COLUMN object_at text;
ALTER TABLE verdicts ADD COLUMN deleted_at text;
ALTER TABLE verdicts ADD COLUMN revision integer NOT NULL DEFAULT 1;
ALTER TABLE verdicts ADD COLUMN cause text;
ALTER TABLE verdicts ADD COLUMN judged_at text;

CREATE TABLE verdict_history (
    verdict_id text NOT NULL,
    revision   integer NOT NULL,
    outcome    text NOT NULL,
    reason     text,
    label      text,
    score      real,
    findings   text,
    policy     text NOT NULL,
    cause      text,
    actor      text,
    decided_at text NOT NULL,
    judged_at  text NOT NULL,
    PRIMARY KEY (verdict_id, revision)
);

CREATE TABLE policies (
    sha256     text PRIMARY KEY NOT NULL,
    text       text NOT NULL,
    first_used text NOT NULL
);
