"""Bounds, ratios and costs of known figures; what is missing; and the page of it all. Needs numpy."""

import json
import tempfile
import types
import unittest
from pathlib import Path

import bounds
import part
import table


class Bounds(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def found(self, price=None, **parts):
        for name, content in parts.items():
            (self.folder / f"{name}.json").write_text(json.dumps(content))
        options = types.SimpleNamespace(folder=self.folder, limit_s=60, price_per_hour=price, rehearse=False)
        found = part.Part("bounds", options)
        bounds.collect(found)
        return found

    def test_bounds_of_a_card_with_known_rates(self):
        # 790 TFLOP/s and 4.3 TB/s.
        self.assertAlmostEqual(bounds.by_matrix(790e12), 3907, delta=1)
        self.assertAlmostEqual(bounds.by_both(790e12, 4.3e12), 2675, delta=1)
        self.assertAlmostEqual(bounds.bytes_moved() / 1e6, 507.4, delta=0.1)

    def test_ratios_take_the_fastest_batch_of_each(self):
        card = {"rows": {"matrix product, fp16": {"unit": "", "values": [780, 790, 800]}}}
        card["rows"]["copy on the device, read and written"] = {"unit": "", "values": [4300]}
        engine = {
            "rows": {f"uint8 fp16, batches of {n}": {"unit": "", "values": [v]} for n, v in ((32, 2000), (64, 1800))}
        }
        detector = {"rows": {"eager, batches of 64": {"unit": "", "values": [1600, 1500]}}}
        detector["rows"]["compiled, batches of 32"] = {"unit": "", "values": [1900, 2500, 1000]}
        whole = {"rows": {"exact: pipeline": {"unit": "", "values": [1800]}}}
        found = self.found(price=3.6, card=card, engine=engine, detector=detector, whole=whole)
        medians = {ratio["name"]: ratio["median"] for ratio in found.ratios}
        self.assertAlmostEqual(medians["session, uint8 fp16 / torch.compile"], 2000 / 1900)
        self.assertAlmostEqual(medians["session, uint8 fp16 / torch eager"], 2000 / 1550)
        self.assertAlmostEqual(medians["session, uint8 fp16 / bound by matrix products"], 2000 / 3907, places=3)
        self.assertAlmostEqual(medians["torch.compile / bound by these and memory"], 1900 / 2675, places=3)
        self.assertAlmostEqual(found.rows["a million images, pipeline, exact"]["values"][0], 1e6 / 1800 / 3600 * 3.6)

    def test_nothing_found_is_said_and_no_error(self):
        found = self.found(price=3.0)
        self.assertEqual((found.rows, found.ratios), ({}, []))
        self.assertTrue(any("wanted at least 1.0" in note for note in found.notes))

    def test_a_part_that_left_nothing_is_on_the_page(self):
        found = self.found()
        parts = {"bounds": json.loads((self.folder / "bounds.json").read_text())}
        page = table.page("On a GPU", "run", parts, {"card": "3 s, **ended with 1**", "bounds": "1 s"})
        self.assertIn("## card: 3 s, **ended with 1**", page)
        self.assertIn(f"- {found.notes[0]}", page)


class Attempts(unittest.TestCase):
    def test_what_fails_is_noted_in_the_file_and_the_rest_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            options = types.SimpleNamespace(folder=Path(folder), limit_s=60)
            found = part.Part("card", options)
            with found.attempt("matrix product"):
                raise RuntimeError("\n out of memory\nand many lines more")
            found.add("copy", 5.0, "GB/s")
            written = json.loads((Path(folder) / "card.json").read_text())
        self.assertEqual(written["notes"], [f"{part.FAILED}matrix product: out of memory"])
        self.assertEqual(written["rows"]["copy"]["values"], [5.0])


if __name__ == "__main__":
    unittest.main()
