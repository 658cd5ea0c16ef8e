"""Rejudges that run beside the workers, one after another, with two policies in turn.

The other policy judges by the opposite label, so that each rejudge turns most outcomes around. A rejudge meets the faults
of the ledger as the workers do, and some are killed: its page is then written as a whole or not at all.
"""

import os
import random
import subprocess
import threading
from urllib.parse import quote

import banks
from world import at

ROLE = "pixwarden_operator"
# The name of the workers' policy, and of the other one. Both ask for review at 0.5 and flag at 0.9.
POLICIES = {"default": "by AI", "opposite": "by human"}
CONFIG = """
detectors = ["{detector}"]

[policy]
name = "{name}"
"""
REVIEW_AT, FLAG_AT = 0.5, 0.9
PAUSE_S = (1.0, 5.0)
# The share of rejudges that are killed, and after how long at most.
KILLED, KILLED_WITHIN_S = 0.3, 1.0
# Longer than any fault.
LIMIT_S = 90
# The ledger may still recover from the last fault.
LAST_TRIES = 3


class Rejudges(threading.Thread):
    """Rejudges all verdicts again and again until `end`."""

    def __init__(self, world, seed, ledger_port, publish):
        super().__init__(daemon=True)
        self.counts = {"done": 0, "failed": 0, "killed": 0, "done while the broker was disturbed": 0}
        # The fault that lasts.
        self.fault = None
        self._world = world
        self._chance = random.Random(f"rejudges-{seed}")
        self._ending = threading.Event()
        self._is_due = threading.Event()
        self._log = world.folder / "rejudges.log"
        password = quote(os.environ["TEST_POSTGRES_PASSWORD"], safe="")
        url = at(world.postgres_url, user=f"{ROLE}:{password}")
        self._publish = {"PIXWARDEN_EVENTS_PUBLISH": publish}
        self._environment = world.environment(ledger=at(url, port=ledger_port, query="sslmode=disable")) | self._publish
        detector = world.folder / "fixtures" / "detectors" / "spread-nhwc"
        for name in POLICIES:
            text = CONFIG.format(detector=detector, name=name) + rules(name)
            (world.folder / f"policy-{name}.toml").write_text(text, encoding="utf-8")

    def run(self):
        turn = 0
        while not self._ending.is_set():
            self._is_due.wait(self._chance.uniform(*PAUSE_S))
            self._is_due.clear()
            turn += 1
            limit_s = self._chance.uniform(0, KILLED_WITHIN_S) if self._chance.random() < KILLED else LIMIT_S
            self._rejudge(list(POLICIES)[turn % 2], self._environment, limit_s)

    def start_beside(self, fault):
        """Starts the next rejudge at once: a fault begins."""
        self.fault = fault
        self._is_due.set()

    def end(self):
        """Ends, and lets the workers' policy have the last word, without any fault."""
        self._ending.set()
        self._is_due.set()
        self.join()
        environment = self._world.environment() | self._publish
        if not any(self._rejudge("default", environment, LIMIT_S) for _ in range(LAST_TRIES)):
            raise RuntimeError(f"the last rejudge failed, see {self._log}")

    def _rejudge(self, name, environment, limit_s):
        fault = self.fault
        config = self._world.folder / f"policy-{name}.toml"
        command = [self._world.pixwarden, "rejudge", "--config", str(config), "--format", "jsonl"]
        with open(self._log, "ab") as log:
            log.write(f"--- {name}\n".encode())
            log.flush()
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self._world.folder)
            try:
                end = "failed" if process.wait(limit_s) else "done"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                end = "killed"
        self.counts[end] += 1
        if end == "done" and fault and fault.startswith("broker-") and fault == self.fault:
            self.counts["done while the broker was disturbed"] += 1
        return end == "done"


def rules(policy):
    """The rules of a policy, for a configuration file."""
    return banks.RULES.format(label=POLICIES[policy], review_at=REVIEW_AT, flag_at=FLAG_AT)


def opposite_outcomes(scores, frames):
    """The outcomes that the other policy may give an image; None if its score is too close to a threshold to say.

    An animation has the highest score of each label over all its frames. The reference does not say which frame that was.
    """
    if frames > 1:
        return ["passed", "review", "flagged"]
    score = scores[POLICIES["opposite"]]
    if min(abs(score - threshold) for threshold in (REVIEW_AT, FLAG_AT)) < 0.01:
        return None
    return ["flagged" if score >= FLAG_AT else "review" if score >= REVIEW_AT else "passed"]
