#!/usr/bin/env python3
"""What decoding in confined processes costs, against decoding on the worker's own threads.

    python tests/bench/isolation.py --pixwarden target/release/pixwarden

Scans the same one-megapixel JPEGs both ways in turns, with the bundled detector, whose inference is next to nothing,
and prints each round, the medians of images a second and of processor time an image, their ratios, and the memory of
the largest process. On a machine that does other things as well, only the processor time means much.
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
FIGURES = "{:7.1f} images/s {:7.2f} ms of processor time an image {:6.0f} MB"
SUMMARY = re.compile(rb"^(\d+) images: .*?([\d.]+) per second", re.MULTILINE)


def make(folder, count):
    """Photographs have both areas and noise; a file is some hundreds of kilobytes."""
    random = np.random.default_rng(1)
    slope = np.add.outer(np.arange(EDGE), np.arange(EDGE))[..., None] // 8
    for i in range(count):
        noise = random.normal(0, 12, (EDGE, EDGE, 3))
        pixels = np.clip(slope + i % 7 + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=85)


def scan(pixwarden, folder, isolation):
    """Images a second, processor seconds of all processes, and the peak memory of the largest in megabytes."""
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
    return float(found[2]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


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
                rate, seconds, megabytes = scan(options.pixwarden, folder, isolation)
                found[isolation].append((rate, seconds * 1000 / options.images, megabytes))
                print(f"{isolation:8} " + FIGURES.format(*found[isolation][-1]), flush=True)
    medians = {name: [statistics.median(column) for column in zip(*rounds)] for name, rounds in found.items()}
    for name, figures in medians.items():
        print(f"median   {name:8} " + FIGURES.format(*figures))
    rate, cost, _ = (p / t for p, t in zip(medians["process"], medians["thread"]))
    print(f"process / thread: {rate:.3f} in images a second, {cost:.3f} in processor time")


if __name__ == "__main__":
    main()
