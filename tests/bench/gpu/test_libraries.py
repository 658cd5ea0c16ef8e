"""Which folders a process finds CUDA in."""

import tempfile
import unittest
from pathlib import Path

import libraries


class Folders(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.place = Path(scratch.name)

    def library(self, name):
        file = self.place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return file.parent

    def test_both_layouts_are_found_and_folders_without_libraries_are_not(self):
        expected = [
            self.library("nvidia/cu13/lib/libcudart.so.13"),
            self.library("nvidia/cublas/lib/libcublas.so.12"),
            self.library("torch/lib/libtorch.so"),
        ]
        self.library("nvidia/cu13/include/cuda.h")
        self.library("nvidia/nvtx/lib/readme.txt")
        self.assertEqual(sorted(libraries.folders([self.place, self.place / "none"])), sorted(expected))

    def test_another_major_version_is_missing(self):
        folders = [self.library("nvidia/cublas/lib/libcublas.so.12")]
        lacking = libraries.missing(
            ["libcublas.so.12", "libcublas.so.13", "libcudnn.so.9"], folders, {"libcudnn.so.9"}.__contains__
        )
        self.assertEqual(lacking, ["libcublas.so.13"])

    def test_the_environment_keeps_what_was_there_but_no_setting_of_ours(self):
        given = {"LD_LIBRARY_PATH": "/driver", "PATH": "/bin", "PIXWARDEN_DECODE_THREADS": "1"}
        made = libraries.environment(Path("/there/libonnxruntime.so"), [Path("/cuda")], given)
        self.assertEqual(
            made,
            {
                "LD_LIBRARY_PATH": "/there:/cuda:/driver",
                "PATH": "/bin",
                "ORT_DYLIB_PATH": "/there/libonnxruntime.so",
            },
        )
        self.assertEqual(libraries.environment(Path("/a/b"), [], {})["LD_LIBRARY_PATH"], "/a")


if __name__ == "__main__":
    unittest.main()
