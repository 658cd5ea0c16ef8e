#!/usr/bin/env python3
"""The seed's network in PyTorch alone, as people run it: half precision by autocast, channels last, eager and compiled.

Pixels are on the device already, normalised, so nothing but the network is counted. The worker's session, which it is
compared with, gets bytes from the processor's memory, normalises them and gives logits back. torch.compile is taken as
it comes, without its minutes of max-autotune. Batches are compiled one by one, the fastest of eager mode first, as many
as there is time for.
"""

import sys
import time

import part
from card import module
from packages import RELEASE, SEED, SMALL_RELEASE

BATCHES, SMALL_BATCHES = (16, 32, 64, 128), (1,)
WINDOWS, WINDOW_S, SHORT_S = 3, 1.0, 0.3


def make(torch, options, where):
    """The network with made-up weights, on the device."""
    sys.path[:0] = [str(part.ROOT / "models"), str(part.ROOT / "tests/models/full")]
    from conversion import seed
    from weights import randomise

    network = seed.Synthetic(seed.RELEASES[SMALL_RELEASE if options.rehearse else RELEASE].backbone)
    randomise(network, SEED)
    _, height, width = network.model.pretrained_cfg["input_size"]
    return network.to(where, memory_format=torch.channels_last), (height, width)


def measure(found, row, work, batch, where):
    """Warms up, then adds images a second of a few windows."""
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
    network, size = make(torch, found.options, where)
    kind = torch.float16 if where == "cuda" else torch.bfloat16
    pixels, best = {}, {}

    def work(function, batch):
        def once():
            with torch.inference_mode(), torch.autocast(where, kind):
                return function(pixels[batch])

        return once

    for batch in SMALL_BATCHES if found.options.rehearse else BATCHES:
        with found.attempt(f"eager, batches of {batch}"):
            numbers = torch.randn(batch, 3, *size, device=where)
            pixels[batch] = numbers.to(memory_format=torch.channels_last)
            measure(found, f"eager, batches of {batch}", work(network, batch), batch, where)
            best[batch] = max(found.rows[f"eager, batches of {batch}"]["values"])
    compiled, longest = torch.compile(network, dynamic=False), 0.0
    for batch in sorted(best, key=best.get, reverse=True):
        if found.left() < 1.3 * longest:
            found.note(f"not compiled for batches of {batch}: there was no time")
            continue
        began = time.monotonic()
        with found.attempt(f"compiled, batches of {batch}"):
            warm = measure(found, f"compiled, batches of {batch}", work(compiled, batch), batch, where)
            found.note(f"compiling for batches of {batch} took {warm:.0f} s")
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
