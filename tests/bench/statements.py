#!/usr/bin/env python3
"""Time and pages of every statement of the ledger at size, at the beginning of a command and far into it.

    tests/services/run -- python tests/bench/statements.py --pixwarden target/release/pixwarden --rows 2000000

A database of its own is filled with verdicts as growth.sql makes them. Then the commands run as an operator runs them, with
auto_explain in every session and generic plans forced, because that is what a prepared statement ends with. The server
sends each plan to its client, whose log this program reads: so these are the statements of the program itself, and no
copies. A page must cost the same at the beginning and at the end: the last column is the quotient of the pages that were
read. At the end a worker runs beside half a million events that no queue takes, and screens a few images that are flagged.
"""

import argparse
import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import growth
import psycopg

MODELS = Path(__file__).parents[2] / "models"
SAMPLE = MODELS / "samples" / "baseline.jpg"
# Rows that each have an event for a routing key that no queue takes.
UNHEARD = 500_000
SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_triggers": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
    "plan_cache_mode": "force_generic_plan",
}


class Statements:
    """What the commands have done so far: of each statement the milliseconds and pages of each execution."""

    def __init__(self):
        self.rows = []

    def read(self, command, log):
        found = defaultdict(list)
        for line in log.splitlines():
            try:
                text = json.loads(line).get("message", "")
            except (json.JSONDecodeError, AttributeError):
                continue
            if (begins := text.find("plan:")) < 0 or (brace := text.find("{", begins)) < 0:
                continue
            explained = json.loads(text[brace:])
            plan = explained["Plan"]
            milliseconds = float(re.search(r"duration: ([0-9.]+) ms", text)[1])
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            found[" ".join(explained["Query Text"].split())].append((milliseconds, pages, plan))
        for query, executions in found.items():
            if not re.search("set_config|pg_settings|_sqlx_migrations|to_regclass|pg_is_in_recovery", query):
                self.rows.append((command, query, executions))
        return found

    def print(self):
        print(f"\n{'command':34} {'statement':44} {'times':>5} {'first':>16} {'100th or last':>16} {'pages':>6}")
        for command, query, executions in self.rows:
            first, late = executions[0], executions[min(99, len(executions) - 1)]
            cost = "{:8.1f} ms {:4,}".format
            quotient = late[1] / max(first[1], 1)
            short = shorten(query)
            print(f"{command:34} {short:44} {len(executions):5} {cost(*first[:2]):>16} {cost(*late[:2]):>16} {quotient:6.2f}")


def shorten(query):
    words = re.sub(r"SELECT id::text.*? FROM verdicts", "SELECT columns FROM verdicts", query)
    table = re.search(r"(INSERT INTO|UPDATE|DELETE FROM|FROM) (\w+)", words)
    marks = [mark for mark in ("OFFSET", "FOR UPDATE", "count(*)", "outcome <> 'passed'", "judged_at IS NOT NULL", "LIKE ANY",
                               "starts_with", "detectors ?", "label = ANY", "lane", "unnest", "RECURSIVE") if mark in words]
    return f"{words.split()[0]} {table[2] if table else ''} {' '.join(marks)}"[:44]


class Ledger:
    """A database of its own."""

    def __init__(self, options, folder):
        name = "statements"
        self.options, self.folder = options, folder
        self.url = growth.create(name)
        self.config = folder / "pixwarden.toml"
        self.config.write_text(
            f'queue = "{os.environ["TEST_AMQP_URL"]}"\nledger = "{self.url}"\nobjects = "s3://"\nbuckets = ["uploads"]\n'
            f'prefix = "statements"\n[[detectors]]\nname = "synthetic-2.0"\npath = "{MODELS / "cifake-32"}"\n'
            f'[storage]\nendpoint = "{os.environ["TEST_S3_ENDPOINT"]}"\npath_style = true\n'
            '[metrics]\nlisten = "127.0.0.1:0"\n'
            '[[policy.rules]]\ndetector = "synthetic-2.0"\nlabel = "by AI"\nreview_at = 0.5\nflag_at = 0.95\n[events]\npublish = ["image.flagged", "image.review", "image.failed", "image.passed"]\n'
        )
        self.run("migrate")
        self.connection = psycopg.connect(self.url, autocommit=True)
        growth.fill(self.connection, options.rows)
        for setting, value in SETTINGS.items():
            self.connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")

    def command(self, *arguments, config=None):
        log = ["--log", "warn,sqlx::postgres::notice=info", "--log-format", "json"]
        return [self.options.pixwarden, "--config", str(config or self.config), *log, *arguments]

    def environment(self):
        return {
            "PATH": os.environ["PATH"],
            "ORT_DYLIB_PATH": os.environ["ORT_DYLIB_PATH"],
            "AWS_ACCESS_KEY_ID": os.environ["TEST_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": os.environ["TEST_S3_SECRET_KEY"],
            "AWS_REGION": os.environ["TEST_S3_REGION"],
        }

    def run(self, *arguments):
        ended = subprocess.run(
            self.command(*arguments), env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # The ids of these verdicts are not made of job ids, so `show` finds none; its statement is the same.
        if ended.returncode and arguments[0] != "show":
            said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
            sys.exit(f"{arguments} ended with {ended.returncode}: {said or ended.stderr[-2000:]}")
        return ended.stderr

    def work(self, images):
        """A worker that screens images, all of which are flagged. Returns its log, and the longest time from the decision on
        an image to the confirmation of its event, in seconds."""
        bucket = self.folder / "objects" / "uploads"
        bucket.mkdir(parents=True)
        image = SAMPLE.read_bytes()
        for n in range(images):
            # What follows a JPEG's end changes its digest, and no pixel.
            (bucket / f"{n}.jpg").write_bytes(image + str(n).encode())
        config = self.folder / "worker.toml"
        text = self.config.read_text().replace('prefix = "statements"', 'prefix = "worker"')
        text = text.replace('objects = "s3://"', f'objects = "file://{bucket.parent}"').replace("0.95", "0.0").replace("0.5", "0.0")
        config.write_text(text)
        # Into a file: a pipe that nobody reads would stop the worker.
        path = self.folder / "worker.log"
        with path.open("w") as log:
            worker = subprocess.Popen(self.command("worker", config=config), env=self.environment(), stderr=log)
        # First the sweeper meets the events that nobody takes.
        self.wait("SELECT count(*) FROM outbox WHERE routing_key = 'image.passed' AND tries > 0", 1)
        enqueue = self.command("enqueue", *(f"s3://uploads/{n}.jpg" for n in range(images)), config=config)
        subprocess.run(enqueue, env=self.environment(), check=True, stderr=subprocess.DEVNULL)
        flagged = """FROM outbox JOIN verdicts ON id = verdict_id
                     WHERE routing_key = 'image.flagged' AND job_id <> id::text AND published_at IS NOT NULL"""
        self.wait(f"SELECT count(*) {flagged}", images)
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
        query = f"SELECT max(extract(epoch FROM published_at - decided_at)) {flagged}"
        return path.read_text(), self.connection.execute(query).fetchone()[0]

    def wait(self, query, at_least):
        began = time.monotonic()
        while (found := self.connection.execute(query).fetchone()[0]) < at_least:
            if time.monotonic() - began > 180:
                sys.exit(f"{found} instead of {at_least} after three minutes: {query}")
            time.sleep(0.2)

    def inventory(self, objects):
        """An S3 Inventory of objects that have a verdict."""
        path = self.folder / "data.csv.gz"
        query = "SELECT bucket, key, bytes, etag, '2026-01-01T00:00:00.000Z' FROM verdicts ORDER BY decided_at LIMIT %s"
        with gzip.open(path, "wt", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(self.connection.execute(query, [objects]))
        manifest = {"fileFormat": "CSV", "fileSchema": "Bucket, Key, Size, ETag, LastModifiedDate", "files": [{"key": path.name}]}
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        return str(self.folder / "manifest.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args()
    options.pixwarden = str(Path(options.pixwarden).resolve())
    statements = Statements()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(options, Path(folder))

        def measure(name, *arguments):
            began = time.monotonic()
            statements.read(name, ledger.run(*arguments))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)

        # 101 pages of 1,000 verdicts, of which one is decided each second.
        measure("export", "export", "--lag", "0s", "--until", "2026-01-02T04:03:20Z")
        measure("export --since (middle)", "export", "--lag", "0s", "--since", middle(options.rows, 0), "--until", middle(options.rows, 101_000))
        measure("export --outcome flagged", "export", "--lag", "0s", "--outcome", "flagged")
        measure("export --outcome flagged, review", "export", "--lag", "0s", "--outcome", "flagged", "--outcome", "review")
        measure("export --outcome missing (none)", "export", "--lag", "0s", "--outcome", "missing")
        measure("export --bucket other (none)", "export", "--lag", "0s", "--bucket", "other*")
        measure("export --detector other (none)", "export", "--lag", "0s", "--detector", "other")
        measure("export --outcome flagged --label", "export", "--lag", "0s", "--outcome", "flagged", "--label", "other")
        measure("export --key-prefix (none)", "export", "--lag", "0s", "--key-prefix", "other/")
        # 101 pages of 500.
        measure("rejudge", "rejudge", "--until", "2026-01-01T14:01:40Z")
        measure("export --revised-since", "export", "--lag", "0s", "--revised-since", "2026-01-01")
        id, key = ledger.connection.execute("SELECT id, key FROM verdicts OFFSET 1000 LIMIT 1").fetchone()
        measure("show ID", "show", str(id))
        measure("show s3://", "show", f"s3://uploads/{key}")
        inventory = ledger.inventory(101_000)
        measure("backfill --dry-run", "backfill", "--dry-run", "--inventory", inventory)
        measure("backfill", "backfill", "--inventory", inventory, "--depth", "1000000", "--limit", "30000")
        measure("prune --dry-run", "prune", "--until", "2026-01-20", "--dry-run")
        measure("prune --outcome review", "prune", "--until", "2026-01-20", "--outcome", "review", "--yes")
        measure("prune --bucket other (none)", "prune", "--until", "2026-01-20", "--bucket", "other", "--yes")
        measure("prune", "prune", "--until", "2026-01-07", "--yes")

        ledger.connection.execute(
            "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)"
            " SELECT gen_random_uuid(), gen_random_uuid(), 'image.passed', 'c', '{}', now() - interval '1 hour'"
            f" FROM generate_series(1, {UNHEARD})"
        )
        ledger.connection.execute("ANALYZE outbox")
        log, seconds = ledger.work(images=20)
        statements.read("worker", log)
        left = ledger.connection.execute("SELECT count(*) FILTER (WHERE tries > 0) FROM outbox WHERE published_at IS NULL")
        print(f"events that no queue takes and that were leased meanwhile: {left.fetchone()[0]:,} of {UNHEARD:,}")
        print(f"longest time from a decision to its confirmed event beside them: {seconds:.2f} s")
        ledger.connection.close()
    statements.print()


def middle(rows, after):
    at = time.gmtime(1_767_225_600 + rows // 2 + after)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", at)


if __name__ == "__main__":
    main()
