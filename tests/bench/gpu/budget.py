"""Ten minutes for several parts: each has its share, and what one leaves is for those after it."""

import os
import signal
import subprocess
import time

# What a process that is told to end gets to write down what it has.
GRACE_S = 3.0


class Budget:
    """`shares` are seconds by part, in their order; together they take no longer than `total_s`."""

    def __init__(self, total_s, shares, clock=time.monotonic):
        wanted = sum(shares.values())
        # A shorter run shortens every part alike.
        scale = min(1.0, total_s / wanted) if wanted else 1.0
        self.shares = {name: share * scale for name, share in shares.items()}
        self.clock = clock
        self.end = clock() + total_s

    def limit(self, name):
        """Seconds that a part may take now: all that is left but the shares of those after it, and never below 0."""
        names = list(self.shares)
        later = sum(self.shares[after] for after in names[names.index(name) + 1 :])
        return max(0.0, self.end - self.clock() - later)


def run(command, limit_s, log, **options):
    """Runs a part with all that it starts as one group, and says what became of it: None, or why it failed.

    Everything it prints goes to `log`, an open file. Whatever outlives the limit is ended, first kindly.
    """
    if limit_s <= GRACE_S:
        return "no time was left"
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        status = process.wait(limit_s - GRACE_S)
    except subprocess.TimeoutExpired:
        end(process)
        return f"ended after {limit_s - GRACE_S:.0f} s, its time was over"
    finally:
        # Compilers and decoders that it started and left behind would disturb the next part.
        signal_group(process, signal.SIGKILL)
    return None if status == 0 else f"ended with {status}"


def end(process):
    signal_group(process, signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
