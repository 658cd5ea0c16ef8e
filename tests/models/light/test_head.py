"""What a checkpoint holds, worked out from keys and shapes."""

from __future__ import annotations

import unittest

from common.errors import PackagingError
from conversion.head import Layer, backbone_prefix, head_layers

BACKBONE = {"stem.weight": (8, 3, 4, 4), "norm.weight": (8,)}


class Prefix(unittest.TestCase):
    def test_it_is_found_whatever_it_is(self) -> None:
        for prefix in ("", "model.", "net.encoder."):
            found = {prefix + key: shape for key, shape in BACKBONE.items()} | {"clf.weight": (2, 8)}
            self.assertEqual(backbone_prefix(found, BACKBONE), prefix)

    def test_a_renamed_first_key_does_not_hide_it(self) -> None:
        self.assertEqual(backbone_prefix({"model.stemm.weight": (8,), "model.norm.weight": (8,)}, BACKBONE), "model.")

    def test_most_keys_decide_and_not_the_first(self) -> None:
        found = {"other.stem.weight": (1,), "model.stem.weight": (8, 3, 4, 4), "model.norm.weight": (8,)}
        self.assertEqual(backbone_prefix(found, BACKBONE), "model.")


class Head(unittest.TestCase):
    def test_layers_stand_in_the_order_of_their_numbers(self) -> None:
        found = {"clf.10.weight": (2, 4), "clf.10.bias": (2,), "clf.2.weight": (4, 8), "clf.2.bias": (4,)}
        self.assertEqual(head_layers(found, 8, 2), [Layer("clf.2", 8, 4), Layer("clf.10", 4, 2)])

    def refused(self, found: dict, why: str) -> None:
        with self.assertRaisesRegex(PackagingError, why):
            head_layers(found, 8, 2)

    def test_what_does_not_fit_is_named(self) -> None:
        bias = {"fc.bias": (2,)}
        self.refused({}, "no head")
        self.refused({"fc.weight": (2, 8)}, "no fc.bias of \\[2\\]")
        self.refused({"fc.weight": (2, 9)} | bias, "fc takes 9 values, and what comes before it gives 8")
        self.refused({"fc.weight": (3, 8), "fc.bias": (3,)}, "ends in 3 outputs, and there are 2 labels")
        self.refused({"fc.weight": (2, 8, 1, 1)} | bias, "fc.weight \\[2, 8, 1, 1\\] is not a linear layer's")
        self.refused({"fc.weight": (2, 8), "scale": (2,)} | bias, "not part of the backbone.*scale \\[2\\]")
        self.refused({"n.weight": (8,), "n.running_mean": (8,)}, "n.weight \\[8\\] is not a linear layer's")
