"""The schedule of faults. The same seed gives the same schedule."""

import random
from dataclasses import dataclass

# Every kind of fault, with its shortest and longest duration in seconds. A fault without a duration has 0.
KINDS = {
    "worker-kill": (0, 0),
    "worker-stop": (2, 15),
    "worker-restart": (0, 0),
    "worker-crash-fetch": (0, 0),
    "worker-crash-commit": (0, 0),
    "worker-crash-publish": (0, 0),
    "worker-crash-settle": (0, 0),
    "broker-restart": (1, 6),
    "broker-close-connections": (0, 0),
    "broker-memory-alarm": (2, 8),
    "broker-event-queue-deleted": (2, 8),
    "broker-reset": (0, 0),
    "broker-black-hole": (2, 25),
    "broker-latency": (3, 8),
    "broker-drip": (3, 8),
    "broker-reply-dropped": (2, 5),
    "ledger-backends-terminated": (0, 0),
    "ledger-restart": (1, 5),
    "ledger-read-only": (2, 6),
    "ledger-insert-revoked": (2, 12),
    "ledger-poison-trigger": (4, 12),
    "ledger-statement-timeout": (3, 20),
    "ledger-commit-reply-dropped": (2, 5),
    "ledger-reset": (0, 0),
    "ledger-black-hole": (2, 25),
    "ledger-latency": (3, 8),
    "ledger-drip": (3, 8),
    "store-one-of-two-down": (4, 15),
    "store-restart": (1, 5),
    "store-slow": (3, 8),
    "store-stalled": (3, 10),
    "store-503": (2, 8),
    "store-cut-short": (2, 8),
    "store-wrong-etag": (2, 8),
    "store-missing": (2, 8),
    "store-reset": (2, 5),
    "store-black-hole": (2, 15),
}

# Faults that concern some jobs only. Meanwhile the other jobs go on, and no worker pauses its intake.
PARTIAL = {"ledger-poison-trigger", "store-one-of-two-down"}

FIRST_S = 3
PAUSE_S = (1.5, 4.0)


@dataclass(frozen=True)
class Planned:
    """One fault: seconds from the start of the load to its begin, and its duration in seconds."""

    at: float
    kind: str
    lasts: float


def plan(seed, seconds, kinds=None):
    """Faults one after another, all within `seconds`. Every kind occurs once before any kind occurs again."""
    chance = random.Random(f"schedule-{seed}")
    planned, deck, now = [], [], FIRST_S
    while True:
        if not deck:
            deck = sorted(kinds or KINDS)
            chance.shuffle(deck)
        kind = deck.pop()
        shortest, longest = KINDS[kind]
        # Short faults are more frequent than long ones. Both find bugs.
        lasts = round(shortest + (longest - shortest) * chance.random() ** 2, 1)
        if now + lasts > seconds:
            return planned
        planned.append(Planned(round(now, 1), kind, lasts))
        now += lasts + chance.uniform(*PAUSE_S)
