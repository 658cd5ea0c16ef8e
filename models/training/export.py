"""The trained network as one ONNX file, checked against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.errors import PackagingError
from common.export import BytesIn, export
from common.graph import check_graph, logits, open_session
from training.images import SIDE
from training.network import NORMALISATION, ThumbnailNet

MAX_BYTES = 5_000_000
TOLERANCE = 1e-4
# From the bytes of a decoder to the planes of a convolution, and nowhere else.
TRANSPOSES = 1


def export_checked(network: ThumbnailNet, path: Path, pixels: np.ndarray) -> float:
    """Writes `path` and returns the largest logit difference to PyTorch on `pixels` [n, 32, 32, 3] and on noise."""
    module = BytesIn(network, NORMALISATION).eval()
    export(module, (SIDE, SIDE), path)
    check_graph(path, allowed_transposes=TRANSPOSES, max_bytes=MAX_BYTES)
    return check_logits(module, path, pixels)


def check_logits(module: BytesIn, path: Path, pixels: np.ndarray) -> float:
    noise = np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8)
    # Batches of 1 and 7 show that the batch dimension is free; 7 divides nothing the exporter may have assumed.
    groups = [noise, noise[:1], noise[:7], pixels]
    session = open_session(path, threads=1)
    with torch.inference_mode():
        differences = [np.abs(module(torch.from_numpy(g)).numpy() - logits(session, g)).max() for g in groups]
    worst = float(max(differences))
    if not worst <= TOLERANCE:
        raise PackagingError(f"ONNX and PyTorch logits differ by {worst:.2e}, allowed are {TOLERANCE:.0e}")
    return worst
