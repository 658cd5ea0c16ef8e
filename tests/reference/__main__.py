"""`python -m reference make DIR`: fixtures, detectors and what must come out, for any test to read."""

from __future__ import annotations

import argparse
from pathlib import Path

from reference.expected import make

parser = argparse.ArgumentParser(prog="python -m reference", description="Reference and fixtures for Pixwarden.")
commands = parser.add_subparsers(dest="command", required=True)
command = commands.add_parser("make", help="write images/, bad/, detectors/ and expected.jsonl into a folder")
command.add_argument("folder", type=Path, metavar="DIR")
options = parser.parse_args()
folders, results = make(options.folder)
good = sum(one.decoded is not None for one in results)
print(f"{good} images, {len(results) - good} bad files and {len(folders)} detectors in {options.folder}")
