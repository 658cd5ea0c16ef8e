#!/usr/bin/env python3
"""Rows a second into the ledger: Pixwarden's group commits against COPY into the same tables, and single inserts.

    tests/services/run -- python tests/bench/ledger.py --pixwarden target/release/pixwarden --parts PARTS

PARTS is the program that `cargo bench --bench parts --no-run` builds. Everybody writes a thousand verdicts a transaction,
with the events that one in sixteen owes, into the real tables with all their indexes; who inserts singly, one. The server
is on one core and the program that writes on the other. They are not encrypted, as is usual on one machine: with --tls they
are, and large groups of Pixwarden's wait (docs/performance.md). The rows of COPY are Pixwarden's own with new ids,
rendered beforehand: only sending them is counted, and the server's work. Single inserts copy their row from a temporary table, so that binding
it costs them nothing. Empty tables are emptied before each measurement; full ones get the few rows that are measured on
top. A checkpoint precedes each, so that every page is logged whole at its first change, and those that fall into a
measurement all the same are counted. What full tables are to empty ones is told by rounds that are minutes apart.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from figures import Figures, turns
from stand import SERVICES_CORE, WORKER_CORE, pin_services

HERE = Path(__file__).parent
GROUP = 1000
# Rows that are filled in by one call (growth.sql says why not all of them).
FILLED = 250_000


class Ledger:
    """A database of its own."""

    def __init__(self, options, name, rows):
        server = os.environ["TEST_POSTGRES_URL"]
        self.options, self.rows = options, rows
        query = "sslmode=require" if options.tls else "sslmode=disable"
        self.url = urlunsplit(urlsplit(server)._replace(path=f"/{name}", query=query))
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        environment = os.environ | {"PIXWARDEN_LEDGER": self.url}
        subprocess.run([options.pixwarden, "migrate"], env=environment, check=True, capture_output=True)
        self.connection = psycopg.connect(self.url, autocommit=True)
        if rows:
            # What fills the ledger in growth.sql fills it here.
            text = (HERE / "growth.sql").read_text()
            self.connection.execute(text[text.index("CREATE PROCEDURE fill") : text.index("SELECT format('CALL fill")])
            began = time.monotonic()
            for first in range(0, rows, FILLED):
                self.connection.execute(f"CALL fill({first}, {min(first + FILLED, rows)})")
                self.connection.execute("VACUUM (ANALYZE) verdicts, outbox")
            print(f"  {rows:,} rows were there after {time.monotonic() - began:.0f} s", flush=True)

    def ready(self):
        if not self.rows:
            self.connection.execute("TRUNCATE verdicts, outbox")
        self.connection.execute("CHECKPOINT")

    def checkpoints(self):
        """So far, asked for or not."""
        self.connection.execute("SELECT pg_stat_clear_snapshot()")
        return self.connection.execute("SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter").fetchone()[0]

    def by_pixwarden(self, rows):
        command = [self.options.parts, "ledger", "--ledger", self.url, "--rows", str(rows), "--group", str(GROUP)]
        said = subprocess.run(command, check=True, capture_output=True).stdout
        return rows / json.loads(said)["seconds"]

    def take_copies(self, rows):
        """Rows that Pixwarden wrote, under new ids, in a temporary table and as COPY's text, group by group."""
        self.ready()
        self.by_pixwarden(rows)
        self.connection.execute("DROP TABLE IF EXISTS made, owed")
        self.connection.execute(
            f"""CREATE TEMPORARY TABLE made AS
                SELECT (row_number() OVER () - 1) / {GROUP} AS part, id AS was, gen_random_uuid() AS fresh
                FROM (SELECT id FROM verdicts ORDER BY received_at DESC LIMIT {rows}) AS newest"""
        )
        columns = {
            table: ", ".join(
                row[0]
                for row in self.connection.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
                    [table],
                )
            )
            for table in ("verdicts", "outbox")
        }
        verdict = columns["verdicts"].replace("id, job_id", "fresh, fresh::text", 1)
        event = columns["outbox"].replace("event_id, verdict_id", "gen_random_uuid(), fresh", 1)
        self.connection.execute(f"CREATE TEMPORARY TABLE owed AS SELECT part, {event} FROM outbox JOIN made ON verdict_id = was")
        parts = range(rows // GROUP)
        return [
            (
                self._text(f"SELECT {verdict} FROM verdicts JOIN made ON id = was WHERE part = {part} ORDER BY 1"),
                self._text(f"SELECT {columns['outbox']} FROM (SELECT * FROM owed) AS o(part, {columns['outbox']}) WHERE part = {part}"),
            )
            for part in parts
        ]

    def _text(self, query):
        with self.connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
            return b"".join(bytes(block) for block in copy)

    def by_copy(self, groups):
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            began = time.monotonic()
            for verdicts, events in groups:
                for table, text in (("verdicts", verdicts), ("outbox", events)):
                    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                        copy.write(text)
                connection.commit()
            return len(groups) * GROUP / (time.monotonic() - began)

    def by_single_inserts(self, groups, rows):
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE v (LIKE verdicts)")
            cursor.execute("CREATE TEMPORARY TABLE o (LIKE outbox)")
            for verdicts, events in groups[: rows // GROUP]:
                for table, text in (("v", verdicts), ("o", events)):
                    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                        copy.write(text)
            cursor.execute("CREATE INDEX ON v (id); CREATE INDEX ON o (verdict_id); ANALYZE v, o")
            ids = [row[0] for row in cursor.execute("SELECT id FROM v")]
            connection.commit()
            began = time.monotonic()
            for id in ids:
                cursor.execute("INSERT INTO verdicts SELECT * FROM v WHERE id = %s", [id])
                cursor.execute("INSERT INTO outbox SELECT * FROM o WHERE verdict_id = %s", [id])
                connection.commit()
            return len(ids) / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--full", type=int, nargs="*", default=[1_000_000, 10_000_000], help="rows that are there before")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true", help="encrypt the connections")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a minute's version")
    options = parser.parse_args()
    if options.quick:
        options.full, options.rows, options.rounds = [100_000], 10_000, 2
    figures = Figures("ledger")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"]) as connection:
        settings = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")
        said = [f"{name} {connection.execute(f'SHOW {name}').fetchone()[0]}" for name in settings]
    figures.note(", ".join(said))
    pin_services(SERVICES_CORE)
    os.sched_setaffinity(0, {WORKER_CORE})
    checkpoints = 0
    for rows in [0, *options.full]:
        at = f"at {rows:,} rows"
        ledger = Ledger(options, f"rows_{rows}", rows)
        for _, order in turns(["pixwarden", "copy", "single inserts"], options.rounds):
            for name in order:
                groups = ledger.take_copies(options.rows) if name != "pixwarden" else []
                ledger.ready()
                before = ledger.checkpoints()
                if name == "pixwarden":
                    rate = ledger.by_pixwarden(options.rows)
                elif name == "copy":
                    rate = ledger.by_copy(groups)
                else:
                    rate = ledger.by_single_inserts(groups, min(2000, options.rows))
                figures.add(f"{name} {at}", rate, "rows/s")
                checkpoints += ledger.checkpoints() - before
        figures.ratio(f"pixwarden / copy {at}", f"pixwarden {at}", f"copy {at}", at_least=0.6)
        figures.ratio(f"pixwarden / single inserts {at}", f"pixwarden {at}", f"single inserts {at}")
        ledger.connection.close()
        # Filling the next one takes its time, and what comes after it may fail.
        figures.save(options.json)
    for rows in options.full:
        wanted = 0.7 if rows == max(options.full) else None
        name = f"pixwarden {rows:,} rows / empty"
        figures.ratio(name, f"pixwarden at {rows:,} rows", "pixwarden at 0 rows", at_least=wanted)
    figures.note(f"{checkpoints} checkpoints fell into a measurement")
    figures.report(options.json)


if __name__ == "__main__":
    sys.exit(main())
