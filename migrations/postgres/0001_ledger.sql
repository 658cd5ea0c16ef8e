-- One row a job: how it ended, and what made it end so. Rows are inserted once; only a `failed` one is ever replaced.
CREATE TABLE verdicts (
    id          uuid PRIMARY KEY,                 -- UUIDv5 of job_id
    job_id      text NOT NULL,
    lane        text NOT NULL CHECK (lane IN ('live', 'backfill')),
    bucket      text NOT NULL,
    key         text NOT NULL,
    version_id  text,
    etag        text,
    sha256      bytea CHECK (octet_length(sha256) = 32),
    bytes       bigint,
    format      text,
    width       integer,
    height      integer,
    frames      integer,
    outcome     text NOT NULL CHECK (outcome IN
                    ('passed', 'review', 'flagged', 'undecodable', 'missing', 'rejected', 'failed')),
    reason      text,
    label       text,
    score       real,
    scores      jsonb,                            -- {detector: {label: p}}
    detectors   jsonb NOT NULL,                   -- {name: digest}
    policy      jsonb NOT NULL,                   -- {name, sha256}
    metadata    jsonb,
    reused_from uuid,
    attempts    integer NOT NULL,
    received_at timestamptz NOT NULL,
    decided_at  timestamptz NOT NULL
);

-- Scores are looked up by content. Only rows that made their own scores are worth finding.
CREATE INDEX verdicts_by_content ON verdicts (sha256) WHERE scores IS NOT NULL AND reused_from IS NULL;

-- Events that are owed, written with their verdict. A row is published when `published_at` is set.
CREATE TABLE outbox (
    event_id       uuid PRIMARY KEY,              -- UUIDv5 of verdict id and outcome
    verdict_id     uuid NOT NULL,
    routing_key    text NOT NULL,
    correlation_id text NOT NULL,
    payload        jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    published_at   timestamptz,
    due_at         timestamptz NOT NULL,          -- when the sweeper may take it; moved ahead as a lease
    tries          integer NOT NULL DEFAULT 0,
    last_error     text
);

CREATE INDEX outbox_due ON outbox (due_at) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;

-- Redelivered jobs that are being screened alone. A row left behind means that the process died over its job.
CREATE TABLE suspects (
    id         uuid PRIMARY KEY,                  -- the verdict's
    starts     integer NOT NULL,                  -- by how many processes
    process    uuid NOT NULL,                     -- the last of them
    started_at timestamptz NOT NULL DEFAULT now()
);
