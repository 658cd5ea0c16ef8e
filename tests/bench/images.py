#!/usr/bin/env python3
"""Photo-like JPEGs in the sizes that are compared: baseline, 4:2:0, as heavy as a camera's, no two alike.

    python tests/bench/images.py FOLDER [--count 24]
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference.scenes import scene  # noqa: E402  (found beneath tests/)

# By name: width, height and quality. Sizes come to 100 to 250 kB, 250 to 500 kB and 2 to 5 MB.
SIZES = {"1024px": (1024, 768, 88), "1600px": (1600, 1200, 88), "12mp": (4000, 3000, 91)}
# Levels of noise on top of the scene's own grain, which is one tile repeated and differs between scenes.
NOISE = 3.0


def jpeg(size, seed):
    """The bytes of one picture, decided by its size's name and its seed alone."""
    width, height, quality = SIZES[size]
    # Sizes do not share scenes: a mistaken object would otherwise go unnoticed.
    seed += 1000 * list(SIZES).index(size)
    noise = np.random.default_rng(seed).standard_normal((height, width, 1), np.float32)
    pixels = np.clip(np.rint(scene(seed, width, height) + NOISE * noise), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def make(folder, size, count):
    """Writes `count` pictures of one size, unless they are there, and returns their paths."""
    folder = Path(folder) / size
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:03}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(jpeg(size, seed))
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24, help="pictures of each size (default 24)")
    options = parser.parse_args()
    for size in SIZES:
        sizes = [path.stat().st_size for path in make(options.folder, size, options.count)]
        print(f"{size}: {len(sizes)} of {min(sizes) // 1000} to {max(sizes) // 1000} kB")


if __name__ == "__main__":
    main()
