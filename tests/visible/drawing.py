"""The pictures in the made files, drawn by code."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 120, 80


@dataclass(frozen=True)
class Kind:
    """One made file, and what is wrong with it."""

    name: str
    data: bytes
    is_damaged: bool = False
    """Pixels are missing or wrong, beyond doubt: such a file never passes."""


def picture(turn: int = 0) -> np.ndarray:
    """`[80, 120, 3]` uint8: gradients, a disc, bars and a fine pattern. Every `turn` gives another picture."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    drawn = np.empty((HEIGHT, WIDTH, 3))
    drawn[..., 0] = 40 + 170 * columns / WIDTH
    drawn[..., 1] = 30 + 160 * rows / HEIGHT
    drawn[..., 2] = 200 - 120 * (rows + columns) / (HEIGHT + WIDTH)
    disc = (columns - 35 - 8 * turn) ** 2 + (rows - 40) ** 2 < 22**2
    drawn[disc] = (235, 200 - 30 * (turn % 5), 40)
    bars = (columns > 75) & (columns < 112) & (rows % 16 < 7) & (rows > 8)
    drawn[bars] = (20, 30 + 20 * (turn % 8), 90)
    fine = (rows > 62) & (columns < 60) & ((rows + columns) % 2 == 0)
    drawn[fine] = 250
    return np.roll(drawn.astype(np.uint8), 9 * turn, axis=1)


def plain(level: int) -> np.ndarray:
    """A picture of one grey level."""
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def shapes() -> np.ndarray:
    """`[80, 120]` bool: what is hidden in transparency or in neighbouring levels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ring = np.abs(np.hypot(columns - 40, rows - 38) - 22) < 7
    bar = (columns > 80) & (columns < 100) & (rows > 12) & (rows < 70)
    return ring | bar


def with_alpha(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, alpha.astype(np.uint8)])


def hidden(level: int) -> np.ndarray:
    """RGBA of one grey level whose shapes are only in the alpha channel."""
    return with_alpha(plain(level), shapes() * 255)


def saved(samples: np.ndarray, format: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(samples).save(out, format, **options)
    return out.getvalue()


def animated(frames: list[np.ndarray], format: str, durations: list[int] | int, **options) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    first.save(out, format, save_all=True, append_images=others, duration=durations, loop=0, **options)
    return out.getvalue()


def fifth_of_ten() -> list[np.ndarray]:
    """Ten dark frames, nearly alike, the fifth of which is a picture."""
    return [picture() if number == 4 else plain(number) for number in range(10)]


FIFTH_LONG = [100] * 4 + [60_000] + [100] * 5
"""Milliseconds: nearly all that people see of the animation is its fifth frame."""


def cuts(name: str, extension: str, data: bytes, percents: tuple[int, ...] = (10, 50, 90, 99)):
    for percent in percents:
        yield Kind(f"{name}-cut-at-{percent}.{extension}", data[: len(data) * percent // 100], percent < 99)


def flips(name: str, extension: str, data: bytes, start: int):
    """One bit flipped, and some bytes set to zero, at places behind the headers."""
    for percent in (25, 50, 75):
        at = start + (len(data) - start) * percent // 100
        yield Kind(f"{name}-bit-flipped-at-{percent}.{extension}", data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    at = (start + len(data)) // 2
    yield Kind(f"{name}-zeros-in-the-middle.{extension}", data[:at] + bytes(48) + data[at + 48 :])
