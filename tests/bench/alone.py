#!/usr/bin/env python3
"""What decoding and the model cost a worker by themselves, in processor time an image: the floor beneath its total.

    python tests/bench/alone.py idiomatic|tuned|tuned-scaled --detector DIR --seconds 1 FILE...

Runs the worker's own code over files in memory, one thread, and prints a line of JSON: milliseconds from an image's
bytes to its pixels at the detector's size, and from those to the model's output, at the number of images a run that is
cheapest. `pixwarden bench` draws the line between the two at the same place.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import numpy as np  # noqa: E402
import records  # noqa: E402


def idiomatic(detector):
    import idiomatic
    from PIL import Image

    def decode(data):
        with Image.open(io.BytesIO(data)) as picture:
            return idiomatic.resized(picture, detector.size)

    session = idiomatic.session(detector, threads=1)
    pixels = np.zeros((*detector.size[::-1], 3), np.uint8)

    def model(_):
        session.run(None, {"pixel_values": idiomatic.normalised(pixels, detector)})

    return decode, {1: model}


def tuned(detector, scaled):
    from decoder import Preparer
    from tuned import BATCHES, Session

    width, height = detector.size
    preparer, pixels = Preparer(detector.size, scaled), np.zeros((3, height, width), np.uint8)
    session = Session(detector, threads=1)

    def model(batch):
        for index in range(batch):
            session.fill(index, pixels)
        session.run(batch)

    return lambda data: preparer.prepare(data, pixels), dict.fromkeys(BATCHES, model)


WAYS = {
    "idiomatic": idiomatic,
    "tuned": lambda detector: tuned(detector, scaled=False),
    "tuned-scaled": lambda detector: tuned(detector, scaled=True),
}


def cost(seconds, work, items):
    """Milliseconds of processor time that `work` takes of an item: whole rounds over all, for so long at least."""
    for item in items:
        work(item)
    began, rounds = time.process_time(), 0
    while (took := time.process_time() - began) < seconds:
        for item in items:
            work(item)
        rounds += 1
    return 1000 * took / rounds / len(items)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--detector", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    decode, models = WAYS[options.way](records.Detector(options.detector))
    decode_ms = cost(options.seconds, decode, [file.read_bytes() for file in options.files])
    part = options.seconds / len(models)
    model_ms = min(cost(part, model, [batch]) / batch for batch, model in models.items())
    print(json.dumps({"decode_ms": decode_ms, "model_ms": model_ms}))


if __name__ == "__main__":
    main()
