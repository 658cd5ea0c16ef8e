"""The network as one ONNX file, checked against PyTorch, and the golden image a worker proves itself with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image

from training.images import LABELS, SIDE, to_thumbnail
from training.network import Exported, ThumbnailNet

OPSET = 18
MAX_BYTES = 5_000_000
TOLERANCE = 1e-4
# A rounding effect below this is as good as none: a worker's scores are compared to 0.005.
STEADY = 0.001


class ExportError(SystemExit):
    """The written graph is not what a worker may be given; nothing was packaged."""


def export(network: ThumbnailNet, path: Path, pixels: np.ndarray) -> float:
    """Writes `path` and returns the largest logit difference to PyTorch on `pixels` [n, 32, 32, 3] and on noise."""
    module = Exported(network).eval()
    torch.onnx.export(
        module,
        (torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8),),
        path,
        input_names=["pixels"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    strip(path)
    check_graph(path)
    return check_logits(module, path, pixels)


def strip(path: Path) -> None:
    """Removes what the exporter notes about its own machine: source paths in metadata, and docstrings."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def check_graph(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError("the graph keeps weights outside its file")
    if path.stat().st_size >= MAX_BYTES:
        raise ExportError(f"the graph has {path.stat().st_size} bytes, the limit is {MAX_BYTES}")
    transposes = sum(node.op_type == "Transpose" for node in model.graph.node)
    if transposes != 1:
        raise ExportError(f"the graph has {transposes} Transposes, one (NHWC to NCHW) is expected")
    inputs = [(i.name, i.type.tensor_type.elem_type) for i in model.graph.input]
    outputs = [(o.name, o.type.tensor_type.elem_type) for o in model.graph.output]
    if inputs != [("pixels", onnx.TensorProto.UINT8)] or outputs != [("logits", onnx.TensorProto.FLOAT)]:
        raise ExportError(f"unexpected inputs {inputs} or outputs {outputs}")


def check_logits(module: Exported, path: Path, pixels: np.ndarray) -> float:
    noise = np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8)
    # Batches of 1 and 7 show that the batch dimension is free; 7 divides nothing the exporter may have assumed.
    groups = [noise, noise[:1], noise[:7], pixels]
    session = open_session(path, threads=1)
    with torch.inference_mode():
        differences = [np.abs(module(torch.from_numpy(g)).numpy() - logits(session, g)).max() for g in groups]
    worst = float(max(differences))
    if not worst <= TOLERANCE:
        raise ExportError(f"ONNX and PyTorch logits differ by {worst:.2e}, allowed are {TOLERANCE:.0e}")
    return worst


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits(session: ort.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """pixels [n, 32, 32, 3] uint8 -> [n, 2] float32."""
    parts = [session.run(["logits"], {"pixels": pixels[i : i + 256]})[0] for i in range(0, len(pixels), 256)]
    return np.concatenate(parts)


def probabilities(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64 so that the card's figures do not depend on rounding."""
    values = values.astype(np.float64)
    exponents = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def drawing(variant: int) -> Image.Image:
    """A landscape, 96x64: no data set's pixels, no random numbers, and not square, so that resizing is tested too."""
    y, x = np.mgrid[0:64, 0:96]
    red, green, blue = 60 + 2 * y, 100 + y + 4 * variant, 230 - y
    sun = (x - 20 - 5 * variant) ** 2 + (y - 18) ** 2 < (7 + variant) ** 2
    red, green, blue = np.where(sun, 250, red), np.where(sun, 210 - 8 * variant, green), np.where(sun, 90, blue)
    hill = y > 40 + (4 + variant) * np.sin(x / (10 + 2 * variant))
    shade = (x + y) // 2
    red, green, blue = np.where(hill, 30 + shade, red), np.where(hill, 120 + shade // 2, green), np.where(hill, 40 + 6 * variant, blue)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8), "RGB")


def golden_image(session: ort.InferenceSession) -> Image.Image:
    """The drawing that is the best proof for this network, of a dozen.

    A golden image must not tip over when another resizer rounds a value differently, and must tip over when colours
    are swapped or the image is cropped instead of squashed. A saturated score fails the second, an undecided one the first.
    """

    def quality(image: Image.Image) -> float:
        pixels = to_thumbnail(image)
        rng = np.random.default_rng(0)
        rounding = rng.choice([-1, 0, 1], (16, *pixels.shape), p=[0.05, 0.9, 0.05])
        rounded = np.clip(pixels + rounding, 0, 255).astype(np.uint8)
        mistakes = np.stack([pixels[:, :, ::-1], to_thumbnail(image.crop((16, 0, 80, 64)))])
        score = probabilities(logits(session, np.concatenate([pixels[None], mistakes, rounded])))[:, 1]
        change = np.abs(score - score[0])
        return float(change[1:3].min() / (change[3:].max() + STEADY))

    return max((drawing(variant) for variant in range(12)), key=quality)


def golden_scores(session: ort.InferenceSession, image: Image.Image) -> dict[str, float]:
    scores = probabilities(logits(session, to_thumbnail(image)[None]))[0]
    return {label: round(float(score), 6) for label, score in zip(LABELS, scores, strict=True)}
