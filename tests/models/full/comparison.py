"""What every converted package is held against: `pixwarden scan` beside the library the model came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from agreement import scan
from PIL import Image
from torch import nn

from . import PIXWARDEN

SCORE_TOLERANCE = 0.005
LEAST_SPREAD = 0.1
LABELS = ["by human", "by AI"]


@dataclass(frozen=True)
class Expected:
    """What PyTorch gives for files through the library's own preprocessing."""

    files: list[Path]
    logits: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """`[n, labels]`, by softmax."""
        return torch.from_numpy(self.logits).softmax(1).numpy()


Transform = Callable[[Image.Image], torch.Tensor]


@torch.inference_mode()
def expected(network: nn.Module, transform: Transform, files: list[Path]) -> Expected:
    rows = [network(transform(Image.open(file).convert("RGB"))[None])[0] for file in files]
    return Expected(files, torch.stack(rows).numpy())


def scanned(package: Path, files: list[Path], work: Path) -> np.ndarray:
    """`[n, labels]`, what Pixwarden says of the files under the package."""
    records = scan(PIXWARDEN, package, files, work / "pixels")
    return np.array([[record["scores"][package.name][label] for label in LABELS] for record in records])


def largest_difference(package: Path, wanted: Expected, work: Path, count: int | None = None) -> float:
    """Between Pixwarden's scores and the library's, over the first `count` files."""
    return float(np.abs(scanned(package, wanted.files[:count], work) - wanted.scores[:count]).max())
