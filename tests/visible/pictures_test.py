"""The made files are what their names say, and the same in every run."""

import random
import unittest

import differences
import pictures
from formats import format_of
from mutate import mutated

KINDS = pictures.kinds()


class MadeFiles(unittest.TestCase):
    def test_names_are_unique_and_files_differ(self):
        self.assertEqual(len(KINDS), len({kind.name for kind in KINDS}))
        self.assertEqual(len(KINDS), len({kind.data for kind in KINDS}))

    def test_every_file_is_of_the_format_of_its_folder(self):
        for kind in KINDS:
            self.assertEqual(kind.name.partition("/")[0], format_of(kind.data), kind.name)

    def test_files_are_the_same_in_every_run(self):
        self.assertEqual([], [new.name for old, new in zip(KINDS, pictures.kinds(), strict=True) if old != new])

    def test_every_argued_difference_is_of_a_made_file(self):
        self.assertLessEqual(differences.ARGUED.keys(), {kind.name for kind in KINDS})

    def test_mutations_are_the_same_for_the_same_seed(self):
        runs = [[mutated(kind.data, chosen) for kind in KINDS] for chosen in (random.Random(5), random.Random(5))]
        self.assertEqual(*runs)
        unchanged = sum(kind.data == data for kind, (_, data) in zip(KINDS, runs[0], strict=True))
        self.assertLess(unchanged, len(KINDS) // 5)


if __name__ == "__main__":
    unittest.main()
