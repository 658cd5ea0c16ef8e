"""A database of its own with verdicts as growth.sql makes them."""

import os
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

# Rows that are filled in by one call (growth.sql says why not all of them).
FILLED = 250_000


def create(name):
    """Creates an empty database of this name, in the place of an earlier one, and returns its URL."""
    server = os.environ["TEST_POSTGRES_URL"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}", query="sslmode=disable"))


def fill(connection, rows):
    """Fills a migrated database with so many verdicts."""
    text = (Path(__file__).parent / "growth.sql").read_text()
    connection.execute(text[text.index("CREATE PROCEDURE fill") : text.index("SELECT format('CALL fill")])
    began = time.monotonic()
    for first in range(0, rows, FILLED):
        connection.execute(f"CALL fill({first}, {min(first + FILLED, rows)})")
    connection.execute("VACUUM (ANALYZE) verdicts, outbox")
    print(f"{rows:,} verdicts after {time.monotonic() - began:.0f} s", flush=True)
