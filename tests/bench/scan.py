#!/usr/bin/env python3
"""`pixwarden scan` over a folder: memory over very large images, and speed over thumbnails beside a plain Python loop.

    cargo build --locked --release
    tests/services/get runtime python
    ORT_DYLIB_PATH=.tools/onnxruntime/libonnxruntime.so .tools/venv/bin/python tests/bench/scan.py

Makes its images in a temporary folder (about 2 GB with the defaults). The Python loop is what one would write first:
Pillow opens, turns upright, converts and resizes, ONNX Runtime scores one image at a time with its own default threads.
Both score with the bundled detector, both print a line of JSON an image, and what they say is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from reference.scenes import scene  # noqa: E402  (found beneath tests/)

DETECTOR = ROOT / "models" / "cifake-32"
THUMBNAIL = (160, 120)
LARGE = (6000, 4000)
DISTINCT_THUMBNAILS, DISTINCT_LARGE = 500, 8


def main() -> None:
    options = arguments()
    if options.peer:
        peer(options.peer)
        return
    with tempfile.TemporaryDirectory(prefix="bench-scan-", dir=options.dir) as folder:
        large(options, Path(folder) / "large")
        thumbnails(options, Path(folder) / "thumbnails")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, default=ROOT / "target/release/pixwarden", help="the binary")
    parser.add_argument("--large", type=int, default=200, help="images of 24 megapixels (default 200)")
    parser.add_argument("--thumbnails", type=int, default=20_000, help="thumbnails (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side over the thumbnails (default 3)")
    parser.add_argument("--dir", type=Path, help="where the images are made (default: the system's temporary folder)")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="be the Python loop over FOLDER")
    return parser.parse_args()


def large(options: argparse.Namespace, folder: Path) -> None:
    """Peak memory over photographs of 24 megapixels, every fourth of them progressive."""
    folder.mkdir()
    made = [picture(LARGE, seed) for seed in range(DISTINCT_LARGE)]
    for number in range(options.large):
        target = folder / f"{number:04}.jpg"
        if number < DISTINCT_LARGE:
            made[number].save(target, quality=85, progressive=number % 4 == 0)
        else:
            os.link(folder / f"{number % DISTINCT_LARGE:04}.jpg", target)
    del made
    run = scan(options.pixwarden, folder)
    size = (folder / "0001.jpg").stat().st_size / 1e6
    print(f"{options.large} JPEGs of {LARGE[0]}x{LARGE[1]}, about {size:.1f} MB each")
    print(f"  peak memory {run.peak_mb:.0f} MB, {options.large / run.seconds:.1f} images a second\n")


def thumbnails(options: argparse.Namespace, folder: Path) -> None:
    """Images a second over thumbnails, and how much more that is than the Python loop's."""
    folder.mkdir()
    for number in range(min(options.thumbnails, DISTINCT_THUMBNAILS)):
        picture(THUMBNAIL, number).save(folder / f"{number:05}.jpg", quality=85)
    for number in range(DISTINCT_THUMBNAILS, options.thumbnails):
        source = folder / f"{number % DISTINCT_THUMBNAILS:05}.jpg"
        (folder / f"{number:05}.jpg").write_bytes(source.read_bytes())
    print(f"{options.thumbnails} JPEGs of {THUMBNAIL[0]}x{THUMBNAIL[1]}, {options.rounds} rounds, order alternating")
    runs: dict[str, list[Run]] = {"pixwarden scan": [], "Python loop": []}
    for number in range(options.rounds):
        for name in sorted(runs, reverse=number % 2 == 1):
            command = scan if name == "pixwarden scan" else loop
            runs[name].append(command(options.pixwarden, folder))
    for name, done in runs.items():
        rates = [options.thumbnails / run.seconds for run in done]
        cpu = statistics.median(run.cpu_seconds for run in done) / options.thumbnails * 1e3
        print(
            f"  {name:<15} {statistics.median(rates):7.0f} images a second ({min(rates):.0f} to {max(rates):.0f}), "
            f"{cpu:.2f} ms of CPU an image, peak memory {max(run.peak_mb for run in done):.0f} MB"
        )
    ratios = [b.seconds / a.seconds for a, b in zip(*runs.values(), strict=True)]
    print(f"  ratio           {statistics.median(ratios):7.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    ours, theirs = (runs[name][0].scores for name in runs)
    print(f"  largest difference of a score: {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.5f}")


class Run:
    """One command: its wall and CPU time, its peak memory, and the scores it printed."""

    def __init__(self, command: list[str | Path]):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # Read through the pipe as a consumer would; wait4 then tells of this child alone.
        output, errors = process.communicate()
        self.seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode != 0:
            sys.exit(f"{command[0]} failed:\n{errors.decode()}")
        self.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.scores = [json.loads(line)["score"] for line in output.splitlines()]
        self.peak_mb = peak_mb(errors)


def peak_mb(errors: bytes) -> float:
    """The peak of resident memory, as the wrapper below wrote it last."""
    return int(errors.decode().rsplit("peak_kb=", 1)[1]) / 1024


def timed(*command: str | Path) -> Run:
    # A process between, for getrusage tells only the largest of all children so far.
    wrapper = "import resource,subprocess,sys; code=subprocess.call(sys.argv[1:]); " \
        "sys.stderr.write(f'peak_kb={resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}'); sys.exit(code)"
    return Run([sys.executable, "-c", wrapper, *map(str, command)])


def scan(pixwarden: Path, folder: Path) -> Run:
    return timed(pixwarden, "scan", "--format", "jsonl", "--log", "error", "--detector", DETECTOR, folder)


def loop(_: Path, folder: Path) -> Run:
    return timed(sys.executable, __file__, "--peer", folder)


def peer(folder: Path) -> None:
    """The plain Python loop."""
    import onnxruntime
    from PIL import ImageOps

    session = onnxruntime.InferenceSession(DETECTOR / "model.onnx")
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        (logits,) = session.run(None, {"pixels": np.asarray(upright)[None]})[0]
        exponents = np.exp(logits - logits.max())
        print(json.dumps({"image": str(path), "score": float(exponents[1] / exponents.sum())}))


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(scene(seed, *size), "RGB")


if __name__ == "__main__":
    main()
