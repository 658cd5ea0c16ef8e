"""From the layers and weights of tfjs.py to the ONNX file of common/graph.py: bytes in, logits out. Needs onnx and numpy.

Keras has the channels last. One Transpose at the beginning puts them first, where ONNX's convolution needs them, and the
weights are transposed here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.errors import PackagingError
from common.graph import INPUT, OUTPUT
from recipes.tfjs import Layer

OPSET = 17


class GraphWriter:
    """Nodes and weights of a graph that is being written."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.used: set[str] = set()
        self.outputs: dict[str, str] = {}
        """The output of each layer."""

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def weight(self, layer: Layer, name: str) -> np.ndarray:
        full = f"{layer.name}/{name}"
        if full not in self.weights:
            raise PackagingError(f"the layer {layer.name} has no weight {name}")
        self.used.add(full)
        return self.weights[full]

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def add(self, layer: Layer, inputs: list[str]) -> str:
        """The nodes of one layer; the name of its output."""
        write = getattr(self, f"_{layer.kind.lower()}", None)
        if write is None:
            raise PackagingError(f"the layer {layer.name} is a {layer.kind}, which this converter does not know")
        if layer.config.get("data_format", "channels_last") != "channels_last":
            raise PackagingError(f"the layer {layer.name} has its channels first")
        return self._activated(layer, write(layer, inputs))

    def _activated(self, layer: Layer, value: str) -> str:
        match layer.config.get("activation", "linear"):
            case "linear" | "softmax":
                # The worker computes the softmax of the last layer.
                return value
            case "relu":
                return self.node("Relu", [value], f"{layer.name}/relu")
            case other:
                raise PackagingError(f"the layer {layer.name} has the activation {other}")

    def _zeropadding2d(self, layer: Layer, inputs: list[str]) -> str:
        (top, bottom), (left, right) = layer.config["padding"]
        pads = self.constant(f"{layer.name}/pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        return self.node("Pad", [inputs[0], pads], layer.name)

    def _convolution(self, layer: Layer, inputs: list[str], kernel: np.ndarray, groups: int) -> str:
        if list(layer.config.get("dilation_rate", [1, 1])) != [1, 1]:
            raise PackagingError(f"the layer {layer.name} has a dilation")
        values = [inputs[0], self.constant(f"{layer.name}/kernel", kernel)]
        if layer.config["use_bias"]:
            values.append(self.constant(f"{layer.name}/bias", self.weight(layer, "bias")))
        padding = {"same": "SAME_UPPER", "valid": "VALID"}[layer.config["padding"]]
        return self.node("Conv", values, layer.name, strides=layer.config["strides"], auto_pad=padding, group=groups)

    def _conv2d(self, layer: Layer, inputs: list[str]) -> str:
        return self._convolution(layer, inputs, self.weight(layer, "kernel").transpose(3, 2, 0, 1), 1)

    def _depthwiseconv2d(self, layer: Layer, inputs: list[str]) -> str:
        kernel = self.weight(layer, "depthwise_kernel").transpose(2, 3, 0, 1)
        channels, multiplier, height, width = kernel.shape
        return self._convolution(layer, inputs, kernel.reshape(channels * multiplier, 1, height, width), channels)

    def _batchnormalization(self, layer: Layer, inputs: list[str]) -> str:
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
        values = [self.constant(f"{layer.name}/{name}", self.weight(layer, name)) for name in names]
        return self.node("BatchNormalization", [inputs[0], *values], layer.name, epsilon=layer.config["epsilon"])

    def _relu(self, layer: Layer, inputs: list[str]) -> str:
        if layer.config.get("negative_slope") or layer.config.get("threshold"):
            raise PackagingError(f"the layer {layer.name} is no plain ReLU")
        highest = layer.config.get("max_value")
        if highest is None:
            return self.node("Relu", inputs, layer.name)
        limits = [self.constant(f"{layer.name}/{side}", np.array(value, np.float32)) for side, value in (("low", 0), ("high", highest))]
        return self.node("Clip", [inputs[0], *limits], layer.name)

    def _activation(self, layer: Layer, inputs: list[str]) -> str:
        return inputs[0]

    def _add(self, layer: Layer, inputs: list[str]) -> str:
        return self.node("Add", inputs, layer.name)

    def _dropout(self, layer: Layer, inputs: list[str]) -> str:
        return inputs[0]

    def _globalaveragepooling2d(self, layer: Layer, inputs: list[str]) -> str:
        return self.node("Flatten", [self.node("GlobalAveragePool", inputs, f"{layer.name}/mean")], layer.name)

    def _averagepooling2d(self, layer: Layer, inputs: list[str]) -> str:
        padding = {"same": "SAME_UPPER", "valid": "VALID"}[layer.config["padding"]]
        sizes = {"kernel_shape": layer.config["pool_size"], "strides": layer.config["strides"]}
        # Keras leaves the padding out of the mean, as ONNX does where it is not told otherwise.
        return self.node("AveragePool", inputs, layer.name, auto_pad=padding, **sizes)

    def _flatten(self, layer: Layer, inputs: list[str]) -> str:
        # Keras flattens with the channels last.
        last = self.node("Transpose", inputs, f"{layer.name}/last", perm=[0, 2, 3, 1])
        return self.node("Flatten", [last], layer.name)

    def _dense(self, layer: Layer, inputs: list[str]) -> str:
        values = [inputs[0], self.constant(f"{layer.name}/kernel", self.weight(layer, "kernel"))]
        if layer.config["use_bias"]:
            values.append(self.constant(f"{layer.name}/bias", self.weight(layer, "bias")))
        return self.node("Gemm", values, layer.name)


def write(network: list[Layer], weights: dict[str, np.ndarray], labels: int, scale: float, path: Path) -> None:
    """Writes the graph: `pixels` uint8 `[batch, height, width, 3]`, times `scale`, through the network to `logits`."""
    entry, *steps = network
    if entry.kind != "InputLayer":
        raise PackagingError(f"the network begins with a {entry.kind}")
    _, height, width, _ = entry.config["batch_input_shape"]
    graph = GraphWriter(weights)
    floats = graph.node("Cast", [INPUT], "floats", to=TensorProto.FLOAT)
    scaled = graph.node("Mul", [floats, graph.constant("scale", np.array(scale, np.float32))], "scaled")
    outputs = {entry.name: graph.node("Transpose", [scaled], "planes", perm=[0, 3, 1, 2])}
    for step in steps:
        outputs[step.name] = graph.add(step, [outputs[name] for name in step.inputs])
    if unused := sorted(set(weights) - graph.used):
        raise PackagingError(f"weights that no layer takes: {', '.join(unused)}")
    graph.node("Identity", [outputs[steps[-1].name]], OUTPUT)
    pixels = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", height, width, 3])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", labels])
    made = helper.make_graph(graph.nodes, "network", [pixels], [logits], graph.initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="pixwarden", ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
