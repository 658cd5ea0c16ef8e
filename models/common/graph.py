"""An ONNX file in the form a worker runs: `pixels` uint8 `[batch, height, width, 3]` in, `logits` float32 out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from common.errors import PackagingError

INPUT, OUTPUT = "pixels", "logits"


def strip(path: Path) -> None:
    """Removes what the exporter notes about its own machine: source paths in metadata, and docstrings."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def transposes(graph: onnx.GraphProto) -> int:
    return sum(node.op_type == "Transpose" for node in graph.node)


def check_graph(path: Path, *, allowed_transposes: int, max_bytes: int) -> None:
    """The file is valid, whole by itself, no larger than allowed, and speaks the worker's form at any batch size."""
    model = onnx.load(path, load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise PackagingError("the graph keeps weights outside its file")
    # By path, because a model near the 2 GB that a protobuf may have cannot be handed over in memory.
    onnx.checker.check_model(str(path), full_check=True)
    if path.stat().st_size >= max_bytes:
        raise PackagingError(f"the graph has {path.stat().st_size} bytes, the limit is {max_bytes}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < 17:
        raise PackagingError(f"the graph uses opset {opset}; LayerNormalization needs 17 or later")
    found = transposes(model.graph)
    if found > allowed_transposes:
        raise PackagingError(f"the graph has {found} Transposes, {allowed_transposes} are needed")
    _check_signature(model.graph)


def _check_signature(graph: onnx.GraphProto) -> None:
    inputs = [(i.name, i.type.tensor_type.elem_type) for i in graph.input]
    outputs = [(o.name, o.type.tensor_type.elem_type) for o in graph.output]
    if inputs != [(INPUT, onnx.TensorProto.UINT8)] or outputs != [(OUTPUT, onnx.TensorProto.FLOAT)]:
        raise PackagingError(f"unexpected inputs {inputs} or outputs {outputs}")
    shape = graph.input[0].type.tensor_type.shape.dim
    if shape[0].HasField("dim_value") or shape[3].dim_value != 3:
        raise PackagingError("the input is not [batch, height, width, 3] with a free batch")


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits(session: ort.InferenceSession, pixels: np.ndarray, batch: int = 256) -> np.ndarray:
    """pixels `[n, height, width, 3]` uint8 -> `[n, labels]` float32, at most `batch` images a run."""
    parts = [session.run([OUTPUT], {INPUT: pixels[i : i + batch]})[0] for i in range(0, len(pixels), batch)]
    return np.concatenate(parts)


def probabilities(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64 so that the card's figures do not depend on rounding."""
    values = values.astype(np.float64)
    exponents = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def independent_probabilities(values: np.ndarray) -> np.ndarray:
    """Sigmoid of each logit, in float64: what a multi-label model means."""
    return 1.0 / (1.0 + np.exp(-values.astype(np.float64)))
