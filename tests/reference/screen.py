"""What Pixwarden must agree with: an image's bytes to pixels to scores, with Pillow, NumPy and ONNX Runtime.

The rules are those of the tools that train such detectors: torchvision and timm for packages with a
`pretrained_cfg`, transformers for packages with a `preprocessor_config.json`. Nothing here needs either of them.

Run as `python -m reference.screen --detector DIR FILE...` for one JSON object an image.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from reference.integrity import broken_part

MAX_EDGE_PIXELS = 16_384
MAX_PIXELS = 100_000_000
MAX_FRAMES = 4

REVIEW_AT = 0.5
FLAG_AT = 0.9

# Limits are checked here before pixels are read, with an error of our own.
Image.MAX_IMAGE_PIXELS = None

# Pillow's names of the formats that count as images. MPO is a JPEG with further pictures behind it.
_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
# Formats whose further pictures are frames in time. Pages of a TIFF and previews in a JPEG are not.
_ANIMATED = {"png", "webp", "gif"}

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


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
    """The frames that are screened, upright, mode RGB."""


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
        frames = []
        for index in frame_indices(count):
            if count > 1:
                image.seek(index)
            frames.append(_opaque_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:
        raise Undecodable(f"damaged: {error}") from error
    return Decoded(kind, *frames[0].size, count, frames)


def frame_indices(count: int, limit: int = MAX_FRAMES) -> list[int]:
    """Which frames of `count` are screened: evenly spaced, first and last among them."""
    if count <= limit:
        return list(range(count))
    return [step * (count - 1) // (limit - 1) for step in range(limit)]


def _opaque_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey divided by 257 and rounded, alpha over white, the rest by Pillow's own convert."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip at 255 here.
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded image becomes the square the model sees. Sizes are (height, width)."""

    resize: tuple[int, int] | int | None
    """Both edges, or the shortest edge with the aspect kept."""
    longest: bool
    """`resize` bounds the longest edge instead, and what is missing is padded with `fill`."""
    crop: tuple[int, int] | None
    rounds_crop: bool
    """torchvision rounds the offset of a centre crop to even, transformers rounds it down."""
    fill: tuple[int, int, int]
    interpolation: Image.Resampling
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """`[height, width, 3]` uint8, what the model sees before normalisation."""
        image = self._resized(image)
        if self.crop is not None:
            image = self._cropped(image)
        return np.asarray(image)

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.resize is None:
            return image
        if self.longest:
            ratio = max(height / self.resize[0], width / self.resize[1])
            # timm fails on a picture so long that nothing is left of its other edge; one line of it is kept here.
            height, width = max(round(height / ratio), 1), max(round(width / ratio), 1)
        elif isinstance(self.resize, tuple):
            height, width = self.resize
        elif width <= height:
            height, width = int(self.resize * height / width), self.resize
        else:
            height, width = self.resize, int(self.resize * width / height)
        return image.resize((width, height), self.interpolation)

    def _cropped(self, image: Image.Image) -> Image.Image:
        crop_height, crop_width = self.crop
        width, height = image.size
        if self.rounds_crop:
            # Padding first, then a crop, as torchvision and timm do; padding leaves the odd pixel below and right.
            left_pad, top_pad = max(crop_width - width, 0) // 2, max(crop_height - height, 0) // 2
            padded_width, padded_height = max(width, crop_width), max(height, crop_height)
            left, top = round((padded_width - crop_width) / 2), round((padded_height - crop_height) / 2)
            left, top = left - left_pad, top - top_pad
        else:
            left, top = (width - crop_width) // 2, (height - crop_height) // 2
        canvas = Image.new("RGB", (crop_width, crop_height), self.fill)
        canvas.paste(image, (-left, -top))
        return canvas

    def tensor(self, pixels: np.ndarray) -> np.ndarray:
        """`[height, width, 3]` uint8 to normalised `[3, height, width]` float32."""
        scaled = pixels.astype(np.float32) * np.float32(self.rescale)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


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
        """Pixels of the first frame, and the scores of the frame where `label` scores highest.

        Scores are None if any frame gave something that is not a number.
        """
        at = self.labels.index(label)
        all_pixels = [self.pixels(frame) for frame in frames]
        all_scores = np.stack([self.scores(pixels) for pixels in all_pixels])
        if not np.isfinite(all_scores).all():
            return all_pixels[0], None
        worst = all_scores[all_scores[:, at].argmax()]
        return all_pixels[0], dict(zip(self.labels, (float(score) for score in worst), strict=True))


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


def preprocessing(config: dict, processor: dict | None) -> Preprocessing:
    """The steps that a package's `config.json` and, if it has one, `preprocessor_config.json` ask for."""
    source = processor if processor is not None else config
    # timm's fields may be nested, also inside the preprocessor file of a transformers wrapper around timm.
    if processor is None or "pretrained_cfg" in source:
        return _from_timm(source.get("pretrained_cfg", source))
    return _from_transformers(source)


def _from_timm(cfg: dict) -> Preprocessing:
    """timm's evaluation transform: `create_transform` with `resolve_data_config`."""
    _, height, width = cfg["input_size"]
    crop_pct = cfg.get("crop_pct") or 0.875
    crop_mode = cfg.get("crop_mode") or "center"
    mean, std = _triple(cfg["mean"]), _triple(cfg["std"])
    scale = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if crop_mode == "center" and scale[0] != scale[1]:
        raise NotImplementedError("a centre crop that is not square")
    return Preprocessing(
        resize=scale[0] if crop_mode == "center" else scale,
        longest=crop_mode == "border",
        crop=(height, width),
        rounds_crop=True,
        # Only `border` pads with the mean; a plain centre crop pads with black.
        fill=tuple(round(255 * value) for value in mean) if crop_mode == "border" else (0, 0, 0),
        interpolation=_FILTERS[cfg.get("interpolation", "bilinear")],
        rescale=1 / 255,
        mean=mean,
        std=std,
    )


def _from_transformers(cfg: dict) -> Preprocessing:
    """transformers' image processors, the ones that work on Pillow images."""
    processor = cfg.get("image_processor_type") or cfg.get("feature_extractor_type") or ""
    resize = _transformers_size(cfg["size"], processor) if cfg.get("do_resize", True) else None
    crop = None
    if processor.startswith("ConvNext") and isinstance(resize, int):
        # Below 384 a slightly larger resize and a crop, from there on the whole image squeezed.
        crop = (resize, resize)
        resize = int(resize / cfg.get("crop_pct", 224 / 256)) if resize < 384 else crop
    elif cfg.get("do_center_crop", "crop_size" in cfg):
        crop = _transformers_crop(cfg["crop_size"])
    normalises = cfg.get("do_normalize", True)
    return Preprocessing(
        resize=resize,
        longest=False,
        crop=crop,
        rounds_crop=False,
        fill=(0, 0, 0),
        # The file holds Pillow's own code.
        interpolation=Image.Resampling(cfg.get("resample", Image.Resampling.BILINEAR)),
        rescale=cfg.get("rescale_factor", 1 / 255) if cfg.get("do_rescale", True) else 1.0,
        mean=_triple(cfg["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=_triple(cfg["image_std"]) if normalises else (1.0, 1.0, 1.0),
    )


def _transformers_size(size: dict | int, processor: str) -> tuple[int, int] | int:
    if isinstance(size, dict):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    # An old file with a bare number: the shortest edge for CLIP and ConvNext, a square for the ViT family.
    return size if processor.startswith(("CLIP", "ConvNext")) else (size, size)


def _transformers_crop(size: dict | int) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _triple(value: float | list[float]) -> tuple[float, float, float]:
    return (value,) * 3 if isinstance(value, (int, float)) else tuple(value)


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
