"""A Keras model in TensorFlow.js's layers format, as JavaScript modules that bundlers make of it. No JavaScript is run.

`topology` and `weights` read the two kinds of modules; `layers` gives the network as a list in the order of its data.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass

import numpy as np

from common.errors import PackagingError

_TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_$][\w$]*)|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)'
    r"|(?P<boolean>![01])|(?P<sign>[{}\[\]:,]))"
)
_EXPORTED = re.compile(r"\.exports=(?=\{)")
_BASE64 = re.compile(r'"([A-Za-z0-9+/=]{64,})"')


@dataclass(frozen=True)
class Layer:
    """One step of the network."""

    kind: str
    name: str
    config: dict
    inputs: list[str]
    """The names of the layers whose outputs it takes."""


def literal(text: str) -> object:
    """The value of a JavaScript literal at the beginning of `text`: JSON with bare keys, `!0`, `!1` and `.5`."""
    parts, depth, position = [], 0, 0
    while True:
        token = _TOKEN.match(text, position)
        if token is None:
            raise PackagingError(f"the model is no JavaScript literal from here on: {text[position:position + 40]!r}")
        kind = token.lastgroup
        part = token.group(kind)
        position = token.end()
        if kind == "name":
            parts.append(part if part in ("null", "true", "false") else json.dumps(part))
        elif kind == "boolean":
            parts.append("true" if part == "!0" else "false")
        elif kind == "number":
            parts.append(repr(float(part)) if set(part) & set(".eE") else part)
        else:
            parts.append(part)
        depth += (part in ("{", "[")) - (part in ("}", "]"))
        if depth == 0:
            return json.loads("".join(parts))


def topology(module: str) -> dict:
    """The object that a module exports: `modelTopology` and `weightsManifest`."""
    exported = _EXPORTED.search(module)
    if exported is None:
        raise PackagingError("the model's module exports nothing")
    found = literal(module[exported.end() :])
    if not isinstance(found, dict) or not {"modelTopology", "weightsManifest"} <= set(found):
        raise PackagingError("the model's module has no modelTopology and weightsManifest")
    return found


def shard(module: str) -> bytes:
    """The bytes of a module that exports them in base64."""
    found = _BASE64.findall(module)
    if len(found) != 1:
        raise PackagingError(f"a module of weights holds {len(found)} texts in base64, one is expected")
    return base64.b64decode(found[0], validate=True)


def weights(manifest: list[dict], shards: list[bytes]) -> dict[str, np.ndarray]:
    """Every weight by name, in float32. A quantised one is `value * scale + min`."""
    data, position, found = b"".join(shards), 0, {}
    for entry in (entry for group in manifest for entry in group["weights"]):
        quantised = entry.get("quantization", {})
        stored = np.dtype(quantised.get("dtype", entry["dtype"])).newbyteorder("<")
        if entry["dtype"] != "float32" or stored not in ("float32", "uint8", "uint16"):
            raise PackagingError(f"the weight {entry['name']} is {entry['dtype']}, stored as {stored}")
        length = math.prod(entry["shape"]) * stored.itemsize
        values = np.frombuffer(data[position : position + length], dtype=stored).reshape(entry["shape"])
        position += length
        if quantised:
            values = values.astype(np.float64) * quantised["scale"] + quantised["min"]
        found[entry["name"]] = values.astype(np.float32)
    if position != len(data):
        raise PackagingError(f"the weights have {len(data)} bytes, their list has {position}")
    return found


def layers(model: dict) -> list[Layer]:
    """The network of a functional model, or of a sequential one that contains such models, one after another."""
    config = model["modelTopology"]["model_config"]
    return _layers(config["class_name"], config["config"])


def _layers(kind: str, config: dict | list) -> list[Layer]:
    listed = config["layers"] if isinstance(config, dict) else config
    found: list[Layer] = []
    for layer in listed:
        name = layer["config"].get("name", layer.get("name", ""))
        if layer["class_name"] in ("Model", "Functional", "Sequential"):
            inner = _layers(layer["class_name"], layer["config"])
            # What goes into a model that is part of a chain is what comes out of the step before.
            if found:
                first = inner[0]
                inner = [_renamed(step, first.name, found[-1].name) for step in inner[1:]]
            found += inner
            continue
        if kind == "Sequential":
            inputs = [found[-1].name] if found else []
        else:
            nodes = layer.get("inbound_nodes", [])
            if len(nodes) > 1:
                raise PackagingError(f"the layer {name} is used {len(nodes)} times")
            inputs = [node[0] for node in (nodes[0] if nodes else [])]
        found.append(Layer(layer["class_name"], name, layer["config"], inputs))
    return found


def _renamed(step: Layer, old: str, new: str) -> Layer:
    return Layer(step.kind, step.name, step.config, [new if name == old else name for name in step.inputs])
