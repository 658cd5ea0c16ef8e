"""The images a conversion is checked on: those of a folder, or drawn ones."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from common.errors import PackagingError
from common.golden import drawing
from common.pixels import as_seen

MOST = 20
"""A large network takes seconds an image on a processor, three times over."""
# Wide, tall, square and smaller than any network's input, so that resizing both ways and cropping have something to do.
_DRAWN = ((96, 64), (640, 427), (300, 800), (1024, 1024), (33, 47), (500, 180))


def check_images(folder: Path | None) -> list[Image.Image]:
    """At most `MOST` images of `folder` in the order of their names, or the drawn ones; upright, RGB."""
    if folder is None:
        return [drawing(variant).resize(size, Image.Resampling.BICUBIC) for variant, size in enumerate(_DRAWN)]
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                found.append(as_seen(image))
        except (UnidentifiedImageError, OSError) as error:
            raise PackagingError(f"--images: {path} cannot be read as an image: {error}") from error
        if len(found) == MOST:
            break
    if not found:
        raise PackagingError(f"--images: there is no image in {folder}")
    return found
