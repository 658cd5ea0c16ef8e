#!/usr/bin/env python3
"""Sumsub's network, ConvNeXt-L, in PyTorch alone, as people run it: half precision by autocast, channels last, eager and compiled.

Pixels are on the device already, normalised, so nothing but the network is counted. The worker's session, which it is
compared with, gets bytes from the processor's memory, normalises them and gives logits back. torch.compile is taken as
it comes, without its minutes of max-autotune. Batches are compiled one by one, the fastest of eager mode first, as many
as there is time for; that one also with all weights in half precision.
"""

import copy
import time

import part
from card import module
from packages import RELEASE, SMALL_RELEASE, network

BATCHES, SMALL_BATCHES = (16, 32, 64, 128), (1,)
WINDOWS, WINDOW_S, SHORT_S = 3, 1.0, 0.3


def make(torch, options, where):
    """The network on the device, and the height and width of what it takes."""
    made = network(SMALL_RELEASE if options.rehearse else RELEASE)
    _, height, width = made.model.pretrained_cfg["input_size"]
    return made.to(where, memory_format=torch.channels_last), (height, width)


def measure(found, row, work, batch, where):
    """Warms up, which may compile, then adds images a second of a few windows; seconds that the first took."""
    import torch

    device = module(torch, where)
    began = time.monotonic()
    for _ in range(3):
        work()
    device.synchronize()
    warm = time.monotonic() - began
    seconds = SHORT_S if found.options.rehearse else WINDOW_S
    for _ in range(WINDOWS):
        runs, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            work()
            runs += 1
            # So that no more is queued than a window can wait for.
            if runs % 4 == 0:
                device.synchronize()
        device.synchronize()
        found.add(row, runs * batch / (time.monotonic() - began), "images/s")
    return warm


def measure_all(found, torch, where):
    torch.backends.cudnn.benchmark = True
    made, size = make(torch, found.options, where)
    kind = torch.float16 if where == "cuda" else torch.bfloat16
    pixels, best = {}, {}

    def autocast(function, batch):
        def once():
            with torch.inference_mode(), torch.autocast(where, kind):
                return function(pixels[batch])

        return once

    def whole(function, batch):
        half = pixels[batch].to(kind)

        def once():
            with torch.inference_mode():
                return function(half)

        return once

    for batch in SMALL_BATCHES if found.options.rehearse else BATCHES:
        row = f"eager, batches of {batch}"
        with found.attempt(row):
            numbers = torch.randn(batch, 3, *size, device=where)
            pixels[batch] = numbers.to(memory_format=torch.channels_last)
            measure(found, row, autocast(made, batch), batch, where)
            best[batch] = max(found.rows[row]["values"])

    batches = sorted(best, key=best.get, reverse=True)
    tries = [("compiled", batch) for batch in batches]
    # What people do who go further than autocast.
    tries[1:1] = [("all in half precision, compiled", batch) for batch in batches[:1]]
    compiled, longest = torch.compile(made, dynamic=False), 0.0
    for name, batch in tries:
        row = f"{name}, batches of {batch}"
        if found.left() < 1.3 * longest:
            found.note(f"{row}: left out, there was no time")
            continue
        began = time.monotonic()
        with found.attempt(row):
            if name == "compiled":
                work = autocast(compiled, batch)
            else:
                work = whole(torch.compile(copy.deepcopy(made).to(kind), dynamic=False), batch)
            found.note(f"{row}: compiling took {measure(found, row, work, batch, where):.0f} s")
        longest = max(longest, time.monotonic() - began)


def main():
    options = part.arguments(__doc__)
    found = part.Part("detector", options)
    try:
        import torch
    except ImportError:
        found.note("left out: PyTorch is not installed")
        return
    with found.attempt("the network in PyTorch"):
        measure_all(found, torch, "cpu" if options.rehearse else "cuda")
    found.report(found.file)


if __name__ == "__main__":
    main()
