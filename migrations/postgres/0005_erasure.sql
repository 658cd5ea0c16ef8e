-- What was erased, without saying what it was. `erase` writes a row for each image and content, so that a job for the same
-- content at the same place makes no new verdict. A digest is sha256(secret || sha256(secret || value)).
CREATE TABLE tombstones (
    place     bytea NOT NULL,                     -- of bucket, a zero byte, and key
    content   bytea,                              -- of the content's SHA-256; null where nothing was fetched
    etag      bytea,                              -- of the object's ETag, for backfill
    verdict   bytea,                              -- of the verdict's id
    erased_at timestamptz NOT NULL DEFAULT now()
);

-- The lookup is by place. Null equals null here.
CREATE UNIQUE INDEX tombstones_by_place
    ON tombstones (place, coalesce(content, ''), coalesce(etag, ''), coalesce(verdict, ''));

-- The secret of the digests: without it nobody can test a guess.
CREATE TABLE tombstone_key (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    secret   bytea NOT NULL
);

INSERT INTO tombstone_key (secret) SELECT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());

-- Always empty. Inserting verdicts takes a lock on it and so does `erase`, so that an insert is either seen by the deletion or
-- sees the tombstones. A table of its own, because vacuums, dumps and long commands lock all others.
CREATE TABLE erase_lock (
    nothing boolean
);

-- Legal holds. Each is a condition on verdicts: of an image, of content, or of metadata. It keeps what meets it, now and
-- later, from `prune` and `erase` until its end.
CREATE TABLE holds (
    id        uuid PRIMARY KEY,
    reference text NOT NULL,                      -- the case, for people
    bucket    text,
    key       text,
    sha256    bytea,
    name      text,                               -- a field of the metadata
    value     text,
    until     timestamptz NOT NULL,
    made_at   timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX holds_by_end ON holds (until);
