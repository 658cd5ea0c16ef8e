"""Small ONNX packages for tests: a network with fixed random weights whose scores spread over the fixture images.

A trained detector would be large, and on made-up pictures it would answer alike for all of them, so that a wrong crop
or swapped channels would go unnoticed. These scores mean nothing; they depend on everything that can go wrong.

Run as `python -m reference.detectors DIR`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

LABELS = ("by human", "by AI")
MULTI_LABELS = ("drawing", "screenshot", "by AI", "photograph")
POSITIVE = "by AI"

SIZE = 96
NULL_SIZE = 384
NAN_ABOVE_RED = 250.0

# Opset 17 and IR version 8 belong together; every ONNX Runtime that Pixwarden supports reads them.
_OPSET, _IR_VERSION = 17, 8
_BATCH = "batch"

_WEIGHT_SEED = 16
_HEADS = 4
# What brings the projections of the fixtures' pooled features to mean 0 and deviation 1, one pair a head. Constants
# and not computed, so that the models do not hang on the fixtures or on the order in which a processor adds.
# `--calibrate` prints them again; they need not follow every change of the fixtures.
_CENTRES = (-0.0267, -4.9579, 3.0311, -1.3179)
_SPREADS = (1.0732, 2.4001, 1.2403, 0.7797)
# The logit's deviation over the fixtures. With 2 about a tenth of them score above 0.9 and as many below 0.1; much
# more would let the rounding of a resize move scores by what the agreement check tolerates.
_GAIN = 2.0
# The head behind the two-label packages: of the four the one least moved by noise of one level.
_SINGLE_HEAD = 1


@dataclass(frozen=True)
class Network:
    """What varies between the packages that share the weights."""

    uint8_input: bool = False
    """Input `pixels` `[batch, height, width, 3]` uint8, normalised in the graph; else `pixel_values`
    `[batch, 3, height, width]` float32, normalised outside."""
    multi_label: bool = False
    """One independent logit for each head; else two opposed logits from one head."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    nan_above_red: float | None = None
    """Give NaN for pictures whose mean red, from 0 to 255, is above this. Needs the uint8 input."""
    swapped_channels: bool = False
    """Read red as blue and blue as red: a planted mistake."""

    def model(self) -> onnx.ModelProto:
        graph = _Graph()
        if self.uint8_input:
            entry = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [_BATCH, SIZE, SIZE, 3])
            levels = graph.add("Cast", ["pixels"], to=TensorProto.FLOAT)
            planes = graph.add("Transpose", [levels], perm=[0, 3, 1, 2])
            scale = 1.0 / (255.0 * np.array(self.std))
            offset = -np.array(self.mean) / np.array(self.std)
            scaled = graph.add("Mul", [planes, graph.constant("scale", scale.reshape(1, 3, 1, 1))])
            values = graph.add("Add", [scaled, graph.constant("offset", offset.reshape(1, 3, 1, 1))])
        else:
            entry = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [_BATCH, 3, SIZE, SIZE])
            values = "pixel_values"
        if self.swapped_channels:
            values = graph.add("Gather", [values, graph.constant("blue_first", np.array([2, 1, 0]))], axis=1)

        logits = graph.add("Gemm", [_pooled(graph, values), *self._head(graph)])
        if self.nan_above_red is not None:
            red = graph.add("Slice", [planes, *(graph.constant(name, np.array([value])) for name, value in _RED)])
            mean_red = graph.add("ReduceMean", [red], axes=[1, 2, 3], keepdims=0)
            too_red = graph.add("Greater", [mean_red, graph.constant("limit", np.array(self.nan_above_red))])
            rows = graph.add("Unsqueeze", [too_red, graph.constant("one", np.array([1]))])
            logits = graph.add("Where", [rows, graph.constant("nan", np.array(np.nan)), logits])
        return graph.finish(entry, logits, _HEADS if self.multi_label else 2)

    def _head(self, graph: _Graph) -> list[str]:
        """Weights `[16, logits]` and bias `[logits]` of the last layer."""
        weights = _GAIN * _weights()["heads"] / np.array(_SPREADS)
        bias = -_GAIN * np.array(_CENTRES) / np.array(_SPREADS)
        if not self.multi_label:
            opposed = np.array([-0.5, 0.5])
            weights = weights[:, _SINGLE_HEAD, None] * opposed
            bias = bias[_SINGLE_HEAD] * opposed
        return [graph.constant("head_weight", weights), graph.constant("head_bias", bias)]


# Slice's arguments that take the red plane out of `[batch, 3, height, width]`.
_RED = (("red_start", 0), ("red_end", 1), ("red_axis", 1))


class _Graph:
    """Collects nodes and constants. Names are counted, so that the same calls give the same bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], **attributes) -> str:
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant, float32 unless it holds whole numbers."""
        kind = np.int64 if value.dtype.kind == "i" else np.float32
        self.constants.append(numpy_helper.from_array(value.astype(kind), name))
        return name

    def finish(self, entry: onnx.ValueInfoProto, result: str, width: int) -> onnx.ModelProto:
        """A checked model whose output is `logits` `[batch, width]`."""
        self.nodes.append(helper.make_node("Identity", [result], ["logits"]))
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [_BATCH, width])
        graph = helper.make_graph(self.nodes, "detector", [entry], [output], self.constants)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="fixtures")
        onnx.checker.check_model(model)
        return model


def _weights() -> dict[str, np.ndarray]:
    """The random constants: two convolutions, and `[16, heads]` projections of what they pool to."""
    rng = np.random.RandomState(_WEIGHT_SEED)
    first = rng.standard_normal((12, 3, 3, 3))
    # The second half looks at edges alone: without its average, an answer does not hang on brightness.
    first[6:] -= first[6:].mean(axis=(2, 3), keepdims=True)
    second = rng.standard_normal((16, 12, 3, 3))
    heads = rng.standard_normal((16, _HEADS))
    return {
        "first_weight": 0.25 * first,
        "first_bias": rng.uniform(0.0, 0.5, 12),
        "second_weight": 0.12 * second,
        "second_bias": rng.uniform(0.0, 0.5, 16),
        "heads": heads,
    }


def _pooled(graph: _Graph, values: str) -> str:
    """Two strided convolutions and an average over the picture: `[batch, 3, h, w]` to `[batch, 16]`."""
    weights = _weights()
    for layer in ("first", "second"):
        constants = [graph.constant(f"{layer}_{part}", weights[f"{layer}_{part}"]) for part in ("weight", "bias")]
        values = graph.add("Relu", [graph.add("Conv", [values, *constants], strides=[2, 2], pads=[1, 1, 1, 1])])
    return graph.add("Flatten", [graph.add("GlobalAveragePool", [values])])


def _null_model() -> onnx.ModelProto:
    """Two logits from every sixteenth pixel of a 384 x 384 picture: costs next to nothing but the input's way in."""
    graph = _Graph()
    entry = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [_BATCH, NULL_SIZE, NULL_SIZE, 3])
    bounds = [("starts", [0, 0]), ("ends", [NULL_SIZE, NULL_SIZE]), ("axes", [1, 2]), ("steps", [16, 16])]
    few = graph.add("Slice", ["pixels", *(graph.constant(name, np.array(value)) for name, value in bounds)])
    levels = graph.add("Cast", [few], to=TensorProto.FLOAT)
    mean = graph.add("ReduceMean", [levels], axes=[1, 2, 3], keepdims=0)
    column = graph.add("Unsqueeze", [mean, graph.constant("one", np.array([1]))])
    slope, middle = graph.constant("slope", np.array([[-0.01, 0.01]])), graph.constant("middle", np.array(127.5))
    return graph.finish(entry, graph.add("Mul", [graph.add("Sub", [column, middle]), slope]), 2)


@dataclass(frozen=True)
class Package:
    """A model package: files by their path inside the folder."""

    name: str
    files: dict[str, bytes]

    def write(self, parent: Path) -> Path:
        """Writes the package as a folder of its name under `parent`."""
        for path, data in self.files.items():
            target = parent / self.name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return parent / self.name


def _timm(name: str, model: onnx.ModelProto, **cfg) -> Package:
    """A package as timm publishes them; `cfg` overrides fields of `pretrained_cfg`."""
    config = {
        "architecture": "fixture_convnet",
        "num_classes": len(LABELS),
        "label_names": LABELS,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            **cfg,
        },
        "pixwarden": {"output": "logits"},
    }
    return Package(name, {"config.json": json_bytes(config), "model.onnx": model.SerializeToString()})


def _transformers(name: str, model: onnx.ModelProto) -> Package:
    """A package as exporters for transformers write them, with nothing in it that is ours."""
    config = {
        "architectures": ["FixtureForImageClassification"],
        "model_type": "fixture",
        "problem_type": "multi_label_classification",
        "id2label": {str(index): label for index, label in enumerate(MULTI_LABELS)},
        "label2id": {label: index for index, label in enumerate(MULTI_LABELS)},
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 110},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    return Package(
        name,
        {
            "config.json": json_bytes(config),
            "preprocessor_config.json": json_bytes(preprocessor),
            "onnx/model.onnx": model.SerializeToString(),
        },
    )


def json_bytes(value: dict) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def packages() -> list[Package]:
    """Every package, in the order in which the checks use them."""
    as_float = Network().model()
    return [
        _timm("spread-nhwc", Network(uint8_input=True).model()),
        _timm("spread-nchw", as_float),
        _timm("center-crop", as_float, crop_pct=0.875, crop_mode="center", interpolation="bilinear"),
        _timm("border", as_float, crop_mode="border"),
        _transformers("multi", Network(multi_label=True).model()),
        _timm("null", _null_model(), input_size=[3, NULL_SIZE, NULL_SIZE], interpolation="bilinear"),
        _timm("nan", Network(uint8_input=True, nan_above_red=NAN_ABOVE_RED).model()),
    ]


def planted() -> dict[str, Package]:
    """Packages with one mistake each, under the name of the right one that they stand in for."""
    return {
        "swapped channels": _timm("spread-nhwc", Network(uint8_input=True, swapped_channels=True).model()),
        "wrong crop": _timm("spread-nhwc", Network(uint8_input=True).model(), crop_mode="center"),
        "wrong mean": _timm("spread-nchw", Network().model(), mean=HALF),
    }


def write(folder: Path) -> list[Path]:
    """Writes every package into `folder` and returns their folders."""
    return [package.write(folder) for package in packages()]


def _print_calibration() -> None:
    """Prints the centres and spreads that fit the fixtures as they are now."""
    import onnxruntime

    from reference.images import fixtures
    from reference.screen import decode, preprocessing

    graph = _Graph()
    entry = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [_BATCH, 3, SIZE, SIZE])
    model = graph.finish(entry, _pooled(graph, "pixel_values"), 16)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    steps = preprocessing(json.loads(_timm("calibration", model).files["config.json"]), None)
    tensors = [steps.tensor(steps.pixels(decode(fixture.data).frames[0])) for fixture in fixtures()]
    projected = session.run(None, {"pixel_values": np.stack(tensors)})[0].astype(np.float64) @ _weights()["heads"]
    print("_CENTRES =", tuple(round(float(value), 4) for value in projected.mean(axis=0)))
    print("_SPREADS =", tuple(round(float(value), 4) for value in projected.std(axis=0)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the detector packages.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("folder", type=Path, nargs="?")
    what.add_argument("--calibrate", action="store_true", help="print the constants of the last layer instead")
    options = parser.parse_args()
    if options.calibrate:
        _print_calibration()
    else:
        print(f"{len(write(options.folder))} packages written")
