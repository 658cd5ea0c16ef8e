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
_TEST_FIELDS = ("test_input_size", "test_crop_pct")


def from_name(name: str, weights: Path, labels: list[str] | None, config: dict | None) -> Model:
    """A network of timm's with the weights of a file; the number of classes is the file's."""
    config = config or {}
    state = read_state(weights)
    network = create(name, num_classes=classes_in(name, state, weights), **(config.get("model_args") or {}))
    fit(network, state, weights)
    named = labels or config.get("label_names") or config.get("labels")
    if not named:
        raise PackagingError(f"{name}: nothing names its {network.num_classes} classes; give --labels or a --config with label_names")
    if not isinstance(named, list) or not all(isinstance(label, str) for label in named):
        raise PackagingError(f"{name}: label_names is not a list of names; give --labels in the order of the outputs")
    if network.num_classes == 1:
        raise PackagingError(f"{weights} has one class only, and a softmax over one class is always 1")
    if len(named) != network.num_classes:
        raise PackagingError(f"{weights} has {network.num_classes} classes, and {len(named)} labels are given")
    origin = Origin(
        title=name,
        file=weights,
        # The backbone's own licence says nothing of somebody's weights.
        licence=given(config).get("license") or config.get("license") or "unknown: ask the author of the weights",
        attribution="the author of the weights; the architecture is timm's",
        limits=("A score is an indication and never proof.",),
    )
    return as_model(network, named, preprocessing(network, config), origin)


def from_folder(folder: Path, labels: list[str] | None) -> Model:
    """A folder with config.json (`architecture`, `pretrained_cfg`) and model.safetensors."""
    config = read_config(folder / "config.json")
    if not isinstance(config.get("architecture"), str):
        raise PackagingError(f"{folder}/config.json names no `architecture`, so it is not timm's")
    return from_name(config["architecture"], folder / "model.safetensors", labels, config)


def create(name: str, *, num_classes: int, **model_args: object) -> torch.nn.Module:
    """`model_args` are those of a timm folder's config.json: what its author changed about the architecture."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **model_args).eval()
    except (RuntimeError, TypeError) as error:
        raise PackagingError(f"timm {timm.__version__} cannot make {name} {model_args or ''}: {error}") from error


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


def given(config: dict | None) -> dict:
    """The fields that came with the weights, nested or flat; none where nothing came with them."""
    return (config or {}).get("pretrained_cfg") or config or {}


def preprocessing(network: torch.nn.Module, config: dict | None) -> dict:
    """timm's own resolution of its evaluation fields; a config that came with the weights counts first."""
    known = {key: value for key, value in given(config).items() if key in (*_FIELDS, *_TEST_FIELDS) and value is not None}
    own = dict(network.pretrained_cfg)
    if known.keys() & {"input_size", "crop_pct"}:
        # The size at which the backbone's author tests is not that of weights which state their own.
        own = {key: value for key, value in own.items() if key not in _TEST_FIELDS}
    resolved = resolve_data_config({}, pretrained_cfg={**own, **known}, use_test_size=True)
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
