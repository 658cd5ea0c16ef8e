-- Whose turn it is to backfill: one process at a time, alive as long as it says so.
CREATE TABLE backfill_turn (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    process  uuid NOT NULL,
    alive_at timestamptz NOT NULL
);

-- How far a backfill has come, so that a killed one goes on from there. Gone once it has reached the end.
CREATE TABLE backfill_progress (
    id      text PRIMARY KEY,                     -- of source, filters and detectors
    mark    text NOT NULL,                        -- everything up to here is done
    kept_at timestamptz NOT NULL DEFAULT now()
);

-- Jobs that were published and may still wait in the lane, so that nobody publishes them twice.
CREATE TABLE backfill_jobs (
    id           uuid PRIMARY KEY,                -- the verdict's
    published_at timestamptz NOT NULL
);
