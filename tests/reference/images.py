"""The fixture images: every format and variant that Pixwarden promises to read, made by code and never downloaded.

Run as `python -m reference.images DIR`.
"""

from __future__ import annotations

import argparse
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reference import containers
from reference.scenes import alpha_mask, deepen, grey, scene

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Fixture:
    """One file that every implementation must read alike."""

    name: str
    kind: str
    """Format and variant, the row of the agreement table it counts in."""
    data: bytes


@dataclass(frozen=True)
class _Shot:
    """What an encoder is asked to encode."""

    seed: int
    width: int
    height: int

    def rgb(self) -> np.ndarray:
        return scene(self.seed, self.width, self.height)

    def rgba(self) -> np.ndarray:
        mask = alpha_mask(self.seed, self.width, self.height)
        return np.concatenate([self.rgb(), mask[:, :, None]], axis=2)

    def image(self) -> Image.Image:
        return Image.fromarray(self.rgb())

    def image_rgba(self) -> Image.Image:
        return Image.fromarray(self.rgba())

    def frames(self, count: int) -> list[Image.Image]:
        """Frames of an animation: neighbouring scenes, so that which frames are looked at changes the scores."""
        return [Image.fromarray(scene(self.seed + 1000 * i, self.width, self.height)) for i in range(count)]


def _save(image: Image.Image, container: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **options)
    return out.getvalue()


def _save_frames(frames: list[Image.Image], container: str, **options) -> bytes:
    return _save(frames[0], container, save_all=True, append_images=frames[1:], **options)


def _jpeg(**options) -> Callable[[_Shot], bytes]:
    return lambda shot: _save(shot.image(), "JPEG", **{"quality": 90, **options})


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    return exif.tobytes()


def _cmyk(shot: _Shot) -> Image.Image:
    """CMYK with black ink in use; Pillow's own conversion from RGB would leave the fourth plate empty."""
    rgb = shot.rgb().astype(np.int32)
    black = (255 - rgb.max(axis=2)) // 2
    light = 255 - black
    inks = 255 - (255 * rgb) // np.maximum(light, 1)[:, :, None]
    plates = np.concatenate([inks, black[:, :, None]], axis=2)
    return Image.fromarray(np.clip(plates, 0, 255).astype(np.uint8), "CMYK")


def _jpeg_several_pictures(shot: _Shot) -> bytes:
    """A Multi-Picture file, as phones write for depth or previews: a second JPEG follows the end of the first."""
    first = shot.image()
    return _save_frames([first, first.resize((64, 48))], "MPO", quality=90)


def _png_palette(shot: _Shot) -> bytes:
    return _save(shot.image().quantize(64), "PNG")


def _png_palette_alpha(shot: _Shot) -> bytes:
    """A palette with a `tRNS` chunk: the first entries clear, then half clear, the rest opaque."""
    return _save(shot.image().quantize(64), "PNG", transparency=bytes([0] * 12 + [128] * 12))


def _png_rgb_key(shot: _Shot) -> bytes:
    """True colour with one colour declared transparent; a disc of that colour makes it count."""
    rgb = shot.rgb()
    rgb[alpha_mask(shot.seed, shot.width, shot.height) == 255] = (12, 200, 34)
    key = containers.png_chunk(b"tRNS", bytes([0, 12, 0, 200, 0, 34]))
    return containers.png(rgb, containers.PNG_RGB, extra=key)


def _png_exif(shot: _Shot) -> bytes:
    body = _exif(6).removeprefix(b"Exif\x00\x00")
    return containers.png(shot.rgb(), containers.PNG_RGB, extra=containers.png_chunk(b"eXIf", body))


def _png_one_bit(shot: _Shot) -> bytes:
    return _save(Image.fromarray(grey(shot.rgb())).convert("1"), "PNG")


def _png_very_wide(shot: _Shot) -> bytes:
    """Far wider than any screen: 16,384 pixels."""
    return _save(shot.image().resize((16_384, 24), Image.Resampling.BILINEAR), "PNG")


def _png_animated(shot: _Shot) -> bytes:
    return _save_frames(shot.frames(4), "PNG", duration=100)


def _bright_red(shot: _Shot) -> bytes:
    """Mean red above 250, where the `nan` detector stops giving numbers; no other fixture comes near."""
    rgb = shot.rgb()
    rgb[:, :, 0] = 255 - rgb[:, :, 0] // 128
    return _save(Image.fromarray(rgb), "PNG")


def _gif_still(shot: _Shot) -> bytes:
    return _save(shot.image().quantize(128), "GIF")


def _gif_transparent(shot: _Shot) -> bytes:
    quantized = shot.image().quantize(255)
    indices = np.array(quantized)
    indices[alpha_mask(shot.seed, shot.width, shot.height) < 128] = 255
    image = Image.fromarray(indices, "P")
    image.putpalette(quantized.getpalette())
    return _save(image, "GIF", transparency=255)


def _gif_animated(count: int) -> Callable[[_Shot], bytes]:
    return lambda shot: _save_frames(shot.frames(count), "GIF", duration=100)


def _gif_partial(salt: int) -> Callable[[_Shot], bytes]:
    """Seven frames: a full one, then patches under each disposal method, with clear pixels inside the patches.

    A transparent index is declared throughout. Without one, decoders disagree on what "background" means: Pillow
    paints the palette's background colour, browsers and most other decoders leave the place clear.
    `salt` picks scenes for which a disposal that is not obeyed moves the highest score by at least 0.02.
    """
    clear = 255

    def encode(shot: _Shot) -> bytes:
        seed = shot.seed + salt
        first = Image.fromarray(scene(seed, shot.width, shot.height)).quantize(clear)
        palette = np.array(first.getpalette()[: 3 * clear] + [0, 0, 0], np.uint8).reshape(256, 3)
        frames = [containers.GifFrame(np.array(first))]
        width, height = shot.width * 2 // 3, shot.height * 2 // 3
        for index, disposal in enumerate((1, 2, 3, 1, 2, 1)):
            picture = Image.fromarray(scene(seed + 1000 * (index + 1), width, height))
            patch = np.array(picture.quantize(palette=first))
            patch[: height // 4, : width // 3] = clear
            frames.append(containers.GifFrame(patch, index * shot.width // 16, index * shot.height // 19, disposal))
        return containers.gif(shot.width, shot.height, palette, clear, frames)

    return encode


def _webp_animated(count: int, **options) -> Callable[[_Shot], bytes]:
    return lambda shot: _save_frames(shot.frames(count), "WEBP", duration=100, **options)


def _bmp_32(shot: _Shot) -> bytes:
    """32 bits a pixel with the plain header, whose fourth byte means nothing; it is filled to show who reads it."""
    return _save(shot.image_rgba(), "BMP")


def _tiff(mode: str = "RGB", **options) -> Callable[[_Shot], bytes]:
    return lambda shot: _save(shot.image().convert(mode), "TIFF", **options)


def _tiff_grey16(shot: _Shot) -> bytes:
    return _save(Image.fromarray(deepen(grey(shot.rgb()), shot.seed)), "TIFF", compression="tiff_lzw")


def _png16(colour_type: int) -> Callable[[_Shot], bytes]:
    """16-bit samples. Pillow keeps all bits of grey alone; of colours and of alpha it keeps the high byte."""

    def encode(shot: _Shot) -> bytes:
        if colour_type == containers.PNG_GREY:
            samples = grey(shot.rgb())[:, :, None]
        elif colour_type == containers.PNG_RGB:
            samples = shot.rgb()
        else:
            samples = shot.rgba()
        return containers.png(deepen(samples, shot.seed), colour_type)

    return encode


def _jpeg_restarts(shot: _Shot) -> bytes:
    return _save(shot.image(), "JPEG", quality=85, restart_marker_rows=1)


# (kind, extension, encoder, sizes). A size is (width, height); each file gets a scene of its own.
_TABLE: list[tuple[str, str, Callable[[_Shot], bytes], list[tuple[int, int]]]] = [
    ("jpeg 4:4:4", "jpg", _jpeg(subsampling="4:4:4"), [(640, 480), (401, 603), (96, 96), (1200, 500)]),
    ("jpeg 4:2:2", "jpg", _jpeg(subsampling="4:2:2"), [(641, 427), (333, 500), (127, 63)]),
    (
        "jpeg 4:2:0",
        "jpg",
        _jpeg(subsampling="4:2:0"),
        [(2000, 1333), (1024, 768), (480, 853), (300, 199), (95, 131), (40, 40), (61, 45), (250, 1000)],
    ),
    ("jpeg restarts", "jpg", _jpeg_restarts, [(500, 375)]),
    ("jpeg progressive", "jpg", _jpeg(progressive=True), [(800, 600), (357, 535), (1500, 1001)]),
    ("jpeg grey", "jpg", lambda shot: _save(shot.image().convert("L"), "JPEG", quality=88), [(512, 384), (211, 320)]),
    ("jpeg cmyk", "jpg", lambda shot: _save(_cmyk(shot), "JPEG", quality=92), [(400, 300), (301, 401)]),
    *[(f"jpeg exif {k}", "jpg", _jpeg(exif=_exif(k)), [(420 + 3 * k, 280)]) for k in range(1, 9)],
    ("jpeg several pictures", "jpg", _jpeg_several_pictures, [(450, 338)]),
    ("jpeg trailing bytes", "jpg", lambda shot: _jpeg()(shot) + bytes(700), [(380, 285)]),
    ("png rgb", "png", lambda shot: _save(shot.image(), "PNG"), [(640, 400), (97, 130), (1100, 700)]),
    ("png rgba", "png", lambda shot: _save(shot.image_rgba(), "PNG"), [(400, 300), (199, 301)]),
    ("png grey", "png", lambda shot: _save(shot.image().convert("L"), "PNG"), [(360, 270)]),
    ("png grey alpha", "png", lambda shot: _save(shot.image_rgba().convert("LA"), "PNG"), [(320, 240), (203, 152)]),
    ("png palette", "png", _png_palette, [(400, 267), (150, 201)]),
    ("png palette alpha", "png", _png_palette_alpha, [(400, 267), (180, 240)]),
    ("png colour key", "png", _png_rgb_key, [(300, 225)]),
    ("png 1 bit", "png", _png_one_bit, [(500, 333), (120, 90)]),
    ("png 16-bit grey", "png", _png16(containers.PNG_GREY), [(400, 300), (151, 203)]),
    ("png 16-bit rgb", "png", _png16(containers.PNG_RGB), [(400, 300), (203, 151)]),
    ("png 16-bit rgba", "png", _png16(containers.PNG_RGBA), [(260, 195)]),
    (
        "png interlaced",
        "png",
        lambda shot: containers.png(shot.rgb(), containers.PNG_RGB, interlaced=True),
        [(331, 247), (43, 57)],
    ),
    ("png exif", "png", _png_exif, [(300, 200)]),
    ("png very wide", "png", _png_very_wide, [(1024, 24)]),
    ("png animated", "png", _png_animated, [(240, 180)]),
    ("png bright red", "png", _bright_red, [(200, 150)]),
    ("webp lossy", "webp", lambda shot: _save(shot.image(), "WEBP", quality=85), [(640, 427), (299, 401), (1000, 750)]),
    (
        "webp lossless",
        "webp",
        lambda shot: _save(shot.image(), "WEBP", lossless=True, method=0),
        [(320, 240), (151, 199)],
    ),
    ("webp alpha", "webp", lambda shot: _save(shot.image_rgba(), "WEBP", quality=85), [(400, 300), (201, 267)]),
    ("webp exif", "webp", lambda shot: _save(shot.image(), "WEBP", quality=85, exif=_exif(8)), [(330, 220)]),
    ("webp animated", "webp", _webp_animated(4, quality=80), [(240, 180), (161, 213)]),
    ("webp animated long", "webp", _webp_animated(10, lossless=True, method=0), [(120, 90)]),
    ("gif", "gif", _gif_still, [(400, 300), (133, 200)]),
    ("gif transparent", "gif", _gif_transparent, [(300, 225)]),
    ("gif animated", "gif", _gif_animated(4), [(240, 180)]),
    ("gif animated pair", "gif", _gif_animated(2), [(200, 133)]),
    ("gif animated long", "gif", _gif_animated(13), [(120, 90)]),
    ("gif partial frames", "gif", _gif_partial(salt=5), [(260, 200)]),
    ("gif partial frames tall", "gif", _gif_partial(salt=8), [(150, 220)]),
    ("bmp 24", "bmp", lambda shot: _save(shot.image(), "BMP"), [(401, 300), (150, 200)]),
    ("bmp 32", "bmp", _bmp_32, [(300, 225)]),
    ("bmp 32 alpha", "bmp", lambda shot: containers.bmp_with_alpha(shot.rgba()), [(240, 180)]),
    ("bmp 8", "bmp", lambda shot: _save(shot.image().quantize(200), "BMP"), [(333, 250)]),
    ("bmp grey", "bmp", lambda shot: _save(shot.image().convert("L"), "BMP"), [(201, 300)]),
    ("tiff lzw", "tiff", _tiff(compression="tiff_lzw"), [(400, 300), (201, 151)]),
    ("tiff deflate", "tiff", _tiff(compression="tiff_adobe_deflate"), [(400, 300)]),
    ("tiff raw", "tiff", _tiff(), [(203, 305)]),
    ("tiff grey", "tiff", _tiff("L", compression="tiff_lzw"), [(320, 240)]),
    ("tiff 16-bit grey", "tiff", _tiff_grey16, [(300, 225)]),
    ("tiff exif", "tiff", _tiff(compression="tiff_lzw", tiffinfo={_EXIF_ORIENTATION: 6}), [(270, 180)]),
    # The name lies, the bytes do not.
    ("png named jpg", "jpg", lambda shot: _save(shot.image(), "PNG"), [(310, 207)]),
    ("jpeg named png", "png", _jpeg(), [(310, 413)]),
]


def fixtures() -> Iterator[Fixture]:
    """All fixture images, always the same and in the same order."""
    for kind, extension, encode, sizes in _TABLE:
        stem = kind.replace(" ", "-").replace(":", "")
        for index, (width, height) in enumerate(sizes):
            # The seed hangs on the name, so that adding a fixture leaves the others as they were.
            seed = zlib.crc32(f"{stem}-{index}".encode()) % 1_000_003
            yield Fixture(f"{stem}-{index}.{extension}", kind, encode(_Shot(seed, width, height)))


def write(folder: Path) -> list[Fixture]:
    """Writes every fixture into `folder` and returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = list(fixtures())
    for fixture in made:
        (folder / fixture.name).write_bytes(fixture.data)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the fixture images.")
    parser.add_argument("folder", type=Path)
    print(f"{len(write(parser.parse_args().folder))} images written")
