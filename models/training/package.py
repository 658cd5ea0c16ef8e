"""Assembles the package folder: model, configuration, golden image, measurements, curves and card."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from training.card import card
from training.export import export, golden_image, golden_scores, open_session
from training.images import LABELS, SIDE, Thumbnails
from training.loop import Run
from training.measure import measurements
from training.network import MEAN, STD

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before pyplot is imported)

ARCHITECTURE = "pixwarden_thumbnail_resnet"


def write_package(run: Run, val: Thumbnails, train_images: int, log: list[dict], target: Path) -> None:
    """Builds the package beside `target` and moves it in file by file, only once every check has passed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".package-") as scratch:
        folder = Path(scratch)
        facts = write_model(run, val, train_images, folder)
        write_golden(folder)
        write_json(folder / "config.json", configuration())
        write_json(folder / "measurements.json", facts)
        (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        draw_curves(log, run.best["epoch"], folder / "curves.png")
        (folder / "README.md").write_text(card(facts, target.name))
        target.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            os.replace(path, target / path.name)
    plain = facts["unchanged"]
    print(f"{target}: accuracy {plain['accuracy']:.4f}, ROC AUC {plain['roc_auc']:.4f} on {facts['images']} images, "
          f"{facts['size_bytes']} bytes, sha256 {facts['sha256']}")  # fmt: skip


def write_model(run: Run, val: Thumbnails, train_images: int, folder: Path) -> dict:
    """Exports the best epoch and returns every figure the card states."""
    network = run.best_network()
    path = folder / "model.onnx"
    difference = export(network, path, val.pixels[:500])
    data = path.read_bytes()
    return {
        **measurements(path, val, torch.get_num_threads()),
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "onnx_torch_logit_difference": float(f"{difference:.2e}"),
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
    golden_image(session).save(folder / "golden.png")
    with Image.open(folder / "golden.png") as image:
        scores = golden_scores(session, image)
    write_json(folder / "golden.json", {"image": "golden.png", "scores": scores})


def configuration() -> dict:
    """timm's config.json. `mean` and `std` tell what the graph does itself: its input is bytes."""
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(LABELS),
        "label_names": list(LABELS),
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": len(LABELS),
        },
        "pixwarden": {"output": "logits"},
    }


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


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
