"""Tests of models/ that need no PyTorch: `python -m unittest discover -s tests/models/light -t tests/models`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "models"))
