"""What the model card reports, measured on the exported file with ONNX Runtime."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from common.graph import logits, open_session, probabilities
from training.images import SIDE, Thumbnails

THRESHOLDS = (0.5, 0.9)


def jpeg(quality: int):
    """Compression by Pillow at `quality` with its default colour subsampling (4:2:0)."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


def resized(side: int):
    """To side x side and back to 32x32, both times bicubic."""

    def change(image: Image.Image) -> Image.Image:
        small = image.resize((side, side), Image.Resampling.BICUBIC)
        return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    return change


def blurred(radius: float):
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


CHANGES = {
    **{f"JPEG quality {quality}": jpeg(quality) for quality in (95, 90, 80, 70, 60, 50)},
    **{f"resized to {side}x{side} and back": resized(side) for side in (64, 48, 24, 16)},
    **{f"Gaussian blur, radius {radius}": blurred(radius) for radius in (0.5, 1.0)},
}


def measurements(path: Path, val: Thumbnails, threads: int) -> dict:
    """Accuracy with and without changes to the pixels, thresholds, and time, of the model at `path`."""
    session = open_session(path, threads)
    plain = probabilities(logits(session, val.pixels))[:, 1]
    changed = {}
    for name, change in CHANGES.items():
        pixels = np.stack([np.asarray(change(Image.fromarray(p)).convert("RGB")) for p in val.pixels])
        changed[name] = figures(val.labels, probabilities(logits(session, pixels))[:, 1])
    return {
        "images": len(val),
        "unchanged": figures(val.labels, plain),
        "changed": changed,
        "thresholds": {str(t): shares(val.labels, plain, t) for t in THRESHOLDS},
        "one_core_ms_per_image": one_core_ms(path, val.pixels),
    }


def figures(labels: np.ndarray, score: np.ndarray) -> dict:
    """`score` [n] is the probability of "by AI". confusion[truth][decision], decided at 0.5."""
    decision = (score > 0.5).astype(int)
    confusion = [[int(np.sum((labels == truth) & (decision == said))) for said in (0, 1)] for truth in (0, 1)]
    return {
        "accuracy": round(float(np.mean(decision == labels)), 5),
        "roc_auc": round(float(roc_auc_score(labels, score)), 5),
        "confusion": confusion,
    }


def shares(labels: np.ndarray, score: np.ndarray, threshold: float) -> dict:
    """Of each class, the share whose score reaches the threshold."""
    return {
        "real_reaching": round(float(np.mean(score[labels == 0] >= threshold)), 5),
        "generated_reaching": round(float(np.mean(score[labels == 1] >= threshold)), 5),
    }


def one_core_ms(path: Path, pixels: np.ndarray) -> dict[str, float]:
    """Median milliseconds an image of the session alone, one thread, without decoding. Keys are batch sizes."""
    session = open_session(path, threads=1)
    result = {}
    for batch, rounds in ((1, 300), (32, 40)):
        chosen = pixels[:batch]
        for _ in range(10):
            logits(session, chosen)
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            logits(session, chosen)
            times.append(time.perf_counter() - started)
        result[str(batch)] = round(float(np.median(times)) * 1000 / batch, 3)
    return result
