"""The package folder: all or nothing, checksums that hold, the card, the golden image."""

from __future__ import annotations

import json
import subprocess
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common.folder import in_place_of, timm_config, write_checksums, write_json
from common.golden import choose, drawing, expected
from common.pixels import as_seen
from conversion.card import card
from conversion.images import MOST, check_images
from PIL import Image

FACTS = {
    "precision": "fp16",
    "images": "drawn pictures",
    "origin": {
        "title": "Some model",
        "file": "weights.pt",
        "sha256": "ab" * 32,
        "licence": "CC-BY-SA-3.0",
        "attribution": "Somebody",
        "limits": ["A score is no proof."],
        "notes": ["The head was worked out."],
        "published": {"Some set": 0.984},
    },
    "labels": ["by human", "by AI | or not"],
    "multi_label": False,
    "size": [384, 256],
    "parameters": 198_788_162,
    "graph": {"bytes": 794_000_000, "sha256": "cd" * 32, "opset": 20, "transposes": 77},
    "agreement": {"images": 9, "logits": 1.2e-3, "probabilities": 3e-4},
}


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_a_failure_leaves_nothing_behind(self) -> None:
        with self.assertRaises(ValueError), in_place_of(self.folder / "package") as scratch:
            (scratch / "model.onnx").write_text("half a model")
            raise ValueError
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_folder_that_is_there_is_not_mixed_with_another(self) -> None:
        package = self.folder / "package"
        package.mkdir()
        with in_place_of(package) as scratch:
            (scratch / "model.onnx").write_text("the first")
        self.assertEqual(oct(package.stat().st_mode & 0o777), "0o755")
        with self.assertRaisesRegex(SystemExit, "is there already"), in_place_of(package):
            self.fail("it should not have begun")
        self.assertEqual([path.name for path in self.folder.iterdir()], ["package"])
        self.assertEqual((package / "model.onnx").read_text(), "the first")

    def test_checksums_are_read_by_sha256sum(self) -> None:
        with in_place_of(self.folder / "package") as scratch:
            write_json(scratch / "config.json", {"labels": ["grün"]})
            write_checksums(scratch)
        command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
        subprocess.run(command, cwd=self.folder / "package", check=True)
        (self.folder / "package/config.json").write_text("{}")
        changed = subprocess.run(command, cwd=self.folder / "package", check=False, capture_output=True)
        self.assertNotEqual(changed.returncode, 0)

    def test_the_configuration_is_timm_s(self) -> None:
        config = timm_config("some_net", ["a", "b"], {"input_size": [3, 8, 8], "crop_mode": "squash"})
        self.assertEqual(config["label_names"], ["a", "b"])
        self.assertEqual(config["pretrained_cfg"], {"input_size": [3, 8, 8], "crop_mode": "squash", "num_classes": 2})
        self.assertEqual(config["pixwarden"], {"output": "logits"})

    def test_an_image_that_cannot_be_read_is_named(self) -> None:
        (self.folder / "text.jpg").write_text("no image")
        with self.assertRaisesRegex(SystemExit, "text.jpg cannot be read"):
            check_images(self.folder)

    def test_no_more_images_are_taken_than_a_processor_can_bear(self) -> None:
        for number in range(MOST + 3):
            Image.new("RGB", (4, 4)).save(self.folder / f"{number}.png")
        self.assertEqual(len(check_images(self.folder)), MOST)


class Card(unittest.TestCase):
    def test_it_names_licence_limits_and_figures(self) -> None:
        text = card(FACTS, "some-model-fp16")
        for wanted in ("# some-model-fp16", "**CC-BY-SA-3.0**", "- A score is no proof.", "`[batch, 384, 256, 3]`", "77 Transposes"):
            self.assertIn(wanted, text)
        self.assertIn("logits differ by at most 1.2e-03 (relative above 1), scores by at most 3.0e-04", text)
        self.assertIn("| Some set | 0.984 |", text)

    def test_a_bar_in_a_label_opens_no_column(self) -> None:
        row = next(line for line in card(FACTS, "x").splitlines() if line.startswith("| labels"))
        self.assertEqual(row.count("|"), 3)

    def test_what_there_is_nothing_to_say_of_has_no_heading(self) -> None:
        plain = {**FACTS, "origin": {**FACTS["origin"], "notes": [], "published": {}}}
        self.assertNotIn("## Notes", card(plain, "x"))
        self.assertNotIn("published", card(plain, "x"))


class Golden(unittest.TestCase):
    def test_the_drawing_that_mistakes_move_most_is_chosen(self) -> None:
        """A network that answers by the share of red alone: what is redder than blue moves when they are swapped."""

        def pixels(image: Image.Image) -> np.ndarray:
            return np.asarray(image.resize((16, 16)))

        def scores(batch: np.ndarray) -> np.ndarray:
            red = batch[..., 0].mean(axis=(1, 2)) / 255
            return np.stack([1 - red, red], axis=1)

        def moved(image: Image.Image) -> float:
            seen = pixels(image)
            batch = np.stack([seen, seen[:, :, ::-1], pixels(image.crop((16, 0, 80, 64)))])
            found = scores(batch)
            return float(np.abs(found[1:] - found[0]).max(axis=1).min())

        chosen = choose(pixels, scores, roundings=4)
        self.assertGreaterEqual(moved(chosen), 0.9 * max(moved(drawing(variant)) for variant in range(12)))

    def test_scores_are_written_by_label(self) -> None:
        written = expected(["a", "b"], np.array([0.25, 0.75]))
        self.assertEqual(json.loads(json.dumps(written)), {"image": "golden.png", "scores": {"a": 0.25, "b": 0.75}})


class Pixels(unittest.TestCase):
    def test_transparency_lies_over_white_and_orientation_is_applied(self) -> None:
        clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
        self.assertEqual(as_seen(clear).getpixel((0, 0)), (255, 255, 255))
        lying = Image.new("RGB", (3, 2))
        lying.getexif()[0x0112] = 6
        self.assertEqual(as_seen(lying).size, (2, 3))
