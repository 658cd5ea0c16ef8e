-- How the ledger grows: fills a database of its own with verdicts as a worker writes them, and prints what the table and
-- each index take. What the program's statements cost at this size is measured by statements.py.
--
--     tests/services/run -- sh -c 'psql --quiet "$TEST_POSTGRES_URL" --set rows=1000000 --file tests/bench/growth.sql'
--
-- Ids are random, as UUIDv5 are; times rise; a key has 63 bytes. One verdict in sixteen has an event in the outbox.

\set ON_ERROR_STOP on
CREATE DATABASE growth;
\connect growth
SELECT version();

\ir ../../migrations/postgres/0001_ledger.sql
\ir ../../migrations/postgres/0002_lookups.sql
\ir ../../migrations/postgres/0003_backfill.sql
\ir ../../migrations/postgres/0004_revisions.sql
-- As in src/ledger/postgres/indexes.rs.
CREATE INDEX verdicts_by_outcome ON verdicts (outcome, decided_at, id) WHERE outcome <> 'passed';
CREATE INDEX verdicts_by_judgement ON verdicts (judged_at, id) WHERE judged_at IS NOT NULL;
CREATE INDEX outbox_by_key ON outbox (routing_key, due_at) WHERE published_at IS NULL;

-- In transactions of 500 rows, sorted by id, which is what a busy worker's group commits look like: an index over random
-- values is filled in no order, and its pages split. Rows `first` to before `last`: as long as one call lasts, autovacuum
-- is told of nothing, and the index of what is owed fills with the dead, through which each batch has to go.
CREATE PROCEDURE fill(first integer, last integer) LANGUAGE plpgsql AS $$
BEGIN
    FOR batch IN first / 500 .. last / 500 - 1 LOOP
        INSERT INTO verdicts
        SELECT id, id::text, CASE WHEN n % 3 = 0 THEN 'backfill' ELSE 'live' END, 'uploads',
               format('users/%s/2026/%s.jpg', left(md5(n::text), 12), gen_random_uuid()),
               NULL, md5(random()::text), sha256(random()::text::bytea), 40000 + n % 400000, 'jpeg', 1920, 1080, 1,
               outcome,
               CASE WHEN outcome <> 'passed' THEN 'synthetic-2.0 says "by AI" 0.9257, flag_at is 0.9' END,
               'by AI', p,
               jsonb_build_object('synthetic-2.0', jsonb_build_object('by AI', p, 'by human', 1 - p)),
               jsonb_build_object('synthetic-2.0', repeat('0123456789abcdef', 4)),
               jsonb_build_object('name', 'default', 'sha256', repeat('fedcba9876543210', 4)),
               jsonb_build_object('user', n % 100000), NULL, 1,
               timestamptz '2026-01-01' + n * interval '1 second', timestamptz '2026-01-01 00:00:01' + n * interval '1 second'
        FROM (SELECT gen_random_uuid() AS id, n, random()::real AS p,
                     CASE WHEN n % 32 = 0 THEN 'flagged' WHEN n % 32 = 1 THEN 'review' ELSE 'passed' END AS outcome
              FROM generate_series(batch * 500, batch * 500 + 499) AS n ORDER BY 1) AS made;
        INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
        SELECT gen_random_uuid(), id, 'image.' || outcome, job_id,
               jsonb_build_object('specversion', '1.0', 'id', id, 'type', 'io.pixwarden.image.flagged.v1', 'source', '/pixwarden',
                   'subject', 's3://uploads/' || key, 'time', decided_at, 'datacontenttype', 'application/json',
                   'data', to_jsonb(v) - '{id,width,height,frames,format,bytes,attempts,received_at,reused_from}'::text[]),
               now() + interval '30 seconds'
        FROM verdicts AS v
        WHERE decided_at > timestamptz '2026-01-01 00:00:00' + batch * 500 * interval '1 second' AND outcome <> 'passed';
        COMMIT;
        UPDATE outbox SET published_at = now() WHERE published_at IS NULL;
        COMMIT;
    END LOOP;
END $$;
SELECT format('CALL fill(%s, %s)', first, least(first + 250000, :rows)), 'VACUUM (ANALYZE) verdicts, outbox'
FROM generate_series(0, :rows - 1, 250000) AS first \gexec

\echo
\echo Bytes of each table without its indexes, and of each index; and a row of it
SELECT t.relname AS table, c.relname AS name, pg_size_pretty(pg_relation_size(c.oid)) AS size,
       round(pg_relation_size(c.oid) / t.reltuples::numeric) AS bytes_a_row
FROM pg_class AS t
JOIN pg_class AS c ON c.oid = t.oid OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = t.oid)
WHERE t.relname IN ('verdicts', 'outbox')
ORDER BY t.relname DESC, c.relkind DESC, c.relname;
