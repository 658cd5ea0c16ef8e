"""Works out from keys and shapes alone what a checkpoint holds: which backbone prefix, which layers behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.errors import PackagingError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layer:
    """One linear layer of the head, `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`."""

    name: str
    inputs: int
    outputs: int


def backbone_prefix(found: Shapes, backbone: Shapes) -> str:
    """What stands before the backbone's keys in the file, perhaps nothing: the prefix under which most of them are."""
    candidates = {key.removesuffix(wanted) for wanted in backbone for key in found if key.endswith(wanted)} | {""}
    return max(sorted(candidates), key=lambda prefix: sum(prefix + key in found for key in backbone))


def head_layers(found: Shapes, features: int, labels: int) -> list[Layer]:
    """The linear layers among `found`, the keys that are not the backbone's, from `features` to `labels`.

    Between two of them the caller puts a ReLU, as release 2.0 has it: an activation leaves no key in a file.
    """
    weights = sorted((key for key in found if key.endswith(".weight")), key=_natural)
    layers = []
    for key in weights:
        name, shape = key.removesuffix(".weight"), found[key]
        if len(shape) != 2:
            raise PackagingError(f"the head's {key} {list(shape)} is not a linear layer's; only linear layers are understood")
        if found.get(f"{name}.bias") != (shape[0],):
            raise PackagingError(f"the head's {key} {list(shape)} has no {name}.bias of [{shape[0]}]")
        layers.append(Layer(name, shape[1], shape[0]))
    known = {f"{layer.name}.{part}" for layer in layers for part in ("weight", "bias")}
    strange = [f"{key} {list(shape)}" for key, shape in found.items() if key not in known]
    if strange:
        raise PackagingError(f"not part of the backbone, nor of a head of linear layers: {', '.join(strange[:8])}")
    if not layers:
        raise PackagingError("the file holds a backbone and no head, so it gives features and no scores")
    width = features
    for layer in layers:
        if layer.inputs != width:
            raise PackagingError(f"the head's {layer.name} takes {layer.inputs} values, and what comes before it gives {width}")
        width = layer.outputs
    if width != labels:
        raise PackagingError(f"the head ends in {width} outputs, and there are {labels} labels")
    return layers


def _natural(key: str) -> list[tuple[int, int | str]]:
    """Sorts clf.2 before clf.10; numbers come before words."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"\.", key)]
