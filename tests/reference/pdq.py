"""The PDQ hash in float32, every operation in the order of Meta's C++ code (facebook/ThreatExchange, pdq/cpp).

Its bits are those of PyPI's `pdqhash`, which has no wheel and is compiled on installation: `tests/bench/hashes.py` compares
with it.
"""

from __future__ import annotations

import math

import numpy as np

REDUCED = 64
FREQUENCIES = 16
MIN_SIDE = 5

_SCALE = float(np.float32(math.sqrt(2 / REDUCED)))
COSINES = np.array(
    [
        [_SCALE * math.cos(math.pi / 2 / REDUCED * (i + 1) * (2 * j + 1)) for j in range(REDUCED)]
        for i in range(FREQUENCIES)
    ],
    np.float32,
)
"""The rows of the discrete cosine transform for the frequencies 1 to 16."""


def pdq(rgb: np.ndarray) -> tuple[str, int]:
    """The hash of a picture, `[height, width, 3] u8`, in hexadecimal, and its quality."""
    height, width = rgb.shape[:2]
    if height < MIN_SIDE or width < MIN_SIDE:
        return "0" * 64, 0
    reduced = _reduce(rgb)
    frequencies = _frequencies(reduced)
    median = np.sort(frequencies, axis=None)[frequencies.size // 2 - 1]
    bits = sum(1 << bit for bit, is_above in enumerate((frequencies > median).flat) if is_above)
    return f"{bits:064x}", _quality(reduced)


def distance(one: str, other: str) -> int:
    """The number of bits that differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _reduce(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    luma = (rgb[:, :, 0] * 0.299 + rgb[:, :, 1] * 0.587 + rgb[:, :, 2] * 0.114).astype(np.float32)
    if (height, width) != (REDUCED, REDUCED):
        for _ in range(2):
            luma = _means(_means(luma).T).T
    parts = np.arange(REDUCED) * 2 + 1
    return luma[parts * height // (2 * REDUCED)][:, parts * width // (2 * REDUCED)]


def _means(lines: np.ndarray) -> np.ndarray:
    """Each value's mean with its neighbours in the line, by running sums."""
    length = lines.shape[1]
    window = -(-length // (2 * REDUCED))
    ahead = (window + 2) // 2
    taken, signs, ends, counts = [], [], [], []
    first = last = 0
    for at in range(length):
        new_first, new_last = max(at + ahead - window, 0), min(at + ahead, length)
        taken += [*range(last, new_last), *range(first, new_first)]
        signs += [1] * (new_last - last) + [-1] * (new_first - first)
        first, last = new_first, new_last
        ends.append(len(taken) - 1)
        counts.append(last - first)
    sums = np.cumsum(lines[:, taken] * np.array(signs, np.float32), axis=1, dtype=np.float32)
    return sums[:, ends] / np.array(counts, np.float32)


def _frequencies(reduced: np.ndarray) -> np.ndarray:
    down = np.cumsum(COSINES[:, :, None] * reduced[None], axis=1, dtype=np.float32)[:, -1]
    return np.cumsum(down[:, None] * COSINES[None], axis=2, dtype=np.float32)[:, :, -1]


def _quality(reduced: np.ndarray) -> int:
    steps = [np.trunc(np.diff(reduced, axis=axis) * np.float32(100) / np.float32(255)) for axis in (0, 1)]
    return min(int(sum(np.abs(step).sum() for step in steps)) // 90, 100)
