#!/usr/bin/env python3
"""Two detectors of 384x384 that cost little, so that what a worker does around its model can be seen.

    python tests/bench/models.py FOLDER        # makes FOLDER/null-384 and FOLDER/tiny-384

`null-384` looks at one pixel in 256 and multiplies them with a matrix: next to no work. `tiny-384` is a small
convolutional network of 0.1 GMAC. Both take float32 `[batch, 3, 384, 384]` as classifiers are usually exported. Their
weights are random and their scores mean nothing, but they depend on the pixels and lie on both sides of the thresholds,
so that what two workers say can be compared.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EDGE = 384
LABELS = ("by human", "by AI")
# Opset 17 and IR version 8 belong together; every ONNX Runtime that Pixwarden supports reads them.
OPSET, IR_VERSION = 17, 8
SEED = 384

# One pixel in this many, each way, is what the null model sees.
STRIDE = 16
# Channels after each convolution; each is 3x3 and halves height and width: 106 million multiplications an image.
CHANNELS = (16, 32, 48, 64)

# What brings the single projection of each network to mean 0 and deviation 1 over the pictures of images.py. They are
# constants, so that the same code makes the same file everywhere; `--calibrate` prints them again.
CENTRES = {"null-384": -0.0393, "tiny-384": -2.8438}
SPREADS = {"null-384": 0.1792, "tiny-384": 1.2675}
# The logits' deviation over those pictures: about a tenth of them score above 0.9, and as many below 0.1.
GAIN = 2.0

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": EDGE, "width": EDGE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CONFIG = {"id2label": dict(enumerate(LABELS)), "pixwarden": {"output": "logits"}}


class Graph:
    """Collects nodes and constants."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, operator, *inputs, **attributes):
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name, value):
        value = np.asarray(value)
        kind = np.int64 if value.dtype.kind == "i" else np.float32
        self.constants.append(numpy_helper.from_array(value.astype(kind), name))
        return name

    def model(self, features, weights, name):
        """A model that projects `features` `[batch, n]` by `weights` `[n]` onto two opposed logits."""
        opposed = np.array([-0.5, 0.5]) * GAIN / SPREADS[name]
        weight = self.constant("head_weight", weights[:, None] * opposed)
        bias = self.constant("head_bias", -CENTRES[name] * opposed)
        self.nodes.append(helper.make_node("Gemm", [features, weight, bias], ["logits"]))
        entry = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, EDGE, EDGE])
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
        graph = helper.make_graph(self.nodes, name, [entry], [output], self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="bench")
        onnx.checker.check_model(model, full_check=True)
        return model


def null():
    graph = Graph()
    bounds = {"starts": [STRIDE // 2] * 2, "ends": [EDGE] * 2, "axes": [2, 3], "steps": [STRIDE] * 2}
    seen = graph.add("Slice", "pixel_values", *(graph.constant(*bound) for bound in bounds.items()))
    features = graph.add("Flatten", seen)
    # A wide, soft pattern and not noise: single pixels move with the decoder's rounding, areas do not.
    across = np.linspace(-1, 1, EDGE // STRIDE)
    pattern = np.add.outer(np.cos(2 * across), np.sin(3 * across)) / len(across) ** 2
    colours = np.array([1.0, -0.4, -0.8])
    return graph.model(features, np.multiply.outer(colours, pattern).ravel(), "null-384")


def tiny():
    graph, random = Graph(), np.random.RandomState(SEED)
    values, before = "pixel_values", 3
    for layer, channels in enumerate(CHANNELS):
        # He et al. 2015: with this deviation the activations neither grow nor fade from layer to layer.
        weight = random.standard_normal((channels, before, 3, 3)) * np.sqrt(2 / (9 * before))
        bias = random.uniform(0, 0.2, channels)
        names = graph.constant(f"weight_{layer}", weight), graph.constant(f"bias_{layer}", bias)
        values = graph.add("Relu", graph.add("Conv", values, *names, strides=[2, 2], pads=[1, 1, 1, 1]))
        before = channels
    features = graph.add("Flatten", graph.add("GlobalAveragePool", values))
    return graph.model(features, random.standard_normal(before), "tiny-384")


def make(folder):
    """Writes both packages and returns their folders by name."""
    folders = {}
    for name, model in (("null-384", null()), ("tiny-384", tiny())):
        folders[name] = target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "model.onnx").write_bytes(model.SerializeToString())
        (target / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    return folders


def calibrate():
    """Prints the constants that the projections of the pictures call for, with the present ones undone."""
    import onnxruntime
    from PIL import Image

    import images
    from io import BytesIO

    pixels = []
    for size in images.SIZES:
        for seed in range(12):
            image = Image.open(BytesIO(images.jpeg(size, seed))).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    for name, model in (("null-384", null()), ("tiny-384", tiny())):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (logits,) = session.run(None, {"pixel_values": np.stack(pixels)})
        projection = (logits[:, 1] - logits[:, 0]) / GAIN * SPREADS[name] + CENTRES[name]
        print(f"{name}: centre {projection.mean():.4f}, spread {projection.std():.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--calibrate", action="store_true", help="print what CENTRES and SPREADS should be")
    options = parser.parse_args()
    if options.calibrate:
        calibrate()
    else:
        print(*make(options.folder).values(), sep="\n")


if __name__ == "__main__":
    main()
