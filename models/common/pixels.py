"""An image as the worker sees it before it is resized."""

from __future__ import annotations

from PIL import Image, ImageOps


def as_seen(image: Image.Image) -> Image.Image:
    """Turned upright, transparency composited over white, mode RGB."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
