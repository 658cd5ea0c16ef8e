"""Which detector the pipeline is measured with. Needs numpy."""

import json
import tempfile
import types
import unittest
from pathlib import Path

import engine
import whole


class Choose(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.options = types.SimpleNamespace(folder=self.folder, work=self.folder / "work", rehearse=False)

    def package(self):
        made = self.folder / "work/synthetic-fp16"
        made.mkdir(parents=True)
        (made / "model.onnx").touch()
        return made

    def engine(self, rates):
        rows = {name: {"unit": "", "values": [rate]} for name, rate in rates.items()}
        (self.folder / "engine.json").write_text(json.dumps({"rows": rows}))

    def test_the_large_one_at_its_fastest_batch(self):
        package = self.package()
        rows = {"uint8 fp16, batches of 32": 2000, "uint8 fp16, batches of 64": 1900, "tiny-384, batches of 4": 9000}
        self.engine(rows)
        self.assertEqual(whole.choose(self.options), ("uint8 fp16", package, 32))

    def test_the_small_one_if_the_large_one_failed_or_was_not_made(self):
        self.engine({"tiny-384, batches of 4": 9000})
        self.assertEqual(whole.choose(self.options), ("tiny-384", engine.TINY, 4))
        self.package()
        self.assertEqual(whole.choose(self.options), ("tiny-384", engine.TINY, 4))

    def test_without_the_engines_figures_a_usual_batch(self):
        package = self.package()
        self.assertEqual(whole.choose(self.options), ("uint8 fp16", package, whole.DEFAULT_BATCH))


if __name__ == "__main__":
    unittest.main()
