"""Classifiers of timm: a name with local weights, or a folder as timm publishes them. Needs PyTorch and timm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from common.errors import PackagingError
from common.export import Normalisation
from common.folder import timm_config
from conversion.model import Model, Origin, whole_levels
from conversion.state import State, fit, read_state

_FIELDS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def from_name(name: str, weights: Path, labels: list[str] | None, config: dict | None) -> Model:
    """A network of timm's with the weights of a file; the number of classes is the file's."""
    state = read_state(weights)
    network = create(name, num_classes=classes_in(name, state, weights))
    fit(network, state, weights)
    named = labels or (config or {}).get("label_names") or (config or {}).get("labels")
    if not named:
        raise PackagingError(f"{name}: nothing names its {network.num_classes} classes; give --labels or a --config with label_names")
    if len(named) != network.num_classes:
        raise PackagingError(f"{weights} has {network.num_classes} classes, and {len(named)} labels are given")
    origin = Origin(
        title=name,
        file=weights,
        licence=network.pretrained_cfg.get("license") or "unknown: ask the author of the weights",
        attribution="the author of the weights; the architecture is timm's",
        limits=("A score is an indication and never proof.",),
    )
    return as_model(network, list(named), preprocessing(network, config), origin)


def from_folder(folder: Path, labels: list[str] | None) -> Model:
    """A folder with config.json (`architecture`, `pretrained_cfg`) and model.safetensors."""
    config = read_config(folder / "config.json")
    if not isinstance(config.get("architecture"), str):
        raise PackagingError(f"{folder}/config.json names no `architecture`, so it is not timm's")
    return from_name(config["architecture"], folder / "model.safetensors", labels, config)


def create(name: str, *, num_classes: int) -> torch.nn.Module:
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes).eval()
    except RuntimeError as error:
        raise PackagingError(f"timm {timm.__version__} has no model {name}: {error}") from error


def classes_in(name: str, state: State, source: Path) -> int:
    """Rows of the classifier's weight, which is the only place that cannot be out of date."""
    classifier = create(name, num_classes=1).pretrained_cfg["classifier"]
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    if weight is None:
        raise PackagingError(f"{source}: missing {classifier}.weight, the classifier of {name}")
    return weight.shape[0]


def read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PackagingError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise PackagingError(f"{path}: not a JSON object")
    return config


def preprocessing(network: torch.nn.Module, config: dict | None) -> dict:
    """timm's own resolution of its evaluation fields; a config that came with the weights counts first."""
    given = (config or {}).get("pretrained_cfg", config or {})
    known = {key: value for key, value in given.items() if key in (*_FIELDS, "test_input_size", "test_crop_pct") and value is not None}
    resolved = resolve_data_config({}, pretrained_cfg={**network.pretrained_cfg, **known}, use_test_size=True)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in resolved.items() if key in _FIELDS}


def as_model(network: torch.nn.Module, labels: list[str], fields: dict, origin: Origin) -> Model:
    """`fields` are those of `pretrained_cfg` that decide the pixels."""
    levels = create_transform(**fields, is_training=False, normalize=False)
    whole = create_transform(**fields, is_training=False)

    def pixels(image: Image.Image) -> np.ndarray:
        return whole_levels(levels(image).numpy())

    architecture = getattr(network, "pretrained_cfg", {}).get("architecture") or origin.title
    return Model(
        network=network,
        labels=labels,
        multi_label=False,
        normalisation=Normalisation(fields["mean"], fields["std"]),
        pixels=pixels,
        tensor=whole,
        files={"config.json": timm_config(architecture, labels, fields)},
        origin=origin,
    )
