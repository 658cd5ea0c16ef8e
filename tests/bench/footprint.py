#!/usr/bin/env python3
"""What a worker takes before it has done anything: binary, start, memory; beside the Python workers.

    tests/services/run -- python tests/bench/footprint.py --pixwarden target/release/pixwarden

A start ends when the broker has a consumer. Idle memory is the proportional set size of all its processes five seconds
after that, with the model loaded and nothing ever screened.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import models
from end_to_end import Comparison
from figures import Figures, turns
from meter import pss_megabytes
from stand import SERVICES_CORE, START_LIMIT_S, WORKER_CORE, Failed, Stand, end

SETTLES_S = 5


def start(stand, contestant):
    """Seconds until it consumes, and its memory a while after."""
    began = time.monotonic()
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        worker = subprocess.Popen(
            contestant.command,
            env=stand.environment() | contestant.variables,
            cwd=stand.folder,
            stdout=nowhere,
            stderr=nowhere,
            preexec_fn=lambda: os.sched_setaffinity(0, {stand.worker_core}),
        )
    try:
        stand.wait(worker, START_LIMIT_S, lambda: stand.depth(stand.jobs_queue, "consumer_count"))
        took = time.monotonic() - began
        time.sleep(SETTLES_S)
        return took, pss_megabytes(worker.pid)
    finally:
        if end(worker) != 0:
            raise Failed(f"{contestant.name} ended with {worker.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    figures = Figures("footprint")
    figures.add("pixwarden: binary", options.pixwarden.stat().st_size / 1e6, "MB")
    names = ["pixwarden", "idiomatic", "tuned"]
    with tempfile.TemporaryDirectory(prefix="bench-footprint-") as folder:
        folder = Path(folder)
        stand = Stand(options.pixwarden, folder, (SERVICES_CORE, WORKER_CORE))
        package = models.make(folder / "models")["tiny-384"]
        comparison = Comparison(options, stand, figures, "1024px", package)
        for _, order in turns(names, 1 if options.quick else options.rounds):
            for name in order:
                took, megabytes = start(stand, comparison.contestant(name, []))
                figures.add(f"{name}: start", took, "s")
                figures.add(f"{name}: idle memory", megabytes, "MB")
    for name in names[1:]:
        figures.ratio(f"idle memory, pixwarden / {name}", "pixwarden: idle memory", f"{name}: idle memory")
    figures.report(options.json)


if __name__ == "__main__":
    main()
