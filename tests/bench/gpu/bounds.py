#!/usr/bin/env python3
"""What the other parts' figures mean: the session beside torch.compile, both beside what the card allows, and the cost.

An image takes 202 GFLOP, so the card's own rate of matrix products is one bound. Nothing moves through memory for free
either: the lower bound adds the time that activations in half precision take at the rate of a plain copy, if what can
be done on the way (norms, GELU, residuals, weights of a large batch) moves nothing.
"""

import json
from statistics import median

import part

# Sumsub's backbone, ConvNeXt-L at 384: channels and blocks of its four stages.
EDGE, STRIDE = 384, 4
STAGES = ((192, 3), (384, 3), (768, 27), (1536, 3))
# 101.1 GMAC, its MLP head and the detector's included.
FLOP = 2 * 101.1e9
HALF = 2
# A block reads and writes the depthwise convolution's values, then those of an MLP that is four times as wide.
PASSES = (1 + 1) + (1 + 4) + (4 + 1)

# US dollars, of the whole machine.
MILLION_AT_MOST = 2.0


def bytes_moved():
    """Of one image, in half precision: into and out of the stem, every block, and every downsampling."""
    edge = EDGE // STRIDE
    values = 3 * EDGE**2 + STAGES[0][0] * edge**2
    for stage, (channels, blocks) in enumerate(STAGES):
        if stage:
            values += STAGES[stage - 1][0] * (2 * edge) ** 2 + channels * edge**2
        values += blocks * PASSES * channels * edge**2
        edge //= 2
    return HALF * values


def by_matrix(flop_per_s):
    """Images a second, if nothing but products of matrices took time."""
    return flop_per_s / FLOP


def by_both(flop_per_s, bytes_per_s):
    """Images a second, if moving activations takes its time beside them."""
    return 1 / (FLOP / flop_per_s + bytes_moved() / bytes_per_s)


def million(images_per_s, price_per_hour):
    return 1e6 / images_per_s / 3600 * price_per_hour


def typical(found, prefix):
    """The largest of the medians of all rows with such a name, and that row's name; None if there is none."""
    rows = {name: median(row["values"]) for name, row in found["rows"].items() if name.startswith(prefix)}
    best = max(rows, key=rows.get, default=None)
    return best and (rows[best], best)


def read(folder, name):
    """What a part has found, which may be nothing."""
    try:
        return json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        return {"rows": {}, "ratios": [], "notes": []}


def collect(found):
    """Fills the part `found` from the others' files."""
    card, torch, engine, whole = (read(found.options.folder, name) for name in ("card", "detector", "engine", "whole"))
    rates = {
        "matrix": typical(card, "matrix product"),
        "copy": typical(card, "copy on the device"),
        "session, uint8 fp16": typical(engine, "uint8 fp16"),
        "torch.compile": typical(torch, "compiled"),
        "torch eager": typical(torch, "eager"),
    }
    for name in ("session, uint8 fp16", "torch.compile", "torch eager"):
        if rates[name]:
            rate, row = rates[name]
            found.note(f"{name} is the row {row!r}")
            found.add(name, rate, "images/s")
    if rates["matrix"]:
        found.add("bound by matrix products", by_matrix(1e12 * rates["matrix"][0]), "images/s")
        if rates["copy"]:
            both = by_both(1e12 * rates["matrix"][0], 1e9 * rates["copy"][0])
            found.add("bound by these and memory", both, "images/s")
    compare(found)
    cost(found, whole)


def compare(found):
    """Ratios of what is there."""
    ours, compiled = "session, uint8 fp16", "torch.compile"
    wanted = [(ours, compiled, 1.0), (ours, "torch eager", None)]
    wanted += [(who, bound, None) for who in (ours, compiled) for bound in found.rows if bound.startswith("bound by")]
    for over, under, at_least in wanted:
        if over in found.rows and under in found.rows:
            found.ratio(f"{over} / {under}", over, under, at_least=None if found.options.rehearse else at_least)
        elif at_least:
            found.note(f"not known, for a side is missing: {over} / {under}, wanted at least {at_least}")


def cost(found, whole):
    """What a million images cost by the pipeline, and by the session alone."""
    price = found.options.price_per_hour
    if price is None:
        found.note("what a million images cost is told with --price-per-hour")
        return
    pipeline = typical(whole, "exact: pipeline")
    session = found.rows.get("session, uint8 fp16")
    for name, rate in (
        ("pipeline, exact", pipeline and pipeline[0]),
        ("session alone", session and session["values"][0]),
    ):
        if rate:
            found.add(f"a million images, {name}", million(rate, price), f"at {price:g} an hour")
    found.note(f"a million images are wanted for {MILLION_AT_MOST:g} US dollars at the most")


def main():
    options = part.arguments(__doc__)
    found = part.Part("bounds", options)
    if options.rehearse:
        found.note("a rehearsal's model is another one: shares of the bounds mean nothing here")
    with found.attempt("bounds"):
        collect(found)
    found.report(found.file)


if __name__ == "__main__":
    main()
