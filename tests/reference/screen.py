"""What Pixwarden must agree with: an image's bytes to pixels to scores, with Pillow, NumPy and ONNX Runtime.

The rules are those of the tools that train such detectors: torchvision and timm for packages with a
`pretrained_cfg`, transformers for packages with a `preprocessor_config.json`. Nothing here needs either of them.

Run as `python -m reference.screen --detector DIR FILE...` for one JSON object an image.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageOps

from reference.integrity import broken_part
from reference.preprocessing import preprocessing

MAX_EDGE_PIXELS = 1_000_000
MAX_PIXELS = 100_000_000
MAX_FRAMES = 8
MAX_VIEWS = 12

REVIEW_AT = 0.5
FLAG_AT = 0.9

# Limits are checked here before pixels are read, with an error of our own.
Image.MAX_IMAGE_PIXELS = None

# Pillow's names of the formats that count as images. MPO is a JPEG with further pictures behind it.
_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
# Formats whose further pictures are frames in time. Pages of a TIFF and previews in a JPEG are not.
_ANIMATED = {"png", "webp", "gif"}


class Undecodable(Exception):
    """The bytes are not an image that may be screened: another format, damaged, cut short or over a limit."""


@dataclass(frozen=True)
class Decoded:
    """An image as a person sees it."""

    format: str
    width: int
    height: int
    """Size when upright, after EXIF orientation is applied."""
    frame_count: int
    frames: list[Image.Image]
    """The views that are screened, upright, mode RGB: frames over white, then what looks different over black or turned."""


def decode(data: bytes) -> Decoded:
    """Opens an image file. Raises `Undecodable` with the reason."""
    with warnings.catch_warnings():
        # Pillow warns of damage that it then refuses anyway.
        warnings.simplefilter("ignore")
        return _decode(data)


def _decode(data: bytes) -> Decoded:
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow raises whatever the parser at fault raises.
        raise Undecodable(f"not an image: {error}") from error
    if image.format not in _FORMATS:
        raise Undecodable(f"unsupported format: {image.format}")
    kind = _FORMATS[image.format]
    width, height = image.size
    if max(width, height) > MAX_EDGE_PIXELS or width * height > MAX_PIXELS:
        raise Undecodable(f"over the decode limits: {width} x {height}")
    broken = broken_part(kind, data)
    if broken:
        raise Undecodable(f"damaged: {broken}")
    try:
        count = getattr(image, "n_frames", 1) if kind in _ANIMATED else 1
        frames, others = [], []
        for index in _frame_indices(_durations(image, count)):
            if count > 1:
                image.seek(index)
            # Browsers do not turn a WebP, and phones do.
            upright = image if kind == "webp" else ImageOps.exif_transpose(image)
            white, black = _opaque_rgb(upright, "white"), _opaque_rgb(upright, "black")
            frames.append(white)
            if np.abs(np.asarray(white, np.int16) - np.asarray(black)).mean() > 1:
                others.append(black)
            if kind == "webp" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                others.append(_opaque_rgb(ImageOps.exif_transpose(image), "white"))
    except Exception as error:
        raise Undecodable(f"damaged: {error}") from error
    return Decoded(kind, *frames[0].size, count, (frames + others)[:MAX_VIEWS])


def _durations(image: Image.Image, count: int) -> list[int]:
    """Of each frame in milliseconds, as browsers show it."""
    durations = []
    for index in range(count):
        if count > 1:
            image.seek(index)
            image.load()
        asked = image.info.get("duration", 0)
        durations.append(100 if asked <= 10 else int(asked))
    return durations


def _frame_indices(durations: list[int], limit: int = MAX_FRAMES) -> list[int]:
    """Which frames are screened, where all look different: the first, the last, the longest, and those that are on screen at
    evenly spaced times, then those in the middle between others."""
    last = len(durations) - 1
    chosen: list[int] = []

    def choose(index: int) -> None:
        if index not in chosen and len(chosen) < limit:
            chosen.append(index)

    for index in (0, last, durations.index(max(durations))):
        choose(index)
    ends = np.cumsum(durations)
    slots = min(limit, len(durations)) - len(chosen)
    for slot in range(1, slots + 1):
        choose(int(np.searchsorted(ends, ends[-1] * slot // (slots + 1), side="right")))
    steps = 1
    while len(chosen) < min(limit, len(durations)):
        steps *= 2
        for step in range(1, steps):
            choose(last * step // steps)
    return sorted(chosen)


def _opaque_rgb(image: Image.Image, background: str) -> Image.Image:
    """Any mode to RGB: 16-bit grey divided by 257 and rounded, alpha over a background, the rest by Pillow's own convert."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip at 255 here.
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return image.convert("RGB")


class Detector:
    """A model package: a folder with the model, its labels and its preprocessing."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        config = json.loads((folder / "config.json").read_text())
        self.labels = _labels(config)
        self.multi_label = config.get("problem_type") == "multi_label_classification"
        self.gives_probabilities = config.get("pixwarden", {}).get("output") == "probabilities"
        processor = folder / "preprocessor_config.json"
        self.preprocessing = preprocessing(config, json.loads(processor.read_text()) if processor.exists() else None)
        model = folder / "model.onnx"
        if not model.exists():
            model = folder / "onnx" / "model.onnx"
        # One thread: the networks are small, and idle threads of a pool would spin in between.
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, threads, providers=["CPUExecutionProvider"])
        self._input = self.session.get_inputs()[0]

    def pixels(self, frame: Image.Image) -> np.ndarray:
        """`[height, width, 3]` uint8, one frame after resize and crop."""
        return self.preprocessing.pixels(frame)

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """`[labels]` float32 probabilities of one frame's pixels; NaN where the model gives no number."""
        if self._input.type == "tensor(uint8)":
            batch = pixels[None]
        else:
            batch = self.preprocessing.tensor(pixels)[None]
        output = self.session.run(None, {self._input.name: batch})[0][0].astype(np.float64)
        if not self.gives_probabilities:
            output = _sigmoid(output) if self.multi_label else _softmax(output)
        return output.astype(np.float32)

    def screen(self, frames: Iterable[Image.Image], label: str) -> tuple[np.ndarray, dict[str, float] | None]:
        """Pixels of the first frame, and the highest score of each label over all frames.

        Scores are None if any frame gave something that is not a number. `label` must be one of the labels.
        """
        self.labels.index(label)
        all_pixels = [self.pixels(frame) for frame in frames]
        all_scores = np.stack([self.scores(pixels) for pixels in all_pixels])
        if not np.isfinite(all_scores).all():
            return all_pixels[0], None
        highest = all_scores.max(axis=0)
        return all_pixels[0], dict(zip(self.labels, (float(score) for score in highest), strict=True))


def _labels(config: dict) -> list[str]:
    if "id2label" in config:
        names = config["id2label"]
        return [names[str(index)] for index in range(len(names))]
    return list(config.get("label_names") or config["labels"])


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def outcome(score: float | None, review_at: float = REVIEW_AT, flag_at: float = FLAG_AT) -> str:
    """The policy's word on one score; None means that the model gave something that is not a number."""
    if score is None:
        return "failed"
    if score >= flag_at:
        return "flagged"
    return "review" if score >= review_at else "passed"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Screen image files with the reference, one JSON object each.")
    parser.add_argument("--detector", type=Path, required=True, metavar="DIR", help="model package")
    parser.add_argument("--label", default="by AI", help="label that the thresholds are for")
    parser.add_argument("--review-at", type=float, default=REVIEW_AT)
    parser.add_argument("--flag-at", type=float, default=FLAG_AT)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(arguments)
    detector = Detector(options.detector)
    for file in options.files:
        try:
            _, scores = detector.screen(decode(file.read_bytes()).frames, options.label)
        except Undecodable as error:
            line = {"image": str(file), "scores": None, "outcome": "undecodable", "reason": str(error)}
        else:
            verdict = outcome(scores and scores[options.label], options.review_at, options.flag_at)
            line = {"image": str(file), "scores": scores, "outcome": verdict, "reason": None}
        json.dump(line, sys.stdout)
        print()


if __name__ == "__main__":
    main()
