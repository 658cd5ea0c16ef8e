"""Imports into a bank that the workers ask, one after another, beside the faults. Some are killed while they read or write.

No hash is that of an image. An import is one version: all of its hashes are there, or none.
"""

import os
import random
import subprocess
import threading
from urllib.parse import quote

from world import at

ROLE = "pixwarden_operator"
BANK = "chaos"
HASHES = 500
# The rules of a policy, with the label that it judges by.
RULES = """
[[policy.rules]]
detector = "spread-nhwc"
label = "{label}"
review_at = {review_at}
flag_at = {flag_at}

[[policy.rules]]
bank = "chaos"
review_within = 31
"""
PAUSE_S = (0.5, 3.0)
# The share of imports that are killed, and after how long at most.
KILLED, KILLED_WITHIN_S = 0.4, 1.0
# Longer than any fault.
LIMIT_S = 90
# How soon every worker has a change.
EFFECT_S = 10


class Imports(threading.Thread):
    """Imports lists into the bank until `end`."""

    def __init__(self, world, seed, ledger_port):
        super().__init__(daemon=True)
        self.counts = {"done": 0, "failed": 0, "killed": 0}
        self._world = world
        self._chance = random.Random(f"banks-{seed}")
        self._ending = threading.Event()
        self._log = world.folder / "banks.log"
        password = quote(os.environ["TEST_POSTGRES_PASSWORD"], safe="")
        url = at(world.postgres_url, user=f"{ROLE}:{password}")
        self._environment = world.environment(ledger=at(url, port=ledger_port, query="sslmode=disable"))
        world.run("bank", "create", BANK, "--kind", "deny")

    def run(self):
        number = 0
        while not self._ending.wait(self._chance.uniform(*PAUSE_S)):
            number += 1
            limit_s = self._chance.uniform(0, KILLED_WITHIN_S) if self._chance.random() < KILLED else LIMIT_S
            self._import(number, limit_s)

    def end(self):
        self._ending.set()
        self.join()

    def _import(self, number, limit_s):
        # The first digits tell which import a hash is from.
        lines = (f"pdq {number:08x}{self._chance.getrandbits(224):056x}\n" for _ in range(HASHES))
        command = [self._world.pixwarden, "bank", "import", BANK, "-"]
        with open(self._log, "ab") as log:
            log.write(f"--- {number}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._world.folder
            )
            try:
                process.communicate("".join(lines).encode(), limit_s)
                end = "failed" if process.returncode else "done"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                end = "killed"
        self.counts[end] += 1


def gather(database):
    """How many hashes of each import are in the bank, and how many late verdicts have asked which version of it."""
    query = "SELECT encode(substring(hash FOR 4), 'hex'), count(*) FROM bank_entries WHERE removed IS NULL GROUP BY 1"
    imports = dict(database.execute(query).fetchall())
    version = database.execute("SELECT version FROM banks WHERE name = %s", [BANK]).fetchone()[0]
    query = """SELECT (policy -> 'banks' ->> %s)::bigint, count(*) FROM verdicts
        WHERE decided_at > (SELECT changed_at FROM banks) + make_interval(secs => %s) AND scores IS NOT NULL GROUP BY 1"""
    asked = database.execute(query, [BANK, EFFECT_S]).fetchall()
    return {"imports": imports, "version": version, "asked": asked}
