#!/usr/bin/env python3
"""Trains a detector of generated thumbnails and writes it as a Pixwarden package.

    python models/train.py --train train.parquet --val val.parquet --run-dir runs/cifake --package runs/cifake-32

TRAIN and VAL are folders with real/ and fake/ below them, or parquet files with the columns image {bytes, path} and
label (0 real, 1 generated). Requirements: models/requirements-train.txt. See models/README.md.

    python models/train.py head --encoder PACKAGE --data SOURCE=LABEL:FOLDER ... --package DIR
    python models/train.py join HEAD... --package DIR

train a small classifier on the features of another package's network, and put several of them into one package; see
training/head.py and training/join.py. They need tests/requirements.txt.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

if sys.argv[1:2] == ["head"]:
    # It needs no PyTorch.
    from training.head import main as head

    head(sys.argv[2:])
    raise SystemExit
if sys.argv[1:2] == ["join"]:
    from training.join import main as join

    join(sys.argv[2:])
    raise SystemExit

import torch

from common.folder import refuse_taken
from training.card import UNKNOWN
from training.images import load
from training.loop import CHECKPOINT, LOG, Recipe, Run, fit, read_log
from training.package import Published, write_package


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    about = read_about(options.about)
    train, val = load(options.train), load(options.val)
    print(f"{len(train)} training and {len(val)} validation images, device {device}", flush=True)

    run = Run(recipe(options), len(train), device)
    prepare(options.run_dir, resume=options.resume)
    if options.resume:
        run.restore(options.run_dir / CHECKPOINT)
    refuse_taken(options.package)
    fit(run, train, val, options.run_dir, options.max_minutes)

    if run.best["epoch"] == 0:
        raise SystemExit("no epoch was completed, so there is nothing to package")
    write_package(run, val, Published(len(train), read_log(options.run_dir), about), options.package)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=Path, required=True, help="images to learn from")
    add("--val", type=Path, required=True, help="images to choose the best epoch on and to measure")
    add("--run-dir", type=Path, required=True, help="checkpoint and log go here")
    add("--package", type=Path, required=True, help="package folder to write at the end")
    add("--about", type=Path, metavar="TOML", help="what the card says of purpose, limits and data, as in models/training/cifake.toml")
    add("--resume", action="store_true", help="continue from the checkpoint in --run-dir, with another --epochs if wanted; with no epoch left, only write the package")
    add("--epochs", type=int, default=30, help="upper limit; the learning rate falls to zero over this many (default 30)")
    add("--patience", type=int, default=8, help="stop after this many epochs without better validation accuracy (default 8)")
    add("--max-minutes", type=float, help="start no further epoch after this much training time")
    add("--batch-size", type=int, default=128, help="default 128; larger is faster per epoch but takes fewer steps in it")
    add("--learning-rate", type=float, default=0.1, help="peak of the one-cycle schedule (default 0.1, for batches of 128)")
    add("--seed", type=int, default=0, help="of the first weights, the order and the augmentation (default 0)")
    add("--threads", type=int, default=2, help="CPU threads (default 2)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: cuda if there is one)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the forward and backward pass; bf16 pays only where the processor computes in it")
    return parser.parse_args()


def recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(
        epochs=options.epochs,
        patience=options.patience,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=5e-4,
        average_decay=0.999,
        seed=options.seed,
        precision=options.precision,
    )


def read_about(path: Path | None) -> dict[str, str]:
    """Before the training, because a mistake in it should not cost hours."""
    if path is None:
        return UNKNOWN
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"--about {path}: {error}") from error
    if given.keys() != UNKNOWN.keys():
        raise SystemExit(f"--about {path}: needs {', '.join(UNKNOWN)} and nothing else, found {', '.join(given) or 'nothing'}")
    return {field: text.strip() for field, text in given.items()}


def prepare(folder: Path, *, resume: bool) -> None:
    """A new run never overwrites an old one, and a resumed run never starts from nothing."""
    checkpoint = folder / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise SystemExit(f"--resume: there is no {checkpoint}")
    if not resume and (checkpoint.exists() or (folder / LOG).exists()):
        raise SystemExit(f"{folder} holds an earlier run; add --resume to continue it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
