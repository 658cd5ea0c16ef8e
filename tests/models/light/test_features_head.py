"""`models/train.py head`: the fit, validation by source, calibration, and the package that is written. Without Pixwarden."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
from common.errors import PackagingError
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from training import decisions, head, join, logistic


def confounded(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which one shows the label in one source and its opposite in the other, and one shows it weakly in both."""
    random = np.random.default_rng(seed)
    positive, sources = random.integers(0, 2, 600).astype(bool), np.repeat(["a", "b"], 300)
    sign = np.where(positive, 1.0, -1.0)
    trap = sign * np.where(sources == "a", 1, -1) * 3 + random.normal(size=600)
    return np.stack([trap, np.where(sources == "a", 1.0, -1.0), trap * np.where(sources == "a", 1, -1), 0.6 * sign + random.normal(size=600)], axis=1), positive, sources


class TestLogistic(unittest.TestCase):
    def test_the_fit_finds_the_weights_that_made_the_labels(self) -> None:
        random = np.random.default_rng(3)
        features = random.normal(size=(8000, 3)) * np.array([1, 10, 1]) + 5
        odds = features @ np.array([1.0, -0.2, 0.5])
        positive = random.uniform(size=8000) < logistic.sigmoid(odds - odds.mean())
        found = logistic.fit(features, positive, 1e-4)
        np.testing.assert_allclose(found.weights, [1.0, -0.2, 0.5], rtol=0.15)
        self.assertLess(abs(found.logits(features).mean()), 0.3)

    def test_a_constant_feature_has_no_weight(self) -> None:
        features = np.stack([np.full(50, 7.0), np.linspace(-1, 1, 50)], axis=1)
        found = logistic.fit(features, features[:, 1] > 0, 1.0)
        self.assertEqual(found.weights[0], 0)
        self.assertGreater(found.weights[1], 0)

    def test_leaving_a_source_out_shows_what_shuffling_hides(self) -> None:
        features, positive, sources = confounded()
        # Without the third feature, the first one means the opposite in the other source.
        facts = head.train(features[:, [0, 1, 3]] * [1, 0, 1], positive, sources, None, 0)
        one = head.train(features[:, [0, 3]], positive, np.where(np.arange(600) < 300, "a", "b"), None, 0)
        self.assertLess(one["leave_source_out_auc"], 0.4)
        self.assertLess(facts["leave_source_out_auc"], facts["within_source_auc"])

    def test_one_source_gives_no_figure_for_others(self) -> None:
        features, positive, _ = confounded()
        self.assertNotIn("leave_source_out_auc", head.train(features, positive, np.repeat(["a"], 600), None, 0))

    def test_auc_counts_pairs_with_ties_as_half(self) -> None:
        scores, positive = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
        self.assertAlmostEqual(logistic.auc(scores, positive), 3.5 / 4)
        self.assertIsNone(logistic.auc(scores, np.array([True] * 4)))

    def test_the_temperature_undoes_what_multiplied_the_logits(self) -> None:
        random = np.random.default_rng(2)
        logits = random.normal(size=20000) * 2
        positive = random.uniform(size=20000) < logistic.sigmoid(logits)
        self.assertAlmostEqual(logistic.temperature(3 * logits, positive), 3, delta=0.15)
        facts = head.calibrated(3 * logits, positive, 0)
        self.assertLess(facts["ece_after"], 0.2 * facts["ece_before"])
        self.assertLess(facts["review_at"], facts["flag_at"])

    def test_a_threshold_keeps_its_rate(self) -> None:
        scores, positive = np.linspace(0, 1, 101), np.zeros(101, bool)
        self.assertAlmostEqual(logistic.threshold(scores, positive, 0.05), 0.96)
        self.assertIsNone(logistic.threshold(np.zeros(10), np.zeros(10, bool), 0.05))


def encoder(folder: Path) -> None:
    """A package with a map, a pooled tensor and a last layer of three labels."""
    random = np.random.default_rng(4)
    weights = {"kernel": random.normal(size=(5, 3, 3, 3)) / 9, "dense": random.normal(size=(5, 3)), "unused": np.ones(3)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["map"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["dense_out"]),
        helper.make_node("Add", ["dense_out", "unused"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    entry = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 16, 16, 3])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [entry], [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0}}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))


def as_fed(files: list[Path], *_: object) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB").resize((16, 16))) for file in files]


class TestDecisions(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.verdicts: list[dict] = []
        self.made: list[dict] = []

    def verdict(self, name: str, outcome: str = "review", **more: object) -> None:
        row = {"id": name, "bucket": "uploads", "key": f"{name}.png", "sha256": name, "outcome": outcome, "findings": None, **more}
        self.verdicts.append(row)
        file = self.folder / "images" / row["bucket"] / row["key"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")

    def decide(self, verdict: str, action: str, category: str | None = None) -> None:
        self.made.append({"verdict_id": verdict, "action": action, "category": category})

    def found(self, category: str | None = None) -> dict[str, bool]:
        for name, rows in (("decisions", self.made), ("verdicts", self.verdicts)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with contextlib.redirect_stdout(io.StringIO()) as self.printed:
            images = decisions.decided_images(self.folder / "decisions.jsonl", self.folder / "verdicts.jsonl", self.folder / "images", category)
        return {image.file.stem: image.positive for image in images}

    def test_the_last_decision_that_stands_is_the_label(self) -> None:
        for name in ("flagged", "cleared", "undone", "changed", "skipped"):
            self.verdict(name)
        self.verdict("upheld", "flagged")
        self.verdict("upheld-passed", "passed")
        for name, *actions in [
            ("flagged", "flag"),
            ("cleared", "escalate", "clear"),
            ("undone", "flag", "undo"),
            ("changed", "flag", "undo", "clear", "skip"),
            ("skipped", "skip"),
            ("upheld", "uphold"),
            ("upheld-passed", "uphold"),
        ]:
            for action in actions:
                self.decide(name, action)
        expected = {"flagged": True, "cleared": False, "changed": False, "upheld": True, "upheld-passed": False}
        self.assertEqual(self.found(), expected)

    def test_a_category_takes_only_what_was_flagged_for_it(self) -> None:
        self.verdict("named")
        self.verdict("first-finding", findings=[{"category": "gore"}, {"category": "nudity"}])
        self.verdict("other")
        self.verdict("cleared")
        self.decide("named", "flag", "gore")
        self.decide("first-finding", "flag")
        self.decide("other", "flag", "nudity")
        self.decide("cleared", "clear")
        self.assertEqual(self.found("gore"), {"named": True, "first-finding": True, "cleared": False})
        self.assertIn("decisions left out: 1, because people did not say it of this category", self.printed.getvalue())

    def test_restricted_missing_and_repeated_content_is_left_out(self) -> None:
        self.verdict("restricted", findings=[{"restricted": True}])
        self.verdict("gone")
        self.verdict("once", sha256="same")
        self.verdict("twice", sha256="same")
        self.verdict("outside", key="../../secret.png")
        (self.folder / "images/uploads/gone.png").unlink()
        for name in ("restricted", "gone", "once", "twice", "outside", "unknown"):
            self.decide(name, "flag")
        self.assertEqual(self.found(), {"twice": True})
        for words in ("decisions left out: 1, because they are restricted", "decisions left out: 2, because their image is not in --images", "decisions left out: 1, because their verdict"):
            self.assertIn(words, self.printed.getvalue())

    def test_files_of_another_kind_are_named(self) -> None:
        self.made.append({"id": "x"})
        with self.assertRaisesRegex(PackagingError, "decisions.jsonl, line 1 has no verdict_id"):
            self.found()


class TestPackage(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        (self.folder / "encoder").mkdir()
        encoder(self.folder / "encoder")
        random = np.random.default_rng(5)
        self.data = []
        for source in ("a", "b"):
            for label, red in (("by human", 90), ("by AI", 110)):
                folder = self.folder / f"{source}-{label}"
                folder.mkdir()
                self.data += ["--data", f"{source}={label}:{folder}"]
                for index in range(20):
                    pixels = random.integers(0, 100, (16, 16, 3)) + np.array([red, 60, 60]) - 60
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")

    def test_decisions_make_a_head_whose_sources_are_buckets(self) -> None:
        decided, verdicts = [], []
        for text in self.data[1::2]:
            source, _, rest = text.partition("=")
            label, _, folder = rest.partition(":")
            for file in sorted(Path(folder).iterdir()):
                number = len(verdicts)
                target = self.folder / "store" / source / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                verdicts.append({"id": str(number), "bucket": source, "key": target.name, "sha256": str(number), "outcome": "review", "findings": None})
                decided.append({"verdict_id": str(number), "action": "flag" if label == "by AI" else "clear", "category": None})
        for name, rows in (("decided", decided), ("verdicts", verdicts)):
            (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.data = []
        package = self.run_head("--decisions", str(self.folder / "decided"), "--verdicts", str(self.folder / "verdicts"), "--images", str(self.folder / "store"))
        self.assertEqual(json.loads((package / "config.json").read_text())["id2label"], {"0": "other", "1": "by AI"})
        facts = json.loads((package / "measurements.json").read_text())
        self.assertEqual((facts["images"], facts["sources"]), (80, ["a", "b"]))
        self.assertGreater(facts["leave_source_out_auc"], 0.9)
        with self.assertRaisesRegex(PackagingError, "belong together"):
            self.run_head("--decisions", str(self.folder / "decided"), name="other")

    def run_head(self, *more: str, name: str = "package", rename: str = "by AI") -> Path:
        package = self.folder / name
        data = [text.replace("=by AI", f"={rename}") for text in self.data]
        arguments = ["--encoder", str(self.folder / "encoder"), "--package", str(package), *data, "--positive", rename, *more]
        with mock.patch.object(head, "as_fed", as_fed), contextlib.redirect_stdout(io.StringIO()):
            head.main(arguments)
        return package

    def test_the_package_scores_as_the_fit_does_and_has_no_other_layers(self) -> None:
        package = self.run_head("--augment", "--cache", str(self.folder / "cache"))
        config = json.loads((package / "config.json").read_text())
        self.assertEqual((config["id2label"], config["pixwarden"]), ({"0": "by human", "1": "by AI"}, {"output": "logits"}))
        self.assertNotIn("label2id", config)
        graph = onnx.load(package / "model.onnx").graph
        self.assertEqual({tensor.name for tensor in graph.initializer}, {"kernel", "head_weights", "head_bias"})
        session = ort.InferenceSession(package / "model.onnx")
        scores = {}
        for label in ("by human", "by AI"):
            pixels = np.array(as_fed(sorted((self.folder / f"a-{label}").iterdir())))
            scores[label] = session.run(["logits"], {"pixels": pixels})[0]
            self.assertEqual(scores[label].shape, (20, 2))
            np.testing.assert_allclose(scores[label].sum(axis=1), 0, atol=1e-3)
        self.assertGreater((scores["by AI"][:, 1]).mean(), (scores["by human"][:, 1]).mean() + 1)
        facts = json.loads((package / "measurements.json").read_text())
        self.assertGreater(facts["leave_source_out_auc"], 0.9)
        calibration = json.loads((package / "calibration.json").read_text())
        self.assertEqual((calibration["method"], calibration["temperature"]), ("temperature", facts["temperature"]))
        self.assertIn("on a source that was left out", (package / "README.md").read_text())
        self.assertEqual(len(list((self.folder / "cache").iterdir())), 2)

    def test_joined_heads_score_as_each_does_after_its_calibration(self) -> None:
        heads = [self.run_head(name="one"), self.run_head("--seed", "1", name="two", rename="drawn")]
        with contextlib.redirect_stdout(io.StringIO()):
            join.main([*map(str, heads), "--package", str(self.folder / "joined")])
        config = json.loads((self.folder / "joined/config.json").read_text())
        self.assertEqual(config["id2label"], {"0": "by AI", "1": "drawn"})
        self.assertEqual(config["problem_type"], "multi_label_classification")
        pixels = np.array(as_fed(sorted((self.folder / "b-by AI").iterdir())))

        def run(package: Path) -> np.ndarray:
            return ort.InferenceSession(package / "model.onnx").run(["logits"], {"pixels": pixels})[0]

        joined = logistic.sigmoid(run(self.folder / "joined"))
        for index, package in enumerate(heads):
            logits, t = run(package), json.loads((package / "calibration.json").read_text())["temperature"]
            np.testing.assert_allclose(joined[:, index], logistic.sigmoid((logits[:, 1] - logits[:, 0]) / t), atol=1e-5)

    def test_heads_that_cannot_be_joined_are_named(self) -> None:
        one = self.run_head(name="one")
        for other, message in (
            (self.run_head(name="two"), "the same label: by AI, by AI"),
            (self.run_head("--features", "map", name="three", rename="drawn"), "same features"),
            (self.folder / "encoder", "no package of train.py head"),
        ):
            with self.subTest(message), self.assertRaisesRegex(PackagingError, message):
                join.main([str(one), str(other), "--package", str(self.folder / "joined")])

    def test_a_map_is_averaged_and_several_tensors_are_joined(self) -> None:
        made = head.Encoder(self.folder / "encoder", ["map", "flat"])
        pixels = as_fed(sorted((self.folder / "a-by AI").iterdir())[:1])[0]
        features = made.session.run(["features"], {"pixels": pixels[None]})[0]
        self.assertEqual(features.shape, (1, 10))
        np.testing.assert_allclose(features[0, :5], features[0, 5:], rtol=1e-5)

    def test_the_numbers_of_either_processor_file_are_used(self) -> None:
        package = self.folder / "encoder"
        fields = {"rescale_factor": 0.5, "image_mean": [1, 2, 3], "image_std": [4, 5, 6], "do_flip_channel_order": True}
        (package / "preprocessor_config.json").unlink()
        (package / "processor_config.json").write_text(json.dumps({"image_processor": fields}))
        scale, mean, std, is_bgr = head.normalisation(package)
        self.assertEqual((scale, [*mean], [*std], is_bgr), (0.5, [1, 2, 3], [4, 5, 6], True))
        (package / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "MobileViTImageProcessor", "do_normalize": False}))
        scale, mean, std, is_bgr = head.normalisation(package)
        self.assertEqual((scale, float(mean), float(std), is_bgr), (1 / 255, 0, 1, True))

    def test_what_does_not_fit_is_named(self) -> None:
        with self.assertRaisesRegex(PackagingError, "no tensor nowhere; it has, near its end, .*logits"):
            head.Encoder(self.folder / "encoder", ["nowhere"])
        with self.assertRaisesRegex(PackagingError, "SOURCE=LABEL:FOLDER"):
            head.dataset("a=b")
        with self.assertRaisesRegex(PackagingError, "two labels are needed"):
            self.run_head(rename="by human")


if __name__ == "__main__":
    unittest.main()
