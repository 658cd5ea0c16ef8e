"""Pictures made by code: light, shapes, texture and grain, so that a resize or a crop has something to get wrong."""

from __future__ import annotations

import numpy as np

# `RandomState` is used on purpose: numpy freezes its streams for good, those of `default_rng` may change.
_GRAIN_TILE = 256


def scene(seed: int, width: int, height: int) -> np.ndarray:
    """One picture, `[height, width, 3]` uint8, decided by its arguments alone.

    Brightness, colour cast, contrast, texture and grain are drawn separately for each seed, because a detector can only
    show spread scores over pictures that differ in what it measures.
    """
    rng = np.random.RandomState(seed)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    # Kept off the ends of the scale: a channel that is all 0 or all 255 hides what happens to it.
    base = np.clip(rng.uniform(40.0, 205.0) + rng.uniform(-60.0, 60.0, 3), 25.0, 220.0).tolist()
    contrast = rng.uniform(10.0, 80.0)

    picture = np.empty((height, width, 3), np.float32)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    ramp = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    for channel in range(3):
        picture[:, :, channel] = base[channel] + np.float32(rng.uniform(0.2, 1.0) * contrast) * ramp
    _add_blobs(picture, x, y, rng, contrast)
    _add_shapes(picture, x, y, rng, contrast)
    _add_texture(picture, x, y, rng, contrast)
    _add_grain(picture, rng)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _add_blobs(picture, x, y, rng, contrast) -> None:
    """Soft spots of light. A Gaussian is separable, so each costs one outer product."""
    for _ in range(rng.randint(2, 6)):
        centre_x, centre_y = rng.uniform(-0.9, 0.9, 2).tolist()
        radius_x, radius_y = rng.uniform(0.1, 0.6, 2).tolist()
        weight = np.exp(-(((x - centre_x) / radius_x) ** 2)) * np.exp(-(((y - centre_y) / radius_y) ** 2))
        colour = rng.uniform(-1.5, 1.5, 3) * contrast
        for channel in range(3):
            picture[:, :, channel] += np.float32(colour[channel]) * weight


def _add_shapes(picture, x, y, rng, contrast) -> None:
    """Ellipses and half-planes with hard edges: what ringing, chroma upsampling and crops show on."""
    for index in range(rng.randint(2, 5)):
        if index % 2 == 0:
            centre_x, centre_y = rng.uniform(-0.8, 0.8, 2).tolist()
            radius_x, radius_y = rng.uniform(0.1, 0.5, 2).tolist()
            inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1.0
        else:
            angle, offset = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.2, 0.9)
            inside = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y > offset
        colour = rng.uniform(-1.5, 1.5, 3) * contrast
        picture[inside] += colour.astype(np.float32)


def _add_texture(picture, x, y, rng, contrast) -> None:
    """A woven pattern over one part of the picture, fine enough that a resize without antialiasing breaks it."""
    cycles_x, cycles_y = rng.uniform(6.0, 40.0, 2).tolist()
    phase_x, phase_y = rng.uniform(0.0, 2.0 * np.pi, 2).tolist()
    weave = np.sin(np.pi * cycles_x * x + phase_x) * np.sin(np.pi * cycles_y * y + phase_y)
    centre_x, centre_y = rng.uniform(-0.6, 0.6, 2).tolist()
    weave *= np.exp(-(((x - centre_x) / 0.5) ** 2)) * np.exp(-(((y - centre_y) / 0.5) ** 2))
    strength = rng.uniform(0.1, 1.2) * contrast
    colour = rng.uniform(0.5, 1.0, 3) * strength
    for channel in range(3):
        picture[:, :, channel] += np.float32(colour[channel]) * weave


def _add_grain(picture, rng) -> None:
    """Sensor noise. One tile repeated: drawing millions of normals would cost more than all the rest."""
    height, width, _ = picture.shape
    tile = rng.standard_normal((_GRAIN_TILE, _GRAIN_TILE, 3)).astype(np.float32)
    tile *= np.float32(rng.uniform(1.0, 9.0))
    for top in range(0, height, _GRAIN_TILE):
        for left in range(0, width, _GRAIN_TILE):
            part = picture[top : top + _GRAIN_TILE, left : left + _GRAIN_TILE]
            part += tile[: part.shape[0], : part.shape[1]]


def alpha_mask(seed: int, width: int, height: int) -> np.ndarray:
    """Coverage for a picture with alpha, `[height, width]` uint8: opaque, clear and everything between."""
    rng = np.random.RandomState(seed)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    centre_x, centre_y = rng.uniform(-0.3, 0.3, 2).tolist()
    distance = np.sqrt((x - centre_x) ** 2 + (y - centre_y) ** 2)
    return np.clip(np.rint(255.0 * (1.25 - distance) / 0.6), 0, 255).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """Luma of a picture, `[height, width]` uint8, with the integer weights of ITU-R BT.601."""
    weights = np.array([299, 587, 114], np.int64)
    return ((picture.astype(np.int64) @ weights + 500) // 1000).astype(np.uint8)


def deepen(values: np.ndarray, seed: int) -> np.ndarray:
    """8-bit samples spread over 16 bits: the low byte is noise of its own, so that wrong rounding shows."""
    low = np.random.RandomState(seed).randint(0, 256, values.shape)
    return (values.astype(np.uint16) << 8) | low.astype(np.uint16)
