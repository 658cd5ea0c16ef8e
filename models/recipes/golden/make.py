#!/usr/bin/env python3
"""Draws the golden images of the recipes, and prints the scores that a converted or copied model gives them.

    python models/recipes/golden/make.py                              # writes the images beside this file
    python models/recipes/golden/make.py open-nsfw models/open-nsfw   # prints the scores of that package's model

The images are committed, so that another release of numpy or Pillow changes nothing. They show waves and a landscape. Each
is one whose score moves when channels are swapped, and for which the detector is not sure.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from common.golden import drawing


def waves(seed: int, width: int = 160, height: int = 128) -> Image.Image:
    """Soft waves in warm colours."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]

    def wave(across: tuple[float, float], down: tuple[float, float]) -> np.ndarray:
        return np.sin(x * random.uniform(*across) + y * random.uniform(*down) + random.uniform(0, 6.28))

    light = sum(wave((0.01, 0.12), (-0.12, 0.12)) for _ in range(4)) / 4
    tint = sum(wave((-0.06, 0.06), (0.01, 0.06)) for _ in range(3)) / 3
    colours = np.array([215, 160, 130]) * (0.75 + 0.25 * light[..., None]) + np.array([10, 25, 30]) * tint[..., None]
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


IMAGES = {"open-nsfw": lambda: waves(610), "nsfwjs": lambda: drawing(10).resize((384, 256), Image.Resampling.BICUBIC)}


def main() -> None:
    if len(sys.argv) == 1:
        for name, draw in IMAGES.items():
            draw().save(HERE / f"{name}.png", optimize=True)
        return
    from recipes.reference import scores

    name, package = sys.argv[1:]
    with Image.open(HERE / f"{name}.png") as image:
        found = scores(Path(package), [image])[0]
    print({label: round(float(score), 6) for label, score in found.items()})


if __name__ == "__main__":
    main()
