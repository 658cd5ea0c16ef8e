#!/usr/bin/env python3
"""How near Pixwarden's PDQ hashes are to those of PyPI's `pdqhash`, and the turned ones to those of turned pictures.

    pip install pdqhash==0.2.8 pillow    # pdqhash has no wheel: it needs a C++ compiler
    python tests/bench/hashes.py --pixwarden target/release/pixwarden FOLDER...

Makes variants of each picture in the folders, as PNG, and scans them. The full-size picture is hashed by `pdqhash`. With
--jpeg it writes JPEG files, and compares the hashes of the decode modes `exact` and `fast` with each other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pdqhash
from PIL import Image

SMALL = {"512": 512, "384": 384, "200": 200, "100": 100}
"""Variants by their longer side, at most 512."""
LARGE = {"640": 640, "1024": 1024, "1600": 1600}
FAST = {"1600": 1600, "3000": 3000}
GROUP = 100
LEAST_QUALITY = 50
"""Below it a bank does not match by distance, and a hash is of noise."""


def resized(picture, edge):
    scale = edge / max(picture.size)
    size = [max(round(side * scale), 5) for side in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def reference(rgb):
    bits, quality = pdqhash.compute(np.ascontiguousarray(rgb))
    return int("".join(map(str, bits)), 2), quality


def turned(pdq):
    """The hash in the order of `ways`: bit 16 i + j changes its sign with an odd frequency."""

    def bits(source):
        return sum(source(i, j) << (16 * i + j) for i in range(16) for j in range(16))

    for transposed in (False, True):
        for flipped, mirrored in ((0, 0), (0, 1), (1, 0), (1, 1)):
            yield bits(
                lambda i, j, t=transposed, f=flipped, m=mirrored: (pdq >> (16 * j + i if t else 16 * i + j) & 1)
                ^ (m & (j % 2 == 0))
                ^ (f & (i % 2 == 0))
            )


def ways(rgb):
    for way in (rgb, rgb.transpose(1, 0, 2)):
        for flipped in (way, way[::-1]):
            yield from (flipped, flipped[:, ::-1])


def scan(binary, files, *, mode="exact"):
    """The hash and the quality of each file's first view."""
    environment = os.environ | {"PIXWARDEN_DECODE_MODE": mode}
    command = [binary, "scan", "--format", "jsonl", *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(files), f"{len(rows)} rows for {len(files)} files"
    return [(int(row["hashes"][0]["pdq"], 16), row["hashes"][0]["quality"]) for row in rows]


def told(what, distances):
    found = np.array(distances)
    figures = [f"{found.mean():.2f}", f"{np.percentile(found, 99):.0f}", f"{found.max()}", f"{(found == 0).mean():.1%}"]
    print(f"| {what} | {len(found)} | {' | '.join(figures)} |", flush=True)


def pictures(folders):
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                # Without its profile, which Pixwarden would convert the colours by.
                yield Image.fromarray(np.asarray(image.convert("RGB")))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            print(f"left out {path.name}: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pixwarden", required=True)
    parser.add_argument("--jpeg", action="store_true")
    options = parser.parse_args()
    variants = FAST if options.jpeg else SMALL | LARGE
    distances = {name: [] for name in variants}
    qualities, turns = {name: 0 for name in variants}, {"at most 512": [], "larger": []}
    all_pictures = list(pictures(options.folders))
    for name, edge in variants.items():
        for start in range(0, len(all_pictures), GROUP):
            group = [resized(picture, edge) for picture in all_pictures[start : start + GROUP]]
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder, f"{i:03}.{'jpg' if options.jpeg else 'png'}") for i in range(len(group))]
                for file, picture in zip(files, group):
                    picture.save(file, **({"quality": 85} if options.jpeg else {"compress_level": 1}))
                ours = scan(options.pixwarden, files)
                if options.jpeg:
                    others = scan(options.pixwarden, files, mode="fast")
                else:
                    others = [reference(np.asarray(picture)) for picture in group]
            for (pdq, quality), (other, other_quality), picture in zip(ours, others, group):
                if quality >= LEAST_QUALITY or edge <= 512:
                    distances[name].append((pdq ^ other).bit_count())
                qualities[name] += quality != other_quality
                if not options.jpeg and quality >= LEAST_QUALITY:
                    # All eight of a few sizes are enough.
                    if name in ("384", "512", "1024"):
                        rgb = np.asarray(picture)
                        pairs = list(zip(turned(pdq), ways(rgb)))[1:]
                        found = [(turn ^ reference(way)[0]).bit_count() for turn, way in pairs]
                        turns["at most 512" if edge <= 512 else "larger"] += found
    print("| pictures | number | mean | p99 | max | equal |\n|---|---|---|---|---|---|")
    for name, found in distances.items():
        told(f"longer side {name}", found)
    if not options.jpeg:
        told("at most 512, together", sum((distances[name] for name in SMALL), []))
        told("larger, together", sum((distances[name] for name in LARGE), []))
        for name, found in turns.items():
            told(f"turned, {name}", found)
    print(f"another quality: {qualities}")


if __name__ == "__main__":
    main()
