"""Training: one-cycle schedule, averaged weights, a checkpoint after every epoch."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch.optim.swa_utils import AveragedModel

from training.images import Augmentation, Thumbnails, batches, mix_images, move_images
from training.network import NORMALISATION, ThumbnailNet

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result. A resumed run must be given the same recipe, but for how long it lasts."""

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    average_decay: float
    seed: int
    precision: str
    augmentation: Augmentation = field(default_factory=Augmentation)


class Run:
    """The state of a training run: the network, its averaged copy, the optimiser and the best epoch so far."""

    def __init__(self, recipe: Recipe, images: int, device: torch.device):
        torch.manual_seed(recipe.seed)
        if images < recipe.batch_size:
            raise SystemExit(f"{images} training images do not fill one batch of {recipe.batch_size}")
        self.recipe, self.device = recipe, device
        self.network = ThumbnailNet().to(device, memory_format=torch.channels_last)
        self.average = AveragedModel(self.network, avg_fn=averaging(recipe.average_decay), use_buffers=True)
        self.optimizer = torch.optim.SGD(
            weight_groups(self.network, recipe.weight_decay), lr=recipe.learning_rate, momentum=0.9, nesterov=True
        )
        self.steps_per_epoch = images // recipe.batch_size
        self.epoch = 0
        self.seconds = 0.0
        self.best = {"epoch": 0, "val_accuracy": 0.0}
        self.best_weights = self.average.module.state_dict()

    def save(self, path: Path) -> None:
        """Writes beside the old checkpoint and renames, so that an interruption leaves one of the two whole."""
        state = {
            "recipe": asdict(self.recipe),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best": self.best,
            "best_weights": self.best_weights,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        # A different length is allowed: the learning rate continues on the curve of the new length.
        mine = {key: value for key, value in asdict(self.recipe).items() if key not in ("epochs", "patience")}
        changed = [key for key, value in mine.items() if state["recipe"].get(key) != value]
        if changed:
            was = ", ".join(f"{key} {state['recipe'].get(key)}" for key in changed)
            raise SystemExit(f"{path} was trained with another recipe ({was}); give the same options or start without --resume")
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def set_learning_rate(self, step: int) -> float:
        """Sets the rate for the `step`-th step of the current epoch and returns it."""
        progress = (self.epoch + step / self.steps_per_epoch) / self.recipe.epochs
        rate = self.recipe.learning_rate * one_cycle(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def best_network(self) -> ThumbnailNet:
        network = ThumbnailNet()
        network.load_state_dict({key: value.cpu() for key, value in self.best_weights.items()})
        return network.eval()


def one_cycle(progress: float) -> float:
    """Share of the peak rate after `progress` (0 to 1) of the run: up from 1/25 over a fifth of it, then down to zero.

    The shape is that of Smith and Topin (arXiv:1708.07120), with cosine flanks.
    """
    rise, start = 0.2, 1 / 25
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


def averaging(decay: float):
    """Exponential average that trusts the first steps less: their weights are far from where training ends."""

    def update(average: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return current + kept * (average - current)

    return update


def weight_groups(network: ThumbnailNet, weight_decay: float) -> list[dict]:
    """Decay holds for the convolutions and the head; shrinking a normalisation's scale or a bias regularises nothing."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def fit(run: Run, train: Thumbnails, val: Thumbnails, folder: Path, max_minutes: float | None) -> None:
    """Trains until the last epoch, until `patience` epochs brought no better accuracy, or until the time is used up."""
    while run.epoch < run.recipe.epochs:
        if run.epoch - run.best["epoch"] >= run.recipe.patience:
            print(f"stopped early: no better accuracy since epoch {run.best['epoch']}", flush=True)
            return
        if max_minutes is not None and run.seconds / 60 >= max_minutes:
            print(f"stopped after {run.seconds / 60:.1f} of {max_minutes:g} minutes", flush=True)
            return
        started = time.monotonic()
        loss, rate = train_epoch(run, train)
        measured = measure(run, val)
        run.epoch += 1
        run.seconds += time.monotonic() - started
        if measured["val_accuracy"] > run.best["val_accuracy"]:
            run.best = {"epoch": run.epoch, **measured}
            run.best_weights = {key: value.clone() for key, value in run.average.module.state_dict().items()}
        line = {"epoch": run.epoch, "train_loss": round(loss, 5), **measured}
        line |= {"learning_rate": round(rate, 6), "planned_epochs": run.recipe.epochs, "seconds": round(run.seconds, 1)}
        # The log before the checkpoint: an interruption between the two repeats a line, it never loses one.
        with (folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        run.save(folder / CHECKPOINT)
        print(json.dumps(line), flush=True)


def train_epoch(run: Run, train: Thumbnails) -> tuple[float, float]:
    """One pass over the training set; returns the mean loss and the last learning rate.

    The random numbers depend on the seed and the epoch alone, so a resumed run sees what an uninterrupted one sees.
    """
    recipe = run.recipe
    rng = np.random.default_rng([recipe.seed, run.epoch])
    run.network.train()
    total = torch.zeros((), device=run.device)
    for step, (pixels, labels) in enumerate(batches(train, recipe.batch_size, rng)):
        rate = run.set_learning_rate(step)
        x = NORMALISATION(pixels.to(run.device))
        x = move_images(x, recipe.augmentation, rng)
        y = F.one_hot(labels, 2).float().to(run.device)
        x, y = mix_images(x, y, recipe.augmentation, rng)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = run.network(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.average.update_parameters(run.network)
        total += loss.detach()
    return float(total) / run.steps_per_epoch, rate


@torch.inference_mode()
def measure(run: Run, val: Thumbnails) -> dict[str, float]:
    """Accuracy, loss and ROC AUC of the averaged weights, in float32: the precision of the exported file."""
    run.average.eval()
    logits = []
    for start in range(0, len(val), 500):
        pixels = torch.from_numpy(val.pixels[start : start + 500]).to(run.device).permute(0, 3, 1, 2)
        x = NORMALISATION(pixels).contiguous(memory_format=torch.channels_last)
        logits.append(run.average(x).cpu())
    logits = torch.cat(logits)
    labels = torch.from_numpy(val.labels)
    return {
        "val_loss": round(float(F.cross_entropy(logits, labels)), 5),
        "val_accuracy": round(float((logits.argmax(1) == labels).double().mean()), 5),
        "val_roc_auc": round(float(roc_auc_score(val.labels, logits.softmax(1)[:, 1].numpy())), 5),
    }


def read_log(folder: Path) -> list[dict]:
    """The log's lines, the last one of an epoch that was repeated after an interruption."""
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return list({line["epoch"]: line for line in lines}.values())
