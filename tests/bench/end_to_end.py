#!/usr/bin/env python3
"""`pixwarden worker` from RabbitMQ, S3 and Postgres to the confirmed event, beside two workers written in Python.

    cargo build --locked --release
    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install -r tests/bench/requirements.txt
    tests/services/run -- /tmp/bench/bin/python tests/bench/end_to_end.py --pixwarden target/release/pixwarden

All services are on one core and the worker on another. Everybody consumes the same quorum queue with the same prefetch,
fetches the same JPEGs, runs the same model file with one thread, writes the same rows and sends an event a verdict,
persistent and confirmed; each acknowledges after the commit. Pixwarden's reuse of scores is off. The order
of the workers changes from round to round. Their verdicts are compared row by row.

Processor time is that of the worker's processes. What decoding and the model take of it is measured in every round by
itself, by the same code over the same files (alone.py, `pixwarden bench`), the model with the batch that is cheapest;
the rest is what the worker adds: fetching, hashing, handing over, larger batches, rows, messages.

The machine should have nothing else to do. How much of the worker's core others had is among the figures.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import figures
import images
import models
from stand import ROOT, SERVICES_CORE, WORKER_CORE, Contestant, Stand

PEERS = ROOT / "tests/bench/peers"
PREFETCH = 80
# Jobs of a run by the size of their pictures: five seconds and more of the fastest.
JOBS = {"1024px": 1200, "1600px": 600, "12mp": 120}
# With next to no model there is only the worker itself to see, which the size of the pictures changes little.
NULL_CONTESTANTS = ("pixwarden", "idiomatic", "tuned")
ALONE_SECONDS = 1.0


@dataclass
class Kind:
    """What can be compared: Pixwarden with variables, or a file of peers/ with options."""

    variables: dict = field(default_factory=dict)
    file: str = ""
    words: tuple = ()
    alone: str = ""


KINDS = {
    "pixwarden": Kind(),
    "pixwarden-thread": Kind({"PIXWARDEN_DECODE_ISOLATION": "thread"}),
    "pixwarden-fast": Kind({"PIXWARDEN_DECODE_MODE": "fast"}),
    "idiomatic": Kind(file="idiomatic.py", alone="idiomatic"),
    "tuned": Kind(file="tuned.py", words=("--decode", "full"), alone="tuned"),
    "tuned-scaled": Kind(file="tuned.py", words=("--decode", "scaled"), alone="tuned-scaled"),
}

# Of whom to whom, by the size of the pictures: how many times as many jobs a CPU second are wanted with tiny-384.
# Where a size is not named, the ratio is only told.
WANTED = {
    ("pixwarden", "idiomatic"): {"1024px": 3.0, "12mp": 2.2},
    ("pixwarden-fast", "idiomatic"): {"12mp": 4.0},
    ("pixwarden", "tuned"): {"1024px": 1.4, "12mp": 1.0},
    ("pixwarden-fast", "tuned-scaled"): {"12mp": 1.0},
    ("pixwarden-thread", "pixwarden"): {},
}
# Of whom to whom what is added to decoding and model, and memory, are compared.
BESIDES = (("pixwarden", "tuned"), ("pixwarden-fast", "tuned-scaled"))
WANTED_OVERHEAD, WANTED_MEMORY, WANTED_OF_PARTS = 0.25, 0.5, 0.95


def main():
    options = arguments()
    found = figures.Figures("end to end")
    with tempfile.TemporaryDirectory(prefix="bench-end-to-end-") as folder:
        folder = Path(folder)
        stand = Stand(options.pixwarden, folder, (options.services_core, options.worker_core))
        packages = models.make(folder / "models")
        for size in options.sizes:
            paths = images.make((options.images_dir or folder / "images").resolve(), size, options.objects)
            keys = stand.store(size, paths)
            for model in options.models:
                if model == "null-384" and size != options.sizes[0]:
                    continue
                Comparison(options, stand, found, size, packages[model]).run(keys, paths)
                # A case takes minutes; what comes after it may fail.
                found.save(options.json)
    found.report(options.json)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, default=ROOT / "target/release/pixwarden", help="the binary")
    parser.add_argument("--sizes", type=words(images.SIZES), help="default 1024px,12mp")
    parser.add_argument("--models", type=words(["null-384", "tiny-384"]), default=["null-384", "tiny-384"], help="default both")
    parser.add_argument("--contestants", type=words(KINDS), help="default: all")
    parser.add_argument("--images", type=int, help="jobs a run (default: by size)")
    parser.add_argument("--objects", type=int, default=24, help="different pictures (default 24)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each worker (default 5)")
    parser.add_argument("--quick", action="store_true", help="whether it works: one round, few images")
    parser.add_argument("--images-dir", type=Path, help="where pictures are kept from one call to the next")
    parser.add_argument("--services-core", type=int, default=SERVICES_CORE)
    parser.add_argument("--worker-core", type=int, default=WORKER_CORE)
    parser.add_argument("--json", type=Path, help="where everything is written")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.objects, options.images = 1, 6, options.images or 48
        options.sizes = options.sizes or ["1024px"]
        options.contestants = options.contestants or ["pixwarden", "idiomatic", "tuned"]
    options.sizes = options.sizes or ["1024px", "12mp"]
    options.contestants = options.contestants or list(KINDS)
    options.alone_seconds = 0.2 if options.quick else ALONE_SECONDS
    return options


def words(known):
    def read(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return chosen

    return read


class Comparison:
    """All contestants over pictures of one size with one model, in turns."""

    def __init__(self, options, stand, found, size, package):
        self.options, self.stand, self.found, self.size, self.package = options, stand, found, size, package
        self.case = f"{size} {package.name}"
        self.contestants = {}

    def run(self, keys, paths):
        jobs = self.options.images or JOBS[self.size]
        print(f"{self.case}: {jobs} jobs over {len(keys)} objects, {self.options.rounds} rounds", flush=True)
        chosen = self.options.contestants
        if self.package.name == "null-384":
            chosen = [name for name in chosen if name in NULL_CONTESTANTS]
        for name in chosen:
            if contestant := self.contestant(name, paths):
                self.contestants[name] = contestant
        said = {}
        for _, order in figures.turns(self.contestants, self.options.rounds):
            for name in order:
                decode_ms, model_ms = self.alone(name, paths)
                run = self.stand.run(self.contestants[name], keys, min(2 * PREFETCH, jobs), jobs)
                self.note(name, run, decode_ms, model_ms)
                said.setdefault(name, run.rows)
        self.ratios()
        self.agreement(said)

    def contestant(self, name, paths):
        """How a worker is called; None, with a note, where this binary does not know the option."""
        kind = KINDS[name]
        if kind.file:
            program = [sys.executable, str(PEERS / kind.file), "--detector", str(self.package)]
            return Contestant(name, [*program, "--prefetch", str(PREFETCH), *kind.words])
        variables = {
            "PIXWARDEN_WORKER_PREFETCH": str(PREFETCH),
            "PIXWARDEN_WORKER_REUSE_SCORES": "false",
            "PIXWARDEN_INFERENCE_THREADS": "1",
            # On one core, with the one that is decoded, as many objects as the tuned worker's decoder has.
            "PIXWARDEN_STORAGE_DOWNLOADS": "7",
            "PIXWARDEN_METRICS_LISTEN": "off",
            **kind.variables,
        }
        command = [str(self.options.pixwarden.resolve()), "worker", "--detector", str(self.package), "--log", "warn"]
        asked = self.stand.ask(["models", "list", "--detector", str(self.package)], variables)
        if asked.returncode == 2:
            self.found.note(f"{self.case}: {name} is left out: {asked.stderr.strip().splitlines()[0]}")
            return None
        return Contestant(name, command, variables)

    def alone(self, name, paths):
        """Milliseconds of decoding and of the model, each an image and by itself."""
        kind = KINDS[name]
        if not kind.file:
            # On a thread: what its own processes cost is what the worker adds.
            report = self.bench(self.contestants[name].variables | {"PIXWARDEN_DECODE_ISOLATION": "thread"}, paths)
            model_ms = min(batch["cpu_ms_per_image"] for batch in report["detectors"][0]["batches"])
            return report["decode"]["one"]["cpu_ms_per_image"], model_ms
        program = [sys.executable, str(ROOT / "tests/bench/alone.py"), kind.alone, "--detector", str(self.package)]
        seconds = ["--seconds", str(self.options.alone_seconds)]
        asked = self.stand.on_worker_core([*program, *seconds, *map(str, paths)], {})
        asked.check_returncode()
        report = json.loads(asked.stdout)
        return report["decode_ms"], report["model_ms"]

    def bench(self, variables, paths):
        command = ["bench", "--detector", str(self.package), "--format", "json"]
        command += ["--seconds", str(self.options.alone_seconds / 2)]
        # Its services are not asked: those have parts of their own.
        quiet = {"PIXWARDEN_QUEUE": "", "PIXWARDEN_LEDGER": "", "PIXWARDEN_LOG_FILTER": "error"}
        asked = self.stand.ask([*command, *map(str, paths)], variables | quiet)
        if asked.returncode != 0:
            raise SystemExit(f"pixwarden bench failed:\n{asked.stderr}")
        return json.loads(asked.stdout)

    def note(self, name, run, decode_ms, model_ms):
        cpu_ms = 1000 * run.cpu_seconds / run.jobs
        rows = {
            "jobs a CPU second": (run.jobs / run.cpu_seconds, "1/s"),
            "jobs a second": (run.jobs / run.seconds, "1/s"),
            "parts allow": (1000 / (decode_ms + model_ms), "1/s"),
            "CPU a job": (cpu_ms, "ms"),
            "decoding alone": (decode_ms, "ms"),
            "model alone": (model_ms, "ms"),
            "CPU besides": (cpu_ms - decode_ms - model_ms, "ms"),
            "peak memory": (run.peak_pss_mb, "MB"),
            "others on its core": (100 * run.others_share, "%"),
        }
        for what, (value, unit) in rows.items():
            self.found.add(self.row(name, what), value, unit)

    def row(self, name, what):
        return f"{self.case} {name}: {what}"

    def ratios(self):
        has_targets = self.package.name == "tiny-384"

        def ratio(mine, theirs, what, **wanted):
            name = f"{self.case}: {what}, {mine} / {theirs}"
            wanted = wanted if has_targets else {}
            self.found.ratio(name, self.row(mine, what), self.row(theirs, what), **wanted)

        for (mine, theirs), by_size in WANTED.items():
            if mine in self.contestants and theirs in self.contestants:
                ratio(mine, theirs, "jobs a CPU second", at_least=by_size.get(self.size))
        for mine, theirs in BESIDES:
            if mine in self.contestants and theirs in self.contestants:
                ratio(mine, theirs, "CPU besides", at_most=WANTED_OVERHEAD)
                ratio(mine, theirs, "peak memory", at_most=WANTED_MEMORY)
        for name in self.contestants:
            over, under = self.row(name, "jobs a second"), self.row(name, "parts allow")
            wanted = WANTED_OF_PARTS if has_targets and name.startswith("pixwarden") else None
            self.found.ratio(f"{self.case}: {name}, of what its parts allow", over, under, at_least=wanted)

    def agreement(self, said):
        """How far verdicts are apart, row by row, from those of a worker that decodes everything."""
        base = next(name for name in said if name not in ("pixwarden-fast", "tuned-scaled"))
        for name in said:
            if name == base:
                continue
            pairs = [(row, said[name][number]) for number, row in said[base].items()]
            scores = [abs(a["score"] - b["score"]) for a, b in pairs if None not in (a["score"], b["score"])]
            outcomes = sum(a["outcome"] != b["outcome"] for a, b in pairs)
            what = ("sha256", "bytes", "format", "width", "height")
            files = sum(any(a[column] != b[column] for column in what) for a, b in pairs)
            self.found.note(
                f"{self.case}: {len(pairs)} verdicts of {base} and {name}: scores differ by {max(scores):.5f} at most "
                f"and {statistics.mean(scores):.5f} in the mean; {outcomes} outcomes and {files} files differ"
            )
        outcomes = [row["outcome"] for row in said[base].values()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
        self.found.note(f"{self.case}: {base} says {counts}")


if __name__ == "__main__":
    main()
