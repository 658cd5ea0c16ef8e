"""Where everything is: the private services, and one installation of Pixwarden on them."""

import json
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import boto3
import botocore.config
import pika
import psycopg

PREFIX = "chaos"
BUCKET = "chaos"
DATABASE = "chaos"
LISTENER = "chaos-listener"

# What every change of a verdict after its first commit leaves behind.
AUDIT = """
CREATE TABLE audit (at timestamptz NOT NULL DEFAULT now(), job_id text NOT NULL, before text NOT NULL, after text NOT NULL);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.audit (job_id, before, after)
    VALUES (OLD.job_id, OLD.outcome, CASE TG_OP WHEN 'DELETE' THEN 'deleted' ELSE NEW.outcome END);
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER UPDATE OR DELETE ON verdicts FOR EACH ROW EXECUTE FUNCTION note_change();
"""


class World:
    def __init__(self, pixwarden, folder):
        self.pixwarden = str(Path(pixwarden).resolve())
        self.folder = Path(folder)
        self.amqp_url = os.environ["TEST_AMQP_URL"]
        self.admin_url = os.environ["TEST_POSTGRES_URL"]
        self.postgres_url = at(self.admin_url, path=f"/{DATABASE}")
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
        """The database with its schema and the audit, and the bucket. Workers declare the queues."""
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}")
        self.run("migrate")
        with self.database() as database:
            database.execute(AUDIT)
        self.s3.create_bucket(Bucket=BUCKET)

    def run(self, *arguments):
        """One command of Pixwarden's own, straight at the services."""
        command = [self.pixwarden, *arguments]
        result = subprocess.run(command, env=self.environment(), capture_output=True, text=True, cwd=self.folder)
        if result.returncode != 0:
            raise RuntimeError(f"{arguments[0]} failed:\n{result.stderr}")
        return result.stdout

    def environment(self, queue=None, ledger=None, store=None):
        """The variables of a process of Pixwarden's; proxies may stand in for the services."""
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
        """One request to the keeper of the services; its words."""
        command = [os.environ["TEST_SERVICES"], *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(result.stderr.strip())
        return result.stdout


def at(url, **parts):
    """A URL with some of its parts replaced; `port` keeps user and host."""
    split = urlsplit(url)
    if "port" in parts:
        parts["netloc"] = f"{split.netloc.rpartition(':')[0]}:{parts.pop('port')}"
    return urlunsplit(split._replace(**parts))


class Journal:
    """Lines of JSON, each on disk before `write` returns."""

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
    """Asks until something is so; an error that passes is an answer too."""
    until = time.monotonic() + limit_s
    while True:
        try:
            if answer := done():
                return answer
        except (OSError, psycopg.Error, pika.exceptions.AMQPError, RuntimeError):
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {limit_s} s")
        time.sleep(pause_s)
