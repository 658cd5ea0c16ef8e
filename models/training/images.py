"""Labelled thumbnails: read once into memory, augmented a batch at a time."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from common.pixels import as_seen

SIDE = 32
LABELS = ("by human", "by AI")
FOLDERS = ("real", "fake")


@dataclass(frozen=True)
class Thumbnails:
    """`pixels` is [n, 32, 32, 3] uint8, `labels` is [n] int64 with 0 = by human and 1 = by AI."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Augmentation:
    """How strongly a training batch is changed. Probabilities are per image, the mixing ones per batch."""

    rotate_probability: float = 0.25
    rotate_degrees: float = 10.0
    crop_padding: int = 3
    mixup_probability: float = 0.2
    mixup_alpha: float = 0.2
    cutmix_probability: float = 0.3
    cutmix_alpha: float = 1.0


def to_thumbnail(image: Image.Image) -> np.ndarray:
    """The pixel contract of the package: RGB, both edges to 32 by Pillow's bicubic filter. Returns [32, 32, 3] uint8."""
    rgb = as_seen(image)
    if rgb.size != (SIDE, SIDE):
        rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def load(source: Path) -> Thumbnails:
    """Reads a parquet file, or a folder with `real/` and `fake/` below it.

    An unreadable image ends the run with its name: a silently smaller set would make two runs incomparable.
    """
    pairs = read_folder(source) if source.is_dir() else read_parquet(source)
    pixels, labels = [], []
    for name, data, label in pairs:
        try:
            with Image.open(io.BytesIO(data)) as image:
                pixels.append(to_thumbnail(image))
        except (UnidentifiedImageError, OSError) as error:
            raise SystemExit(f"{source}: cannot read image {name}: {error}") from error
        labels.append(label)
    found = set(labels)
    if found != {0, 1}:
        raise SystemExit(f"{source}: needs images labelled 0 (real) and 1 (generated) and no others, found labels {sorted(found)}")
    return Thumbnails(np.stack(pixels), np.asarray(labels, dtype=np.int64))


def read_parquet(source: Path):
    """Yields (name, encoded bytes, label) from the columns `image` {bytes, path} and `label`."""
    row = 0
    for batch in pq.ParquetFile(source).iter_batches(batch_size=4096, columns=["image", "label"]):
        for image, label in zip(batch["image"].to_pylist(), batch["label"].to_pylist(), strict=True):
            yield image.get("path") or f"row {row}", image["bytes"], label
            row += 1


def read_folder(source: Path):
    """Yields (name, encoded bytes, label), in sorted order so that one seed gives one run."""
    for label, folder in enumerate(FOLDERS):
        if not (source / folder).is_dir():
            raise SystemExit(f"{source}: expected the folders real/ and fake/ below it, {folder}/ is missing")
        for path in sorted(p for p in (source / folder).rglob("*") if p.is_file()):
            yield str(path), path.read_bytes(), label


def batches(data: Thumbnails, batch_size: int, rng: np.random.Generator):
    """Yields shuffled (pixels [b, 3, 32, 32] uint8, labels [b] int64); the incomplete last batch is dropped.

    A batch of a few images would give batch normalisation a poor estimate just before the epoch is measured.
    """
    order = rng.permutation(len(data))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        pixels = torch.from_numpy(data.pixels[chosen]).permute(0, 3, 1, 2)
        yield pixels, torch.from_numpy(data.labels[chosen])


def move_images(x: torch.Tensor, how: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Mirror, small rotation and padded random crop of x [b, 3, 32, 32] in one resampling.

    The crop moves by whole pixels and most images are not rotated, so those keep their pixel values. That matters
    here: resampling smooths away the fine texture that tells generated thumbnails from real ones.
    """
    n = len(x)
    mirror = torch.from_numpy(np.where(rng.random(n) < 0.5, -1.0, 1.0)).float()
    turned = rng.random(n) < how.rotate_probability
    angle = torch.from_numpy(np.where(turned, rng.uniform(-how.rotate_degrees, how.rotate_degrees, n), 0.0)).float()
    angle = angle * (math.pi / 180)
    # affine_grid counts in half widths, hence 2 / SIDE for one pixel.
    shift = torch.from_numpy(rng.integers(-how.crop_padding, how.crop_padding + 1, (n, 2))).float() * (2 / SIDE)
    rows = [angle.cos() * mirror, -angle.sin(), shift[:, 0], angle.sin() * mirror, angle.cos(), shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.device), mode="bilinear", padding_mode="reflection", align_corners=False)


def mix_images(x: torch.Tensor, y: torch.Tensor, how: Augmentation, rng: np.random.Generator):
    """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) on a share of the batches.

    x [b, 3, 32, 32], y [b, 2] class shares; returns the same shapes. One draw picks at most one of the two.
    """
    draw = rng.random()
    if draw < how.mixup_probability:
        keep = rng.beta(how.mixup_alpha, how.mixup_alpha)
        partner = torch.from_numpy(rng.permutation(len(x)))
        return keep * x + (1 - keep) * x[partner], keep * y + (1 - keep) * y[partner]
    if draw < how.mixup_probability + how.cutmix_probability:
        keep = rng.beta(how.cutmix_alpha, how.cutmix_alpha)
        partner = torch.from_numpy(rng.permutation(len(x)))
        top, bottom = cut(keep, rng)
        left, right = cut(keep, rng)
        x = x.clone()
        x[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
        # The box is clipped at the border, so the share is counted rather than taken from the draw.
        keep = 1 - (bottom - top) * (right - left) / SIDE**2
        return x, keep * y + (1 - keep) * y[partner]
    return x, y


def cut(keep: float, rng: np.random.Generator) -> tuple[int, int]:
    """One edge of the CutMix box: half-open pixel range around a random centre, clipped to the image."""
    half = round(SIDE * math.sqrt(1 - keep) / 2)
    centre = int(rng.integers(SIDE))
    return max(centre - half, 0), min(centre + half, SIDE)
