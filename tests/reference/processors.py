"""One small package for each kind of image processor and transform that Pixwarden reads.

They share the network of `detectors`, so that a wrong edge, filter, mean or order of channels moves their scores.
`EXTRA` are configurations that this network's size leaves out; `reference.libraries` checks those by their pixels.
"""

from __future__ import annotations

from pathlib import Path

from reference.detectors import LABELS, SIZE, Network, Package, json_bytes

_SQUARE = {"height": SIZE, "width": SIZE}

PROCESSORS: dict[str, dict] = {
    "vit": {"image_processor_type": "ViTImageProcessorFast", "size": _SQUARE, "do_center_crop": None, "do_pad": None},
    "vit-old": {"feature_extractor_type": "ViTFeatureExtractor", "size": SIZE, "resample": 2, "image_mean": 0.4},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 110, "width": 120}, "crop_size": SIZE},
    "beit": {
        "image_processor_type": "BeitImageProcessor",
        "size": [SIZE, SIZE],
        "do_center_crop": False,
        "do_reduce_labels": True,
    },
    "clip-old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIZE, "crop_size": SIZE},
    "bit-within": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 111, "longest_edge": 140},
        "crop_size": _SQUARE,
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": _SQUARE, "resample": 1},
    "pvt": {"image_processor_type": "PvtImageProcessor", "size": _SQUARE, "resample": 2},
    "efficientnet": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": _SQUARE,
        "resample": 0,
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
        "image_std": [0.9, 0.95, 1.05],
        "image_mean": 0.1,
    },
    "mobilenet": {
        "image_processor_type": "MobileNetV1ImageProcessor",
        "size": {"shortest_edge": 109},
        "crop_size": _SQUARE,
    },
    "mobilevit": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 110},
        "crop_size": _SQUARE,
        "resample": 2,
    },
    "levit": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 90}, "crop_size": SIZE},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor", "size": SIZE, "crop_size": SIZE},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIZE}, "resample": 3},
    "timm-wrapper": {
        "image_processor_type": "TimmWrapperImageProcessor",
        "pretrained_cfg": {"input_size": [3, SIZE, SIZE], "interpolation": "lanczos", "crop_pct": 0.9},
    },
}

FLAT: dict[str, dict] = {
    "timm-silent": {"input_size": [3, SIZE, SIZE]},
    "timm-squash-crop": {"input_size": [3, SIZE, SIZE], "crop_pct": 0.8, "crop_mode": "squash", "interpolation": "box"},
}

EXTRA: dict[str, dict] = {
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor", "size": 384, "resample": 3},
    "levit-square": {"image_processor_type": "LevitImageProcessor", "size": _SQUARE, "do_center_crop": False},
    "poolformer-oblong": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 96, "width": 60},
        "crop_size": {"height": 80, "width": 50},
    },
    "efficientnet-plain": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": _SQUARE,
        "resample": 3,
        "do_normalize": False,
        "image_std": 0.4,
    },
    "segformer": {"image_processor_type": "SegformerImageProcessor"},
    "mobilenet-v2": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "clip-larger-crop": {"image_processor_type": "CLIPImageProcessor", "size": 61, "crop_size": SIZE},
    # A switch that is null is off, whatever is the default of one that is absent.
    "vit-unsized": {"image_processor_type": "ViTImageProcessor", "do_resize": None},
    "clip-unnormalised": {"image_processor_type": "CLIPImageProcessor", "do_normalize": None, "do_rescale": None},
    "efficientnet-nulls": {
        "image_processor_type": "EfficientNetImageProcessor",
        "resample": 3,
        "include_top": None,
        "rescale_offset": None,
    },
    "timm-oblong": {"pretrained_cfg": {"input_size": [3, 90, 61], "crop_pct": 0.85}},
    "timm-oblong-border": {"pretrained_cfg": {"input_size": [3, 90, 61], "crop_mode": "border", "crop_pct": 1.0}},
}


MISTAKES: dict[str, tuple[str, dict]] = {
    "blue not first": ("mobilevit", {"do_flip_channel_order": False}),
    "divided once": ("efficientnet", {"include_top": False}),
    "no offset": ("efficientnet", {"rescale_offset": False}),
    "another crop_pct": ("poolformer", {"crop_pct": 0.8}),
    "a limit not heeded": ("bit-within", {"size": {"shortest_edge": 111}}),
    "squashed": ("clip-old", {"size": _SQUARE}),
    "another filter": ("mobilenet", {"resample": 0}),
    "another processor": ("levit", {"image_processor_type": "DeiTImageProcessor", "size": SIZE}),
}
"""Fields changed in a package that keeps its name: the comparison has to notice each."""


def packages(changes: tuple[str, dict] | None = None) -> list[Package]:
    """A package for each configuration but the extra ones; with `changes`, only the one that they are for."""
    name, fields = changes or (None, {})
    model = Network().model().SerializeToString()
    labels = {"id2label": {str(index): label for index, label in enumerate(LABELS)}}
    flat = {"architecture": "fixture_convnet", "num_classes": len(LABELS), "labels": LABELS}
    files = {
        kind: {"config.json": labels, "preprocessor_config.json": {**processor, **fields}}
        for kind, processor in PROCESSORS.items()
    }
    files |= {kind: {"config.json": {**flat, **cfg}} for kind, cfg in FLAT.items()}
    return [
        Package(kind, {"model.onnx": model, **{file: json_bytes(value) for file, value in written.items()}})
        for kind, written in files.items()
        if name in (None, kind)
    ]


def write(folder: Path, changes: tuple[str, dict] | None = None) -> list[Path]:
    """Writes every package, or the changed one, into `folder` and returns their folders."""
    return [package.write(folder) for package in packages(changes)]
