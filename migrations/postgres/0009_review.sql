-- What people look at and decide. A verdict has at most one open item, so that two people never hold one image. Lists read
-- the open items alone, by a small index: how many verdicts there are makes no difference.
CREATE TABLE review_items (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    verdict_id     uuid NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('review', 'report', 'appeal', 'legal', 'sample')),
    revision       integer NOT NULL,              -- of the verdict, when the item was opened or last changed by a judgement
    rank           smallint NOT NULL,             -- 0 legal, 1 most, 2 nothing but damage
    due_at         timestamptz NOT NULL DEFAULT 'infinity',
    severity       smallint NOT NULL,             -- 0 where none is known
    opened_at      timestamptz NOT NULL DEFAULT now(),
    category       text,
    label          text,
    bucket         text NOT NULL,
    policy         text NOT NULL,                 -- its name
    is_damage_only boolean NOT NULL,              -- nothing was found but damage
    is_restricted  boolean NOT NULL,              -- no picture of it may be shown
    probability    real,                          -- with which a sample was drawn
    claimed_by     text,
    claimed_at     timestamptz,                   -- what was reported before was shown; a renewal does not change it
    lease_until    timestamptz,
    not_for        text[] NOT NULL DEFAULT '{}',  -- people who have decided what is appealed against
    skipped_by     text[] NOT NULL DEFAULT '{}',
    escalated_at   timestamptz,
    closed_at      timestamptz,
    closed_by      text,                          -- the person; null where a later judgement has closed it
    decision       uuid                           -- that closed it
);

CREATE UNIQUE INDEX review_items_open ON review_items (verdict_id) WHERE closed_at IS NULL;
CREATE INDEX review_items_queue ON review_items (rank, due_at, (-severity), opened_at, id) WHERE closed_at IS NULL;
CREATE INDEX review_items_by_verdict ON review_items (verdict_id);
CREATE INDEX review_items_by_decision ON review_items (decision) WHERE decision IS NOT NULL;

-- The audit trail: it only grows, and holds nothing but ids. `revision` is the one that was decided on; a decision that
-- judges has made the next one.
CREATE TABLE decisions (
    id         uuid PRIMARY KEY,
    verdict_id uuid NOT NULL,
    revision   integer NOT NULL,
    actor      text NOT NULL,
    action     text NOT NULL CHECK (action IN ('flag', 'clear', 'uphold', 'escalate', 'skip', 'undo')),
    category   text,
    batch_id   uuid,
    at         timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX decisions_by_verdict ON decisions (verdict_id, revision);
CREATE INDEX decisions_by_time ON decisions (at, id);

CREATE FUNCTION refuse_change_of_decisions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'decisions are never changed or deleted' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER decisions_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_decisions();

-- What people have written beside a decision. Unlike the decision it can be erased.
CREATE TABLE decision_notes (
    decision   uuid PRIMARY KEY,
    verdict_id uuid NOT NULL,
    note       text,
    name       text                               -- of the person
);

CREATE INDEX decision_notes_by_verdict ON decision_notes (verdict_id);

-- The content that was decided about last, so that equal bytes take the decision over. The answers are the verdict's findings.
CREATE TABLE decided_contents (
    verdict_id uuid PRIMARY KEY,
    sha256     bytea NOT NULL,
    decided_at timestamptz NOT NULL
);

CREATE INDEX decided_contents_by_content ON decided_contents (sha256, decided_at);

-- Reports by users and others, appeals against decisions, and legal requests.
CREATE TABLE reports (
    id         uuid PRIMARY KEY,
    verdict_id uuid NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('report', 'appeal', 'legal')),
    category   text,
    note       text,
    reporter   text,
    reference  text,                              -- of the case, for people
    due_at     timestamptz,
    made_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX reports_by_verdict ON reports (verdict_id, made_at);
