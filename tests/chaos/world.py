"""The private services, and one installation of Pixwarden that uses them."""

import json
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import boto3
import botocore.config
import pika
import psycopg

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "chaos"
BUCKET = "chaos"
# The workers reach this bucket over an endpoint of its own, so that it is in another store for them.
FAR_BUCKET = "chaos-far"
DATABASE = "chaos"
LISTENER = "chaos-listener"
# The role of deploy/postgres/roles.sql that the workers use. It neither owns a table nor passes over privileges.
ROLE = "pixwarden_worker"

# Records every change of a verdict after its first commit, and every job whose screening was begun alone.
AUDIT = """
CREATE TABLE audit (
    at timestamptz NOT NULL DEFAULT now(), job_id text NOT NULL, before text NOT NULL, after text NOT NULL,
    revision_before int NOT NULL, revision_after int, cause text, is_same boolean NOT NULL
);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.audit (job_id, before, after, revision_before, revision_after, cause, is_same)
    VALUES (OLD.job_id, OLD.outcome, CASE TG_OP WHEN 'DELETE' THEN 'deleted' ELSE NEW.outcome END,
        OLD.revision, NEW.revision, NEW.cause,
        -- Nothing but the policy, with the versions of its banks, and what its rules say without changing the outcome.
        TG_OP = 'UPDATE' AND to_jsonb(OLD) - '{policy,findings,label,score}'::text[]
            = to_jsonb(NEW) - '{policy,findings,label,score}'::text[]);
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER UPDATE OR DELETE ON verdicts FOR EACH ROW EXECUTE FUNCTION note_change();

CREATE TABLE begun_alone (at timestamptz NOT NULL DEFAULT now(), id uuid NOT NULL);
CREATE FUNCTION note_begun_alone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.begun_alone (id) VALUES (NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER note_begun_alone AFTER INSERT OR UPDATE ON suspects FOR EACH ROW
    -- A ping of the ledger writes a row of a verdict that no job has, and takes it back.
    WHEN (NEW.starts > 0 AND NEW.id <> NEW.process) EXECUTE FUNCTION note_begun_alone();
"""

# Faults inside the database. A row in `planted` switches one on. A trigger that was created for each fault would have to
# wait for the statements that the fault holds up.
PLANTED = """
CREATE TABLE planted (fault text PRIMARY KEY, code text);

-- A disk that no longer completes a write.
CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    WHILE EXISTS (SELECT FROM public.planted WHERE fault = 'stall') LOOP
        PERFORM pg_sleep(0.1);
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER stall BEFORE INSERT OR UPDATE OR DELETE ON verdicts FOR EACH STATEMENT EXECUTE FUNCTION stall();
CREATE TRIGGER stall BEFORE INSERT OR UPDATE OR DELETE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION stall();
CREATE TRIGGER stall BEFORE INSERT OR UPDATE OR DELETE ON suspects FOR EACH STATEMENT EXECUTE FUNCTION stall();

-- A rule of the operator's that refuses the rows of some jobs.
CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    code text := (SELECT planted.code FROM public.planted WHERE fault = 'poison');
BEGIN
    IF code IS NOT NULL THEN
        RAISE EXCEPTION 'the row is poison' USING ERRCODE = code;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_poison BEFORE INSERT ON verdicts FOR EACH ROW WHEN (NEW.metadata ? 'poison')
    EXECUTE FUNCTION refuse_poison();
"""


class World:
    def __init__(self, pixwarden, folder):
        self.pixwarden = str(Path(pixwarden).resolve())
        self.folder = Path(folder)
        self.amqp_url = os.environ["TEST_AMQP_URL"]
        self.admin_url = os.environ["TEST_POSTGRES_URL"]
        self.postgres_url = at(self.admin_url, path=f"/{DATABASE}")
        password = quote(os.environ["TEST_POSTGRES_PASSWORD"], safe="")
        self.worker_url = at(self.postgres_url, user=f"{ROLE}:{password}")
        self.s3_url = os.environ["TEST_S3_ENDPOINT"]
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            region_name=os.environ["TEST_S3_REGION"],
            aws_access_key_id=os.environ["TEST_S3_ACCESS_KEY"],
            aws_secret_access_key=os.environ["TEST_S3_SECRET_KEY"],
            config=botocore.config.Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    def prepare(self):
        """Creates the database with its schema, its roles and the audit tables, and the buckets. Workers declare the queues."""
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}")
        self.run("migrate")
        with self.database() as database:
            database.execute((ROOT / "deploy/postgres/roles.sql").read_text(encoding="utf-8"))
            database.execute(AUDIT)
            database.execute(PLANTED)
        for bucket in (BUCKET, FAR_BUCKET):
            self.s3.create_bucket(Bucket=bucket)

    def run(self, *arguments):
        """Runs one command of Pixwarden, without the proxies."""
        command = [self.pixwarden, *arguments]
        result = subprocess.run(command, env=self.environment(), capture_output=True, text=True, cwd=self.folder)
        if result.returncode != 0:
            raise RuntimeError(f"{arguments[0]} failed:\n{result.stderr}")
        return result.stdout

    def environment(self, queue=None, ledger=None, store=None):
        """The environment of a Pixwarden process. A URL of a proxy can replace that of a service."""
        return {
            "PATH": "/usr/bin:/bin",
            "ORT_DYLIB_PATH": os.environ["ORT_DYLIB_PATH"],
            "AWS_ACCESS_KEY_ID": os.environ["TEST_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": os.environ["TEST_S3_SECRET_KEY"],
            "AWS_REGION": os.environ["TEST_S3_REGION"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "PIXWARDEN_QUEUE": queue or self.amqp_url,
            "PIXWARDEN_LEDGER": ledger or self.postgres_url,
            "PIXWARDEN_STORAGE_ENDPOINT": store or self.s3_url,
            "PIXWARDEN_STORAGE_PATH_STYLE": "true",
            "PIXWARDEN_PREFIX": PREFIX,
            "PIXWARDEN_BUCKETS": BUCKET,
        }

    def database(self):
        return psycopg.connect(self.postgres_url, autocommit=True, connect_timeout=5)

    def broker(self):
        parameters = pika.URLParameters(self.amqp_url)
        parameters.heartbeat = 20
        parameters.socket_timeout = 5
        parameters.blocked_connection_timeout = 60
        return pika.BlockingConnection(parameters)

    def control(self, *arguments):
        """Sends one command to the process that manages the services, and returns its output."""
        command = [os.environ["TEST_SERVICES"], *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(result.stderr.strip())
        return result.stdout


def at(url, **parts):
    """A URL with some of its parts replaced; `port` keeps user and host, and `user` is one with its password."""
    split = urlsplit(url)
    if "user" in parts:
        parts["netloc"] = f"{parts.pop('user')}@{split.netloc.rpartition('@')[2]}"
    if "port" in parts:
        parts["netloc"] = f"{split.netloc.rpartition(':')[0]}:{parts.pop('port')}"
    return urlunsplit(split._replace(**parts))


class Journal:
    """A file of JSON lines. Each line is on disk when `write` returns."""

    def __init__(self, path):
        self._file = open(path, "a", encoding="utf-8")

    def write(self, **record):
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def wait(what, done, limit_s, pause_s=0.25):
    """Polls until `done` returns a true value. A transient error counts as false."""
    until = time.monotonic() + limit_s
    while True:
        try:
            if answer := done():
                return answer
        except (OSError, psycopg.Error, pika.exceptions.AMQPError, RuntimeError):
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"timeout after {limit_s} s: {what}")
        time.sleep(pause_s)
