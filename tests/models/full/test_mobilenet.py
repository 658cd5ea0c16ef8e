"""Release 1.0 on a MobileNetV3: a head that has to be worked out, planted mistakes, and files that do not fit."""

from __future__ import annotations

import os
import unittest
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from common.errors import PackagingError
from conversion import seed
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from .case import PackageChecks, PlantedMistakes
from .comparison import expected
from .weights import randomise, settle_statistics, soften, spread, touch

BACKBONE = "tf_mobilenetv3_large_100.in1k"


class OneLayer(nn.Module):
    """A head that release 2.0 does not have: one layer, by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, num_classes=0)
        self.classifier = nn.Linear(1280, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(x))


class MobileNetV3(PlantedMistakes, PackageChecks, unittest.TestCase):
    transposes = 1

    @classmethod
    def make(cls) -> list[str]:
        network = OneLayer().eval()
        transform = create_transform(**resolve_data_config({}, model=network.backbone))
        pictures = [transform(Image.open(file).convert("RGB")) for file in cls.files]
        randomise(network, seed=1)
        soften(network)
        settle_statistics(network.backbone, pictures)
        with torch.inference_mode():
            features = network.backbone(torch.stack(pictures))
            touched = network.backbone(touch(pictures, level=1 / 127.5))
            halved = deepcopy(network.backbone).half()(torch.stack(pictures).half()).float()
        spread(network.classifier, features, touched, halved)
        cls.wanted = expected(network, transform, cls.files)
        source = cls.work / "small.pt"
        # As data-parallel training leaves it, inside a checkpoint.
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, source)
        cls.model = seed.from_file(source, "1.0_sd_5", None)
        # On the drawn pictures made-up weights may saturate, and saturated scores agree whatever happens.
        return ["sumsub", str(source), "--release", "1.0_sd_5", "--images", str(cls.work / "pictures")]

    def test_the_card_says_what_was_worked_out(self) -> None:
        text = (self.work / "package/README.md").read_text()
        self.assertIn("`classifier` (1280 to 2)", text)
        self.assertIn("CC-BY-SA-3.0", text)


class FilesThatDoNotFit(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source = Path(folder.name) / "checkpoint.pt"

    def refused(self, state: object) -> str:
        torch.save(state, self.source)
        with self.assertRaises(PackagingError) as caught:
            seed.from_file(self.source, "1.0_sd_5", None)
        return str(caught.exception)

    def test_a_renamed_key_is_named(self) -> None:
        state = OneLayer().state_dict()
        state["backbone.conv_stemm.weight"] = state.pop("backbone.conv_stem.weight")
        self.assertRegex(self.refused(state), r"missing: backbone\.conv_stem\.weight \[16, 3, 3, 3\].*backbone\.conv_stemm\.weight")

    def test_a_reshaped_key_is_named_with_both_shapes(self) -> None:
        state = OneLayer().state_dict()
        state["backbone.conv_head.weight"] = torch.zeros(640, 960, 1, 1)
        message = self.refused(state)
        self.assertIn("of another shape: backbone.conv_head.weight [640, 960, 1, 1] instead of [1280, 960, 1, 1]", message)

    def test_a_head_of_another_width_is_named(self) -> None:
        state = OneLayer().state_dict() | {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
        self.assertIn("the head ends in 1000 outputs, and there are 2 labels", self.refused(state))

    def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(self) -> None:
        mark = self.source.with_name("ran")

        class Trap:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(mark),)

        self.assertIn("could run code", self.refused({"state_dict": OneLayer().state_dict(), "trap": Trap()}))
        self.assertFalse(mark.exists())

    def test_a_file_that_is_no_checkpoint_is_refused(self) -> None:
        self.source.write_bytes(b"not a checkpoint")
        with self.assertRaises(PackagingError):
            seed.from_file(self.source, "1.0_sd_5", None)
