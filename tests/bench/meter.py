"""What a process and all that it started use: processor time, memory, file descriptors. Linux's /proc says it."""

import os
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def tree(pid):
    """The process and its living descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid):
    """User and system time of the tree, with that of the dead that somebody in it has waited for."""
    total = 0
    for process in tree(pid):
        try:
            # The name, which may hold anything, ends with the last bracket.
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total * TICK


def pss_megabytes(pid):
    """Proportional set size of the tree: what is shared counts once."""
    total = 0
    for process in tree(pid):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6
