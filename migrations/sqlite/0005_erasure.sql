-- The same tables as in Postgres. The digests are made by the program.
CREATE TABLE tombstones (
    place     blob NOT NULL,
    content   blob,
    etag      blob,
    verdict   blob,
    erased_at text NOT NULL
);

CREATE UNIQUE INDEX tombstones_by_place
    ON tombstones (place, coalesce(content, x''), coalesce(etag, x''), coalesce(verdict, x''));

CREATE TABLE tombstone_key (
    only_one integer NOT NULL UNIQUE DEFAULT 1 CHECK (only_one = 1),
    secret   blob NOT NULL
);

INSERT INTO tombstone_key (secret) SELECT randomblob(32);

CREATE TABLE holds (
    id        text PRIMARY KEY NOT NULL,
    reference text NOT NULL,
    bucket    text,
    key       text,
    sha256    blob,
    name      text,
    value     text,
    until     text NOT NULL,
    made_at   text NOT NULL
);

CREATE INDEX holds_by_end ON holds (until);
