"""The same graph in half precision, for devices that are faster in it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from common.errors import PackagingError
from common.graph import INPUT, OUTPUT

LARGEST = float(np.finfo(np.float16).max)
# By their specification they take no float16, or take float32 beside it.
_FLOAT_ONLY = {"Range", "Resize"}


def to_half(model: onnx.ModelProto) -> None:
    """Turns weights and most of the work to float16, in place; the input stays bytes, the output float32.

    What stays in float32 is cheap: the normalisation (a byte minus its mean would lose a tenth of a level) and the
    layer that makes the logits. LayerNormalization takes float16 and by its `stash_type` of 1 still computes mean
    and variance in float32, so it needs no casts around it.
    """
    _Halving(model).run()


class _Halving:
    """One walk over the nodes. A tensor is made in one precision, and cast once where somebody wants the other."""

    def __init__(self, model: onnx.ModelProto):
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats = _float_tensors(model)
        self.made_as: dict[str, int] = {}
        self.ready: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        kept = _normalisation(self.graph) | {_last(self.graph)}
        for position, node in enumerate(self.graph.node):
            if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
                raise PackagingError(f"fp16: the graph has a {node.op_type} with a graph inside, which is not supported")
            stays = position in kept or node.op_type in _FLOAT_ONLY
            self._convert(node, TensorProto.FLOAT if stays else TensorProto.FLOAT16)
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        used = {name for node in nodes for name in node.input}
        for name in [name for name in self.constants if name not in used]:
            del self.constants[name]
        tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in self.constants.values()]
        for field, values in ((self.graph.node, nodes), (self.graph.initializer, tensors)):
            del field[:]
            field.extend(values)
        del self.graph.value_info[:]

    def _convert(self, node: NodeProto, wanted: int) -> None:
        for at, name in enumerate(node.input):
            if name in self.floats:
                node.input[at] = self._as(name, wanted)
        for attribute in node.attribute:
            makes_float = node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT
            if makes_float and wanted == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT16
            elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_tensor(attribute.t, wanted, attribute.t.name))
        self.made_as |= {name: wanted for name in node.output if name in self.floats}
        self.nodes.append(node)

    def _as(self, name: str, wanted: int) -> str:
        """`name` in the wanted precision: itself, a converted constant, or the output of a Cast."""
        if self.made_as.get(name, TensorProto.FLOAT) == wanted:
            return name
        if (name, wanted) not in self.ready:
            new = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'float'}"
            self.ready[name, wanted] = new
            if name in self.constants:
                self.constants[new] = _tensor(self.constants[name], wanted, new)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], to=wanted))
        return self.ready[name, wanted]


def _tensor(tensor: TensorProto, wanted: int, name: str) -> TensorProto:
    """A weight above what float16 can hold is refused; a bound such as a mask's lowest number becomes its lowest."""
    if wanted == TensorProto.FLOAT:
        return tensor
    value = numpy_helper.to_array(tensor)
    finite = np.isfinite(value)
    if value.size > 1 and np.abs(value[finite]).max(initial=0.0) > LARGEST:
        raise PackagingError(f"fp16: {tensor.name} holds numbers above {LARGEST:.0f}; convert this model with fp32 only")
    return numpy_helper.from_array(np.where(finite, np.clip(value, -LARGEST, LARGEST), value).astype(np.float16), name)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats | {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _normalisation(graph: onnx.GraphProto) -> set[int]:
    """Positions of the nodes from the input up to the first that has weights to learn."""
    found, names = set(), {INPUT}
    for position, node in enumerate(graph.node):
        if names & set(node.input) and node.op_type in ("Transpose", "Cast", "Sub", "Mul"):
            found.add(position)
            names |= set(node.output)
    return found


def _last(graph: onnx.GraphProto) -> int:
    return next(position for position, node in enumerate(graph.node) if OUTPUT in node.output)
