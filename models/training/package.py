"""Assembles the package folder: model, configuration, golden image, measurements, curves and card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from common.folder import in_place_of, sha256, timm_config, write_checksums, write_json
from common.golden import choose, expected
from common.graph import logits, open_session, probabilities
from training.card import card
from training.export import export_checked
from training.images import LABELS, SIDE, Thumbnails, to_thumbnail
from training.loop import Run
from training.measure import measurements
from training.network import NORMALISATION

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before pyplot is imported)

ARCHITECTURE = "pixwarden_thumbnail_resnet"


@dataclass(frozen=True)
class Published:
    """What a package says beside its measurements."""

    train_images: int
    log: list[dict]
    about: dict[str, str]
    """See training/card.py."""


def write_package(run: Run, val: Thumbnails, published: Published, target: Path) -> None:
    """Builds the package beside `target`, and moves it there only once every check has passed."""
    with in_place_of(target) as folder:
        facts = write_model(run, val, published.train_images, folder)
        write_golden(folder)
        write_json(folder / "config.json", configuration())
        write_json(folder / "measurements.json", facts)
        (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in published.log))
        draw_curves(published.log, run.best["epoch"], folder / "curves.png")
        (folder / "README.md").write_text(card(facts, target.name, published.about))
        write_checksums(folder)
    plain = facts["unchanged"]
    print(f"{target}: accuracy {plain['accuracy']:.4f}, ROC AUC {plain['roc_auc']:.4f} on {facts['images']} images, "
          f"{facts['size_bytes']} bytes, sha256 {facts['sha256']}")  # fmt: skip


def write_model(run: Run, val: Thumbnails, train_images: int, folder: Path) -> dict:
    """Exports the best epoch and returns every figure the card states."""
    network = run.best_network()
    path = folder / "model.onnx"
    compared = val.pixels[:500]
    difference = export_checked(network, path, compared)
    return {
        **measurements(path, val, torch.get_num_threads()),
        "size_bytes": path.stat().st_size,
        "sha256": sha256(path),
        "parameters": sum(p.numel() for p in network.parameters()),
        "onnx_torch_logit_difference": float(f"{difference:.2e}"),
        "onnx_torch_images": len(compared),
        "processor": processor(),
        "training": {
            "images": train_images,
            "device": str(run.device),
            "epochs_run": run.epoch,
            "best_epoch": run.best["epoch"],
            "minutes": round(run.seconds / 60, 1),
            **asdict(run.recipe),
        },
    }


def write_golden(folder: Path) -> None:
    """Scores are taken from the image as written and through Pillow, the reference the worker is compared with."""
    session = open_session(folder / "model.onnx", threads=1)

    def scores(pixels: np.ndarray) -> np.ndarray:
        return probabilities(logits(session, pixels))

    choose(to_thumbnail, scores).save(folder / "golden.png")
    with Image.open(folder / "golden.png") as image:
        found = scores(to_thumbnail(image)[None])[0]
    write_json(folder / "golden.json", expected(list(LABELS), found))


def configuration() -> dict:
    preprocessing = {
        "input_size": [3, SIDE, SIDE],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": list(NORMALISATION.mean),
        "std": list(NORMALISATION.std),
    }
    return timm_config(ARCHITECTURE, list(LABELS), preprocessing)


def draw_curves(log: list[dict], best_epoch: int, path: Path) -> None:
    epochs = [line["epoch"] for line in log]
    figure, (losses, accuracy) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    losses.plot(epochs, [line["train_loss"] for line in log], label="training (augmented, mixed)")
    losses.plot(epochs, [line["val_loss"] for line in log], label="validation")
    losses.set(xlabel="epoch", ylabel="cross entropy")
    losses.legend()
    accuracy.plot(epochs, [line["val_accuracy"] for line in log], label="accuracy")
    accuracy.plot(epochs, [line["val_roc_auc"] for line in log], label="ROC AUC")
    accuracy.axvline(best_epoch, color="grey", linestyle=":", label=f"packaged: epoch {best_epoch}")
    accuracy.set(xlabel="epoch", ylabel="validation")
    accuracy.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def processor() -> str:
    """The processor's name where the system tells it (Linux), for the reader of the timings."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
