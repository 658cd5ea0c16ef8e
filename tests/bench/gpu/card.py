#!/usr/bin/env python3
"""What the card does at the most: products of matrices in half precision, and copies. And which card it is.

Products are of 8192 x 8192 random numbers each side: on zeros a card is faster. A copy on the device counts what it
reads and what it writes; a copy to the device is from pinned memory. PyTorch does both.
"""

import platform
import subprocess
import time
from functools import partial

import part

EDGE, COPY_BYTES, WINDOWS = 8192, 4 << 30, 5
WINDOW_S = 0.8
# What a rehearsal on a processor takes instead.
SMALL_EDGE, SMALL_COPY_BYTES, SHORT_S = 256, 16 << 20, 0.05


def rate(device, work, seconds):
    """How often a second `work` is done, kept up for so long."""
    for _ in range(3):
        work()
    device.synchronize()
    runs, began = 0, time.monotonic()
    while (took := time.monotonic() - began) < seconds:
        for _ in range(10):
            work()
        device.synchronize()
        runs += 10
    return runs / took


def driver(found):
    """Which card it is, by its driver: PyTorch need not be there for that."""
    fields = "name,memory.total,driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found.note(f"card, memory, driver, highest clocks, power limit: {'; '.join(said.splitlines())}")


def software(found, torch):
    cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
    found.note(f"Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA {cuda}, cuDNN {cudnn}")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found.note(f"{card.name}: sm_{card.major}{card.minor}, {card.multi_processor_count} multiprocessors")


def products(found, torch, where, edge, seconds):
    for name, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        with found.attempt(f"matrix product, {name}"):
            left, right = (torch.randn(edge, edge, device=where, dtype=kind) for _ in range(2))
            out = torch.empty_like(left)
            product = partial(torch.matmul, left, right, out=out)
            for _ in range(WINDOWS):
                done = rate(module(torch, where), product, seconds)
                found.add(f"matrix product, {name}", done * 2 * edge**3 / 1e12, "TFLOP/s")


def copies(found, torch, where, size, seconds):
    with found.attempt("copy on the device"):
        source = torch.randint(255, (size,), dtype=torch.uint8, device=where)
        target = torch.empty_like(source)
        for _ in range(WINDOWS):
            done = rate(module(torch, where), lambda: target.copy_(source), seconds)
            found.add("copy on the device, read and written", done * 2 * size / 1e9, "GB/s")
    with found.attempt("copy to the device"):
        quarter = size // 4
        pinned = torch.full((quarter,), 7, dtype=torch.uint8)
        pinned = pinned.pin_memory() if where == "cuda" else pinned
        target = torch.empty(quarter, dtype=torch.uint8, device=where)
        for _ in range(WINDOWS):
            done = rate(module(torch, where), lambda: target.copy_(pinned, non_blocking=True), seconds)
            found.add("copy from pinned memory to the device", done * quarter / 1e9, "GB/s")


def module(torch, where):
    """What waits for the device to be done."""
    return torch.cuda if where == "cuda" else torch.cpu


def main():
    options = part.arguments(__doc__)
    found = part.Part("card", options)
    if not options.rehearse:
        with found.attempt("driver"):
            driver(found)
    try:
        import torch
    except ImportError:
        found.note("left out: PyTorch is not installed")
        return
    where = "cpu" if options.rehearse else "cuda"
    with found.attempt("software"):
        software(found, torch)
    edge, size, seconds = (SMALL_EDGE, SMALL_COPY_BYTES, SHORT_S) if options.rehearse else (EDGE, COPY_BYTES, WINDOW_S)
    products(found, torch, where, edge, seconds)
    copies(found, torch, where, size, seconds)
    found.report(found.file)


if __name__ == "__main__":
    main()
