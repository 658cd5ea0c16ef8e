#!/usr/bin/env python3
"""Whether `pixwarden evaluate` gives the figures that Pillow, ONNX Runtime and NumPy give.

    python tests/evaluate.py --pixwarden target/debug/pixwarden

Draws labelled images into a temporary folder, evaluates two detectors on them in one run, and compares every count and
every figure with the formulas written down here. At the end it checks itself: datasets and packages with a planted
mistake are given to Pixwarden, and the comparison must notice each. ORT_DYLIB_PATH is taken from the environment.

    python tests/evaluate.py --pixwarden target/release/pixwarden --parquet val.parquet --package models/cifake-32

compares on a parquet file instead; that needs pyarrow.

Exit status: 0 all agree, 1 something does not, 2 Pixwarden could not be run.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from reference import detectors
from reference.scenes import scene
from reference.screen import Detector, Undecodable, decode

BINS = 15
EVEN = 0.5
TOLERANCE = 1e-5
"""Of areas and errors. Counts have none: they must agree to the image."""
NEAR = 1e-5
"""Scores nearer than this to each other or to a threshold are not drawn: rounding could swap them."""
IMAGES = 160
TIMEOUT_S = 600
RATES = (0.05, 0.2)
"""The false-positive rates asked for: for flagging and for review."""


class Failed(Exception):
    """`pixwarden evaluate` gave nothing to compare."""


@dataclass
class Dataset:
    """Images under one name: files, or rows, and whether each is positive."""

    name: str
    arguments: list[str]
    """What `--dataset` gets."""
    images: list[tuple[str, bytes, bool]] = field(default_factory=list)
    """Name, file and truth."""


@dataclass
class Reference:
    """Scores of one detector by the reference, dataset by dataset."""

    positive: str
    scores: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    unscored: set[str]
    slices: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    """Of each image format, size and compression, as `evaluate` names them."""


# --- the figures -----------------------------------------------------------------------------------------------------


def roc_auc(scores: np.ndarray, truths: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive scores higher, ties counting half."""
    negatives = np.sort(scores[~truths])
    below = np.searchsorted(negatives, scores[truths], side="left").sum()
    up_to = np.searchsorted(negatives, scores[truths], side="right").sum()
    return float((below + up_to) / 2 / (truths.sum() * len(negatives)))


def average_precision(scores: np.ndarray, truths: np.ndarray) -> float:
    """Precision at each distinct score, weighted by the recall gained there."""
    total = 0.0
    for score in np.unique(scores[truths]):
        gained = np.count_nonzero(truths & (scores == score)) / truths.sum()
        total += gained * truths[scores >= score].mean()
    return float(total)


def calibration_error(scores: np.ndarray, truths: np.ndarray) -> float:
    """Mean distance of score and share of positives over bins of equal width, weighted by their images."""
    bins = np.minimum((scores.astype(np.float64) * BINS).astype(int), BINS - 1)
    gaps = [
        np.count_nonzero(bins == one) * abs(scores[bins == one].mean(dtype=np.float64) - truths[bins == one].mean())
        for one in np.unique(bins)
    ]
    return float(sum(gaps) / len(scores))


# --- running both ----------------------------------------------------------------------------------------------------


def evaluate(binary: Path, packages: list[Path], datasets: list[Dataset], *more: str) -> subprocess.CompletedProcess:
    command = [str(binary), "evaluate", "--log", "warn"]
    command += ["--slices", "--fpr", str(RATES[0]), "--review-fpr", str(RATES[1])]
    for package in packages:
        command += ["--detector", str(package)]
    for dataset in datasets:
        for argument in dataset.arguments:
            command += ["--dataset", argument]
    try:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise Failed(str(error)) from error


def records(done: subprocess.CompletedProcess) -> list[dict]:
    if done.returncode != 0:
        raise Failed(f"exit status {done.returncode}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def reference(package: Path, positive: str, datasets: list[Dataset]) -> Reference:
    """Screens every image with Pillow and ONNX Runtime."""
    detector = Detector(package)
    result = Reference(positive, {}, {}, set())
    for dataset in datasets:
        scores, truths, slices = [], [], []
        for name, data, truth in dataset.images:
            try:
                _, found = detector.screen(decode(data).frames, positive)
            except Undecodable:
                found = None
            if found is None:
                result.unscored.add(name)
                continue
            scores.append(found[positive])
            truths.append(truth)
            slices.append(slices_of(data))
        result.slices[dataset.name] = slices
        result.scores[dataset.name] = np.array(scores, np.float32)
        result.truths[dataset.name] = np.array(truths, bool)
    return result


def slices_of(data: bytes) -> tuple[str, str, str]:
    with Image.open(io.BytesIO(data)) as image:
        side, bits = max(image.size), 8 * len(data) / (image.width * image.height)
        kind = image.format.lower()
    sizes = [(256, "up to 256"), (512, "257 to 512"), (1024, "513 to 1024"), (2048, "1025 to 2048"), (4096, "2049 to 4096")]
    size = next((name for largest, name in sizes if side <= largest), "over 4096")
    ends = [0.5, 1, 2, 4, 8]
    compression = next((end for end in ends if bits < end), None)
    if compression is None:
        return kind, size, "8 or more bits/px"
    before = ends[ends.index(compression) - 1]
    return kind, size, "under 0.5 bits/px" if compression == ends[0] else f"{before:g} to {compression:g} bits/px"


def compare_slices(expected: Reference, lines: list[dict], exact: Callable, near: Callable) -> None:
    """The figures by format, size, compression and dataset, and those of each property."""
    scores, truths = (np.concatenate(list(part.values())) for part in (expected.scores, expected.truths))
    named = [(*slices, name) for name in expected.scores for slices in expected.slices[name]]
    for index, by in enumerate(("format", "size", "compression", "dataset")):
        of_image = np.array([names[index] for names in named])
        rows = {line["slice"]: line for line in lines if line["kind"] == "slice" and line["by"] == by}
        exact(f"the slices by {by}", sorted(rows), sorted(set(of_image)))
        within = pairs = 0.0
        share = np.zeros(len(scores), np.float32)
        for name in sorted(set(of_image) & set(rows)):
            mask = of_image == name
            _compare_counts(exact, near, f"{by} {name}", rows[name], scores[mask], truths[mask])
            share[mask] = truths[mask].mean()
            if 0 < truths[mask].sum() < mask.sum():
                area = roc_auc(scores[mask], truths[mask])
                near(f"{by} {name}: ROC AUC", rows[name]["roc_auc"], area)
                count = truths[mask].sum() * (~truths[mask]).sum()
                within, pairs = within + area * count, pairs + count
            else:
                exact(f"{by} {name}: ROC AUC", rows[name]["roc_auc"], None)
        found = [line for line in lines if line["kind"] == "property" and line["by"] == by]
        exact(f"properties by {by}", len(found), int(len(set(of_image)) > 1))
        for line in found:
            near(f"{by} alone: ROC AUC", line["roc_auc_of_property"], roc_auc(share, truths))
            if pairs:
                near(f"within {by}: ROC AUC", line["roc_auc_within"], within / pairs)


def compare(expected: Reference, detector: str, lines: list[dict]) -> list[str]:
    """What differs between the reference and the records of one detector."""
    problems: list[str] = []

    def exact(what: str, got: object, wanted: object) -> None:
        if got != wanted:
            problems.append(f"{what} is {got}, must be {wanted}")

    def near(what: str, got: float | None, wanted: float) -> None:
        # Written so that null and NaN do not pass.
        if got is None or not abs(got - wanted) <= TOLERANCE:
            problems.append(f"{what} is {got}, must be {wanted:.7f}")

    ours = [line for line in lines if line.get("detector") == detector]
    rows = {line["dataset"]: line for line in ours if line["kind"] == "dataset"}
    exact("the datasets", list(rows), list(expected.scores))
    for name, row in rows.items():
        if name in expected.scores:
            _compare_counts(exact, near, name, row, expected.scores[name], expected.truths[name])

    scores, truths = (np.concatenate(list(part.values())) for part in (expected.scores, expected.truths))
    (overall,) = [line for line in ours if line["kind"] == "overall"]
    _compare_counts(exact, near, "overall", overall, scores, truths)
    near("ROC AUC", overall["roc_auc"], roc_auc(scores, truths))
    near("average precision", overall["average_precision"], average_precision(scores, truths))
    near("calibration error", overall["expected_calibration_error"], calibration_error(scores, truths))

    thresholds = [line for line in ours if line["kind"] == "threshold"]
    exact("sweep of at least 13 thresholds", len(thresholds) >= 13, True)
    for line in thresholds:
        reached = scores >= np.float32(line["threshold"])
        what = f"at {line['threshold']}"
        true, false = np.count_nonzero(reached & truths), np.count_nonzero(reached & ~truths)
        exact(f"{what}: true positives", line["true_positives"], true)
        exact(f"{what}: false positives", line["false_positives"], false)
        near(f"{what}: recall", line["recall"], true / truths.sum())
        near(f"{what}: false-positive rate", line["false_positive_rate"], false / (~truths).sum())
        if true + false:
            near(f"{what}: precision", line["precision"], true / (true + false))

    (recommended,) = [line for line in ours if line["kind"] == "recommendation"]
    for name, wanted in zip(("flag_at", "review_at"), RATES, strict=True):
        threshold = np.float32(recommended[name])
        exact(f"{name} keeps its rate", bool((scores[~truths] >= threshold).mean() <= wanted), True)
        lower = scores[scores < threshold]
        too_many = lower.size == 0 or (scores[~truths] >= lower.max()).mean() > wanted
        exact(f"{name} is the lowest that does", bool(too_many), True)

    compare_slices(expected, ours, exact, near)
    unscored = {line["image"] for line in lines if line["kind"] == "unscored"}
    exact("what could not be scored", sorted(unscored), sorted(expected.unscored))
    return problems


def _compare_counts(
    exact: Callable, near: Callable, name: str, row: dict, scores: np.ndarray, truths: np.ndarray
) -> None:
    right = np.count_nonzero((scores >= EVEN) == truths)
    exact(f"{name}: images", row["images"], len(scores))
    exact(f"{name}: positives", row["positives"], np.count_nonzero(truths))
    exact(f"{name}: correct", row["correct"], right)
    near(f"{name}: accuracy", row["accuracy"], right / len(scores))


# --- the images ------------------------------------------------------------------------------------------------------


def draw(detector: Detector) -> Iterator[tuple[bytes, bool]]:
    """Pictures of the detector's own size, so that both sides see the very same pixels, with truths that its scores
    tell about right."""
    rng = np.random.RandomState(7)
    taken = [0.01, 0.05, *np.arange(0.1, 1.0, 0.1), 0.95, 0.99]
    seed = 0
    while len(taken) < 13 + IMAGES:
        seed += 1
        out = io.BytesIO()
        picture = Image.fromarray(scene(seed, detectors.SIZE, detectors.SIZE))
        picture.save(out, "JPEG", quality=92) if seed % 3 == 0 else picture.save(out, "PNG")
        _, found = detector.screen(decode(out.getvalue()).frames, detectors.POSITIVE)
        score = found[detectors.POSITIVE]
        if min(abs(score - other) for other in taken) > NEAR:
            taken.append(score)
            yield out.getvalue(), bool(rng.uniform() < score)


def write(root: Path, package: Path) -> list[Dataset]:
    """Three datasets: one of both classes from two folders, one only positive, one only negative. Two files are no
    images."""
    for folder in ("ai", "human", "only-ai", "only-human"):
        (root / folder).mkdir(parents=True)
    both = Dataset("both", [f"both=by AI:{root / 'ai'}", f"both=by human:{root / 'human'}"])
    one = Dataset("generated", [f"generated=positive:{root / 'only-ai'}"])
    other = Dataset("photographs", [f"photographs=negative:{root / 'only-human'}"])
    for number, (data, truth) in enumerate(draw(Detector(package))):
        if number % 2:
            dataset, folder = both, "ai" if truth else "human"
        else:
            dataset, folder = (one, "only-ai") if truth else (other, "only-human")
        _put(dataset, root / folder / f"{number:03}.img", data, truth)
    _put(other, root / "only-human" / "text.jpg", b"not an image", False)
    _put(both, root / "human" / "cut.jpg", both.images[-1][1][:200], False)
    return [both, one, other]


def _put(dataset: Dataset, file: Path, data: bytes, truth: bool) -> None:
    file.write_bytes(data)
    dataset.images.append((str(file), data, truth))


def read_parquet(file: Path) -> Dataset:
    """A file with the columns `image` {bytes, path} and `label`, 1 being positive."""
    import pyarrow.parquet

    dataset = Dataset("parquet", [f"parquet=column:label:{file}"])
    for number, row in enumerate(pyarrow.parquet.read_table(file, columns=["image", "label"]).to_pylist()):
        name = f"{file}, row {number} ({row['image']['path']})"
        dataset.images.append((name, row["image"]["bytes"], row["label"] == 1))
    return dataset


# --- the checks ------------------------------------------------------------------------------------------------------


def check(binary: Path, packages: list[Path], positive: str, datasets: list[Dataset]) -> int:
    """Compares every detector and prints what it found. Returns how many do not agree."""
    lines = records(evaluate(binary, packages, datasets, "--format", "jsonl"))
    failed = 0
    for package in packages:
        expected = reference(package, positive, datasets)
        problems = compare(expected, package.name, lines)
        (overall,) = [line for line in lines if line["kind"] == "overall" and line["detector"] == package.name]
        print(
            f"{package.name}: {overall['correct']} of {overall['images']} right, ROC AUC {overall['roc_auc']:.4f}, "
            f"average precision {overall['average_precision']:.4f}, calibration error "
            f"{overall['expected_calibration_error']:.4f}: {'DIFFERS' if problems else 'agrees'}"
        )
        for problem in problems[:10]:
            print(f"  {problem}")
        failed += bool(problems)
    return failed


def check_planted(binary: Path, package: Path, datasets: list[Dataset], work: Path) -> int:
    """Gives Pixwarden one mistake at a time. Returns how many the comparison missed."""
    expected = reference(package, detectors.POSITIVE, datasets)
    root = Path(datasets[0].arguments[0].split(":", 1)[1]).parent
    swapped = [Dataset(one.name, [_swapped(argument) for argument in one.arguments]) for one in datasets]
    wrong = detectors.planted()["swapped channels"].write(work / "planted")
    # An image that is in the wrong folder, a lost one, and a bad file that is not reported.
    confident = next(file for file, _, truth in datasets[2].images if not truth)
    moves = {
        "an image in the wrong folder": (Path(confident), root / "only-ai" / "moved.img"),
        "an image left out": (Path(confident), work / "away.img"),
        "a bad file left out": (root / "human" / "cut.jpg", work / "away.jpg"),
    }
    runs: dict[str, Callable] = {
        "labels swapped": lambda: evaluate(binary, [package], swapped, "--format", "jsonl"),
        "swapped channels": lambda: evaluate(binary, [wrong], datasets, "--format", "jsonl"),
        "scores too cautious": lambda: evaluate(binary, [_cautious(package, work)], datasets, "--format", "jsonl"),
    }
    missed = 0
    for mistake in [*runs, *moves]:
        if mistake in moves:
            old, new = moves[mistake]
            shutil.move(old, new)
            done = evaluate(binary, [package], datasets, "--format", "jsonl")
            shutil.move(new, old)
        else:
            done = runs[mistake]()
        problems = compare(expected, package.name, records(done))
        missed += not problems
        print(f"planted, {mistake}: {f'noticed, {problems[0]}' if problems else 'NOT NOTICED'}")
    return missed


def _swapped(argument: str) -> str:
    for label, other in (("by AI", "by human"), ("positive", "negative")):
        for one, instead in ((label, other), (other, label)):
            if f"={one}:" in argument:
                return argument.replace(f"={one}:", f"={instead}:")
    raise AssertionError(argument)


def _cautious(package: Path, work: Path) -> Path:
    """The package with its logits halved: the same order, the same accuracy, another calibration."""
    folder = work / "cautious" / package.name
    shutil.copytree(package, folder)
    model = onnx.load(folder / "model.onnx")
    for constant in model.graph.initializer:
        if constant.name.startswith("head_"):
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) / 2, constant.name))
    onnx.save(model, folder / "model.onnx")
    return folder


def check_interface(binary: Path, package: Path, datasets: list[Dataset], work: Path) -> list[str]:
    """Exit statuses, the other formats and the page."""
    problems = []
    nothing = work / "nothing"
    nothing.mkdir()
    (nothing / "text.jpg").write_bytes(b"not an image")
    ai = datasets[0].arguments[0].split(":", 1)[1]
    for arguments, status, words in [
        ([f"x=real:{ai}"], 2, 'the labels of spread-nhwc are "by human", "by AI"'),
        ([f"x={ai}"], 2, "NAME=LABEL:PATH"),
        (["x=positive:/nowhere/at/all"], 2, "/nowhere/at/all"),
        ([f"x=column:label:{ai}"], 2, "*.parquet"),
        ([f"x=positive:{nothing}"], 1, "no image was scored"),
    ]:
        done = evaluate(binary, [package], [Dataset("x", arguments)], "--format", "jsonl")
        if done.returncode != status or words not in done.stderr:
            problems.append(f"{arguments}: exit status {done.returncode}, must be {status}; {done.stderr.strip()}")
    for more in (["--fpr", "0.5", "--review-fpr", "0.1"], ["--fpr", "nan"], ["--report", "/nowhere/at/all/x.html"]):
        done = evaluate(binary, [package], datasets[:1], *more)
        if done.returncode != 2:
            problems.append(f"{more}: exit status {done.returncode}, must be 2")

    page = work / "report.html"
    lines = records(evaluate(binary, [package], datasets, "--format", "jsonl", "--report", str(page)))
    table = list(csv.DictReader(io.StringIO(evaluate(binary, [package], datasets, "--format", "csv").stdout)))
    if [row["kind"] for row in table] != [line["kind"] for line in lines]:
        problems.append("CSV and JSON lines have other rows")
    text = page.read_text()
    for part in ("<svg", "cut.jpg", "data:image/png", "ROC AUC"):
        if part not in text:
            problems.append(f"the page has no {part}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare `pixwarden evaluate` with Pillow, ONNX Runtime and NumPy.")
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="PATH", help="the binary")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="compare on this file instead; needs pyarrow")
    parser.add_argument("--package", type=Path, metavar="DIR", help="the detector for --parquet")
    options = parser.parse_args()
    if not os.access(options.pixwarden, os.X_OK) or options.pixwarden.is_dir():
        print(f"{options.pixwarden} is not a program; build it first and give its path", file=sys.stderr)
        return 2
    if (options.parquet is None) != (options.package is None):
        parser.error("--parquet and --package belong together")
    binary = options.pixwarden.resolve()
    with tempfile.TemporaryDirectory(prefix="evaluate-") as temporary:
        work = Path(temporary)
        try:
            if options.parquet:
                package = options.package.resolve()
                failed = check(binary, [package], detectors.POSITIVE, [read_parquet(options.parquet.resolve())])
            else:
                packages = detectors.write(work / "detectors")[:2]
                datasets = write(work / "images", packages[0])
                failed = check(binary, packages, detectors.POSITIVE, datasets)
                failed += check_planted(binary, packages[0], datasets, work)
                problems = check_interface(binary, packages[0], datasets, work)
                for problem in problems:
                    print(f"interface: {problem}")
                failed += len(problems)
        except Failed as error:
            print(f"pixwarden evaluate: {error}", file=sys.stderr)
            return 2
    print("all agree" if not failed else f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
