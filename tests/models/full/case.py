"""The checks every kind of package has to pass, and the mistakes they have to notice."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import convert
import numpy as np
import torch
from common.errors import PackagingError
from common.export import BytesIn, export
from common.graph import check_graph, logits, open_session
from conversion.check import compare, judge, reference
from conversion.model import Model
from PIL import Image

from . import PIXWARDEN
from .comparison import LEAST_SPREAD, SCORE_TOLERANCE, Expected, largest_difference
from .pictures import write_pictures

LOGITS_FP32 = 1e-4
PROBABILITIES_FP16 = 5e-3
COMPARED = 6
"""Pictures that the graphs are run on here; the conversion and the scan run on more."""


class PackageChecks:
    """Mixed into a TestCase: one conversion for all its tests. A subclass sets the fields in `make`."""

    work: Path
    files: list[Path]
    model: Model
    """As the converter loaded it, before it changed anything for the export."""
    wanted: Expected
    transposes: int | None = None
    """How many Transposes are right; None where nobody has counted."""

    @classmethod
    def setUpClass(cls) -> None:
        if not PIXWARDEN.is_file():
            raise FileNotFoundError(f"{PIXWARDEN}: build Pixwarden first, or name the binary in PIXWARDEN")
        folder = tempfile.TemporaryDirectory(prefix="convert-")
        cls.addClassCleanup(folder.cleanup)
        cls.work = Path(folder.name)
        (cls.work / "pictures").mkdir()
        cls.files = write_pictures(cls.work / "pictures")
        arguments = cls.make()
        convert.main([*arguments, "--package", str(cls.work / "package"), "--precision", "fp32", "fp16"])

    @classmethod
    def make(cls) -> list[str]:
        """Writes the source files, sets `model` and `wanted`, and returns the converter's arguments."""
        raise NotImplementedError

    def test_scores_of_the_network_spread(self) -> None:
        self.assertGreater(self.wanted.scores[:, 1].std(), LEAST_SPREAD)

    def test_fp32_logits_are_those_of_pytorch(self) -> None:
        found, wanted = self._logits("package")
        self.assertLessEqual(float((np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))).max()), LOGITS_FP32)

    def test_fp16_probabilities_are_those_of_pytorch(self) -> None:
        found, _ = self._logits("package-fp16")
        scores = Expected([], found).scores
        self.assertLessEqual(float(np.abs(scores - self.wanted.scores[:COMPARED]).max()), PROBABILITIES_FP16)

    def test_scan_agrees_with_the_library(self) -> None:
        difference = largest_difference(self.work / "package", self.wanted, self.work)
        print(f"{type(self).__name__}: scan differs from the library by {difference:.4f} over {len(self.files)} pictures", flush=True)
        self.assertLessEqual(difference, SCORE_TOLERANCE)

    def test_graphs_have_no_transpose_too_many(self) -> None:
        facts = json.loads((self.work / "package/conversion.json").read_text())
        for name in ("package", "package-fp16"):
            check_graph(self.work / name / "model.onnx", allowed_transposes=facts["graph"]["transposes"], max_bytes=2**31 - 1)
        if self.transposes is not None:
            self.assertEqual(facts["graph"]["transposes"], self.transposes)

    def test_checksums_hold(self) -> None:
        for name in ("package", "package-fp16"):
            subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=self.work / name, check=True)

    def _logits(self, package: str) -> tuple[np.ndarray, np.ndarray]:
        """Of the graph on the library's pixels, and of the library, for the first pictures."""
        pixels = np.stack([self.model.pixels(Image.open(file).convert("RGB")) for file in self.files[:COMPARED]])
        return logits(open_session(self.work / package / "model.onnx", 2), pixels, 4), self.wanted.logits[:COMPARED]


class PlantedMistakes:
    """Mixed in beside PackageChecks where the network is small: the checks that pass above must fail on wrong packages."""

    work: Path
    wanted: Expected
    model: Model

    def test_swapped_channels_are_noticed(self) -> None:
        self._noticed("swapped", Swapped(self.model.network, self.model.normalisation))

    def test_a_wrong_mean_is_noticed(self) -> None:
        mean = [value + 0.1 for value in self.model.normalisation.mean]
        self._noticed("shifted", BytesIn(self.model.network, replace(self.model.normalisation, mean=mean)))

    def test_a_wrong_crop_is_noticed(self) -> None:
        package = self._copy("cropped")
        self.plant_wrong_crop(package)
        self.assertGreater(largest_difference(package, self.wanted, self.work), SCORE_TOLERANCE)

    def plant_wrong_crop(self, package: Path) -> None:
        config = json.loads((package / "config.json").read_text())
        crop = config["pretrained_cfg"]
        crop |= {"crop_mode": "center"} if crop["crop_mode"] == "squash" else {"crop_mode": "squash"}
        (package / "config.json").write_text(json.dumps(config))

    def _noticed(self, name: str, wrong: BytesIn) -> None:
        package = self._copy(name)
        export(wrong, self.model.size, package / "model.onnx")
        self.assertGreater(largest_difference(package, self.wanted, self.work), SCORE_TOLERANCE, "by scan")
        images = [Image.open(file).convert("RGB") for file in self.wanted.files[:COMPARED]]
        with self.assertRaisesRegex(PackagingError, "differ by"):
            judge(compare(reference(self.model, images), package / "model.onnx", 2), "fp32")

    def _copy(self, name: str) -> Path:
        """Without the golden image, which would refuse the package before anything is compared."""
        return Path(shutil.copytree(self.work / "package", self.work / name, ignore=shutil.ignore_patterns("golden.*")))


class Swapped(BytesIn):
    """Reads red as blue and blue as red."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels.flip(3))
