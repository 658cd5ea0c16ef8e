"""BMP, ICO, AVIF, TIFF and JPEG XL files."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import icc
import numpy as np
from drawing import (
    FIFTH_LONG,
    HEIGHT,
    WIDTH,
    Kind,
    animated,
    cuts,
    fifth_of_ten,
    flips,
    hidden,
    picture,
    plain,
    saved,
    shapes,
    with_alpha,
)
from of_gif import GREYS
from of_jpeg import exif
from of_png import RGBA, png
from PIL import Image

INFO, V4, V5 = 40, 108, 124
RGB, RLE8, BITFIELDS = 0, 1, 3
_GREYS = b"".join(bytes([level] * 3 + [0]) for level in range(256))


def kinds() -> Iterator[Kind]:
    yield from _bmp()
    yield from _ico()
    yield from _avif()
    yield from _tiff()
    yield from _jpeg_xl()


def bmp(
    rows: bytes,
    bits: int,
    header: int = INFO,
    compression: int = RGB,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    colours: int = 0,
    height: int = HEIGHT,
    planes: int = 1,
    profile: bytes = b"",
) -> bytes:
    """A file with a Windows header of 40, 108 or 124 bytes."""
    start = struct.pack(
        "<IiiHHIIiiII", header, WIDTH, height, planes, bits, compression, len(rows), 2835, 2835, colours, 0
    )
    offset = 14 + header + len(palette)
    if header > INFO:
        # The colour space is sRGB, or a profile in the file.
        start += struct.pack("<4I", *masks) + (b"DEBM" if profile else b"BGRs") + bytes(48)
    if header == V5:
        start += struct.pack("<4I", 4, offset - 14 + len(rows) if profile else 0, len(profile), 0)
    body = start + palette + rows + profile
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, offset) + body


def _bottom_up(samples: np.ndarray) -> bytes:
    """Rows from the lowest, blue first, padded to four bytes."""
    flipped = np.ascontiguousarray(samples[::-1])
    flat = flipped.reshape(flipped.shape[0], -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))).tobytes()


def _bgra(rgba: np.ndarray) -> bytes:
    return _bottom_up(rgba[..., [2, 1, 0, 3]])


def _rle8(indices: np.ndarray, end: bytes = b"\0\1") -> bytes:
    """Runs of single pixels, bottom row first."""
    out = bytearray()
    for row in indices[::-1]:
        for index in row.tolist():
            out += bytes([1, index])
        out += b"\0\0"
    return bytes(out[:-2]) + end


def _bmp() -> Iterator[Kind]:
    bgr = _bottom_up(picture()[..., ::-1])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    whole = bmp(bgr, 24)
    yield Kind("bmp/plain.bmp", whole)
    yield Kind("bmp/top-down.bmp", bmp(_bottom_up(picture()[::-1, :, ::-1]), 24, height=-HEIGHT))
    yield from cuts("bmp/plain", "bmp", whole, (10, 50, 90, 99))
    clear = _bgra(hidden(0))
    yield Kind("bmp/v3-black-picture-in-alpha.bmp", bmp(clear, 32))
    for name, header in (("v4", V4), ("v5", V5)):
        yield Kind(f"bmp/{name}-black-picture-in-alpha.bmp", bmp(clear, 32, header, RGB, masks))
        yield Kind(f"bmp/{name}-fields-black-picture-in-alpha.bmp", bmp(clear, 32, header, BITFIELDS, masks))
        yield Kind(f"bmp/{name}-no-alpha-mask.bmp", bmp(clear, 32, header, BITFIELDS, (*masks[:3], 0)))
    yield Kind("bmp/v5-white-picture-in-alpha.bmp", bmp(_bgra(hidden(255)), 32, V5, BITFIELDS, masks))
    yield Kind("bmp/v5-profile-inverted.bmp", bmp(bgr, 24, V5, RGB, (0, 0, 0, 0), profile=icc.inverted()))
    grey = _bottom_up(GREYS)
    yield Kind("bmp/palette.bmp", bmp(grey, 8, palette=_GREYS))
    yield Kind("bmp/palette-larger-than-256.bmp", bmp(grey, 8, palette=_GREYS + bytes(44 * 4), colours=300))
    yield Kind("bmp/palette-count-absurd.bmp", bmp(grey, 8, palette=_GREYS, colours=1_000_000))
    marks = np.where(shapes(), 7, 0).astype(np.uint8)
    yield Kind("bmp/index-beyond-palette.bmp", bmp(_bottom_up(marks), 8, palette=b"\xff\xff\xff\0" * 2, colours=2))
    yield Kind("bmp/planes-0.bmp", bmp(bgr, 24, planes=0))
    yield Kind("bmp/planes-3.bmp", bmp(bgr, 24, planes=3))
    core = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24) + bgr
    yield Kind("bmp/os2-header.bmp", b"BM" + struct.pack("<IHHI", 14 + len(core), 0, 0, 26) + core)
    runs = _rle8(GREYS)
    yield Kind("bmp/runs.bmp", bmp(runs, 8, compression=RLE8, palette=_GREYS))
    yield Kind("bmp/runs-without-end.bmp", bmp(_rle8(GREYS, b""), 8, compression=RLE8, palette=_GREYS))
    yield Kind("bmp/runs-cut.bmp", bmp(runs[: len(runs) // 2], 8, compression=RLE8, palette=_GREYS), True)
    yield Kind("bmp/runs-top-down.bmp", bmp(_rle8(GREYS[::-1]), 8, compression=RLE8, palette=_GREYS, height=-HEIGHT))
    beyond = runs[:-2] + b"\0\2\xff\xff\0\1"
    yield Kind("bmp/runs-step-beyond.bmp", bmp(beyond, 8, compression=RLE8, palette=_GREYS))
    yield Kind("bmp/wrong-file-size.bmp", whole[:2] + b"\1\0\0\0" + whole[6:])
    yield Kind("bmp/junk-behind.bmp", whole + b"\x11" * 100)


def _square(size: int, level: int | None = None) -> np.ndarray:
    samples = picture() if level is None else plain(level)
    opaque = Image.fromarray(samples).resize((size, size)).convert("RGBA")
    return np.asarray(opaque)


def ico(entries: list[tuple[int, bytes]], kind: int = 1) -> bytes:
    offset = 6 + 16 * len(entries)
    directory, body = struct.pack("<HHH", 0, kind, len(entries)), b""
    for size, data in entries:
        directory += struct.pack("<BBBBHHII", size % 256, size % 256, 0, 0, 1, 32, len(data), offset + len(body))
        body += data
    return directory + body


def _dib(rgba: np.ndarray) -> bytes:
    """A bitmap inside an icon: twice the height, with a mask behind the pixels."""
    size = rgba.shape[0]
    mask_row = bytes(-(-size // 32) * 4)
    start = struct.pack("<IiiHHIIiiII", INFO, size, 2 * size, 1, 32, 0, 0, 0, 0, 0, 0)
    return start + _bgra(rgba) + mask_row * size


def _ico() -> Iterator[Kind]:
    small, large = _square(32, 255), _square(64)
    yield Kind("ico/png.ico", ico([(64, png(large, RGBA))]))
    yield Kind("ico/bitmap.ico", ico([(64, _dib(large))]))
    yield Kind("ico/cursor.cur", ico([(64, png(large, RGBA))], 2))
    yield Kind("ico/white-then-larger-picture.ico", ico([(32, _dib(small)), (64, _dib(large))]))
    yield Kind("ico/picture-then-larger-white.ico", ico([(32, _dib(_square(32))), (64, _dib(_square(64, 255)))]))
    see = large.copy()
    see[..., 3] = np.where(see[..., 0] > 128, 255, 0)
    see[..., :3] = 255
    yield Kind("ico/white-picture-in-alpha.ico", ico([(64, _dib(see))]))
    whole = ico([(64, _dib(large))])
    yield Kind("ico/cut-at-50.ico", whole[: len(whole) // 2], True)
    yield Kind("ico/saved-by-pillow.ico", _saved_icon())


def _saved_icon() -> bytes:
    return saved(_square(256), "ICO", sizes=[(16, 16), (256, 256)])


def _avif() -> Iterator[Kind]:
    whole = saved(picture(), "AVIF", quality=80)
    yield Kind("avif/plain.avif", whole)
    yield Kind("avif/full-chroma.avif", saved(picture(), "AVIF", quality=90, subsampling="4:4:4"))
    yield Kind("avif/grey.avif", saved(picture()[..., 1], "AVIF", quality=80))
    yield Kind("avif/black-picture-in-alpha.avif", saved(hidden(0), "AVIF", quality=90))
    yield Kind("avif/white-picture-in-alpha.avif", saved(hidden(255), "AVIF", quality=90))
    yield Kind("avif/turned-6.avif", saved(picture(), "AVIF", quality=80, exif=b"Exif\0\0" + exif(6)))
    yield Kind("avif/profile-swapped.avif", saved(picture(), "AVIF", quality=90, icc_profile=icc.swapped()))
    moving = [picture(n) for n in range(3)]
    for name, levels in (("", "limited"), ("-full-range", "full")):
        yield Kind(f"avif/animated{name}.avif", _undated(animated(moving, "AVIF", 150, quality=80, range=levels)))
    clear = animated([hidden(255), with_alpha(picture(), shapes() * 128)], "AVIF", 150, quality=90, range="limited")
    yield Kind("avif/animated-white-picture-in-alpha.avif", _undated(clear))
    long = animated(fifth_of_ten(), "AVIF", FIFTH_LONG, quality=80, range="limited")
    yield Kind("avif/animated-fifth-of-ten-for-a-minute.avif", _undated(long))
    yield Kind("avif/junk-behind.avif", whole + b"\x11" * 100)
    yield Kind("avif/brand-mif1.avif", whole[:8] + b"mif1" + whole[12:])
    yield from cuts("avif/plain", "avif", whole, (10, 50, 90, 99))
    yield from flips("avif/plain", "avif", whole, len(whole) // 2)


def _undated(data: bytes) -> bytes:
    """Without the times at which the file, its tracks and their media were made (ISO/IEC 14496-12, 8.2.2; version 1)."""
    for box in re.finditer(b"mvhd|tkhd|mdhd", data):
        at = box.end() + 4
        data = data[:at] + bytes(16) + data[at + 16 :]
    return data


def _tiff() -> Iterator[Kind]:
    def tiff(samples: np.ndarray, **options) -> bytes:
        return saved(samples, "TIFF", **options)

    yield Kind("tiff/plain.tiff", tiff(picture()))
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield Kind(f"tiff/{name.removeprefix('tiff_').replace('_', '-')}.tiff", tiff(picture(), compression=name))
    yield Kind("tiff/grey.tiff", tiff(GREYS))
    yield Kind("tiff/grey-16.tiff", tiff(GREYS.astype(np.uint16) * 257))
    yield Kind("tiff/black-picture-in-alpha.tiff", tiff(hidden(0)))
    yield Kind("tiff/palette.tiff", _of_mode("P"))
    yield Kind("tiff/one-bit.tiff", _of_mode("1"))
    yield Kind("tiff/four-inks.tiff", _of_mode("CMYK"))
    yield Kind("tiff/profile-swapped.tiff", tiff(picture(), icc_profile=icc.swapped()))
    yield Kind("tiff/large-offsets.tiff", tiff(picture(), big_tiff=True))
    pages = [Image.fromarray(picture(n)) for n in (0, 4)]
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    yield Kind("tiff/two-pages.tiff", out.getvalue())


def _of_mode(mode: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(out, "TIFF")
    return out.getvalue()


def _jpeg_xl() -> Iterator[Kind]:
    """Pillow has no encoder for JPEG XL: six small files of the drawn pictures are kept."""
    for file in sorted(Path(__file__).with_name("jpeg-xl").glob("*.jxl")):
        yield Kind(f"jpeg-xl/{file.name}", file.read_bytes())
    whole = Path(__file__).with_name("jpeg-xl").joinpath("lossless.jxl").read_bytes()
    yield from cuts("jpeg-xl/lossless", "jxl", whole, (50, 90))
    yield Kind("jpeg-xl/junk-behind.jxl", whole + b"\x11" * 100)
