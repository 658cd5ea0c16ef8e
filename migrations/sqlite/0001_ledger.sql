-- The same tables as in Postgres, by the same names. UUIDs are text with hyphens, JSON is text, and times are text in
-- UTC with six digits of a second, so that they sort as they follow each other.
CREATE TABLE verdicts (
    id          text PRIMARY KEY NOT NULL,        -- UUIDv5 of job_id
    job_id      text NOT NULL,
    lane        text NOT NULL CHECK (lane IN ('live', 'backfill')),
    bucket      text NOT NULL,
    key         text NOT NULL,
    version_id  text,
    etag        text,
    sha256      blob CHECK (length(sha256) = 32),
    bytes       integer,
    format      text,
    width       integer,
    height      integer,
    frames      integer,
    outcome     text NOT NULL CHECK (outcome IN
                    ('passed', 'review', 'flagged', 'undecodable', 'missing', 'rejected', 'failed')),
    reason      text,
    label       text,
    score       real,
    scores      text,                             -- {detector: {label: p}}
    detectors   text NOT NULL,                    -- {name: digest}
    policy      text NOT NULL,                    -- {name, sha256}
    metadata    text,
    reused_from text,
    attempts    integer NOT NULL,
    received_at text NOT NULL,
    decided_at  text NOT NULL
);

CREATE INDEX verdicts_by_content ON verdicts (sha256) WHERE scores IS NOT NULL AND reused_from IS NULL;

CREATE TABLE outbox (
    event_id       text PRIMARY KEY NOT NULL,     -- UUIDv5 of verdict id and outcome
    verdict_id     text NOT NULL,
    routing_key    text NOT NULL,
    correlation_id text NOT NULL,
    payload        text NOT NULL,
    created_at     text NOT NULL,
    published_at   text,
    due_at         text NOT NULL,
    tries          integer NOT NULL DEFAULT 0,
    last_error     text
);

CREATE INDEX outbox_due ON outbox (due_at) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;

CREATE TABLE suspects (
    id         text PRIMARY KEY NOT NULL,         -- the verdict's
    starts     integer NOT NULL,
    process    text NOT NULL,
    started_at text NOT NULL
);
