"""The passes over a graph: fewer Transposes, half precision, and what a written file is refused for."""

from __future__ import annotations

import unittest
from collections import Counter
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from common.errors import PackagingError
from common.graph import check_graph, logits, open_session, transposes
from conversion.half import to_half
from conversion.transposes import pairs_left, reduce_transposes
from onnx import TensorProto, helper

from . import graphs


class GraphCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def run_graph(self, made: onnx.ModelProto) -> np.ndarray:
        return logits(open_session(graphs.saved(made, self.folder), 1), graphs.pixels(3))


class Transposes(GraphCase):
    def test_two_a_block_are_left_and_the_function_stays(self) -> None:
        for count in (1, 2, 5):
            made = graphs.blocks(count)
            before = self.run_graph(made)
            self.assertEqual(transposes(made.graph), 1 + 2 + 2 * count + 2)
            reduce_transposes(made)
            self.assertEqual(transposes(made.graph), 1 + 1 + 2 * count)
            self.assertEqual(pairs_left(made.graph), 0)
            np.testing.assert_allclose(self.run_graph(made), before, atol=1e-5)

    def test_the_input_is_turned_as_bytes(self) -> None:
        made = graphs.blocks(2)
        reduce_transposes(made)
        users = [node.op_type for node in made.graph.node if "pixels" in node.input]
        self.assertEqual(users, ["Transpose"])

    def test_a_constant_is_turned_with_what_it_is_added_to(self) -> None:
        made = graphs.blocks(1)
        before = self.run_graph(made)
        gamma = next(tensor for tensor in made.graph.initializer if tensor.name == "gamma")
        self.assertEqual(list(gamma.dims), [1, graphs.CHANNELS, 1, 1])
        reduce_transposes(made)
        multiplied = next(node for node in made.graph.node if node.op_type == "Mul")
        constant = next(tensor for tensor in made.graph.initializer if tensor.name in multiplied.input)
        self.assertEqual(list(constant.dims), [1, 1, 1, graphs.CHANNELS])
        np.testing.assert_allclose(self.run_graph(made), before, atol=1e-5)

    def test_a_transpose_that_moves_pixels_stays_before_a_reshape(self) -> None:
        """Flattened channels last and channels first are not the same."""
        constants = {"weight": np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1), "shape": np.array([-1, 4], np.int64)}
        nodes = [
            helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["floats", "weight"], ["mixed"]),
            helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", ["turned", "shape"], ["logits"]),
        ]
        made = graphs.model(nodes, constants)
        before = self.run_graph(made)
        reduce_transposes(made)
        self.assertEqual(transposes(made.graph), 2)
        np.testing.assert_array_equal(self.run_graph(made), before)

    def test_a_graph_that_would_not_gain_is_left_alone(self) -> None:
        """A lone Transpose before an addition: pushing it down would only add another on the other side."""
        constants = {"weight": np.ones((4, 3, 1, 1), np.float32), "axes": np.array([2, 3], np.int64)}
        nodes = [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Relu", ["planes"], ["positive"]),
            helper.make_node("Conv", ["positive", "weight"], ["mixed"]),
            helper.make_node("ReduceMean", ["mixed", "axes"], ["logits"], keepdims=0),
        ]
        made = graphs.model(nodes, constants)
        before = made.SerializeToString()
        reduce_transposes(made)
        self.assertEqual(made.SerializeToString(), before)


class Half(GraphCase):
    def test_scores_stay_close_and_weights_halve(self) -> None:
        made = graphs.blocks(3)
        before = self.run_graph(made)
        to_half(made)
        onnx.checker.check_model(made, full_check=True)
        kinds = Counter(tensor.data_type for tensor in made.graph.initializer)
        self.assertEqual(set(kinds), {TensorProto.FLOAT16, TensorProto.INT64})
        found = self.run_graph(made)
        self.assertEqual(found.dtype, np.float32)
        np.testing.assert_allclose(found, before, atol=5e-3)
        self.assertGreater(np.abs(found - before).max(), 0.0)

    def test_layer_normalisation_keeps_its_statistics_in_float32_without_casts(self) -> None:
        made = graphs.blocks(3)
        to_half(made)
        for node in made.graph.node:
            if node.op_type == "LayerNormalization":
                stash = [attribute.i for attribute in node.attribute if attribute.name == "stash_type"]
                self.assertEqual(stash or [1], [1])
        # Down to float16 behind the input, and up again before the logits.
        self.assertLessEqual(sum(node.op_type == "Cast" for node in made.graph.node), 3)

    def test_a_weight_that_float16_cannot_hold_is_named(self) -> None:
        made = graphs.blocks(1)
        huge = onnx.numpy_helper.from_array(np.full((4, 4), 1e6, np.float32), "linear0")
        at = next(at for at, tensor in enumerate(made.graph.initializer) if tensor.name == "linear0")
        made.graph.initializer[at].CopyFrom(huge)
        with self.assertRaisesRegex(PackagingError, "linear0"):
            to_half(made)


class Checks(GraphCase):
    def refused(self, made: onnx.ModelProto, why: str, *, allowed: int = 9, max_bytes: int = 10**6) -> None:
        with self.assertRaisesRegex(PackagingError, why):
            check_graph(graphs.saved(made, self.folder), allowed_transposes=allowed, max_bytes=max_bytes)

    def test_the_worker_s_form_is_accepted(self) -> None:
        check_graph(graphs.saved(graphs.blocks(2), self.folder), allowed_transposes=9, max_bytes=10**6)

    def test_one_transpose_too_many_is_refused(self) -> None:
        self.refused(graphs.blocks(2), "9 Transposes, 8 are needed", allowed=8)

    def test_a_file_over_the_limit_is_refused(self) -> None:
        self.refused(graphs.blocks(2), "the limit is 1000", max_bytes=1000)

    def test_another_input_is_refused(self) -> None:
        made = graphs.blocks(1)
        made.graph.input[0].name = "image"
        made.graph.node[0].input[0] = "image"
        self.refused(made, "unexpected inputs")

    def test_a_fixed_batch_is_refused(self) -> None:
        made = graphs.blocks(1)
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        del made.graph.value_info[:]
        self.refused(made, "free batch")

    def test_weights_outside_the_file_are_refused(self) -> None:
        made = graphs.blocks(1)
        path = graphs.saved(made, self.folder)
        onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        with self.assertRaisesRegex(PackagingError, "outside its file"):
            check_graph(path, allowed_transposes=9, max_bytes=10**6)
