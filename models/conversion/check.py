"""Whether a graph gives what the original network gives. Needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.errors import PackagingError
from common.graph import independent_probabilities, logits, open_session, probabilities
from conversion.model import Model

NOISE = 3
"""Images of noise; an odd number, and run alone too, so that a batch the exporter has fixed shows."""
BATCH = 4
LOGITS_FP32 = 1e-4
"""Of a logit's size where that is above 1: float32 itself has seven digits."""
PROBABILITIES_FP16 = 5e-3


@dataclass(frozen=True)
class Reference:
    """Pixels `[n, h, w, 3]` uint8, noise first, and the logits `[n, labels]` of the untouched network for them."""

    pixels: np.ndarray
    logits: np.ndarray
    multi_label: bool

    def scores(self, values: np.ndarray) -> np.ndarray:
        return independent_probabilities(values) if self.multi_label else probabilities(values)


@dataclass(frozen=True)
class Agreement:
    """The largest differences to the reference, over all its images and labels."""

    images: int
    logits: float
    """Divided by the logit's size where that is above 1."""
    probabilities: float


@torch.inference_mode()
def reference(model: Model, images: list[Image.Image]) -> Reference:
    """To be taken before the network is changed for export.

    Real images go through the library's whole preprocessing and not through ours, so that a wrong mean or swapped
    channels in the graph show as well as a wrong network.
    """
    noise = np.random.default_rng(0).integers(0, 256, (NOISE, *model.size, 3), dtype=np.uint8)
    as_tensor = model.normalisation(torch.from_numpy(noise).permute(0, 3, 1, 2))
    values = [model.network(as_tensor)]
    # One by one: the memory that a batch of a large network takes buys no time on a processor.
    values += [model.network(model.tensor(image)[None]) for image in images]
    pixels = np.concatenate([noise, np.stack([model.pixels(image) for image in images])])
    return Reference(pixels, torch.cat(values).float().numpy(), model.multi_label)


def compare(wanted: Reference, path: Path, threads: int) -> Agreement:
    """Runs the graph at several batch sizes."""
    session = open_session(path, threads)
    found = logits(session, wanted.pixels, BATCH)
    alone = logits(session, wanted.pixels[:1])
    if found.shape != wanted.logits.shape or not np.isfinite(found).all():
        raise PackagingError(f"{path.name} gives {list(found.shape)} logits, not all numbers; {list(wanted.logits.shape)} are expected")
    gaps = np.concatenate([np.abs(found - wanted.logits), np.abs(alone - wanted.logits[:1])])
    sizes = np.maximum(1.0, np.abs(np.concatenate([wanted.logits, wanted.logits[:1]])))
    scores = np.abs(wanted.scores(found) - wanted.scores(wanted.logits))
    return Agreement(len(wanted.pixels), float((gaps / sizes).max()), float(scores.max()))


def judge(agreement: Agreement, precision: str) -> None:
    """Raises unless the agreement is what the precision promises."""
    if precision == "fp32" and not agreement.logits <= LOGITS_FP32:
        raise PackagingError(f"ONNX and PyTorch logits differ by {agreement.logits:.2e}, allowed are {LOGITS_FP32:.0e}")
    if precision == "fp16" and not agreement.probabilities <= PROBABILITIES_FP16:
        raise PackagingError(
            f"fp16 scores differ from PyTorch's by {agreement.probabilities:.2e}, allowed are {PROBABILITIES_FP16:.0e}; "
            "this network needs fp32"
        )
