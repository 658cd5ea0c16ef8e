#!/usr/bin/env python3
"""How far Pixwarden is from the preprocessing of timm and transformers, configuration by configuration.

    python tests/models/processors.py --pixwarden target/debug/pixwarden [--write]

Each configuration is made and run by its library, on the same pictures, with the same small classifier of fixed weights.
Prints a Markdown table; --write puts it into models/README.md. Requirements: models/requirements-convert.txt.
ORT_DYLIB_PATH is taken from the environment.

Exit status: 0 every row within the tolerances or refused by name, and at least ten within; 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests"), str(ROOT / "tests/models")]

import numpy as np
import onnx
import onnxruntime
import transformers
from agreement import PIXEL_TOLERANCE, ScanFailed, scan
from conversion.model import whole_levels
from full.pictures import write_pictures
from PIL import Image
from reference.detectors import CLIP_MEAN, CLIP_STD, LABELS, Network
from reference.expected import SCORE_TOLERANCE
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor

PICTURES = 12
LEAST_MEASURED = 10
README = ROOT / "models/README.md"
BEGIN, END = "<!-- processors: begin -->", "<!-- processors: end -->"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

Pixels = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class Reference:
    """What a library makes of an image: `[h, w, 3]` uint8 before, and `[3, h, w]` float32 after rescaling."""

    pixels: Pixels
    tensor: Pixels


@dataclass(frozen=True)
class Row:
    name: str
    library: str
    make: Callable[[Path], Reference]
    """Writes the configuration files into a package folder."""


def hugging_face(kind: str, **fields: object) -> Callable[[Path], Reference]:
    """`kind` with its own defaults but for `fields`; saved by the library, read back by its loader for Pillow."""

    def make(folder: Path) -> Reference:
        getattr(transformers, kind)(**fields).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

        def run(image: Image.Image, **options: bool) -> np.ndarray:
            return np.asarray(processor(images=image, return_tensors="np", **options)["pixel_values"][0], np.float32)

        # EfficientNet's second normalisation has a switch of its own.
        plain = {"do_rescale": False, "do_normalize": False} | ({"include_top": False} if hasattr(processor, "include_top") else {})
        return Reference(lambda image: whole_levels(run(image, **plain)), run)

    return make


def timm(**fields: object) -> Callable[[Path], Reference]:
    """`pretrained_cfg` of these fields, resolved and run by timm."""

    def make(folder: Path) -> Reference:
        config = {"architecture": "fixture", "num_classes": len(LABELS), "label_names": list(LABELS), "pretrained_cfg": fields}
        (folder / "config.json").write_text(json.dumps(config))
        resolved = resolve_data_config({}, pretrained_cfg=fields)
        levels = create_transform(**resolved, is_training=False, normalize=False)
        whole = create_transform(**resolved, is_training=False)
        return Reference(lambda image: whole_levels(levels(image).numpy()), lambda image: whole(image).numpy())

    return make


def square(edge: int, crop_pct: float, crop_mode: str, interpolation: str, **rest: object) -> Callable[[Path], Reference]:
    return timm(input_size=(3, edge, edge), crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, **(IMAGENET | rest))


ROWS = [
    Row("ViT, 224, squash, bilinear", "transformers", hugging_face("ViTImageProcessor")),
    Row("ViT, 384, bicubic", "transformers", hugging_face("ViTImageProcessor", size={"height": 384, "width": 384}, resample=3)),
    Row("ViT, 224, Lanczos, one mean for all channels", "transformers", hugging_face("ViTImageProcessor", resample=1, image_mean=0.5, image_std=0.5)),
    Row("ConvNext, 224 of 256", "transformers", hugging_face("ConvNextImageProcessor", size={"shortest_edge": 224})),
    Row("ConvNext, 384, squash", "transformers", hugging_face("ConvNextImageProcessor", size={"shortest_edge": 384})),
    Row("CLIP, 224", "transformers", hugging_face("CLIPImageProcessor")),
    Row("DeiT, 224 of 256", "transformers", hugging_face("DeiTImageProcessor")),
    Row("BEiT, 224", "transformers", hugging_face("BeitImageProcessor", size={"height": 224, "width": 224})),
    Row("BEiT, 224 of 256", "transformers", hugging_face("BeitImageProcessor", size={"height": 256, "width": 256}, do_center_crop=True)),
    Row("Swin (ViT's processor), bicubic", "transformers", hugging_face("ViTImageProcessor", resample=3)),
    Row("MobileNetV2, 224 of 256", "transformers", hugging_face("MobileNetV2ImageProcessor")),
    Row("EfficientNet, 346, no second normalisation", "transformers", hugging_face("EfficientNetImageProcessor", include_top=False)),
    Row("EfficientNet, 346, as it comes", "transformers", hugging_face("EfficientNetImageProcessor")),
    Row("BiT, DINOv2, 224 of 256", "transformers", hugging_face("BitImageProcessor", size={"shortest_edge": 256})),
    Row("SigLIP, 224", "transformers", hugging_face("SiglipImageProcessor")),
    Row("LeViT, 224", "transformers", hugging_face("LevitImageProcessor")),
    Row("PoolFormer, crop_pct 0.9", "transformers", hugging_face("PoolFormerImageProcessor")),
    Row("PVT, 224", "transformers", hugging_face("PvtImageProcessor")),
    Row("center, 224, bicubic, crop_pct 0.9", "timm", square(224, 0.9, "center", "bicubic")),
    Row("center, 224, bilinear, default crop_pct", "timm", timm(input_size=(3, 224, 224), crop_mode="center", interpolation="bilinear", **IMAGENET)),
    Row("squash, 384, bicubic (the seed's)", "timm", square(384, 1.0, "squash", "bicubic", mean=CLIP_MEAN, std=CLIP_STD)),
    Row("squash, 240, bicubic, crop_pct 0.95", "timm", square(240, 0.95, "squash", "bicubic")),
    Row("border, 256, bicubic", "timm", square(256, 1.0, "border", "bicubic")),
    Row("border, 224, bilinear, crop_pct 0.9", "timm", square(224, 0.9, "border", "bilinear")),
    Row("center, 224, Lanczos, crop_pct 0.875", "timm", square(224, 0.875, "center", "lanczos")),
]


def classifier(height: int, width: int) -> onnx.ModelProto:
    """The fixtures' network, which averages over whatever size it is given, for this size."""
    model = Network().model()
    for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (height, width), strict=True):
        dim.dim_value = value
    return model


def measure(row: Row, binary: Path, files: list[Path], work: Path) -> tuple[list[str], bool]:
    """The row's cells, and whether it is within the tolerances (or refused)."""
    package = work / "package"
    package.mkdir(parents=True)
    reference = row.make(package)
    images = [Image.open(file).convert("RGB") for file in files]
    wanted = [reference.pixels(image) for image in images]
    model = classifier(*wanted[0].shape[:2])
    onnx.save(model, package / "model.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"pixel_values": reference.tensor(image)[None]})[0] for image in images])
    scores = 1 / (1 + np.exp(logits[:, :1] - logits[:, 1:]))[:, 0]
    cells = [row.name, f"{row.library}"]
    try:
        records = scan(binary, package, files, work / "pixels")
    except ScanFailed as failure:
        return [*cells, f"refused: {reason(failure, package)}", "", "", f"{scores.std():.2f}"], True
    gaps = [np.abs(seen(file, work / "pixels/package").astype(int) - pixels) for file, pixels in zip(files, wanted, strict=True)]
    score = max(abs(record["score"] - expected) for record, expected in zip(records, scores, strict=True))
    mean, largest = max(gap.mean() for gap in gaps), max(gap.max() for gap in gaps)
    within = bool(mean <= PIXEL_TOLERANCE and score <= SCORE_TOLERANCE)
    return [*cells, f"{largest}", f"{mean:.3f}", f"{score:.4f}", f"{scores.std():.2f}"], within


def seen(file: Path, folder: Path) -> np.ndarray:
    with Image.open(folder / f"{hashlib.sha256(file.read_bytes()).hexdigest()}.png") as image:
        return np.asarray(image.convert("RGB"))


def reason(failure: ScanFailed, package: Path) -> str:
    """What the binary has against the package, without the folder that this run made up. Other failures go on up."""
    said = f"error: detector {package}: "
    line = next((line for line in str(failure).splitlines() if line.startswith(said)), None)
    if line is None:
        raise failure
    return line.removeprefix(said).strip().replace("|", "/")


def table(rows: list[list[str]]) -> str:
    head = ["configuration", "library", "largest pixel difference", "mean of the worst picture", "largest score difference", "spread of scores"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="PATH", help="the binary")
    parser.add_argument("--write", action="store_true", help="put the table into models/README.md, between its markers")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="processors-") as folder:
        work = Path(folder)
        (work / "pictures").mkdir()
        files = write_pictures(work / "pictures", PICTURES)
        results = [measure(row, options.pixwarden.resolve(), files, work / str(number)) for number, row in enumerate(ROWS)]
    text = table([cells for cells, _ in results])
    print(text)
    if options.write:
        write(text)
    measured = sum(not cells[2].startswith("refused") for cells, _ in results)
    wrong = [cells[0] for cells, within in results if not within]
    if wrong:
        print(f"beyond {PIXEL_TOLERANCE:.0f} level on average or {SCORE_TOLERANCE} of score: {'; '.join(wrong)}", file=sys.stderr)
    if measured < LEAST_MEASURED:
        print(f"only {measured} configurations were measured, {LEAST_MEASURED} are wanted", file=sys.stderr)
    return 1 if wrong or measured < LEAST_MEASURED else 0


def write(text: str) -> None:
    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
