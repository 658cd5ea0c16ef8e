#!/usr/bin/env python3
"""Bytes of a JPEG → 384x384 pixels: processor time and error, beside the libraries that people use for it.

    cargo build --locked --release && cargo bench --locked --bench parts --no-run     # names PARTS
    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install -r tests/bench/requirements.txt
    /tmp/bench/bin/python tests/bench/decode.py --parts PARTS --pixwarden target/release/pixwarden

Everybody is a process by itself, which stays over all files, for what a library's memory costs depends on who else is
there. Time is that of all its threads, reading the file not counted. The error is that against Pillow decoding all and
resizing bicubically, whose pixels detectors are trained on. The order of the programs changes from round to round.

With --pixwarden it also scans the samples and a set of made JPEGs in both modes, and says how far scores come apart and
how often the outcome is another one; --flips does only that. ORT_DYLIB_PATH is taken from the environment.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before libvips is loaded.
os.environ["VIPS_CONCURRENCY"] = "1"

import cv2  # noqa: E402
import figures  # noqa: E402
import images  # noqa: E402
import numpy as np  # noqa: E402
import pyvips  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EDGE = 384
# What is wanted: part of Pillow's time at 12 megapixels, decibels of the worst image, levels of the worst sample.
WANTED = {"exact": (0.45, 54, 1), "fast": (0.20, 39, 255)}
# Bytes a run of one way, so that small images are measured as long as large ones.
RUN_BYTES = 12_000_000

# For the flips: sizes as cameras, phones and web pages have them, upright and not, even and odd.
FLIP_SIZES = ((4000, 3000), (3024, 4032), (2560, 1440), (1920, 1080), (1601, 1201), (1200, 1600), (1024, 768), (801, 599))
FLIP_QUALITIES = (60, 80, 92)
FLIP_SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")


def pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BICUBIC))


def pillow_draft(data):
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * EDGE, 2 * EDGE))
        return np.asarray(image.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BICUBIC))


def vips_thumbnail(data):
    image = pyvips.Image.thumbnail_buffer(data, EDGE, height=EDGE, size="force", no_rotate=True)
    return np.frombuffer(image.write_to_memory(), np.uint8).reshape(EDGE, EDGE, 3)


def opencv(data, flag=cv2.IMREAD_COLOR):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(cv2.resize(image, (EDGE, EDGE), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def opencv_reduced(data):
    """By the largest factor that leaves twice what is wanted, as Pillow's draft does here."""
    with Image.open(io.BytesIO(data)) as image:
        shorter = min(image.size)
    flags = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
    return opencv(data, next((flag for by, flag in flags if shorter // by >= 2 * EDGE), cv2.IMREAD_COLOR))


PEERS = {
    "Pillow full": pillow,
    "Pillow draft": pillow_draft,
    "libvips thumbnail": vips_thumbnail,
    "OpenCV full, area": opencv,
    "OpenCV reduced, area": opencv_reduced,
}
OURS = {"exact": "exact", "fast": "fast", "image crate": "crate"}


class Contestant:
    """A process that decodes the files it is told, and says what that took."""

    def __init__(self, name, options, folder):
        self.way, self.pixels = OURS.get(name, name), folder / f"{name}.pixels"
        peer = [sys.executable, __file__, "--peer", self.pixels]
        command = [options.parts, "decode", "--edge", str(EDGE), "--pixels", self.pixels] if name in OURS else peer
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, file):
        self.process.stdin.write(f"{self.way}\t{file}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.way} ended with {self.process.wait()}")
        return json.loads(answer)["nanoseconds"] / 1e9

    def look(self, file):
        self.seconds(file)
        return np.fromfile(self.pixels, np.uint8).reshape(EDGE, EDGE, 3)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def peer(target):
    """Is such a process, of any library."""
    cv2.setNumThreads(1)
    pyvips.cache_set_max(0)
    for line in sys.stdin:
        name, file = line.rstrip("\n").split("\t")
        data = Path(file).read_bytes()
        before = time.process_time_ns()
        pixels = PEERS[name](data)
        nanoseconds = time.process_time_ns() - before
        pixels.tofile(target)
        print(json.dumps({"nanoseconds": nanoseconds}), flush=True)


def main():
    options = arguments()
    if options.peer:
        peer(options.peer)
        return
    found = figures.Figures("decode")
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
        folder = Path(folder)
        if not options.flips:
            contestants = {name: Contestant(name, options, folder) for name in [*OURS, *PEERS]}
            for size in images.SIZES:
                compare(options, contestants, found, size, images.make(folder / "images", size, options.images))
            for contestant in contestants.values():
                contestant.end()
        if options.pixwarden:
            flips(options, found, folder / "flips")
    found.report(options.json)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, help="the program that `cargo bench --bench parts --no-run` builds")
    parser.add_argument("--pixwarden", type=Path, help="the binary, for the flips")
    parser.add_argument("--detector", type=Path, action="append", help="for the flips [repeatable; default the bundled]")
    parser.add_argument("--flips", action="store_true", help="compare scores only")
    parser.add_argument("--images", type=int, default=8, help="pictures of each size (default 8)")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each way (default 9)")
    parser.add_argument("--quick", action="store_true", help="one round over few images: whether it works, no figures")
    parser.add_argument("--json", type=Path, help="where everything is written")
    parser.add_argument("--peer", type=Path, metavar="PIXELS", help="be a library that is measured")
    options = parser.parse_args()
    if options.peer:
        return options
    if options.flips and not options.pixwarden or not options.flips and not options.parts:
        parser.error("--flips needs --pixwarden, and everything else --parts")
    options.detector = options.detector or [ROOT / "models/cifake-32"]
    if options.quick:
        options.images, options.rounds = 2, 1
    return options


def compare(options, contestants, found, size, files):
    """One size of pictures: milliseconds an image, and the error."""
    passes = max(1, round(RUN_BYTES / sum(file.stat().st_size for file in files)))
    print(f"{size}: {len(files)} pictures, {passes} times a run", flush=True)
    row = {name: f"{size}: {name}" for name in contestants}
    reference = [contestants["Pillow full"].look(file) for file in files]
    for name, contestant in contestants.items():
        error(found, row[name], reference, [contestant.look(file) for file in files])
    for _, order in figures.turns(contestants, options.rounds):
        for name in order:
            taken = [contestants[name].seconds(file) for _ in range(passes) for file in files]
            found.add(row[name], 1000 * sum(taken) / len(taken), "ms of CPU an image")
    for name in contestants:
        if name != "Pillow full":
            wanted = WANTED[name][0] if size == "12mp" and name in WANTED else None
            found.ratio(f"{row[name]} / Pillow full", row[name], row["Pillow full"], at_most=wanted)


def error(found, row, reference, pixels):
    """Notes the error of the worst picture."""
    differences = [a.astype(np.int16) - b for a, b in zip(pixels, reference)]
    levels = max(int(np.abs(difference).max()) for difference in differences)
    squares = max(float(np.square(difference, dtype=np.float64).mean()) for difference in differences)
    decibels = 10 * np.log10(255**2 / squares) if squares else np.inf
    name = row.split(": ")[1]
    judged = ""
    if name in WANTED:
        _, least, most = WANTED[name]
        judged = f"; wanted {least} dB{f' and {most}' if most < 255 else ''}: "
        judged += "met" if decibels >= least and levels <= most else "MISSED"
    found.note(f"{row}: {decibels:.1f} dB and {levels} levels off Pillow full at worst{judged}")


def flips(options, found, folder):
    """Scores in both modes, of the samples and of made pictures."""
    folder.mkdir()
    made = [
        (size, quality, subsampling)
        for size in FLIP_SIZES[:: 4 if options.quick else 1]
        for quality in FLIP_QUALITIES
        for subsampling in FLIP_SUBSAMPLINGS
    ]
    for seed, (size, quality, subsampling) in enumerate(made):
        name = f"{seed:03}-{size[0]}x{size[1]}-{quality}-{subsampling.replace(':', '')}.jpg"
        options_of = {"quality": quality, "subsampling": subsampling, "progressive": seed % 5 == 0}
        Image.fromarray(images.scene(seed, *size)).save(folder / name, **options_of)
    for detector in options.detector:
        exact, fast = (scan(options.pixwarden, detector, folder, mode) for mode in ("exact", "fast"))
        pairs = [(a, b) for a, b in zip(exact, fast, strict=True) if a["score"] is not None]
        differ = [abs(a["score"] - b["score"]) for a, b in pairs]
        changed = sum(delta > 0 for delta in differ)
        flipped = sum(a["outcome"] != b["outcome"] for a, b in zip(exact, fast, strict=True))
        found.note(
            f"{detector.name}, fast against exact: of {len(pairs)} scores {changed} differ, by {max(differ):.4f} at most "
            f"and by {sum(differ) / max(changed, 1):.4f} on the mean of these; {flipped} of {len(exact)} outcomes "
            f"({100 * flipped / len(exact):.2f} %) are others"
        )


def scan(pixwarden, detector, folder, mode):
    command = [pixwarden, "scan", "--format", "jsonl", "--log", "error", "--label", "by AI", "--detector", detector]
    command += [ROOT / "models/samples", folder]
    done = subprocess.run(command, env={**os.environ, "PIXWARDEN_DECODE_MODE": mode}, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.decode(errors="replace"))
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
