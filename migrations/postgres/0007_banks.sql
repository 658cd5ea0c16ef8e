-- Lists of known images by their hashes. Writers of a bank lock its row first, so that its versions follow each other.
CREATE TABLE banks (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- never used for another bank
    name       text NOT NULL UNIQUE,
    kind       text NOT NULL CHECK (kind IN ('deny', 'allow')),
    restricted boolean NOT NULL,                  -- no picture of what it holds may be shown
    enabled    boolean NOT NULL,
    version    bigint NOT NULL DEFAULT 0,         -- grows with each change of entries and settings
    made_at    timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- The entries of all banks. Version v of a bank has the entries with added <= v that were not removed up to v. A row is
-- written with its version in one transaction, and later only marked as removed: so a reader that has a version finds
-- exactly that version, however long reading takes. Wide columns come first, because padding is a tenth of such a row.
-- There is no foreign key: it would be checked for each of a million rows, and the lock on the bank's row does the same.
CREATE TABLE bank_entries (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    added         bigint NOT NULL,                -- the bank's version that added it
    removed       bigint,                         -- the bank's version that removed it
    added_at      timestamptz NOT NULL DEFAULT now(),
    bank          integer NOT NULL,
    true_matches  integer NOT NULL DEFAULT 0,     -- confirmed by people
    false_matches integer NOT NULL DEFAULT 0,
    kind          smallint NOT NULL,              -- of the hash: 1 PDQ, 2 SHA-256, 3 MD5
    hash          bytea NOT NULL,
    metadata      jsonb,
    PRIMARY KEY (bank, id)                        -- a bank is read in this order, page by page
);

CREATE UNIQUE INDEX bank_entries_by_hash ON bank_entries (bank, kind, hash) WHERE removed IS NULL;
-- What has changed after a version. Both are small: many entries have one version.
CREATE INDEX bank_entries_by_version ON bank_entries (bank, added);
CREATE INDEX bank_entries_by_removal ON bank_entries (bank, removed) WHERE removed IS NOT NULL;

-- Hashes of all that was screened, to match a bank with it: one narrow table that is read as a whole, so that no verdict
-- and no image is read. Rows are found by (decided_at, verdict_id). They follow each other in time, so that a BRIN index
-- of a few pages finds them, and inserting costs no more than the row.
CREATE TABLE image_hashes (
    decided_at timestamptz NOT NULL,              -- of the verdict
    verdict_id uuid NOT NULL,
    view       smallint NOT NULL,                 -- the number of the view, from 0
    quality    smallint,                          -- of the PDQ hash, 0 to 100
    pdq        bytea,                             -- null where nothing could be decoded
    md5        bytea,                             -- of the file; null on further views
    sha256     bytea
);

CREATE INDEX image_hashes_by_time ON image_hashes USING brin (decided_at) WITH (autosummarize = on);
