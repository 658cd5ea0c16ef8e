#!/usr/bin/env python3
"""Whether `scan` prints the PDQ hashes that the Python reference computes.

    python tests/hashes.py --pixwarden target/debug/pixwarden

Makes pictures in a temporary folder and scans them. Of a picture of at most 512x512 pixels every bit must be equal. Of a
larger one Pixwarden filters only what it needs, so that a frequency within a rounding error of the median may have the
other bit. ORT_DYLIB_PATH is taken from the environment.

Exit status: 0 all agree, 1 something does not, 2 Pixwarden could not be run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from reference.pdq import distance, pdq
from reference.scenes import alpha_mask, scene

SCAN_TIMEOUT_S = 300
LARGE_TOLERANCE = 2
"""Bits of a hash, for a picture that is larger than 512x512."""
SMALL_SIZES = [
    (512, 512), (64, 64), (511, 37), (5, 512), (128, 129), (7, 9), (4, 100), (257, 300), (384, 384), (129, 65)
]  # fmt: skip
LARGE_SIZES = [(513, 513), (640, 480), (1024, 1024), (2000, 5), (700, 64)]
EXIF_ORIENTATION = 0x0112

Expected = dict[tuple[int, str], tuple[str, int]]
"""By frame and background."""


def pictures(folder: Path) -> Iterator[tuple[Path, Expected]]:
    """Files, each with the hashes of its views."""
    for seed, (width, height) in enumerate(SMALL_SIZES + LARGE_SIZES):
        yield _saved(folder, f"scene-{width}x{height}", scene(seed, width, height))
        noise = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
        if (width, height) in SMALL_SIZES:
            # Rounding decides each bit of a picture of one colour.
            yield _saved(folder, f"flat-{width}x{height}", np.full((height, width, 3), 17 * seed % 256, np.uint8))
            yield _saved(folder, f"noise-{width}x{height}", noise)

    rgb, alpha = scene(50, 300, 200), alpha_mask(50, 300, 200)
    path = folder / "transparent.png"
    Image.fromarray(np.concatenate([rgb, alpha[:, :, None]], axis=2)).save(path)
    yield path, {(0, word): pdq(_over(rgb, alpha, level)) for word, level in (("white", 255), ("black", 0))}

    # The hash is of the file's own orientation.
    path, rgb = folder / "turned.png", scene(51, 300, 200)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(rgb).save(path, exif=exif)
    yield path, {(0, "white"): pdq(rgb)}

    frames = [scene(60 + i, 160, 120) for i in range(3)]
    path = folder / "animated.png"
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=1000)
    yield path, {(i, "white"): pdq(frame) for i, frame in enumerate(frames)}


def _saved(folder: Path, name: str, rgb: np.ndarray) -> tuple[Path, Expected]:
    path = folder / f"{name}.png"
    Image.fromarray(rgb).save(path)
    return path, {(0, "white"): pdq(rgb)}


def _over(rgb: np.ndarray, alpha: np.ndarray, level: int) -> np.ndarray:
    """The picture over grey of this level, divided by 255 as Pillow does it."""
    weights = alpha.astype(np.uint32)[:, :, None]
    weighted = rgb * weights + np.uint32(level) * (255 - weights) + 128
    return (((weighted >> 8) + weighted) >> 8).astype(np.uint8)


def scan(binary: Path, files: list[Path]) -> list[dict]:
    command = [str(binary), "scan", "--format", "jsonl", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SCAN_TIMEOUT_S, check=False)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    if len(records) != len(files):
        raise OSError(f"{len(records)} lines for {len(files)} files, exit status {done.returncode}\n{done.stderr}")
    return records


def problems(path: Path, expected: Expected, record: dict) -> Iterator[str]:
    found = {
        (entry["view"]["frame"], entry["view"]["background"]): (entry["pdq"], entry["quality"])
        for entry in record["hashes"] or []
    }
    if found.keys() != expected.keys():
        yield f"{path.name}: hashes of {sorted(found)}, not of {sorted(expected)}"
        return
    tolerance = LARGE_TOLERANCE if max(record["width"], record["height"]) > 512 else 0
    for view, (wanted, quality) in expected.items():
        got, got_quality = found[view]
        if distance(got, wanted) > tolerance or got_quality != quality:
            yield (
                f"{path.name}, view {view}: {distance(got, wanted)} bits differ, quality {got_quality} and not "
                f"{quality}\n  is      {got}\n  must be {wanted}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = list(pictures(Path(folder)))
        try:
            records = scan(options.pixwarden, [path for path, _ in made])
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            print(f"cannot run {options.pixwarden}: {error}", file=sys.stderr)
            return 2
        found = [text for (path, expected), record in zip(made, records) for text in problems(path, expected, record)]
    print("\n".join(found) or f"{sum(len(expected) for _, expected in made)} hashes agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
