"""The Sumsub "For Fake's Sake" family, from the files its authors publish. Needs PyTorch and timm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.errors import PackagingError
from conversion.head import backbone_prefix, head_layers
from conversion.model import Model, Origin
from conversion.state import State, fit, misfits, read_state
from conversion.timm_models import as_model, create, preprocessing

LABELS = ["by human", "by AI"]
LICENCE = "CC-BY-SA-3.0"
AUTHORS = 'Sumsub, "For Fake\'s Sake: a set of models for detecting generated and synthetic images" (2023)'
LIMITS = (
    "A score is an indication and never proof: no decision about a person or a work may rest on it alone.",
    "Very vibrant or very high-quality real pictures can be misjudged as generated.",
)
PUBLISHED_2_0 = {
    "Kaggle SD Faces": 0.984,
    "DiffusionDB": 0.920,
    "SD Wordnet": 0.950,
    "MS COCO (real)": 0.953,
    "Midjourney 2022-250k": 0.938,
    "Midjourney v5.1": 0.971,
    "VizWiz validation (real)": 0.998,
}

CONVNEXT = "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384"
MOBILENET = "tf_mobilenetv3_large_100.in1k"
PREPROCESSING_2_0 = {
    "input_size": [3, 384, 384],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclass(frozen=True)
class Release:
    """One published file of the family."""

    name: str
    backbone: str


RELEASES = {
    release: Release(f"Sumsub-ffs-synthetic-{release}", backbone)
    for release, backbone in {
        "2.0": CONVNEXT,
        "1.0_sd_200": CONVNEXT,
        "1.0_mj_200": CONVNEXT,
        "1.0_sd_5": MOBILENET,
        "1.0_mj_5": MOBILENET,
    }.items()
}


class Synthetic(nn.Module):
    """A timm backbone that gives features, and a head: normalised `[b, 3, h, w]` to logits `[b, 2]`.

    The attributes have the names of release 2.0, whose keys are `model.*`, `clf.0.*` and `clf.2.*`.
    """

    def __init__(self, backbone: str, widths: tuple[int, ...] | None = None):
        super().__init__()
        self.model = create(backbone, num_classes=0)
        self.clf = linear_head(widths or (self.model.head_hidden_size, 128, len(LABELS)))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.clf(self.model(x))


def linear_head(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with a ReLU between two of them, so that their indices are even."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def from_file(path: Path, release: str, config: dict | None) -> Model:
    """`config` is the timm config that came with the file, if one did; release 2.0 needs none."""
    wanted = RELEASES[release]
    state = read_state(path)
    if release == "2.0":
        network, notes = Synthetic(wanted.backbone), ()
        fit(network, state, path)
        fields = PREPROCESSING_2_0
    else:
        network, notes = from_any_head(state, wanted.backbone, path)
        fields = preprocessing(network.model, config)
        if config is None:
            notes += ("No configuration came with the file, so the preprocessing is that of the backbone in timm.",)
    origin = Origin(
        title=wanted.name,
        file=path,
        licence=LICENCE,
        attribution=AUTHORS,
        limits=LIMITS,
        notes=notes,
        published=PUBLISHED_2_0 if release == "2.0" else {},
    )
    return as_model(network, LABELS, fields, origin)


def from_any_head(state: State, backbone: str, path: Path) -> tuple[Synthetic, tuple[str, ...]]:
    """Release 1.0: the backbone is known, and the head is worked out from what is left in the file."""
    features = create(backbone, num_classes=0)
    inside = {key: tuple(value.shape) for key, value in features.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    prefix = backbone_prefix(found, inside)
    rest = {key: shape for key, shape in found.items() if not (key.startswith(prefix) and key.removeprefix(prefix) in inside)}
    problems = misfits({prefix + key: shape for key, shape in inside.items()}, {key: found[key] for key in found if key not in rest})
    if problems:
        raise PackagingError(f"{path} does not fit {backbone}: {'; '.join(problems)}; besides it holds {', '.join(list(rest)[:8]) or 'nothing'}")
    layers = head_layers(rest, features.head_hidden_size, len(LABELS))
    network = Synthetic(backbone, (layers[0].inputs, *(layer.outputs for layer in layers)))
    renamed = {f"model.{key}": state[prefix + key] for key in inside if prefix + key in state}
    for position, layer in enumerate(layers):
        renamed |= {f"clf.{2 * position}.{part}": state[f"{layer.name}.{part}"] for part in ("weight", "bias")}
    fit(network, renamed, path)
    names = ", ".join(f"`{layer.name}` ({layer.inputs} to {layer.outputs})" for layer in layers)
    note = f"The head was worked out from the file's keys and shapes: {names}"
    note += ", with a ReLU between them as in release 2.0, which no key can confirm." if len(layers) > 1 else "."
    return network, (note,)
