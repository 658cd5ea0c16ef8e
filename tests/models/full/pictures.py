"""Twenty drawn pictures, opaque RGB, that differ in size, shape, content and format."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from reference.scenes import scene

_SIZES = ((640, 480), (480, 640), (1024, 683), (384, 384), (300, 900), (250, 251), (96, 64), (1200, 400), (511, 767), (224, 224))
COUNT = 20


def write_pictures(folder: Path, count: int = COUNT) -> list[Path]:
    """The files, in the order of their names. Every second one is a JPEG: its decoder is part of what is compared."""
    files = []
    for number in range(count):
        image = Image.fromarray(scene(700 + number, *_SIZES[number % len(_SIZES)]))
        file = folder / f"{number:02}.{'jpg' if number % 2 else 'png'}"
        image.save(file, **({"quality": 90} if number % 2 else {}))
        files.append(file)
    return files
