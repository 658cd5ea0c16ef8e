"""Tests of models/ with PyTorch, timm, transformers and the built binary: `make test-models`.

PIXWARDEN names the binary (target/debug/pixwarden by default), ORT_DYLIB_PATH the ONNX Runtime it loads.
"""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PIXWARDEN = Path(os.environ.get("PIXWARDEN", ROOT / "target/debug/pixwarden")).resolve()

sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"
# Of the exporter's own making, hundreds of lines of it.
warnings.filterwarnings("ignore", module="torch|copyreg")
