#!/usr/bin/env python3
"""Jobs a second through RabbitMQ: a whole worker whose objects and ledger are in memory, against a bare consumer.

    tests/services/run -- python tests/bench/broker.py --pixwarden target/release/pixwarden --parts PARTS

PARTS is the program that `cargo bench --bench parts --no-run` builds. Both empty the same quorum queue of 20,000 persistent
jobs with the same prefetch and acknowledge each by itself; both are written with lapin. The bare consumer does nothing else.
The worker does all that it does: it reads the job, fetches, hashes, decodes an image of 8x8 pixels, runs a model that
multiplies them with a matrix, judges, commits to a ledger that forgets, and acknowledges. RabbitMQ is on one core, the
consumer on another.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from figures import Figures, turns
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from stand import SERVICES_CORE, WORKER_CORE, pin_services

EDGE = 8
LABELS = ("by human", "by AI")
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": EDGE, "width": EDGE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
}
CONFIG = {"id2label": dict(enumerate(LABELS)), "pixwarden": {"output": "logits"}}
CONFIGURATION = """
[decode]
threads = 1
helper = "{helper}"
isolation = "{isolation}"
[inference]
threads = 1
max_batch = 32
"""


def package(folder):
    """A detector of next to no work."""
    weight = np.full((3 * EDGE * EDGE, 2), [-0.01, 0.01], np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    entry = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, EDGE, EDGE])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "null-8", [entry], [output], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--prefetch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a minute's version")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.rounds = 5_000, 2
    figures = Figures("broker")
    pin_services(SERVICES_CORE)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        detector, image = package(folder / "null-8"), folder / "image.png"
        Image.new("RGB", (EDGE, EDGE), (200, 120, 40)).save(image)
        asked = ["--jobs", str(options.jobs), "--prefetch", str(options.prefetch), "--queue", os.environ["TEST_AMQP_URL"]]

        def consume(name):
            command = ["taskset", "-c", str(WORKER_CORE), options.parts, "broker", *asked]
            if name == "bare consumer":
                command += ["--consumer", "bare"]
            else:
                isolation = name.rsplit(" ", 1)[1]
                text = CONFIGURATION.format(helper=options.pixwarden.resolve(), isolation=isolation)
                command += ["--consumer", "worker", "--image", image, "--detector", detector, "--config", text]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0:
                raise SystemExit(done.stderr.decode(errors="replace"))
            return json.loads(done.stdout.splitlines()[-1])["rate"]

        names = ["bare consumer", "worker, decoding in thread", "worker, decoding in process"]
        for _, order in turns(names, options.rounds):
            for name in order:
                figures.add(name, consume(name), "jobs/s")
    bare, *workers = names
    for name in workers:
        figures.ratio(f"{name} / bare consumer", name, bare, at_least=0.3)
    figures.report(options.json)


if __name__ == "__main__":
    sys.exit(main())
