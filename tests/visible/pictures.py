#!/usr/bin/env python3
"""Makes the files of the measure, one of each kind: python tests/visible/pictures.py DIR"""

from __future__ import annotations

import sys
from pathlib import Path

import of_gif
import of_jpeg
import of_others
import of_png
import of_webp
from drawing import Kind

__all__ = ["Kind", "kinds", "write"]


def kinds() -> list[Kind]:
    return [kind for module in (of_jpeg, of_png, of_gif, of_webp, of_others) for kind in module.kinds()]


def write(folder: Path) -> dict[Path, Kind]:
    """Writes every kind, in a folder for each format. Returns the kinds by file."""
    written = {}
    for kind in kinds():
        file = folder / kind.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kind.data)
        written[file.resolve()] = kind
    return written


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} files")
