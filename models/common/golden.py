"""The golden image a worker proves itself with at start: drawn here, scored by the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Pixels = Callable[[Image.Image], np.ndarray]
"""An image to what the network sees of it, `[height, width, 3]` uint8."""
Scores = Callable[[np.ndarray], np.ndarray]
"""`[n, height, width, 3]` uint8 to probabilities `[n, labels]`."""

# A rounding effect below this is as good as none: a worker's scores are compared to 0.005.
STEADY = 0.001
# Of a drawing's 96 columns the crop keeps the 64 in the middle, as a centre crop of its shorter edge does.
_CROP = (16, 0, 80, 64)


def drawing(variant: int) -> Image.Image:
    """A landscape, 96x64: no data set's pixels, no random numbers, and not square, so that resizing is tested too."""
    y, x = np.mgrid[0:64, 0:96]
    red, green, blue = 60 + 2 * y, 100 + y + 4 * variant, 230 - y
    sun = (x - 20 - 5 * variant) ** 2 + (y - 18) ** 2 < (7 + variant) ** 2
    red, green, blue = np.where(sun, 250, red), np.where(sun, 210 - 8 * variant, green), np.where(sun, 90, blue)
    hill = y > 40 + (4 + variant) * np.sin(x / (10 + 2 * variant))
    shade = (x + y) // 2
    red, green, blue = np.where(hill, 30 + shade, red), np.where(hill, 120 + shade // 2, green), np.where(hill, 40 + 6 * variant, blue)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8), "RGB")


def choose(pixels: Pixels, scores: Scores, *, variants: int = 12, roundings: int = 16) -> Image.Image:
    """The drawing that is the best proof for a network, of `variants`; costs `variants * (3 + roundings)` images.

    A golden image must not tip over when another resizer rounds a value differently, and must tip over when colours
    are swapped or the image is cropped instead of squashed. A saturated score fails the second, an undecided one the
    first.
    """

    def quality(image: Image.Image) -> float:
        seen = pixels(image)
        rng = np.random.default_rng(0)
        rounding = rng.choice([-1, 0, 1], (roundings, *seen.shape), p=[0.05, 0.9, 0.05])
        rounded = np.clip(seen + rounding, 0, 255).astype(np.uint8)
        mistakes = np.stack([seen[:, :, ::-1], pixels(image.crop(_CROP))])
        found = scores(np.concatenate([seen[None], mistakes, rounded]))
        change = np.abs(found - found[0]).max(axis=1)
        return float(change[1:3].min() / (change[3:].max() + STEADY))

    return max((drawing(variant) for variant in range(variants)), key=quality)


def expected(labels: list[str], scores: np.ndarray) -> dict:
    """The content of golden.json for the `[labels]` scores of golden.png."""
    by_label = {label: round(float(score), 6) for label, score in zip(labels, scores, strict=True)}
    return {"image": "golden.png", "scores": by_label}
