"""CUDA's own libraries, where pip has put them: PyTorch brings them as packages, each with a folder for its libraries.

Those for CUDA 12 are `nvidia/cublas/lib`, `nvidia/cudnn/lib` and so on, those for CUDA 13 mostly `nvidia/cu13/lib`.
ONNX Runtime's provider finds them by LD_LIBRARY_PATH and by their names alone, and these hold the major version.
"""

import ctypes
import os
import site
import sys
from pathlib import Path


def places():
    """Where Python's packages are, those of a virtual environment before those of the system."""
    found = [Path(entry) for entry in sys.path if entry and Path(entry).name in ("site-packages", "dist-packages")]
    found += map(Path, [*site.getsitepackages(), site.getusersitepackages()])
    return list(dict.fromkeys(place for place in found if place.is_dir()))


def folders(places):
    """The folders with shared libraries of CUDA in them, in the order of `places`."""
    found = []
    for place in places:
        candidates = sorted((place / "nvidia").glob("*/lib")) + [place / "torch/lib"]
        found += [folder for folder in candidates if any(folder.glob("*.so*"))]
    return found


def missing(wanted, folders, loads=None):
    """Those of the libraries named `wanted` that lie in no folder and that the system does not have either."""
    loads = loads or loadable
    return [name for name in wanted if not any((folder / name).is_file() for folder in folders) and not loads(name)]


def loadable(name):
    """Whether the system's loader finds it."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def environment(runtime, folders, given=None):
    """For a process that is to run models by `runtime`, ONNX Runtime's library, with CUDA's from these folders."""
    given = os.environ if given is None else given
    # A setting of somebody's own would change what is measured.
    kept = {name: value for name, value in given.items() if not name.startswith("PIXWARDEN_")}
    path = [str(runtime.parent), *map(str, folders), *filter(None, [given.get("LD_LIBRARY_PATH")])]
    return {**kept, "ORT_DYLIB_PATH": str(runtime), "LD_LIBRARY_PATH": ":".join(path)}
