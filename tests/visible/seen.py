"""What a viewer shows for a file, reduced to what is compared."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms, ImageOps

SIZE = 64
"""Pictures are compared at 64 x 64, squashed by a box filter, as the probe detector gets them."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """One picture as shown, `[64, 64, 3]` uint8 over white and over black."""

    white: np.ndarray
    black: np.ndarray
    painted: float
    """The share of pixels that are not wholly transparent."""
    duration: float = 0.0
    """Time on screen, in microseconds."""

    def turned(self, code: int) -> Picture:
        """The picture turned as EXIF's code 1 to 8 demands."""
        return Picture(turn(self.white, code), turn(self.black, code), self.painted, self.duration)


@dataclass
class Seen:
    """All that a viewer shows of one file."""

    width: int = 0
    height: int = 0
    picture: Picture | None = None
    frames: dict[int, Picture] = field(default_factory=dict)
    frame_count: int = 1

    @property
    def is_shown(self) -> bool:
        return self.picture is not None and self.picture.painted > 0


def turn(grid: np.ndarray, code: int) -> np.ndarray:
    if code not in _TURNS:
        return grid
    return np.asarray(Image.fromarray(grid).transpose(_TURNS[code]))


def reduce(rgba: np.ndarray, duration: float = 0.0) -> Picture:
    """Puts `[height, width, 4]` uint8 samples over both backgrounds and reduces them."""
    alpha = rgba[..., 3:].astype(np.uint32)
    over_black = (rgba[..., :3] * alpha + 127) // 255
    over_white = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return Picture(_squash(over_white), _squash(over_black), float((alpha > 0).mean()), duration)


def _squash(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BOX))


def by_pillow(path: str) -> Seen:
    """What Pillow shows, in the colours of the file's profile. It stands for the viewers of formats that browsers do not
    show, such as TIFF."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            pages = [_rgba(image, number) for number in range(min(count, 32))]
    except Exception:  # Pillow's parsers raise nearly everything for a broken file.
        return Seen()
    height, width = pages[0].shape[:2]
    pictures = [reduce(page) for page in pages]
    frames = dict(enumerate(pictures)) if count > 1 else {}
    return Seen(width, height, pictures[0], frames, count)


def _rgba(image: Image.Image, number: int) -> np.ndarray:
    image.seek(number)
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) / 257 + 0.5).astype(np.uint8))
    return np.asarray(_in_srgb(upright).convert("RGBA"))


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:
        # Viewers ignore a profile that is broken or for other samples.
        return image
