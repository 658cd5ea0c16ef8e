"""Whether this reference is right: its tensors against those of transformers' and timm's own preprocessing.

    python -m reference.libraries

Needs transformers, timm and PyTorch, which nothing else here does. Exit status 1 if any configuration differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from reference import processors, scenes
from reference.preprocessing import preprocessing

TOLERANCE = 1e-3
"""Of a normalised value. One level of 255 is several times that under every deviation used here."""
SHAPES = ((97, 131), (131, 97), (300, 300), (400, 61), (61, 400), (96, 96), (37, 53))
"""Width and height of the images: lying, standing, square, long, of the crop's own size, and smaller than it."""


def images() -> list[Image.Image]:
    """Opaque images of several shapes: the libraries' loaders drop alpha, and not every processor takes grey."""
    return [Image.fromarray(scenes.scene(seed, *shape)) for seed, shape in enumerate(SHAPES)]


def theirs(config: dict, image: Image.Image) -> np.ndarray:
    """`[3, height, width]` float32 by the library that the configuration is for."""
    cfg = config.get("pretrained_cfg") or (config if "input_size" in config else None)
    if cfg is not None:
        from timm.data import create_transform, resolve_data_config

        return create_transform(**resolve_data_config(pretrained_cfg=cfg))(image).numpy()
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def ours(config: dict, image: Image.Image) -> np.ndarray:
    """The same by the reference."""
    is_processor = "image_processor_type" in config or "feature_extractor_type" in config
    steps = preprocessing({}, config) if is_processor else preprocessing(config, None)
    return steps.tensor(steps.pixels(image))


def main() -> int:
    wrong = 0
    for name, config in {**processors.PROCESSORS, **processors.FLAT, **processors.EXTRA}.items():
        largest = 0.0
        for image in images():
            wanted, got = theirs(config, image), ours(config, image)
            gap = float(np.abs(wanted - got).max()) if wanted.shape == got.shape else np.inf
            largest = max(largest, gap)
        wrong += not largest <= TOLERANCE
        print(f"{name:<20} {largest:.2e}  {'agrees' if largest <= TOLERANCE else 'DIFFERS'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
