#!/usr/bin/env python3
"""Turns a PyTorch image classifier into a Pixwarden package: ONNX graph, labels, preprocessing, golden image, card.

    python models/convert.py sumsub synthetic.pt --release 2.0 --package models/synthetic-2.0 --precision fp32 fp16
    python models/convert.py timm tf_mobilenetv3_large_100 --weights w.safetensors --labels real,fake --package models/mine
    python models/convert.py huggingface FOLDER --package models/mine

Nothing is fetched, and nothing that a file brings along is run. Requirements: models/requirements-convert.txt.
See models/README.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Before the libraries that would look a name up: what is not in the given files is an error.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from conversion import hugging_face, seed, timm_models
from conversion.images import check_images
from conversion.model import Model
from conversion.package import Wish, convert


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    wish = Wish(
        package=options.package,
        precisions=list(dict.fromkeys(options.precision)),
        images=check_images(options.images),
        images_are="pictures given to the conversion" if options.images else "drawn pictures",
        threads=options.threads,
    )
    wish.refuse_taken()
    convert(load(options), wish)


def load(options: argparse.Namespace) -> Model:
    labels = options.labels.split(",") if getattr(options, "labels", None) else None
    if options.kind == "sumsub":
        return seed.from_file(options.source, options.release, config_beside(options.source, options.config))
    if options.kind == "huggingface":
        return hugging_face.from_folder(options.source, labels)
    if options.weights is None:
        return timm_models.from_folder(Path(options.source), labels)
    config = timm_models.read_config(options.config) if options.config else None
    return timm_models.from_name(options.source, options.weights, labels, config)


def config_beside(source: Path, given: Path | None) -> dict | None:
    """The configuration named, or the one that lies beside the file."""
    path = given or source.with_name("config.json")
    return timm_models.read_config(path) if given or path.is_file() else None


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = result.add_subparsers(dest="kind", required=True, metavar="KIND")

    sumsub = kinds.add_parser("sumsub", help="a checkpoint of the Sumsub-ffs-synthetic family")
    sumsub.add_argument("source", type=Path, metavar="FILE", help="its state dict, synthetic.pt for release 2.0")
    sumsub.add_argument("--release", required=True, choices=seed.RELEASES, help="which of the family's files it is")
    sumsub.add_argument("--config", type=Path, metavar="FILE", help="its timm config.json, for release 1.0 (default: the one beside FILE; else the backbone's own)")

    timm = kinds.add_parser("timm", help="a classifier of timm's")
    timm.add_argument("source", metavar="NAME|FOLDER", help="a model's name, with --weights; or a folder with config.json and model.safetensors")
    timm.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors, or a PyTorch state dict")
    timm.add_argument("--config", type=Path, metavar="FILE", help="timm config.json with label_names and pretrained_cfg")

    hugging = kinds.add_parser("huggingface", help="an image classifier of transformers")
    hugging.add_argument("source", type=Path, metavar="FOLDER", help="config.json, preprocessor_config.json and safetensors")

    for kind in (timm, hugging):
        kind.add_argument("--labels", metavar="A,B,...", help="names of the classes in the order of the outputs (default: those of the configuration)")
    for kind in (sumsub, timm, hugging):
        kind.add_argument("--package", type=Path, required=True, metavar="DIR", help="folder to write; with fp16, DIR-fp16")
        kind.add_argument("--precision", nargs="+", choices=["fp32", "fp16"], default=["fp32"], help="one package each (default fp32); fp16 is for GPUs")
        kind.add_argument("--images", type=Path, metavar="DIR", help="images to check the graph on, at most 20 (default: drawn ones)")
        kind.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    return result


if __name__ == "__main__":
    main()
