"""Takes out of a graph the Transposes that only undo one another.

ONNX's Conv wants the channels first, LayerNormalization wants them last. A network written channels first (ConvNeXt)
goes back after every block, adds, and turns round again for the next one. Here the way back is pushed down through
the addition until it meets its opposite; between two convolutions one Transpose each way is left.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import NodeProto, helper, numpy_helper

from common.graph import transposes

TO_FIRST = (0, 3, 1, 2)
"""Channels last to channels first: the only direction that is pushed down, so that pushing comes to an end."""
TO_LAST = (0, 2, 3, 1)

# Elementwise, so that transposing before and after is the same. Cast is left out: the input is turned while it is bytes.
_UNARY = {"Relu", "Gelu", "Erf", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Identity"}
_BINARY = {"Add", "Sub", "Mul", "Div"}


def reduce_transposes(model: onnx.ModelProto) -> None:
    """Applies the rules of this file to `model`, in place, until none fits; leaves it alone if that gains nothing."""
    before = transposes(model.graph)
    work = _Graph(model)
    # A rule changes the list of nodes, so the walk starts again after each.
    while any(work.rewrite(node) for node in list(work.nodes)):
        work.drop_unused()
    if sum(node.op_type == "Transpose" for node in work.nodes) < before:
        work.store()


def pairs_left(graph: onnx.GraphProto) -> int:
    """Transposes that directly follow another one. None is left where `reduce_transposes` has been."""
    transposed = {node.output[0] for node in graph.node if node.op_type == "Transpose"}
    return sum(node.op_type == "Transpose" and node.input[0] in transposed for node in graph.node)


class _Graph:
    """The nodes by what they make and by what they use. Tensor names stay unique, so nodes are found by name."""

    def __init__(self, model: onnx.ModelProto):
        self.graph = model.graph
        self.nodes = [_copy(node) for node in model.graph.node]
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shapes = _shapes(model)
        self.made_by = {output: node for node in self.nodes for output in node.output}
        self.kept = {output.name for output in model.graph.output}
        self.added = 0

    def rewrite(self, node: NodeProto) -> bool:
        """Applies the first rule that fits `node`; whether one did."""
        if node.op_type == "Transpose":
            return self._cancel(node)
        if node.op_type in _UNARY | _BINARY:
            return self._push_through_elementwise(node)
        if node.op_type == "ReduceMean":
            return self._push_through_mean(node)
        if node.op_type in ("Reshape", "Flatten"):
            return self._skip_before_reshape(node)
        return False

    def _cancel(self, node: NodeProto) -> bool:
        before = self._transpose_before(node.input[0])
        if before is None:
            return False
        first, second = _perm(before), _perm(node)
        both = tuple(first[axis] for axis in second)
        if both == tuple(range(len(both))) and node.output[0] not in self.kept:
            self._replace(node.output[0], before.input[0])
        else:
            node.input[0] = before.input[0]
            _set_perm(node, both)
        return True

    def _push_through_elementwise(self, node: NodeProto) -> bool:
        turned = [self._turned(name) for name in node.input]
        if not any(turned) or node.output[0] in self.kept:
            return False
        replaced = []
        for name, before in zip(node.input, turned, strict=True):
            new = before.input[0] if before else self._turn_back(name)
            if new is None:
                return False
            replaced.append(new)
        del node.input[:]
        node.input.extend(replaced)
        self._turn_output(node)
        return True

    def _push_through_mean(self, node: NodeProto) -> bool:
        before = self._turned(node.input[0])
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = self.constants.get(node.input[1]) if len(node.input) == 2 else None
        if before is None or axes is None or node.output[0] in self.kept:
            return False
        moved = sorted(TO_FIRST[axis] for axis in numpy_helper.to_array(axes).tolist())
        if not keeps and moved != [1, 2]:
            return False
        node.input[0] = before.input[0]
        node.input[1] = self._constant(np.array(moved, np.int64))
        # Without height and width, batch and channels stand in the same order either way.
        if keeps:
            self._turn_output(node)
        return True

    def _skip_before_reshape(self, node: NodeProto) -> bool:
        """A Transpose that moves nothing but axes of length 1 changes no order, and what follows sets the shape."""
        before = self._transpose_before(node.input[0])
        shape = self.shapes.get(before.input[0]) if before else None
        if shape is None:
            return False
        moved = [axis for axis in _perm(before) if shape[axis] != 1]
        if moved != sorted(moved):
            return False
        node.input[0] = before.input[0]
        return True

    def _transpose_before(self, name: str) -> NodeProto | None:
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == "Transpose" else None

    def _turned(self, name: str) -> NodeProto | None:
        """The Transpose to channels first that makes `name`."""
        before = self._transpose_before(name)
        if before is None or _perm(before) != TO_FIRST:
            return None
        return before

    def _turn_back(self, name: str) -> str | None:
        """`name` with its channels last: a constant turned now, or a Transpose. None where the rank is unknown."""
        if name in self.constants:
            value = numpy_helper.to_array(self.constants[name])
            if value.size == 1 and value.ndim <= 4:
                return name
            return self._constant(value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(TO_LAST))
        if len(self.shapes.get(name, ())) != 4:
            return None
        output = self._name(name)
        self._insert(helper.make_node("Transpose", [name], [output], perm=TO_LAST), after=self.made_by.get(name))
        return output

    def _turn_output(self, node: NodeProto) -> None:
        """Lets `node` make its output channels last, and a Transpose make the old one of it."""
        old, new = node.output[0], self._name(node.output[0])
        node.output[0] = new
        self.made_by[new] = node
        if old in self.shapes:
            self.shapes[new] = tuple(self.shapes[old][axis] for axis in TO_LAST)
        self._insert(helper.make_node("Transpose", [new], [old], perm=TO_FIRST), after=node)

    def _insert(self, node: NodeProto, after: NodeProto | None) -> None:
        at = next((i + 1 for i, one in enumerate(self.nodes) if one is after), 0)
        self.nodes.insert(at, node)
        self.made_by[node.output[0]] = node

    def _replace(self, old: str, new: str) -> None:
        for node in self.nodes:
            for at, name in enumerate(node.input):
                if name == old:
                    node.input[at] = new

    def _constant(self, value: np.ndarray) -> str:
        name = self._name("constant")
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _name(self, stem: str) -> str:
        self.added += 1
        return f"{stem}_turned_{self.added}"

    def drop_unused(self) -> None:
        """Removes nodes nobody listens to; also those that only such nodes listened to."""
        while True:
            used = self.kept | {name for node in self.nodes for name in node.input}
            left = [node for node in self.nodes if any(output in used for output in node.output)]
            if len(left) == len(self.nodes):
                return
            self.nodes = left
            self.made_by = {output: node for node in left for output in node.output}

    def store(self) -> None:
        used = Counter(name for node in self.nodes for name in node.input)
        for field, values in (
            (self.graph.node, self.nodes),
            (self.graph.initializer, [tensor for name, tensor in self.constants.items() if used[name]]),
        ):
            # Copied first: what is cleared below is what the values point to.
            copies = [_copy(value) for value in values]
            del field[:]
            field.extend(copies)
        # The noted shapes are those of the old layout.
        del self.graph.value_info[:]


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shapes as the exporter noted them; a free dimension by its name."""
    noted = [*model.graph.value_info, *model.graph.input]
    return {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in noted
        if value.type.tensor_type.HasField("shape")
    }


def _perm(node: NodeProto) -> tuple[int, ...]:
    return tuple(next(attribute.ints for attribute in node.attribute if attribute.name == "perm"))


def _set_perm(node: NodeProto, perm: tuple[int, ...]) -> None:
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("perm", perm))
