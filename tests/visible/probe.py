"""A detector whose input is what is compared, and whose scores never reach a threshold."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from seen import SIZE

NAME = "probe"
LABELS = ["red", "green", "blue"]
# Half of a mean colour at most, so that damage alone can keep a file from passing.
OPTIONS = ["--label", LABELS[0], "--review-at", "0.9", "--flag-at", "0.99"]
_OPSET, _IR_VERSION = 17, 8


def write(folder: Path) -> Path:
    """Writes the model package. Its scores are the mean colours, halved."""
    package = folder / NAME
    package.mkdir(parents=True, exist_ok=True)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    scores = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)])
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [2.0 * 255.0])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "scale"], ["halves"]),
        helper.make_node("ReduceMean", ["halves"], ["probabilities"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(nodes, NAME, [pixels], [scores], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, package / "model.onnx")
    squash = {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "box", "mean": [0, 0, 0], "std": [1, 1, 1]}
    config = {
        "label_names": LABELS,
        "num_classes": len(LABELS),
        "pretrained_cfg": {"input_size": [3, SIZE, SIZE], **squash},
        "pixwarden": {"output": "probabilities"},
    }
    (package / "config.json").write_text(json.dumps(config))
    return package
