CREATE TABLE backfill_turn (
    only_one integer NOT NULL UNIQUE DEFAULT 1 CHECK (only_one = 1),
    process  text NOT NULL,
    alive_at text NOT NULL
);

CREATE TABLE backfill_progress (
    id      text PRIMARY KEY NOT NULL,            -- of source, filters and detectors
    mark    text NOT NULL,                        -- everything up to here is done
    kept_at text NOT NULL
);

CREATE TABLE backfill_jobs (
    id           text PRIMARY KEY NOT NULL,       -- the verdict's
    published_at text NOT NULL
);
