#!/usr/bin/env python3
"""Whether Pixwarden screens what people see: Chromium and `pixwarden scan` side by side over the same files.

    python tests/visible/measure.py --pixwarden target/debug/pixwarden [PATH...]

Without a path the files are made by the tests, one of each kind. ORT_DYLIB_PATH is taken from the environment.

agree      shown and scored, every picture that is checked the same
differ     shown and scored, and a detector was given something else than people see
unscored   shown, and not scored
blank      Chromium gives a size and paints nothing
hidden     scored, and not shown by Chromium
neither    neither shown nor scored

Checked are the size, the first view over white, the view over black where it differs, every other view, whether the last
frame of an animation and the longest one are views, and whether a WebP is also seen turned by its EXIF block.

Exit status: 0 all agree, but for differences with an argument; 1 something differs, less than 95 % of what is shown is
scored, or damage has passed; 2 nothing could be measured.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import browser
import mutate
import pictures
import probe
from compare import CLASSES, Result, compare, read_views, saved_files
from differences import ARGUED
from formats import SHOWN_BY_PILLOW, format_of
from PIL import Image
from seen import Seen, by_pillow

LEAST_SCORED = 0.95
"""Of what is shown of one format. Refusing everything is no agreement."""
_SCAN_TIMEOUT_S = 3600
_ORIENTATION = 0x0112


class CannotMeasure(Exception):
    """A program is missing or gives nothing to compare."""


def scan(binary: Path, paths: list[Path], work: Path) -> dict[str, dict]:
    """The record of every file by its path; views are saved in the folder `pixels`."""
    command = [str(binary), "scan", "--format", "jsonl", "--log", "error", "--detector", str(probe.write(work))]
    command += [*probe.OPTIONS, "--save-pixels", str(work / "pixels"), "-"]
    listed = "".join(f"{path}\n" for path in paths)
    try:
        done = subprocess.run(
            command, input=listed, capture_output=True, text=True, timeout=_SCAN_TIMEOUT_S, check=False, cwd=work
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMeasure(f"cannot run {binary}: {error}") from error
    records = {record["image"]: record for record in map(json.loads, done.stdout.splitlines())}
    if not records:
        raise CannotMeasure(f"{binary} printed no record, exit status {done.returncode}\n{done.stderr[-1000:]}")
    return records


def look(paths: list[Path], formats: list[str]) -> list[Seen]:
    """What viewers show of every file."""
    chromium = browser.Chromium(paths)
    chromium.run()
    by_hand = {number for number, name in enumerate(formats) if name in SHOWN_BY_PILLOW}
    return [by_pillow(str(path)) if n in by_hand else chromium.seen[n] for n, path in enumerate(paths)]


def measure(binary: Path, paths: list[Path], work: Path) -> list[Result]:
    formats = [format_of(path.read_bytes()) for path in paths]
    scanned: dict[str, dict] = {}
    failures: list[CannotMeasure] = []

    def scan_all() -> None:
        try:
            scanned.update(scan(binary, paths, work))
        except CannotMeasure as error:
            failures.append(error)

    scanning = threading.Thread(target=scan_all)
    scanning.start()
    seen = look(paths, formats)
    scanning.join()
    if failures:
        raise failures[0]
    results = []
    saved = saved_files(work / "pixels" / probe.NAME)
    for path, name, shown in zip(paths, formats, seen, strict=True):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        views = read_views(saved.get(sha256, []), sha256)
        turned = exif_orientation(path) if name == "webp" else 1
        results.append(compare(path, name, shown, scanned.get(str(path), {}), views, turned))
    return results


def exif_orientation(path: Path) -> int:
    """The code by which viewers other than browsers turn a WebP."""
    try:
        with Image.open(path) as image:
            code = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's parsers raise nearly everything for a broken file.
        return 1
    return code if code in range(1, 9) else 1


def print_table(results: list[Result]) -> None:
    counts = Counter((result.format, result.kind) for result in results)
    print(f"{'format':<10}{'files':>7}" + "".join(f"{name:>10}" for name in CLASSES) + f"{'scored':>9}")
    for name in [*sorted({result.format for result in results}), "all"]:
        row = [sum(n for (f, c), n in counts.items() if c == kind and name in (f, "all")) for kind in CLASSES]
        shown = sum(row[:3])
        share = f"{100 * (row[0] + row[1]) / shown:.0f} %" if shown else "-"
        print(f"{name:<10}{sum(row):>7}" + "".join(f"{n:>10}" for n in row) + f"{share:>9}")


def problems(results: list[Result], names: dict[Path, str]) -> list[str]:
    """What makes the measure fail."""
    found = []
    for result in results:
        name = names[result.path]
        if result.kind == "differ" and name not in ARGUED:
            found.append(f"{name} ({result.outcome}): {'; '.join(result.problems)}")
        if result.damage_passed:
            found.append(f"{name}: damaged and passed")
    for name in sorted({result.format for result in results}):
        shown = [r for r in results if r.format == name and r.kind in ("agree", "differ", "unscored")]
        unscored = [names[r.path] for r in shown if r.kind == "unscored" and names[r.path] not in ARGUED]
        if name != "svg" and len(unscored) > (1 - LEAST_SCORED) * len(shown):
            found.append(f"{name}: {len(unscored)} of {len(shown)} shown files are not scored: {' '.join(unscored[:20])}")
    return found


def passed_although_damaged(results: list[Result], kinds: dict[Path, pictures.Kind]) -> list[str]:
    """Damage that the generator made on purpose must not pass, whatever Pixwarden noticed."""
    return [
        f"{kinds[result.path].name}: made damaged, and passed"
        for result in results
        if kinds[result.path].is_damaged and result.outcome == "passed"
    ]


def write_rows(file: Path, results: list[Result], names: dict[Path, str]) -> None:
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["file", "format", "class", "outcome", "views", "problems"])
        for r in results:
            rows.writerow([names[r.path], r.format, r.kind, r.outcome, r.views, "; ".join(r.problems)])


def found_files(paths: list[Path]) -> list[Path]:
    files = []
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file.resolve() for file in found if file.is_file() and not file.is_symlink()]
    return list(dict.fromkeys(files))


def run(options: argparse.Namespace, work: Path) -> int:
    made: dict[Path, pictures.Kind] = {}
    if options.paths:
        files = found_files(options.paths)
        names = {file: str(file) for file in files}
    else:
        made = pictures.write(work / "files")
        names = {file: kind.name for file, kind in made.items()}
        if options.mutate:
            names = mutate.write(made, work / "mutated", options.mutate, options.seed)
        files = list(names)
    results = measure(options.pixwarden.resolve(), files, work)
    print_table(results)
    if options.csv:
        write_rows(options.csv, results, names)
    if options.mutate:
        # What damage shows differs from viewer to viewer. It must reach a person.
        found = [f"{names[r.path]}: {'; '.join(r.problems)}" for r in results if r.kind == "differ" and r.outcome == "passed"]
        found += [f"{names[r.path]}: damaged and passed" for r in results if r.damage_passed]
    else:
        found = problems(results, names)
        found += passed_although_damaged(results, made) if made else []
        argued = {names[r.path] for r in results if r.kind in ("differ", "unscored")} & ARGUED.keys()
        for name in sorted(argued):
            print(f"argued: {name}: {ARGUED[name]}")
    for line in found:
        print(f"  {line}")
    print(f"visible: {len(results)} files, {len(found)} problems")
    return int(bool(found))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what Chromium shows with what Pixwarden screens.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files and folders; else the made files")
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="PATH", help="the binary")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row per file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and leave it")
    parser.add_argument("--mutate", type=int, default=0, metavar="N", help="N mutations of the made files instead")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="which mutations")
    options = parser.parse_args()
    if not os.access(options.pixwarden, os.X_OK) or options.pixwarden.is_dir():
        print(f"{options.pixwarden} is not a program; build it first and give its path", file=sys.stderr)
        return 2
    if browser.find() is None:
        print("there is no chromium on the PATH\n  hint: run tests/services/get browser", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="visible-") as temporary:
        work = (options.keep or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            return run(options, work)
        except CannotMeasure as error:
            print(error, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
