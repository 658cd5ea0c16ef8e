#!/usr/bin/env python3
"""`pixwarden worker` from RabbitMQ, S3 and Postgres to the confirmed event, beside two workers written in Python.

    cargo build --locked --release
    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install -r tests/bench/requirements.txt
    tests/services/run -- /tmp/bench/bin/python tests/bench/end_to_end.py --pixwarden target/release/pixwarden

All services are on one core and the worker on another, so that its processor time is its own. Everybody consumes the
same quorum queue with the same prefetch, fetches the same JPEGs, runs the same model file with one thread, writes the
same rows and sends an event a verdict, persistent and confirmed; each acknowledges after the commit. Pixwarden's reuse
of scores is off. Who is when first changes from round to round. What the workers say is compared row by row.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import figures
import images
import models
from stand import ROOT, Contestant, Stand

PEERS = ROOT / "tests/bench/peers"
PREFETCH = 80
# Jobs of a run by the size of their pictures: enough for ten seconds and more of the fastest.
JOBS = {"1024px": 1200, "1600px": 600, "12mp": 200}


def main():
    options = arguments()
    found = figures.Figures("end to end")
    with tempfile.TemporaryDirectory(prefix="bench-end-to-end-") as folder:
        folder = Path(folder)
        stand = Stand(options.pixwarden, folder, (options.services_core, options.worker_core))
        packages = models.make(folder / "models")
        for size in options.sizes:
            keys = stand.store(size, images.make(options.images_dir or folder / "images", size, options.objects))
            for model in options.models:
                compare(options, stand, found, size, keys, packages[model])
    found.report(options.json)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, default=ROOT / "target/release/pixwarden", help="the binary")
    parser.add_argument("--sizes", type=words(images.SIZES), default=["1024px", "12mp"], help="default 1024px,12mp")
    parser.add_argument("--models", type=words(["null-384", "tiny-384"]), default=["tiny-384"], help="default tiny-384")
    parser.add_argument("--contestants", type=words(CONTESTANTS), default=list(CONTESTANTS), help="default: all")
    parser.add_argument("--images", type=int, help="jobs a run (default: by size)")
    parser.add_argument("--objects", type=int, default=24, help="different pictures (default 24)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each worker (default 7)")
    parser.add_argument("--quick", action="store_true", help="one round over few images: whether it works, no figures")
    parser.add_argument("--images-dir", type=Path, help="where pictures are kept from one call to the next")
    parser.add_argument("--services-core", type=int, default=0)
    parser.add_argument("--worker-core", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where everything is written")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.objects, options.images = 1, 8, options.images or 48
    return options


def words(known):
    def read(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return chosen

    return read


# The contestants, each made from the binary and the model package.


def pixwarden(**variables):
    def make(name, options, package):
        return Contestant(
            name,
            [str(options.pixwarden.resolve()), "worker", "--detector", str(package), "--log", "warn"],
            {
                "PIXWARDEN_WORKER_PREFETCH": str(PREFETCH),
                "PIXWARDEN_WORKER_REUSE_SCORES": "false",
                "PIXWARDEN_INFERENCE_THREADS": "1",
                "PIXWARDEN_METRICS_LISTEN": "off",
                **variables,
            },
        )

    return make


def python(file, *words):
    def make(name, options, package):
        program = [sys.executable, str(PEERS / file), "--detector", str(package), "--prefetch", str(PREFETCH)]
        return Contestant(name, [*program, *words], {"OMP_NUM_THREADS": "1"})

    return make


CONTESTANTS = {
    "pixwarden": pixwarden(),
    "idiomatic": python("idiomatic.py"),
    "tuned": python("tuned.py", "--decode", "full"),
    "tuned-scaled": python("tuned.py", "--decode", "scaled"),
}


def compare(options, stand, found, size, keys, package):
    """All contestants over one size and one model, in turns."""
    case = f"{size} {package.name}"
    jobs = options.images or JOBS[size]
    print(f"{case}: {jobs} jobs over {len(keys)} objects, {options.rounds} rounds", flush=True)
    contestants = {name: CONTESTANTS[name](name, options, package) for name in options.contestants}
    said = {}
    for _, order in figures.turns(contestants, options.rounds):
        for name in order:
            run = stand.run(contestants[name], keys, min(2 * PREFETCH, jobs), jobs)
            row = f"{case} {name}"
            found.add(f"{row}: jobs a CPU second", run.jobs / run.cpu_seconds, "1/s")
            found.add(f"{row}: jobs a second", run.jobs / run.seconds, "1/s")
            found.add(f"{row}: peak memory", run.peak_pss_mb, "MB")
            found.add(f"{row}: others on its core", 100 * run.others_share, "%")
            said.setdefault(name, run.rows)
    for name in contestants:
        if name != "idiomatic" and "idiomatic" in contestants:
            over, under = f"{case} {name}: jobs a CPU second", f"{case} idiomatic: jobs a CPU second"
            found.ratio(f"{case}: {name} to idiomatic, jobs a CPU second", over, under)
    agreement(found, case, said)


def agreement(found, case, said):
    """How far the others' verdicts are from the first one's, row by row."""
    first, *others = said
    for name in others:
        mine, theirs = said[first], said[name]
        if mine.keys() != theirs.keys():
            found.note(f"{case}: {first} and {name} have verdicts for different jobs")
            continue
        pairs = [(mine[number], theirs[number]) for number in mine]
        scores = max(abs(a[1] - b[1]) for a, b in pairs if a[1] is not None and b[1] is not None)
        outcomes = sum(a[0] != b[0] for a, b in pairs)
        objects = sum(a[2:] != b[2:] for a, b in pairs)
        found.note(
            f"{case}: {len(pairs)} verdicts of {first} and {name}: scores differ by {scores:.5f} at most, "
            f"{outcomes} outcomes differ, {objects} differ in digest, size or format"
        )


if __name__ == "__main__":
    main()
