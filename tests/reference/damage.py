"""Files that must never pass: cut short, corrupted, over the limits, or something else altogether.

Run as `python -m reference.damage DIR`.
"""

from __future__ import annotations

import argparse
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reference import containers
from reference.scenes import scene

_CUTS_PERCENT = (10, 50, 90)


@dataclass(frozen=True)
class Bad:
    """One file that must not pass: it is `undecodable`, or damaged and screened."""

    name: str
    data: bytes
    why: str
    is_damaged: bool = False
    """Whether something is left to see. That is screened, and `damage` says what is wrong."""
    pillow_is_fooled: bool = False
    """Pillow fills the gap with grey, black or noise and says nothing, so the outcome is known by construction alone.

    The libraries below it do notice: libjpeg warns, which Pillow does not pass on, and libpng stops with an error.
    """


def _saved(image: Image.Image, container: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **options)
    return out.getvalue()


def whole_files() -> dict[str, bytes]:
    """Good files to damage, by name with extension."""
    picture = Image.fromarray(scene(811, 320, 240))
    frames = [Image.fromarray(scene(811 + index, 120, 90)) for index in range(4)]
    moving = {"save_all": True, "append_images": frames[1:], "duration": 100}
    return {
        "baseline.jpg": _saved(picture, "JPEG", quality=90),
        "progressive.jpg": _saved(picture, "JPEG", quality=90, progressive=True),
        "still.png": _saved(picture, "PNG"),
        "interlaced.png": containers.png(np.asarray(picture), containers.PNG_RGB, interlaced=True),
        "lossy.webp": _saved(picture, "WEBP", quality=85),
        "lossless.webp": _saved(picture, "WEBP", lossless=True, method=0),
        "animated.webp": _saved(frames[0], "WEBP", quality=80, **moving),
        "still.gif": _saved(picture.quantize(128), "GIF"),
        "animated.gif": _saved(frames[0], "GIF", **moving),
        "still.bmp": _saved(picture, "BMP"),
        "lzw.tiff": _saved(picture, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": _saved(picture, "TIFF", compression="tiff_adobe_deflate"),
        "raw.tiff": _saved(picture, "TIFF"),
    }


_NOTHING_LEFT = {"cut-10-lossy.webp", "cut-10-lossless.webp"}
"""Cut before the first row that can be decoded."""


def _cut_short(whole: dict[str, bytes]) -> Iterator[Bad]:
    for name, data in whole.items():
        for percent in _CUTS_PERCENT:
            cut = f"cut-{percent}-{name}"
            # Pillow writes the directory of a compressed TIFF behind its pixels.
            is_damaged = cut not in _NOTHING_LEFT and name not in ("lzw.tiff", "deflate.tiff")
            yield Bad(cut, data[: len(data) * percent // 100], f"cut short at {percent} %", is_damaged)
    # What a partial download leaves behind when the file was given its full length beforehand.
    for name in ("baseline.jpg", "still.png"):
        half = len(whole[name]) // 2
        yield Bad(f"zero-tail-{name}", whole[name][:half] + bytes(len(whole[name]) - half), "second half never written", True)
    # A proxy or a careless repair tool closes the file properly although half of it is missing.
    for name in ("baseline.jpg", "progressive.jpg"):
        half = whole[name][: len(whole[name]) // 2]
        yield Bad(f"cut-and-closed-{name}", half + b"\xff\xd9", "half a scan with an end marker", True, True)


def _corrupted(whole: dict[str, bytes]) -> Iterator[Bad]:
    png = whole["still.png"]
    data_at = png.index(b"IDAT") + 4
    flipped = bytearray(png)
    flipped[data_at + 5000] ^= 0x10
    yield Bad("flipped-bit.png", bytes(flipped), "one bit of the data flipped, checksum as it was", True)

    header = bytearray(png)
    header[19] ^= 0x01
    yield Bad("flipped-header.png", bytes(header), "width changed, checksum as it was")

    # Checksums that fit, around a deflate stream whose first block is of the reserved type 3 (RFC 1951, 3.2.3).
    stream = bytearray(zlib.compress(bytes(100 * 301), 6))
    stream[2] |= 0x06
    chunks = containers.png_chunk(b"IDAT", bytes(stream)) + containers.png_chunk(b"IEND", b"")
    yield Bad("invalid-stream.png", containers.png_header(100, 100, 8, 2) + chunks, "data is not a deflate stream")

    # Fewer rows than the header says, everything else in order.
    stream = zlib.compress(bytes(40 * 301), 6)
    chunks = containers.png_chunk(b"IDAT", stream) + containers.png_chunk(b"IEND", b"")
    yield Bad("missing-rows.png", containers.png_header(100, 100, 8, 2) + chunks, "40 of 100 rows", True, True)

    # Garbage inside a JPEG's scan is not here: libjpeg-turbo and Pillow decode it without a word, as long as the number
    # of blocks comes out right.
    webp = bytearray(whole["lossless.webp"])
    webp[25:400] = b"\xff" * 375
    yield Bad("garbage.webp", bytes(webp), "code tables overwritten")


def _over_the_limits(whole: dict[str, bytes]) -> Iterator[Bad]:
    """Small files that announce pictures too large to decode: 60,000 x 60,000 and just over the limit."""
    png = containers.png_header(60_000, 60_000, 1, containers.PNG_GREY)
    png += containers.png_chunk(b"IDAT", _zeros(1 + 60_000 // 8, 60_000)) + containers.png_chunk(b"IEND", b"")
    yield Bad("bomb.png", png, "60000 x 60000 in one bit, whole")

    width, height = 10_001, 10_000
    raw = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    png = containers.png_header(width, height, 1, containers.PNG_GREY)
    png += containers.png_chunk(b"IDAT", raw) + containers.png_chunk(b"IEND", b"")
    yield Bad("too-many-pixels.png", png, f"{width} x {height}, whole")

    gif = bytearray(whole["still.gif"])
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    yield Bad("huge-canvas.gif", bytes(gif), "a small frame on a canvas of 60000 x 60000")

    jpeg = bytearray(whole["baseline.jpg"])
    frame_at = jpeg.index(b"\xff\xc0")
    jpeg[frame_at + 5 : frame_at + 9] = struct.pack(">HH", 60_000, 60_000)
    yield Bad("huge-header.jpg", bytes(jpeg), "60000 x 60000 by its header")

    bmp = bytearray(whole["still.bmp"])
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield Bad("huge-header.bmp", bytes(bmp), "60000 x 60000 by its header")


def _zeros(row_bytes: int, rows: int) -> bytes:
    """`rows` rows of zeros as a zlib stream, without compressing them all: one block that is independent of what
    comes before it, repeated. `rows` must be a multiple of 1000."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(1000 * row_bytes)) + deflate.flush(zlib.Z_FULL_FLUSH)
    # Adler-32 of n zeros: the first sum stays 1, so the second is n (RFC 1950, section 9).
    checksum = struct.pack(">HH", rows * row_bytes % 65_521, 1)
    return b"\x78\x9c" + block * (rows // 1000) + b"\x03\x00" + checksum


def _something_else() -> Iterator[Bad]:
    yield Bad("empty.jpg", b"", "no bytes")
    yield Bad("zeros.jpg", bytes(4096), "nothing but zeros")
    yield Bad("one-byte.png", b"\x89", "one byte")
    yield Bad("signature-only.png", containers.PNG_SIGNATURE, "a signature and nothing more")
    yield Bad("marker-only.jpg", b"\xff\xd8\xff\xd9", "start and end marker, nothing between")
    yield Bad("text.jpg", b"These words are not a picture.\n" * 20, "text")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9" fill="red"/></svg>'
    yield Bad("drawing.svg", svg, "vector graphics")
    yield Bad("drawing.png", svg, "vector graphics under another name")
    yield Bad("page.jpg", b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n", "an error page")
    yield Bad("paper.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", "a PDF header")
    yield Bad("noise.webp", np.random.RandomState(5).bytes(5000), "random bytes")
    # Formats that Pillow opens and Pixwarden does not.
    small = Image.fromarray(scene(812, 64, 48))
    yield Bad("pixmap.ppm", _saved(small, "PPM"), "unsupported format")
    yield Bad("wavelets.jpg", _saved(small, "JPEG2000"), "unsupported format")


def bad_files() -> Iterator[tuple[str, Bad]]:
    """All bad files with the kind of badness, always the same and in the same order."""
    whole = whole_files()
    kinds = {
        "bad: cut short": _cut_short(whole),
        "bad: corrupted": _corrupted(whole),
        "bad: over the limits": _over_the_limits(whole),
        "bad: something else": _something_else(),
    }
    for kind, files in kinds.items():
        for bad in files:
            yield kind, bad


def write(folder: Path) -> list[tuple[str, Bad]]:
    """Writes every bad file into `folder` and returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = list(bad_files())
    for _, bad in made:
        (folder / bad.name).write_bytes(bad.data)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the bad files.")
    parser.add_argument("folder", type=Path)
    print(f"{len(write(parser.parse_args().folder))} files written")
