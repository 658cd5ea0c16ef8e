"""An image classifier as transformers saves it: config.json, preprocessor_config.json, safetensors. Needs PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from common.errors import PackagingError
from common.export import Normalisation
from common.golden import drawing
from conversion.model import Model, Origin, whole_levels
from conversion.state import listed
from conversion.timm_models import read_config

# Its report of keys that do not fit is a table for people; ours is an error.
logging.set_verbosity_error()
logging.disable_progress_bar()

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


class Logits(nn.Module):
    """The classifier without the containers its library returns."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(pixel_values=x).logits


def from_folder(folder: Path, labels: list[str] | None) -> Model:
    config, preprocessor = read_config(folder / CONFIG), read_config(folder / PREPROCESSOR)
    classifier = load_classifier(folder)
    names = labels or [classifier.config.id2label[index] for index in range(classifier.config.num_labels)]
    if len(names) != classifier.config.num_labels:
        raise PackagingError(f"{folder} has {classifier.config.num_labels} classes, and {len(names)} labels are given")
    config |= {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "pixwarden": {"output": "logits"},
    }
    # Pillow's resize is what the worker reproduces; the other backend resizes tensors and rounds differently.
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")

    def processed(image: Image.Image, **options: bool) -> np.ndarray:
        return processor(images=image, return_tensors="np", **options)["pixel_values"][0]

    def pixels(image: Image.Image) -> np.ndarray:
        return whole_levels(processed(image, do_rescale=False, do_normalize=False))

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(processed(image)).float()

    normalisation = normalisation_of(processor)
    check_normalisation(normalisation, pixels, tensor, folder)
    return Model(
        network=Logits(classifier).eval(),
        labels=names,
        multi_label=classifier.config.problem_type == "multi_label_classification",
        normalisation=normalisation,
        pixels=pixels,
        tensor=tensor,
        files={CONFIG: config, PREPROCESSOR: preprocessor},
        origin=Origin(
            # `_name_or_path` most often names the model that this one was trained from.
            title=folder.resolve().name,
            file=weights_of(folder),
            licence="as the card of the original says; it was not part of the folder's configuration",
            attribution="the author of the folder",
            limits=("A score is an indication and never proof.",),
        ),
    )


def load_classifier(folder: Path) -> nn.Module:
    """Only from safetensors, and only if every weight finds its place: the library would fill gaps at random."""
    weights_of(folder)
    classifier, report = AutoModelForImageClassification.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    kinds = (("missing", "missing_keys"), ("unexpected", "unexpected_keys"), ("of another shape", "mismatched_keys"))
    problems = [f"{kind}: {listed([str(key) for key in sorted(report[field])])}" for kind, field in kinds if report.get(field)]
    if problems:
        raise PackagingError(f"{folder} does not fit its {CONFIG}: {'; '.join(problems)}")
    return classifier


def weights_of(folder: Path) -> Path:
    """The one file whose digest the card states."""
    found = folder / "model.safetensors"
    if not found.is_file():
        raise PackagingError(
            f"{folder}: there is no model.safetensors in it; pickled weights (*.bin) are not read, and weights in several "
            "files have to be saved as one first (save_pretrained with a larger max_shard_size)"
        )
    return found


def normalisation_of(processor: object) -> Normalisation:
    normalises, rescales = getattr(processor, "do_normalize", True), getattr(processor, "do_rescale", True)
    return Normalisation(
        mean=triple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=triple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
        scale=processor.rescale_factor if rescales else 1.0,
    )


def triple(value: float | list[float]) -> tuple[float, ...]:
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)


def check_normalisation(normalisation: Normalisation, pixels, tensor, folder: Path) -> None:
    """Some processors do more between pixels and numbers than rescale and normalise; those are refused."""
    image = drawing(0)
    ours = normalisation(torch.from_numpy(pixels(image)).permute(2, 0, 1)[None])[0]
    difference = float((ours - tensor(image)).abs().max())
    if not difference <= 1e-4:
        raise PackagingError(
            f"{folder}/{PREPROCESSOR}: rescale_factor, image_mean and image_std do not explain its numbers (they differ by "
            f"{difference:.3g}); another field changes them (rescale_offset, do_flip_channel_order, include_top), which is not supported"
        )
