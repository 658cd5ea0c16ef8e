#!/usr/bin/env python3
"""What decoding in confined processes costs, against decoding on the worker's own threads.

    python tests/bench/isolation.py --pixwarden target/release/pixwarden

Scans the same one-megapixel JPEGs both ways in turns, with the bundled detector, whose inference is next to nothing,
and prints each round, the medians of images a second, their ratio, and the memory of the largest process.
ORT_DYLIB_PATH is taken from the environment.
"""

import argparse
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

EDGE = 1000
SUMMARY = re.compile(rb"^(\d+) images: .*?([\d.]+) a second", re.MULTILINE)


def make(folder, count):
    """Photographs have both areas and noise; a file is some hundreds of kilobytes."""
    random = np.random.default_rng(1)
    slope = np.add.outer(np.arange(EDGE), np.arange(EDGE))[..., None] // 8
    for i in range(count):
        noise = random.normal(0, 12, (EDGE, EDGE, 3))
        pixels = np.clip(slope + i % 7 + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=85)


def scan(pixwarden, folder, isolation):
    """Images a second, and the peak memory of the largest process in megabytes."""
    process = subprocess.Popen(
        [pixwarden, "scan", "--format", "jsonl", folder],
        env={**os.environ, "PIXWARDEN_DECODE_ISOLATION": isolation},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = SUMMARY.search(said)
    if process.returncode != 0 or not found:
        raise SystemExit(said.decode(errors="replace"))
    return float(found[2]), usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = {"thread": [], "process": []}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.images)
        for turn in range(options.rounds):
            order = ["thread", "process"] if turn % 2 == 0 else ["process", "thread"]
            for isolation in order:
                found[isolation].append(scan(options.pixwarden, folder, isolation))
                print(f"{isolation:8} {found[isolation][-1][0]:7.1f} images/s {found[isolation][-1][1]:6.0f} MB")
    medians = {name: statistics.median(rate for rate, _ in rounds) for name, rounds in found.items()}
    for name, rate in medians.items():
        print(f"median   {name:8} {rate:7.1f} images/s, at most {max(mb for _, mb in found[name]):.0f} MB")
    print(f"process / thread: {medians['process'] / medians['thread']:.3f}")


if __name__ == "__main__":
    main()
