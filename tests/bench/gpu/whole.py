#!/usr/bin/env python3
"""The whole screen fed from memory with pictures of 1024 px, beside the slower of its parts, by `pixwarden bench`.

Decoders have cores and sessions the card, so nothing is shared and the slower of the two alone is what there is to
reach. Both modes of decoding are measured in turns; a JPEG of 1024x768 is too small to be decoded at a half of its size
for 384x384, so there they differ by chance only. The batch is the one that was fastest alone.
"""

import json
import re

import part
from bounds import read, typical
from engine import SMALL_BATCH, TINY, bench, caution

MODES = ("exact", "fast")
MOST_ROUNDS = 3
DEFAULT_BATCH = 32
AT_LEAST = 0.95


def choose(options):
    """Row of the engine's part, package, and batch that are measured; the small package if the large one failed."""
    measured = read(options.folder, "engine")
    name, package = "uint8 fp16", options.work / "synthetic-fp16"
    failed = measured["rows"] and not typical(measured, name)
    if failed or not (package / "model.onnx").is_file():
        name, package = "tiny-384", TINY
    best = typical(measured, f"{name}, batches of ")
    batch = int(re.search(r"\d+$", best[1]).group()) if best else DEFAULT_BATCH
    return name, package, SMALL_BATCH if options.rehearse else batch


def turn(found, mode, package, settings):
    """One run of one mode."""
    said = bench(found.options, package, {**settings, "DECODE_MODE": mode}, found.left())
    decode = said["decode"]["all"]["images_per_s"]
    session = max(batch["images_per_s"] for batch in said["detectors"][0]["batches"])
    found.add(f"{mode}: decoders alone", decode, "images/s")
    found.add(f"{mode}: session alone", session, "images/s")
    found.add(f"{mode}: slower of the two", min(decode, session), "images/s")
    found.add(f"{mode}: pipeline", said["pipeline"]["images_per_s"], "images/s")
    bound, cores, decoders = said["bound"]["by"], said["cores"], said["decode"]["decoders"]
    found.note(f"{mode}: bound by {bound}; {cores} cores, {decoders} decoders{caution(said)}")
    if said["recommended"]:
        found.note(f"{mode}: recommended {json.dumps(said['recommended'])}")


def main():
    options = part.arguments(__doc__)
    found = part.Part("whole", options)
    name, package, batch = choose(options)
    found.note(f"detector {name}, batches of up to {batch}")
    rounds, longest = {mode: 0 for mode in MODES}, 0.0
    with found.attempt("pipeline"):
        for number in range(1 if options.rehearse else MOST_ROUNDS):
            for mode in MODES if number % 2 == 0 else reversed(MODES):
                before = found.left()
                if before < 1.2 * longest:
                    break
                turn(found, mode, package, {"INFERENCE_MAX_BATCH": batch})
                rounds[mode] += 1
                longest = max(longest, before - found.left())
    for mode in MODES:
        if rounds[mode]:
            over, under = f"{mode}: pipeline", f"{mode}: slower of the two"
            # On a processor both share the cores, and together are slower than either.
            found.ratio(f"{over} / {under}", over, under, at_least=None if options.rehearse else AT_LEAST)
    found.report(found.file)


if __name__ == "__main__":
    main()
