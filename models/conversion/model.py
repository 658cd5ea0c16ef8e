"""What every source is brought to before it is exported. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from common.errors import PackagingError
from common.export import Normalisation
from common.golden import Pixels


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, for its card."""

    title: str
    file: Path
    licence: str
    attribution: str
    limits: tuple[str, ...]
    notes: tuple[str, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    """Accuracies its authors state, by data set."""


@dataclass(frozen=True)
class Model:
    """A classifier with everything that decides its scores."""

    network: nn.Module
    """Normalised float32 `[b, 3, h, w]` to logits `[b, labels]`, in evaluation mode."""
    labels: list[str]
    multi_label: bool
    normalisation: Normalisation
    pixels: Pixels
    """Its library's own resize and crop, up to the last step before numbers are rescaled."""
    tensor: Callable[[Image.Image], torch.Tensor]
    """Its library's whole preprocessing, `[3, h, w]` float32: what the graph and `pixels` are checked against."""
    files: dict[str, dict]
    """JSON files of the package that say all this, by name."""
    origin: Origin

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        height, width, _ = self.pixels(Image.new("RGB", (64, 48))).shape
        return height, width


def whole_levels(values: np.ndarray) -> np.ndarray:
    """Pixels as a library returns them before rescaling, `[3, h, w]`, as `[h, w, 3]` uint8; nothing may be lost."""
    levels = np.rint(values)
    if levels.min() < 0 or levels.max() > 255 or np.abs(values - levels).max() > 1e-3:
        raise PackagingError(
            "the preprocessing gives no whole levels from 0 to 255 before it rescales; a field that changes numbers in "
            "another way (EfficientNet's include_top, for one) is not supported"
        )
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
