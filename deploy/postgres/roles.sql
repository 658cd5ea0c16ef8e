-- The roles of a ledger, and their privileges in the current database. docs/access.md describes who uses which role.
--
-- Run it as a superuser, or as the database's owner with the right to create roles: before the first `pixwarden migrate`,
-- and again after each one, because only its owner may use a new table until then. Running it again changes nothing else.
-- Roles are created without a password and cannot log in until they have one: ALTER ROLE pixwarden_worker PASSWORD '...'.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['pixwarden_owner', 'pixwarden_worker', 'pixwarden_operator', 'pixwarden_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    -- By default every role of the server may connect and create temporary tables.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    -- `bank import` gathers a list in a temporary table.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO pixwarden_operator', current_database());
END
$$;

-- Before PostgreSQL 15 every role may create tables here.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO pixwarden_owner;
GRANT USAGE ON SCHEMA public TO pixwarden_worker, pixwarden_operator, pixwarden_reader;

DO $$
DECLARE
    may record;
BEGIN
    FOR may IN SELECT * FROM (VALUES
        -- `worker`: inserts verdicts with their events, and revises a `failed` one.
        ('pixwarden_worker', 'verdicts', 'SELECT, INSERT, UPDATE'),
        ('pixwarden_worker', 'verdict_history', 'SELECT, INSERT'),
        ('pixwarden_worker', 'policies', 'SELECT, INSERT'),
        ('pixwarden_worker', 'outbox', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_worker', 'webhook_deliveries', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_worker', 'suspects', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_worker', 'score_baselines', 'SELECT'),
        ('pixwarden_worker', 'banks', 'SELECT'),
        ('pixwarden_worker', 'bank_entries', 'SELECT'),
        ('pixwarden_worker', 'image_hashes', 'SELECT, INSERT, DELETE'),
        -- Only the tables' owner has the right to change or delete a decision, and a trigger refuses even that.
        ('pixwarden_worker', 'review_items', 'SELECT, INSERT, UPDATE'),
        ('pixwarden_worker', 'decisions', 'SELECT, INSERT'),
        ('pixwarden_worker', 'decision_notes', 'SELECT, INSERT'),
        ('pixwarden_worker', 'decided_contents', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_worker', 'reports', 'SELECT, INSERT'),
        ('pixwarden_worker', 'tombstones', 'SELECT'),
        ('pixwarden_worker', 'tombstone_key', 'SELECT'),
        -- Inserting verdicts locks it, and so does `erase`. It is always empty.
        ('pixwarden_worker', 'erase_lock', 'INSERT'),
        ('pixwarden_worker', '_sqlx_migrations', 'SELECT'),
        -- `rejudge`, `prune`, `erase`, `hold`, `backfill`, `bank`, `webhook` and `compare --save-baseline`.
        ('pixwarden_operator', 'verdicts', 'SELECT, UPDATE, DELETE'),
        ('pixwarden_operator', 'verdict_history', 'SELECT, INSERT, DELETE'),
        ('pixwarden_operator', 'policies', 'SELECT, INSERT'),
        ('pixwarden_operator', 'outbox', 'SELECT, INSERT, DELETE'),
        ('pixwarden_operator', 'webhook_deliveries', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'suspects', 'SELECT, DELETE'),
        ('pixwarden_operator', 'tombstones', 'SELECT, INSERT'),
        ('pixwarden_operator', 'erase_lock', 'UPDATE'),
        ('pixwarden_operator', 'tombstone_key', 'SELECT'),
        ('pixwarden_operator', 'holds', 'SELECT, INSERT, DELETE'),
        ('pixwarden_operator', 'backfill_turn', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'backfill_progress', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'backfill_jobs', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'score_baselines', 'SELECT, INSERT, UPDATE'),
        ('pixwarden_operator', 'banks', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'bank_entries', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'image_hashes', 'SELECT, DELETE'),
        ('pixwarden_operator', 'review_items', 'SELECT, INSERT, UPDATE, DELETE'),
        ('pixwarden_operator', 'decisions', 'SELECT'),
        ('pixwarden_operator', 'decision_notes', 'SELECT, DELETE'),
        ('pixwarden_operator', 'decided_contents', 'SELECT, DELETE'),
        ('pixwarden_operator', 'reports', 'SELECT, DELETE'),
        ('pixwarden_operator', '_sqlx_migrations', 'SELECT'),
        -- `show`, `export` and `compare`.
        ('pixwarden_reader', 'verdicts', 'SELECT'),
        ('pixwarden_reader', 'verdict_history', 'SELECT'),
        ('pixwarden_reader', 'policies', 'SELECT'),
        ('pixwarden_reader', 'outbox', 'SELECT'),
        ('pixwarden_reader', 'score_baselines', 'SELECT'),
        ('pixwarden_reader', 'banks', 'SELECT'),
        ('pixwarden_reader', 'image_hashes', 'SELECT'),
        ('pixwarden_reader', 'review_items', 'SELECT'),
        ('pixwarden_reader', 'decisions', 'SELECT'),
        ('pixwarden_reader', 'decision_notes', 'SELECT'),
        ('pixwarden_reader', 'reports', 'SELECT'),
        ('pixwarden_reader', '_sqlx_migrations', 'SELECT')
    ) AS privilege (role, relation, privileges)
    WHERE to_regclass('public.' || relation) IS NOT NULL
    LOOP
        -- This also removes privileges that an earlier release granted and this one does not.
        EXECUTE format('REVOKE ALL ON public.%I FROM %I', may.relation, may.role);
        EXECUTE format('GRANT %s ON public.%I TO %I', may.privileges, may.relation, may.role);
    END LOOP;
END
$$;
