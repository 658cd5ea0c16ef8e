#!/usr/bin/env python3
"""The worker's engine by `pixwarden bench`: batch sizes, precisions, and where pixels are normalised.

The small detector of models.py comes first: it exists whatever else could be made, and shows whether CUDA works at
all. A bare loop of ONNX Runtime is not measured beside it, which would take onnxruntime-gpu in Python as well.
"""

import json
import subprocess

import libraries
import part

PICTURES = part.PREPARED / "images/1024px"
TINY = part.PREPARED / "models/tiny-384"
# By row, package and largest batch; what matters most is first.
OPTIONS = (
    ("uint8 fp16", "synthetic-fp16", 64),
    ("uint8 fp32", "synthetic", 32),
    ("float fp16", "synthetic-fp16-floats", 64),
)
SECONDS, SHORT_S = 1.0, 0.2
SMALL_BATCH = 4
# A second try where the first took too long: fewer batches, each of which ONNX Runtime looks for algorithms for.
SECOND_TRY = 16
# What a try takes at the most, and what it needs to be begun at all.
TRY_S, LEAST_S = 80.0, 10.0


class Refused(Exception):
    """Pixwarden ended without figures."""


def bench(options, package, settings, limit_s):
    """What `pixwarden bench` says of a package under these settings, variables without their prefix, as a document."""
    environment = libraries.environment(
        part.PREPARED / "onnxruntime/libonnxruntime.so", libraries.folders(libraries.places())
    )
    settings = {"INFERENCE_DEVICE": "cpu" if options.rehearse else "cuda", **settings}
    environment |= {f"PIXWARDEN_{name}": str(value) for name, value in settings.items()}
    seconds = SHORT_S if options.rehearse else SECONDS
    command = [part.PREPARED / "pixwarden", "bench", "--format", "json", "--log", "warn", "--seconds", seconds]
    command += [] if options.price_per_hour is None else ["--price-per-hour", options.price_per_hour]
    command = list(map(str, [*command, "--detector", package, PICTURES]))
    # The work folder has no pixwarden.toml that would set anything else.
    done = subprocess.run(command, env=environment, cwd=options.work, capture_output=True, timeout=limit_s, check=False)
    # The log keeps all of it, of which rows are a part.
    warnings, said = (stream.decode(errors="replace").strip() for stream in (done.stderr, done.stdout))
    print(" ".join(command), settings, warnings, said, sep="\n", flush=True)
    if done.returncode != 0:
        raise Refused(warnings or f"pixwarden ended with {done.returncode}")
    found = json.loads(said)
    if "batches are halved" in warnings:
        found["caution"] = "memory was short, so larger batches are smaller than they say"
    return found


def session(found, name, package, max_batch):
    """Adds a row a batch size."""
    limit = min(TRY_S, found.left())
    if limit < LEAST_S:
        found.note(f"{part.FAILED}{name}: no time was left")
        return
    try:
        said = bench(found.options, package, {"INFERENCE_MAX_BATCH": max_batch}, limit)
    except subprocess.TimeoutExpired:
        if max_batch <= SECOND_TRY:
            raise
        found.note(f"{name}: batches of up to {max_batch} took longer than {limit:.0f} s; again, of up to {SECOND_TRY}")
        session(found, name, package, SECOND_TRY)
        return
    (detector,) = said["detectors"]
    found.note(f"{name}: on {detector['device']}{caution(said)}")
    for batch in detector["batches"]:
        found.add(f"{name}, batches of {batch['batch']}", batch["images_per_s"], "images/s")
    for batch in detector["batches"][-1:]:
        times = f"{batch['p50_ms']:.1f} ms (p50), {batch['p95_ms']:.1f} ms (p95)"
        found.note(f"{name}: a batch of {batch['batch']} takes {times}")


def caution(said):
    return f"; caution: {said['caution']}" if said["caution"] else ""


def main():
    options = part.arguments(__doc__)
    found = part.Part("engine", options)
    facts = json.loads((part.PREPARED / "prepared.json").read_text())
    places = libraries.folders(libraries.places())
    found.note(f"pixwarden {facts['pixwarden']}, onnxruntime-gpu {facts['onnxruntime']} for sm_{facts['architecture']}")
    found.note(f"device code: {facts['device_code']}")
    lacking = libraries.missing(facts["needs"], places)
    found.note(f"CUDA's libraries: {len(places)} folders of Python packages; missing: {', '.join(lacking) or 'none'}")
    with found.attempt("tiny-384"):
        session(found, "tiny-384", TINY, SMALL_BATCH)
    for name, package, max_batch in OPTIONS:
        if not (options.work / package / "model.onnx").is_file():
            found.note(f"{name}: left out, there is no package {package}")
            continue
        with found.attempt(name):
            session(found, name, options.work / package, SMALL_BATCH if options.rehearse else max_batch)
    found.report(found.file)


if __name__ == "__main__":
    main()
