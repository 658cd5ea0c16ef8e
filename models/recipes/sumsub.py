"""Sumsub's "For Fake's Sake" family: weights for PyTorch on the Hugging Face Hub, which models/convert.py turns into packages.

The weights are in no package registry, so that this recipe takes two steps: `pixwarden models fetch --raw`, which compares
each file with the hub's own checksum, and the converter, which needs PyTorch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common.errors import PackagingError

LICENCE = "CC-BY-SA-3.0"
RELEASES = ["2.0", "1.0_sd_200", "1.0_mj_200", "1.0_sd_5", "1.0_mj_5"]
REPOSITORY = "Sumsub/Sumsub-ffs-synthetic-{release}"
WEIGHTS = "synthetic.pt"
ROOT = Path(__file__).resolve().parents[2]


def make(release: str, target: Path, weights: Path | None) -> None:
    """Fetches the weights, unless a file is given, and converts them."""
    python = ROOT / ".venv-convert/bin/python"
    if not python.exists():
        raise PackagingError(
            "the converter needs PyTorch, several gigabytes; install it first:\n"
            "  python3 -m venv .venv-convert && .venv-convert/bin/pip install -r models/requirements-convert.txt"
        )
    if weights is None:
        raw = target.with_name(f"{target.name}-raw")
        program = os.environ.get("PIXWARDEN", str(ROOT / "target/debug/pixwarden"))
        reference = f"hf://{REPOSITORY.format(release=release)}"
        _run([program, "models", "fetch", reference, "--raw", "--to", str(raw)], f"fetch {reference}")
        weights = next(iter(sorted(raw.glob("*.pt"))), raw / WEIGHTS)
    command = [str(python), str(ROOT / "models/convert.py"), "sumsub", str(weights), "--release", release, "--package", str(target)]
    _run(command, f"convert {weights}")
    print(f'suggested rule: label "by AI", category "synthetic/generated", review from 0.9, noted from 0.5; licence {LICENCE}')


def _run(command: list[str], what: str) -> None:
    sys.stdout.flush()
    try:
        status = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise PackagingError(f"cannot {what}: there is no {command[0]}; build it with `cargo build`, or set PIXWARDEN") from None
    if status:
        raise PackagingError(f"cannot {what}: the program above ended with {status}")
