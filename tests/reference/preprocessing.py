"""What a package's configuration makes of a decoded image: the rules of timm and of transformers, with Pillow and NumPy.

Written from the libraries' own documentation and sources (timm 1.0, transformers 4.57 and 5), and checked against them
by `python -m reference.libraries`, where they are installed. Nothing here needs either of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_SWITCHES = ("do_", "include_top", "rescale_offset")

Size = Callable[[int, int], tuple[int, int]]
"""The height and width that an image of some height and width is resized to."""


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded image becomes what the model sees. Sizes are (height, width)."""

    resize: Size | None
    crop: tuple[int, int] | None
    rounds_crop: bool
    """torchvision rounds the offset of a centre crop to even, transformers rounds it down."""
    fill: tuple[int, int, int]
    interpolation: Image.Resampling
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    offset: float = 0.0
    """Subtracted after the rescaling."""
    divides_again: bool = False
    """Divided by `std` once more at the end."""
    blue_first: bool = False

    def pixels(self, image: Image.Image) -> np.ndarray:
        """`[height, width, 3]` uint8, what the model sees before normalisation."""
        if self.resize is not None:
            height, width = self.resize(image.height, image.width)
            # timm fails on a picture so long that nothing is left of its other edge; one line of it is kept here.
            image = image.resize((max(width, 1), max(height, 1)), self.interpolation)
        if self.crop is not None:
            image = self._cropped(image)
        return np.asarray(image)

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
        std = np.array(self.std, np.float32)
        scaled = pixels.astype(np.float32) * np.float32(self.rescale) - np.float32(self.offset)
        normal = (scaled - np.array(self.mean, np.float32)) / std
        if self.divides_again:
            normal = normal / std
        planes = normal.transpose(2, 0, 1)
        return np.ascontiguousarray(planes[::-1] if self.blue_first else planes)


def exact(height: int, width: int) -> Size:
    return lambda _height, _width: (height, width)


def shortest(edge: int) -> Size:
    """The shorter edge becomes `edge`, the longer one is cut down to a whole number."""

    def size(height: int, width: int) -> tuple[int, int]:
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)

    return size


def shortest_within(edge: int, limit: int) -> Size:
    """As `shortest`, unless the longer edge would pass `limit`, which then decides."""

    def size(height: int, width: int) -> tuple[int, int]:
        low, high = min(height, width), max(height, width)
        short, exact_short = edge, float(edge)
        if high / low * edge > limit:
            exact_short = limit * low / high
            short = round(exact_short)
        if low == short:
            return height, width
        if width < height:
            return int(exact_short * height / width), short
        return short, int(exact_short * width / height)

    return size


def keep_ratio(box: tuple[int, int], choose: Callable[[float, float], float]) -> Size:
    """timm's ResizeKeepRatio: `choose` is max to fit into the box and min to cover it."""

    def size(height: int, width: int) -> tuple[int, int]:
        ratio = choose(height / box[0], width / box[1])
        return round(height / ratio), round(width / ratio)

    return size


def preprocessing(config: dict, processor: dict | None) -> Preprocessing:
    """The steps that a package's `config.json` and, if it has one, `preprocessor_config.json` ask for."""
    source = processor if processor is not None else config
    # timm's fields may be nested, also inside the preprocessor file of a transformers wrapper around timm.
    if processor is None or "pretrained_cfg" in source:
        return _from_timm(source.get("pretrained_cfg", source))
    # A switch that is null is off; any other null is as good as absent.
    switches = {key: False for key, value in source.items() if value is None and key.startswith(_SWITCHES)}
    return _from_transformers({key: value for key, value in source.items() if value is not None} | switches)


def _from_timm(cfg: dict) -> Preprocessing:
    """timm's evaluation transform: `create_transform` with `resolve_data_config`."""
    _, height, width = cfg["input_size"]
    crop_pct = cfg.get("crop_pct") or 0.875
    crop_mode = cfg.get("crop_mode") or "center"
    mean, std = _triple(cfg.get("mean") or _IMAGENET[0]), _triple(cfg.get("std") or _IMAGENET[1])
    scale = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if crop_mode == "squash":
        resize = exact(*scale)
    elif crop_mode == "border":
        resize = keep_ratio(scale, max)
    else:
        resize = shortest(scale[0]) if scale[0] == scale[1] else keep_ratio(scale, min)
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        rounds_crop=True,
        # Only `border` pads with the mean; a plain centre crop pads with black.
        fill=tuple(round(255 * value) for value in mean) if crop_mode == "border" else (0, 0, 0),
        interpolation=_FILTERS[cfg.get("interpolation") or "bicubic"],
        rescale=1 / 255,
        mean=mean,
        std=std,
    )


@dataclass(frozen=True)
class _Class:
    """What a class of image processors does where its file is silent."""

    size: dict
    statistics: tuple
    square: bool = True
    """A bare number as `size` is both edges."""
    crop: int | None = None
    """The side of the crop that it makes unless told otherwise."""
    resample: Image.Resampling | None = Image.Resampling.BICUBIC
    """None where releases of transformers disagree."""


_SHORTEST_224 = {"shortest_edge": 224}
_CLASSES = {
    "ViT": _Class({"height": 224, "width": 224}, _HALF, resample=Image.Resampling.BILINEAR),
    "DeiT": _Class({"height": 256, "width": 256}, _HALF, crop=224),
    "Beit": _Class({"height": 224, "width": 224}, _HALF),
    "Siglip": _Class({"height": 224, "width": 224}, _HALF, square=False),
    "Pvt": _Class({"height": 224, "width": 224}, _IMAGENET, resample=None),
    "Segformer": _Class({"height": 512, "width": 512}, _IMAGENET, resample=Image.Resampling.BILINEAR),
    "EfficientNet": _Class({"height": 346, "width": 346}, _HALF, resample=None),
    "CLIP": _Class(_SHORTEST_224, _CLIP, square=False, crop=224),
    "Bit": _Class(_SHORTEST_224, _CLIP, square=False, crop=224),
    "MobileNetV1": _Class({"shortest_edge": 256}, _HALF, False, 224, Image.Resampling.BILINEAR),
    "MobileNetV2": _Class({"shortest_edge": 256}, _HALF, False, 224, Image.Resampling.BILINEAR),
    "MobileViT": _Class(_SHORTEST_224, _HALF, False, 256, None),
    "Levit": _Class(_SHORTEST_224, _IMAGENET, square=False, crop=224),
    "PoolFormer": _Class(_SHORTEST_224, _IMAGENET, square=False, crop=224),
    "ConvNext": _Class({"shortest_edge": 384}, _HALF, square=False, resample=None),
}


def _from_transformers(cfg: dict) -> Preprocessing:
    """transformers' image processors, the ones that work on Pillow images."""
    name = cfg.get("image_processor_type") or cfg["feature_extractor_type"]
    for ending in ("ImageProcessorFast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    kind = _CLASSES[name]
    size = _size(cfg.get("size", kind.size), kind.square)
    crop = _side(cfg.get("crop_size", kind.crop)) if cfg.get("do_center_crop", kind.crop is not None) else None
    if name == "ConvNext":
        edge = size["shortest_edge"]
        crop = (edge, edge)
        # Below 384 a slightly larger resize and a crop, from there on the whole image squeezed.
        resize = shortest(int(edge / cfg.get("crop_pct", 224 / 256))) if edge < 384 else exact(edge, edge)
    elif name == "PoolFormer":
        share = cfg.get("crop_pct", 0.9)
        height, width = size.get("height"), size.get("width")
        if height == width:
            resize = shortest(int((height or size["shortest_edge"]) / share))
        else:
            resize = exact(int(height / share), int(width / share))
    elif name == "Levit" and "shortest_edge" in size:
        resize = shortest(int((256 / 224) * size["shortest_edge"]))
    elif "longest_edge" in size:
        resize = shortest_within(size["shortest_edge"], size["longest_edge"])
    elif "shortest_edge" in size:
        resize = shortest(size["shortest_edge"])
    else:
        resize = exact(size["height"], size["width"])
    normalises = cfg.get("do_normalize", True) and name != "MobileViT"
    divides_again = name == "EfficientNet" and cfg.get("include_top", True)
    rescales = cfg.get("do_rescale", True)
    mean, std = (_triple(cfg.get(field, kind.statistics[at])) for at, field in enumerate(("image_mean", "image_std")))
    if divides_again and not normalises:
        normalises, divides_again, mean = True, False, (0.0,) * 3
    return Preprocessing(
        resize=resize if cfg.get("do_resize", True) else None,
        crop=crop,
        rounds_crop=False,
        fill=(0, 0, 0),
        # The file holds Pillow's own code.
        interpolation=Image.Resampling(cfg.get("resample", kind.resample)),
        rescale=cfg.get("rescale_factor", 1 / 255) if rescales else 1.0,
        mean=mean if normalises else (0.0,) * 3,
        std=std if normalises else (1.0,) * 3,
        offset=1.0 if name == "EfficientNet" and rescales and cfg.get("rescale_offset") else 0.0,
        divides_again=divides_again,
        blue_first=name == "MobileViT" and cfg.get("do_flip_channel_order", True),
    )


def _size(size: dict | list | int, square: bool) -> dict:
    if isinstance(size, dict):
        return size
    if isinstance(size, list):
        return {"height": size[0], "width": size[1]}
    return {"height": size, "width": size} if square else {"shortest_edge": size}


def _side(size: dict | int) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _triple(value: float | list[float] | tuple[float, ...]) -> tuple[float, float, float]:
    return (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
