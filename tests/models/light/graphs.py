"""Small ONNX graphs that look like what an exporter writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 4
SIDE = 8


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, opset: int = 20) -> onnx.ModelProto:
    """`pixels` `[batch, 8, 8, 3]` uint8 to `logits` `[batch, 4]` float32."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CHANNELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def blocks(count: int) -> onnx.ModelProto:
    """ConvNeXt in small: a stem with a norm and `count` residual blocks, channels first in between, as exported."""
    rng = np.random.RandomState(0)
    constants = {
        "stem": rng.standard_normal((CHANNELS, 3, 2, 2)).astype(np.float32) / 200,
        "scale": np.full(CHANNELS, 1.1, np.float32),
        "bias": np.full(CHANNELS, 0.1, np.float32),
        "gamma": np.linspace(0.5, 1.0, CHANNELS, dtype=np.float32).reshape(1, CHANNELS, 1, 1),
        "axes": np.array([2, 3], np.int64),
        "shape": np.array([-1, CHANNELS], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "stem"], ["stemmed"], strides=[2, 2]),
        *_norm("stemmed", "x0"),
    ]
    for number in range(count):
        constants[f"conv{number}"] = rng.standard_normal((CHANNELS, 1, 3, 3)).astype(np.float32) / 3
        constants[f"linear{number}"] = rng.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) / 2
        name = f"b{number}"
        nodes += [
            helper.make_node("Conv", [f"x{number}", f"conv{number}"], [f"{name}c"], group=CHANNELS, pads=[1, 1, 1, 1]),
            helper.make_node("Transpose", [f"{name}c"], [f"{name}t"], perm=[0, 2, 3, 1]),
            helper.make_node("LayerNormalization", [f"{name}t", "scale", "bias"], [f"{name}n"], axis=-1),
            helper.make_node("MatMul", [f"{name}n", f"linear{number}"], [f"{name}m"]),
            helper.make_node("Gelu", [f"{name}m"], [f"{name}g"]),
            helper.make_node("Transpose", [f"{name}g"], [f"{name}f"], perm=[0, 3, 1, 2]),
            helper.make_node("Mul", [f"{name}f", "gamma"], [f"{name}s"]),
            helper.make_node("Add", [f"{name}s", f"x{number}"], [f"x{number + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"x{count}", "axes"], ["pooled"], keepdims=1),
        *_norm("pooled", "normed"),
        helper.make_node("Reshape", ["normed", "shape"], ["logits"]),
    ]
    return model(nodes, constants)


def _norm(source: str, target: str) -> list[onnx.NodeProto]:
    """timm's LayerNorm2d: there and back again."""
    return [
        helper.make_node("Transpose", [source], [f"{target}_last"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", [f"{target}_last", "scale", "bias"], [f"{target}_normed"], axis=-1),
        helper.make_node("Transpose", [f"{target}_normed"], [target], perm=[0, 3, 1, 2]),
    ]


def pixels(count: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def saved(made: onnx.ModelProto, folder: str) -> Path:
    path = Path(folder) / "model.onnx"
    onnx.save(made, path)
    return path
