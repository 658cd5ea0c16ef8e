"""The recipes with the real archives: downloads with pip and npm, and compares with the README's output of the demo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from . import PIXWARDEN

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 0.005


class TestRecipes(unittest.TestCase):
    """A package is made once."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.scratch = TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.folder = Path(cls.scratch.name)
        for name in ("open-nsfw", "nsfwjs"):
            subprocess.run([sys.executable, ROOT / "models/get", name, "--to", cls.folder / name], check=True, stdout=subprocess.DEVNULL)

    def pixwarden(self, *arguments: str) -> list[dict]:
        done = subprocess.run([PIXWARDEN, *arguments, "--log", "off", "--format", "jsonl"], cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_the_golden_images_score_as_in_the_original_runtime(self) -> None:
        for name in ("open-nsfw", "nsfwjs"):
            with self.subTest(name):
                [row] = self.pixwarden("models", "check", "--config", str(self.folder / name / "pixwarden.toml"))
                self.assertTrue(row["proved"])
                self.assertLess(row["deviation"], TOLERANCE)
                self.assertLess(row["batch_deviation"], TOLERANCE)

    def test_the_readme_shows_the_scores_of_the_demo(self) -> None:
        rows = re.findall(r"^(\w+) +([\d.]+) nsfw .*?\n? +(models/\S+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
        self.assertGreater(len(rows), 10)
        found = self.pixwarden("scan", "--config", str(self.folder / "open-nsfw/pixwarden.toml"), *(path for _, _, path in rows))
        for (outcome, score, path), row in zip(rows, found, strict=True):
            with self.subTest(path):
                self.assertEqual(row["outcome"], outcome)
                self.assertAlmostEqual(row["score"], float(score), delta=TOLERANCE)


if __name__ == "__main__":
    unittest.main()
