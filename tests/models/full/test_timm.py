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
        self.refused("cannot make no_such_net", ["a", "b"], "no_such_net")
        self.refused("missing: .*blocks", ["a", "b"], "mobilenetv3_large_100")
        save_file({"stem.weight": torch.zeros(1)}, self.folder / "model.safetensors")
        self.refused("missing classifier.weight", ["a", "b"])

    def test_what_does_not_mean_what_it_seems_to_is_refused(self) -> None:
        for fields, why in (
            ({"label_names": {"1": "fake", "0": "real"}}, "label_names is not a list"),
            ({"model_args": {"no_such_argument": 1}}, "cannot make mobilenetv3_small_050"),
        ):
            self.configure(**fields)
            with self.assertRaisesRegex(PackagingError, why):
                timm_models.from_folder(self.folder, None)
        whole = {key: value.to(torch.int8) if key == "classifier.weight" else value for key, value in self.network.state_dict().items()}
        save_file(whole, self.folder / "model.safetensors")
        self.refused("whole numbers where there should be fractions: classifier.weight", ["a", "b"])
        save_file(timm.create_model(NAME, num_classes=1).state_dict(), self.folder / "model.safetensors")
        self.refused("one class only", ["a"])
        (self.folder / "model.safetensors").write_bytes(b"no weights at all")
        self.refused("not a .safetensors file, or damaged", ["a", "b"])

    def test_the_size_that_came_with_the_weights_counts_before_the_backbone_s(self) -> None:
        self.network.pretrained_cfg = {**self.network.pretrained_cfg, "test_input_size": (3, 288, 288), "test_crop_pct": 1.0}
        fields = timm_models.preprocessing(self.network, {"pretrained_cfg": FIELDS | {"crop_pct": 0.9}})
        self.assertEqual((fields["input_size"], fields["crop_pct"]), ([3, 96, 96], 0.9))
        self.assertEqual(timm_models.preprocessing(self.network, {"pretrained_cfg": None})["input_size"], [3, 288, 288])

    def test_what_the_author_changed_about_the_architecture_is_part_of_it(self) -> None:
        changed = timm.create_model(NAME, num_classes=2, act_layer="silu").eval()
        changed.load_state_dict(self.network.state_dict())
        self.configure(model_args={"act_layer": "silu"})
        model, x = timm_models.from_folder(self.folder, None), torch.randn(1, 3, 96, 96)
        with torch.inference_mode():
            torch.testing.assert_close(model.network(x), changed(x))
            self.assertGreater(float((model.network(x) - self.network(x)).abs().max()), 1e-3)

    def test_only_the_weights_own_licence_is_stated(self) -> None:
        self.configure()
        self.assertIn("unknown", timm_models.from_folder(self.folder, None).origin.licence)
        self.configure(pretrained_cfg=FIELDS | {"license": "cc-by-nc-4.0"})
        self.assertEqual(timm_models.from_folder(self.folder, None).origin.licence, "cc-by-nc-4.0")

    def test_a_package_in_use_is_not_changed(self) -> None:
        self.configure()
        package = self.folder / "package"
        package.mkdir()
        (package / "model.onnx").write_text("in use")
        with self.assertRaisesRegex(PackagingError, "is there already"):
            convert.main(["timm", str(self.folder), "--package", str(package)])
        self.assertEqual((package / "model.onnx").read_text(), "in use")
