#!/usr/bin/env python3
"""Whether Pixwarden and the Python reference see the same pixels and give the same scores.

    python tests/agreement.py --pixwarden target/debug/pixwarden

Makes fixture images, bad files and detectors in a temporary folder, runs `pixwarden scan` over them with each
detector, and compares with Pillow and ONNX Runtime in Python. At the end it checks itself: packages with a planted
mistake are given to Pixwarden, and the comparison must notice each. ORT_DYLIB_PATH is taken from the environment.

Exit status: 0 all agree, 1 something does not, 2 Pixwarden could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from reference import detectors, processors
from reference.expected import SCORE_TOLERANCE, Expected, make
from reference.screen import FLAG_AT, REVIEW_AT, Detector, decode

PIXEL_TOLERANCE = 0.05
"""Mean absolute difference of an image's pixels as fed to the model, in levels of 255. The interface allows 1; resizing
in another order than Pillow's, across the image first where it goes down first, makes 0.1 to 0.3."""
COARSE = {"efficientnet": 1.0, "timm-squash-crop": 1.0}
"""The nearest and the box filter take whole pixels or none: where an edge falls between two, the resizers may differ."""
LEAST_SPREAD = 0.1
"""Scores that hardly differ between images would agree whatever is wrong."""
SCAN_TIMEOUT_S = 300
PLANTED_IMAGES = 16
PROCESSOR_IMAGES = 24


@dataclass
class Difference:
    """One file under one detector: how far Pixwarden is from the reference, and what is wrong."""

    pixels: float | None = None
    pixels_max: int | None = None
    score: float | None = None
    measured: list[str] = field(default_factory=list)
    """Differences beyond the tolerances. A planted mistake must show here."""
    broken: list[str] = field(default_factory=list)
    """Output that is missing or contradicts the interface. Never proof of a planted mistake."""

    @property
    def problems(self) -> list[str]:
        return self.broken + self.measured


class ScanFailed(Exception):
    """`pixwarden scan` gave nothing to compare."""


def scan(binary: Path, package: Path, files: list[Path], pixels: Path) -> list[dict]:
    """Runs one detector over all files: one record a file, in their order."""
    options = ["--detector", str(package)]
    options += ["--label", detectors.POSITIVE, "--review-at", str(REVIEW_AT), "--flag-at", str(FLAG_AT)]
    return _scan(binary, options, files, pixels)


def _scan(binary: Path, options: list[str], files: list[Path], pixels: Path) -> list[dict]:
    command = [str(binary), "scan", "--format", "jsonl", "--save-pixels", str(pixels), *options]
    command += [str(file) for file in files]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCAN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ScanFailed(f"no end after {SCAN_TIMEOUT_S} s") from None
    except OSError as error:
        raise ScanFailed(str(error)) from error
    try:
        records = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    except ValueError as error:
        raise ScanFailed(f"a line is not JSON ({error}):\n{done.stdout[:500]}") from error
    if len(records) != len(files):
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise ScanFailed(f"{len(records)} lines for {len(files)} files, exit status {done.returncode}\n{tail}")
    return records


def compare(expected: Expected, detector: str, record: dict, pixels: Path) -> Difference:
    """One record of `scan`, and the pixels saved with it, against the reference."""
    result = Difference()
    missing = [key for key in ("image", "outcome") if not isinstance(record.get(key), str)]
    if missing:
        result.broken.append(f"no {' and no '.join(missing)} in the record")
        return result
    if Path(record["image"]).name != expected.file.name:
        result.broken.append(f"record is for {record['image']}")
        return result
    if record.get("sha256") != expected.sha256:
        result.broken.append(f"sha256 is {record.get('sha256')}")
    if record.get("bytes") != expected.size_bytes:
        result.broken.append(f"bytes is {record.get('bytes')}, not {expected.size_bytes}")
    if expected.is_damaged:
        if detector == "nan" and record["outcome"] == "failed":
            return result
        if record["outcome"] not in ("review", "flagged") or not record.get("damage"):
            result.broken.append(f"{record['outcome']}, damage {record.get('damage')!r}, must be damaged: {expected.why}")
        return result
    if expected.decoded is None:
        if record["outcome"] != "undecodable":
            result.broken.append(f"{record['outcome']}, must be undecodable: {expected.why}")
        elif record.get("score") is not None:
            result.broken.append(f"undecodable and yet scored {record['score']}")
        return result
    if record["outcome"] in ("undecodable", "rejected", "missing"):
        result.broken.append(f"{record['outcome']} ({record.get('reason')}), must be {expected.outcome(detector)}")
        return result
    facts = expected.decoded
    for key, wanted in (
        ("format", facts.format),
        ("width", facts.width),
        ("height", facts.height),
        ("frames", facts.frame_count),
    ):
        if record.get(key) != wanted:
            result.broken.append(f"{key} is {record.get(key)}, not {wanted}")
    saved = pixels / detector / f"{expected.sha256}.png"
    _compare_pixels(result, expected.pixels[detector], saved, COARSE.get(detector, PIXEL_TOLERANCE))
    _compare_scores(result, expected, detector, record)
    return result


def _compare_pixels(result: Difference, wanted: np.ndarray, file: Path, tolerance: float) -> None:
    if not file.exists():
        result.broken.append(f"no saved pixels at {file}")
        return
    with Image.open(file) as image:
        got = np.asarray(image.convert("RGB"))
    if got.shape != wanted.shape:
        result.broken.append(f"pixels are {got.shape}, not {wanted.shape}")
        return
    gap = np.abs(got.astype(np.int16) - wanted)
    result.pixels, result.pixels_max = float(gap.mean()), int(gap.max())
    if result.pixels > tolerance:
        result.measured.append(f"pixels differ by {result.pixels:.2f} levels on average, {result.pixels_max} at most")


def _compare_scores(result: Difference, expected: Expected, detector: str, record: dict) -> None:
    wanted, wanted_outcome = expected.scores[detector], expected.outcome(detector)
    if wanted is None:
        # Scores that are not numbers: the outcome says all there is to say.
        if record["outcome"] != wanted_outcome:
            result.broken.append(f"{record['outcome']}, must be {wanted_outcome}: the model gives NaN")
        return
    got = (record.get("scores") or {}).get(detector)
    if got is None or set(got) != set(wanted) or any(value is None for value in got.values()):
        result.broken.append(f"scores are {record.get('scores')} ({record['outcome']}: {record.get('reason')})")
        return
    result.score = float(np.max([abs(got[label] - wanted[label]) for label in wanted]))
    # Written so that NaN, which is neither above nor below, does not pass.
    if not result.score <= SCORE_TOLERANCE:
        result.measured.append(f"a score differs by {result.score:.4f}")
    if record["outcome"] != wanted_outcome and not expected.near_threshold(detector):
        score = wanted[detectors.POSITIVE]
        result.measured.append(f"{record['outcome']}, must be {wanted_outcome} at {score:.4f}")
    if record.get("label") not in (None, detectors.POSITIVE):
        result.broken.append(f"label is {record['label']}")
    if record.get("score") is None or not abs(record["score"] - got[detectors.POSITIVE]) <= 1e-6:
        result.broken.append(f"score is {record.get('score')}, scores say {got[detectors.POSITIVE]}")


def check(binary: Path, packages: list[Path], expected: list[Expected], work: Path) -> tuple[int, int]:
    """Compares every file under every detector and prints the table. Returns files that agree and that do not."""
    files = [one.file for one in expected]
    found: list[list[Difference]] = [[] for _ in expected]
    problems: list[str] = []
    for package in packages:
        records = scan(binary, package, files, work / "pixels")
        for one, record, differences in zip(expected, records, found, strict=True):
            difference = compare(one, package.name, record, work / "pixels")
            differences.append(difference)
            problems += [f"{one.file.name}, {package.name}: {problem}" for problem in difference.problems]

    by_kind: dict[str, list[list[Difference]]] = defaultdict(list)
    for one, differences in zip(expected, found, strict=True):
        by_kind[one.kind].append(differences)
    print(f"{'format':<25}{'files':>6}{'mean px':>9}{'max px':>8}{'score':>9}  verdict")
    for kind, rows in by_kind.items():
        flat = [difference for row in rows for difference in row]
        print(
            f"{kind:<25}{len(rows):>6}{_largest(flat, 'pixels', '.3f'):>9}{_largest(flat, 'pixels_max', 'd'):>8}"
            f"{_largest(flat, 'score', '.4f'):>9}  {'FAILS' if any(d.problems for d in flat) else 'agrees'}"
        )
    print(f"Largest differences under {len(packages)} detectors: pixels in levels of 255, scores from 0 to 1.")
    print(f"Tolerances: {PIXEL_TOLERANCE} levels on average over an image, {SCORE_TOLERANCE} of score.")
    for problem in problems[:40]:
        print(f"  {problem}")
    if len(problems) > 40:
        print(f"  and {len(problems) - 40} more")
    failed = sum(any(difference.problems for difference in differences) for differences in found)
    return len(expected) - failed, failed


def _largest(differences: list[Difference], name: str, form: str) -> str:
    values = [value for value in (getattr(one, name) for one in differences) if value is not None]
    return format(max(values), form) if values else "-"


def check_spread(packages: list[Path], expected: list[Expected]) -> bool:
    """Whether the reference's scores differ enough between images for agreement to mean something."""
    wide = True
    for package in packages:
        scores = [one.scores[package.name] for one in expected if one.scores.get(package.name)]
        deviation = float(np.std([score[detectors.POSITIVE] for score in scores]))
        wide &= deviation > LEAST_SPREAD
        print(f"spread of {package.name}: standard deviation {deviation:.3f} over {len(scores)} images")
    return wide


def check_processors(binary: Path, expected: list[Expected], work: Path) -> tuple[int, int]:
    """Compares every kind of preprocessing on a few images, in one scan. Returns kinds that agree and that do not."""
    sample = _sample(expected, PROCESSOR_IMAGES)
    folders = processors.write(work / "processors")
    differences = _compare_processors(binary, folders, folders, sample, work)
    print(f"{'preprocessing':<25}{'mean px':>9}{'max px':>8}{'score':>9}  verdict")
    failed = 0
    for name, results in differences.items():
        problems = [f"{one.file.name}: {p}" for one, result in zip(sample, results, strict=True) for p in result.problems]
        failed += bool(problems)
        print(
            f"{name:<25}{_largest(results, 'pixels', '.3f'):>9}{_largest(results, 'pixels_max', 'd'):>8}"
            f"{_largest(results, 'score', '.4f'):>9}  {'FAILS' if problems else 'agrees'}"
        )
        for problem in problems[:3]:
            print(f"  {problem}")
    return len(differences) - failed, failed


def check_planted_processors(binary: Path, expected: list[Expected], work: Path) -> tuple[int, int]:
    """As `check_planted`, for the fields of image processors."""
    sample = _sample(expected, PLANTED_IMAGES)
    good = {folder.name: folder for folder in processors.write(work / "processors")}
    noticed = 0
    for number, (mistake, changes) in enumerate(processors.MISTAKES.items()):
        root = work / "planted" / f"processor-{number}"
        changed = processors.write(root, changes)
        right = [good[folder.name] for folder in changed]
        [results] = _compare_processors(binary, changed, right, sample, root).values()
        failing = sum(bool(result.measured) for result in results)
        noticed += failing > 0
        saw = f"pixels {_largest(results, 'pixels', '.2f')}, score {_largest(results, 'score', '.3f')}"
        found = f"noticed on {failing} of {len(sample)} images" if failing else "NOT NOTICED"
        print(f"planted, {mistake}: {found} ({saw})")
    return noticed, len(processors.MISTAKES) - noticed


def _compare_processors(
    binary: Path, scanned: list[Path], right: list[Path], sample: list[Expected], work: Path
) -> dict[str, list[Difference]]:
    """Scans with some packages and compares with what the reference makes of others of the same names."""
    config = work / "processors.toml"
    # They are compared by pixels and scores. A policy must judge something, so the first one has a rule.
    entries = [f"[[detectors]]\npath = {json.dumps(str(one))}\nshadow = {json.dumps(one != scanned[0])}\n" for one in scanned]
    rule = {"detector": scanned[0].name, "label": detectors.POSITIVE, "review_at": 0.5, "flag_at": 0.9}
    entries.append("[[policy.rules]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in rule.items()))
    config.write_text("\n".join(entries))
    pixels = work / "pixels"
    records = _scan(binary, ["--config", str(config)], [one.file for one in sample], pixels)
    differences = {}
    for detector in map(Detector, right):
        results = differences.setdefault(detector.name, [])
        for one, record in zip(sample, records, strict=True):
            wanted_pixels, wanted = detector.screen(decode(one.file.read_bytes()).frames, detectors.POSITIVE)
            result = Difference()
            saved, tolerance = pixels / detector.name / f"{one.sha256}.png", COARSE.get(detector.name, PIXEL_TOLERANCE)
            _compare_pixels(result, wanted_pixels, saved, tolerance)
            got = (record.get("scores") or {}).get(detector.name)
            if got is None or set(got) != set(wanted):
                result.broken.append(f"scores are {record.get('scores')}")
            else:
                result.score = max(abs(got[label] - wanted[label]) for label in wanted)
                if not result.score <= SCORE_TOLERANCE:
                    result.measured.append(f"a score differs by {result.score:.4f}")
            results.append(result)
    return differences


def _sample(expected: list[Expected], count: int) -> list[Expected]:
    """A few still images, spread over the list, so that several formats and shapes are among them."""
    good = [one for one in expected if one.decoded is not None and one.decoded.frame_count == 1]
    return good[:: max(len(good) // count, 1)][:count]


def check_planted(binary: Path, expected: list[Expected], work: Path) -> tuple[int, int]:
    """Gives Pixwarden packages with one mistake each. Returns mistakes that the comparison noticed and missed."""
    good = [one for one in expected if one.decoded is not None]
    # Every sixth or so, so that several formats and shapes are among them.
    sample = good[:: max(len(good) // PLANTED_IMAGES, 1)][:PLANTED_IMAGES]
    noticed = missed = 0
    for number, (mistake, package) in enumerate(detectors.planted().items()):
        root = work / "planted" / str(number)
        records = scan(binary, package.write(root), [one.file for one in sample], root / "pixels")
        results = [
            compare(one, package.name, record, root / "pixels") for one, record in zip(sample, records, strict=True)
        ]
        failing = sum(bool(result.measured) for result in results)
        broken = [problem for result in results for problem in result.broken]
        saw = f"pixels {_largest(results, 'pixels', '.2f')}, score {_largest(results, 'score', '.3f')}"
        if failing and not broken:
            noticed += 1
            print(f"planted, {mistake}: noticed on {failing} of {len(sample)} images ({saw})")
        else:
            missed += 1
            print(f"planted, {mistake}: NOT NOTICED ({saw}) {'; '.join(broken[:2])}")
    return noticed, missed


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare Pixwarden with the Python reference.")
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="PATH", help="the binary")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and leave it")
    planted = parser.add_mutually_exclusive_group()
    planted.add_argument("--planted", action="store_true", help="only check that planted mistakes are noticed")
    planted.add_argument("--no-planted", action="store_true", help="skip that check")
    options = parser.parse_args()
    if not os.access(options.pixwarden, os.X_OK) or options.pixwarden.is_dir():
        print(f"{options.pixwarden} is not a program; build it first and give its path", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="agreement-") as temporary:
        work = (options.keep or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        # Pixels of an earlier run would hide that this one saves none.
        for left_over in ("pixels", "planted"):
            shutil.rmtree(work / left_over, ignore_errors=True)
        # The null detector exists for timing; its scores say nothing.
        packages, expected = make(work, leave_out=["null"])
        agreed = failed = 0
        try:
            if not options.planted:
                agreed, failed = check(options.pixwarden.resolve(), packages, expected, work)
                kinds, wrong = check_processors(options.pixwarden.resolve(), expected, work)
                agreed, failed = agreed + kinds, failed + wrong
            failed += not check_spread(packages, expected)
            if not options.no_planted:
                for check_it in (check_planted, check_planted_processors):
                    noticed, missed = check_it(options.pixwarden.resolve(), expected, work)
                    agreed, failed = agreed + noticed, failed + missed
        except ScanFailed as error:
            print(f"pixwarden scan: {error}", file=sys.stderr)
            return 2
    print(f"{agreed} agreed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
