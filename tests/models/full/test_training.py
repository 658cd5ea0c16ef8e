"""The training recipe from images to a package, in small: interrupted, resumed, and compared with a run that was not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter
from reference.scenes import scene

from . import ROOT
from .comparison import SCORE_TOLERANCE, scanned

TRAIN, VAL = 192, 48
DEADLINE_S = 300


def picture(number: int) -> tuple[Image.Image, int]:
    """A thumbnail and its label; every second one is blurred, which is something to learn."""
    image, label = Image.fromarray(scene(number, 32, 32)), number % 2
    return (image.filter(ImageFilter.GaussianBlur(1.0)) if label else image), label


def write_folder(folder: Path) -> Path:
    for number in range(TRAIN):
        image, label = picture(number)
        file = folder / ("fake" if label else "real") / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return folder


def write_parquet(path: Path) -> Path:
    rows = []
    for number in range(1000, 1000 + VAL):
        image, label = picture(number)
        data = io.BytesIO()
        image.save(data, "PNG")
        rows.append({"image": {"bytes": data.getvalue(), "path": f"{number}.png"}, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class Training(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        folder = TemporaryDirectory(prefix="train-")
        cls.addClassCleanup(folder.cleanup)
        cls.work = Path(folder.name)
        cls.train, cls.val = write_folder(cls.work / "train"), write_parquet(cls.work / "val.parquet")
        subprocess.run(cls.command("whole"), check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
        cls.interrupt("broken")
        subprocess.run([*cls.command("broken"), "--resume"], check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)

    @classmethod
    def command(cls, run: str) -> list[str]:
        return [
            *(sys.executable, str(ROOT / "models/train.py"), "--train", str(cls.train), "--val", str(cls.val)),
            *("--run-dir", str(cls.work / f"{run}-run"), "--package", str(cls.work / run), "--epochs", "2"),
            *("--batch-size", "32", "--threads", "1", "--device", "cpu"),
        ]

    @classmethod
    def interrupt(cls, run: str) -> None:
        """Kills a run as soon as its first checkpoint is there."""
        checkpoint = cls.work / f"{run}-run/checkpoint.pt"
        deadline = time.monotonic() + DEADLINE_S
        with subprocess.Popen(cls.command(run), stdout=subprocess.DEVNULL) as process:
            while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
        if not checkpoint.exists() or (cls.work / run).exists():
            raise AssertionError(f"the run was not interrupted after its first checkpoint (exit status {process.returncode})")

    def log(self, run: str) -> list[dict]:
        lines = map(json.loads, (self.work / run / "training.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    def test_a_resumed_run_logs_what_an_uninterrupted_one_does(self) -> None:
        self.assertEqual([line["epoch"] for line in self.log("whole")], [1, 2])
        self.assertEqual(self.log("broken"), self.log("whole"))

    def test_the_package_is_whole(self) -> None:
        names = {path.name for path in (self.work / "broken").iterdir()}
        self.assertLessEqual({"model.onnx", "config.json", "golden.png", "golden.json", "README.md", "curves.png", "measurements.json"}, names)
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=self.work / "broken", check=True)

    def test_the_card_states_measurements_and_claims_no_data_set(self) -> None:
        text = (self.work / "broken/README.md").read_text()
        facts = json.loads((self.work / "broken/measurements.json").read_text())
        self.assertIn(f"Accuracy {facts['unchanged']['accuracy']:.4f}, ROC AUC {facts['unchanged']['roc_auc']:.4f}", text)
        for change in ("JPEG quality 95", "JPEG quality 50", "resized to 16x16 and back", "Gaussian blur, radius 1.0"):
            self.assertIn(f"| {change} | {facts['changed'][change]['accuracy']:.4f} |", text)
        self.assertIn("must not be used for real decisions", text)
        self.assertNotIn("CIFAKE", text)

    def test_scan_gives_the_golden_scores(self) -> None:
        package = self.work / "broken"
        golden = json.loads((package / "golden.json").read_text())["scores"]
        found = scanned(package, [package / "golden.png"], self.work)[0]
        self.assertLessEqual(abs(found[1] - golden["by AI"]), SCORE_TOLERANCE)

    def test_an_old_run_is_neither_overwritten_nor_continued_with_another_recipe(self) -> None:
        again = subprocess.run(self.command("whole"), capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        self.assertIn("add --resume", again.stderr)
        other = [*self.command("whole"), "--resume", "--learning-rate", "0.05"]
        refused = subprocess.run(other, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        self.assertIn("learning_rate 0.1", refused.stderr)
        self.assertEqual((again.returncode, refused.returncode), (1, 1))
