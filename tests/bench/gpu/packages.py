#!/usr/bin/env python3
"""Makes the detectors that are measured: Sumsub's network with made-up weights, by models/convert.py.

The files would be too large to carry, and how fast a network is does not depend on what it has learnt. It does depend
on numbers being there: products of zeros take less power, so every weight is drawn from a seed.

    synthetic              float32, takes bytes and normalises them in the graph, as all that the converter writes
    synthetic-fp16         the same in half precision
    synthetic-fp16-floats  the same without the normalisation: the worker does it, and four times the bytes travel

A rehearsal takes the small network of the same family. Where PyTorch is missing nothing is made.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import part

# The files of the family, by how the converter calls them.
RELEASE, SMALL_RELEASE = "2.0", "1.0_sd_5"
SEED = 2
# Logits this calm differ by less in half precision than the converter allows, whatever a random network amplifies.
CALM = 0.05
NAME = "synthetic"
FLOATS_INPUT = "pixel_values"
NORMALISING = ("Transpose", "Cast", "Sub", "Mul")


def network(release):
    """The published module with made-up weights."""
    sys.path[:0] = [str(part.ROOT / "models"), str(part.ROOT / "tests/models/full")]
    from conversion import seed
    from weights import randomise

    made = seed.Synthetic(seed.RELEASES[release].backbone)
    randomise(made, SEED)
    made.clf[-1].weight.data.mul_(CALM)
    return made


def state_dict(release, file):
    """Writes these weights under the keys of a published file."""
    import torch

    torch.save(network(release).state_dict(), file)


def convert(release, file, package, pictures):
    command = [sys.executable, part.ROOT / "models/convert.py", "sumsub", file, "--release", release]
    command += ["--package", package, "--precision", "fp32", "fp16"]
    # One picture is enough to see that the graph is the network: each costs a second or more in all precisions.
    command += ["--images", pictures, "--threads", str(os.cpu_count())]
    subprocess.run(list(map(str, command)), check=True)


def with_floats(package, target):
    """Writes a copy of `package` with the normalisation cut off: input `[batch, 3, height, width]` float32."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(package / "model.onnx")
    graph = model.graph
    (pixels,) = graph.input
    batch, height, width, channels = pixels.type.tensor_type.shape.dim
    passed, last = set(), pixels.name
    for node in graph.node:
        if last in node.input and node.op_type in NORMALISING:
            passed.add(node.output[0])
            last = node.output[0]
            if node.op_type == "Mul":
                break
    else:
        raise ValueError(f"{package}: the graph does not begin with a normalisation")
    shape = [batch.dim_param or "batch", channels.dim_value, height.dim_value, width.dim_value]
    nodes = [node for node in graph.node if node.output[0] not in passed]
    for node in nodes:
        for at, name in enumerate(node.input):
            if name == last:
                node.input[at] = FLOATS_INPUT
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    graph.input.append(helper.make_tensor_value_info(FLOATS_INPUT, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    shutil.copytree(package, target, ignore=shutil.ignore_patterns("model.onnx", "SHA256SUMS"))
    onnx.save(model, target / "model.onnx")


def make(found, release):
    work = found.options.work
    file, package = work / "state.pt", work / NAME
    began = time.monotonic()
    state_dict(release, file)
    pictures = work / "picture"
    pictures.mkdir()
    first = min((part.PREPARED / "images/1024px").iterdir())
    shutil.copy(first, pictures)
    convert(release, file, package, pictures)
    found.add("making weights and converting", time.monotonic() - began, "s")
    for name in (NAME, f"{NAME}-fp16"):
        facts = json.loads((work / name / "conversion.json").read_text())
        found.add(f"{name}: graph", facts["graph"]["bytes"] / 1e6, "MB")
        found.note(f"{name}: {facts['parameters']} parameters, {facts['graph']['transposes']} Transposes")
    file.unlink()


def main():
    options = part.arguments(__doc__)
    found = part.Part("packages", options)
    with found.attempt("packages by models/convert.py"):
        try:
            make(found, SMALL_RELEASE if options.rehearse else RELEASE)
        except ImportError as error:
            found.note(f"left out, only tiny-384 is measured: {error}")
            return
        with_floats(options.work / f"{NAME}-fp16", options.work / f"{NAME}-fp16-floats")
    found.report(found.file)


if __name__ == "__main__":
    main()
