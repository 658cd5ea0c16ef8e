#!/usr/bin/env python3
"""The whole screen fed from memory against its own parts measured alone, and its session against a bare loop.

    python tests/bench/pipeline.py --pixwarden target/release/pixwarden

`pixwarden bench` measures decoders, session and pipeline one after another over the same images. What the parts allow is
cores ÷ (decode + session processor time an image). The bare loop runs the same model file by Python's ONNX Runtime with the
same batch and threads, over one batch that is there already. ORT_DYLIB_PATH is taken from the environment.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import images
import models
import numpy as np
import onnxruntime
from figures import Figures, turns

LIMIT_S = 2.0


def bench(options, package, folder, seconds):
    command = [options.pixwarden.resolve(), "bench", "--format", "json", "--seconds", str(seconds)]
    done = subprocess.run([*command, "--detector", package, folder], capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr.decode(errors="replace"))
    return json.loads(done.stdout)


def bare_loop(package, batch, seconds):
    """Images a second of a session that has nothing else to do."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = os.cpu_count()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(package / "model.onnx", settings, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).random((batch, 3, models.EDGE, models.EDGE), np.float32)
    session.run(None, {"pixel_values": pixels})
    runs, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        session.run(None, {"pixel_values": pixels})
        runs += 1
    return runs * batch / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a minute's version")
    options = parser.parse_args()
    rounds, seconds, count = (1, 1.0, 4) if options.quick else (options.rounds, LIMIT_S, 24)
    figures = Figures("pipeline")
    cases = [("1024px", "tiny-384"), ("12mp", "tiny-384"), ("1024px", "null-384")]
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as folder:
        packages = models.make(Path(folder) / "models")
        for size in {size for size, _ in cases}:
            images.make(folder, size, count)
        for _, order in turns(cases, rounds):
            for size, model in order:
                case = f"{size} {model}"
                found = bench(options, packages[model], Path(folder) / size, seconds)
                figures.add(f"{case}: pipeline", found["pipeline"]["images_per_s"], "images/s")
                figures.add(f"{case}: its parts allow", found["pipeline"]["parts_allow_images_per_s"], "images/s")
                if (size, model) == cases[0]:
                    fastest = max(found["detectors"][0]["batches"], key=lambda batch: batch["images_per_s"])
                    figures.add(f"{model}: session alone", fastest["images_per_s"], "images/s")
                    figures.add(f"{model}: bare loop", bare_loop(packages[model], fastest["batch"], seconds), "images/s")
    for size, model in cases:
        case = f"{size} {model}"
        figures.ratio(f"{case}: pipeline / its parts", f"{case}: pipeline", f"{case}: its parts allow", at_least=0.95)
    figures.ratio("session alone / bare loop", "tiny-384: session alone", "tiny-384: bare loop")
    figures.report(options.json)


if __name__ == "__main__":
    main()
