"""timm's names and folders: labels, preprocessing and weights from where their files say."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import convert
import timm
import torch
from common.errors import PackagingError
from conversion import timm_models
from PIL import Image
from safetensors.torch import save_file

NAME = "mobilenetv3_small_050"
FIELDS = {"input_size": [3, 96, 96], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}


class Timm(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        torch.manual_seed(4)
        self.network = timm.create_model(NAME, num_classes=2).eval()
        save_file(self.network.state_dict(), self.folder / "model.safetensors")

    def configure(self, **fields: object) -> None:
        config = {"architecture": NAME, "num_classes": 2, "label_names": ["real", "fake"], "pretrained_cfg": FIELDS}
        (self.folder / "config.json").write_text(json.dumps(config | fields))

    def test_a_folder_says_everything_itself(self) -> None:
        self.configure()
        model = timm_models.from_folder(self.folder, None)
        self.assertEqual((model.labels, model.size), (["real", "fake"], (96, 96)))
        written = model.files["config.json"]["pretrained_cfg"]
        self.assertEqual({key: written[key] for key in FIELDS}, FIELDS)
        image = Image.effect_noise((120, 80), 90).convert("RGB")
        with torch.inference_mode():
            x = model.tensor(image)[None]
            torch.testing.assert_close(model.network(x), self.network(x))

    def test_a_name_takes_the_number_of_classes_from_the_file(self) -> None:
        model = timm_models.from_name(NAME, self.folder / "model.safetensors", ["a", "b"], None)
        self.assertEqual((model.labels, model.network.num_classes), (["a", "b"], 2))

    def refused(self, why: str, labels: list[str] | None, name: str = NAME) -> None:
        with self.assertRaisesRegex(PackagingError, why):
            timm_models.from_name(name, self.folder / "model.safetensors", labels, None)

    def test_what_is_missing_is_named(self) -> None:
        self.refused("nothing names its 2 classes; give --labels", None)
        self.refused("has 2 classes, and 3 labels are given", ["a", "b", "c"])
        self.refused("has no model no_such_net", ["a", "b"], "no_such_net")
        self.refused("missing: .*blocks", ["a", "b"], "mobilenetv3_large_100")
        save_file({"stem.weight": torch.zeros(1)}, self.folder / "model.safetensors")
        self.refused("missing classifier.weight", ["a", "b"])

    def test_a_package_in_use_is_not_changed(self) -> None:
        self.configure()
        package = self.folder / "package"
        package.mkdir()
        (package / "model.onnx").write_text("in use")
        with self.assertRaisesRegex(PackagingError, "is there already"):
            convert.main(["timm", str(self.folder), "--package", str(package)])
        self.assertEqual((package / "model.onnx").read_text(), "in use")
