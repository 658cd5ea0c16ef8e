"""Files made to break decoders, each with its expected outcome.

The bad files of `damage` are among them. Run as `python -m reference.hostile DIR`: it writes the files and
`expected.jsonl`, whose lines name a file, what is expected of it and why.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from reference import containers, damage
from reference.containers import png_chunk, png_header
from reference.scenes import scene

SCREENED, DAMAGED, UNDECODABLE, REJECTED = "screened", "damaged", "undecodable", "rejected"
_MAX_OBJECT_BYTES = 52_428_800
_END = png_chunk(b"IEND", b"")
_JPEG_XL = "/wrBQSQIAAEAeABLGIsVANSIjFExxl4gBABKShcASE+qsyIaJh40AFs="
"""16 x 8 pixels, half red and half blue. Pillow has no encoder for it."""


@dataclass(frozen=True)
class Hostile:
    """One file. `expected` is `screened` (it has pixels, and scores), `undecodable` or `rejected`."""

    name: str
    data: bytes
    expected: str
    why: str


def _saved(image: Image.Image, container: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **options)
    return out.getvalue()


def _one_colour(width: int, height: int, container: str, **options) -> bytes:
    return _saved(Image.new("RGB", (width, height), (90, 140, 60)), container, **options)


# Building blocks


def _segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment (ITU T.81, B.1.1.4)."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_segments(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


def _with_frame(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose start of frame announces another size."""
    made = bytearray(jpeg)
    at = next(at for at in (jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) if at > 0)
    made[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(made)


def _gif(width: int, height: int, frames: bytes, trailer: bytes = b"\x3b") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frames + trailer


def _gif_frame(width: int = 1, height: int = 1) -> bytes:
    """A frame with the data of a single pixel: clear, 0, end in codes of three bits."""
    return struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _u24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _webp_animation(canvas: tuple[int, int], frame: tuple[int, int], count: int) -> bytes:
    """`count` equal frames of one colour, over the whole of a canvas whose announced size is another matter."""
    still = _one_colour(*frame, "WEBP", lossless=True, method=0)[12:]
    moving = _u24(0) * 2 + _u24(frame[0] - 1) + _u24(frame[1] - 1) + _u24(50) + b"\x02"
    header = b"\x02\0\0\0" + _u24(canvas[0] - 1) + _u24(canvas[1] - 1)
    return _riff(
        _chunk(b"VP8X", header) + _chunk(b"ANIM", bytes(6)) + _chunk(b"ANMF", moving + still) * count
    )


def _bmp(width: int, height: int, pixels: bytes, **fields: int) -> bytes:
    """A BMP with a version 3 header and a palette of two."""
    bits, compression = fields.get("bits", 24), fields.get("compression", 0)
    used = fields.get("used", 0 if bits > 8 else 2)
    palette = b"" if bits > 8 else b"\0\0\0\0\xff\xff\xff\0"
    offset = fields.get("offset", 54 + len(palette))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, used, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(pixels), 0, 0, offset) + head + palette + pixels


_SHORT, _LONG = 3, 4


def _tiff(tags: dict[int, tuple[int, int, int]], data: bytes, following: int = 0) -> bytes:
    """A little-endian TIFF with one directory: tag → (type, count, value or offset). The data begins at byte 8."""
    directory = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<I", directory) + data + bytes(len(data) % 2)
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


def _grey_tags(width: int, height: int, length: int) -> dict[int, tuple[int, int, int]]:
    """The tags of an 8-bit grey image in one strip (TIFF 6.0, section 4)."""
    return {
        256: (_LONG, 1, width),
        257: (_LONG, 1, height),
        258: (_SHORT, 1, 8),
        259: (_SHORT, 1, 1),
        262: (_SHORT, 1, 1),
        273: (_LONG, 1, 8),
        277: (_SHORT, 1, 1),
        278: (_LONG, 1, height),
        279: (_LONG, 1, length),
    }


# The kinds


def _bombs(whole: dict[str, bytes]) -> Iterator[Hostile]:
    def bomb(name: str, data: bytes, why: str, expected: str = UNDECODABLE) -> Hostile:
        return Hostile(f"bomb-{name}", data, expected, why)

    yield bomb("canvas.gif", _gif(65_535, 65_535, _gif_frame()), "one pixel on a canvas of 65535 x 65535")
    yield bomb("frame.gif", _gif(8, 8, _gif_frame(65_535, 65_535)), "a frame of 65535 x 65535 on a canvas of 8 x 8")
    yield bomb("frames.gif", _gif(5_000, 5_000, _gif_frame() * 30), "30 frames of 5000 x 5000 in 700 bytes")
    many = _gif(2_000, 2_000, _gif_frame() * 100_000)
    yield bomb("many-frames.gif", many, "100,000 frames of 2000 x 2000")
    yield bomb("frames.webp", _webp_animation((4_000, 4_000), (4_000, 4_000), 40), "40 frames of 4000 x 4000")
    huge = _webp_animation((1 << 24, 1 << 24), (16, 16), 2)
    yield bomb("canvas.webp", huge, "a canvas of 16777216 x 16777216")
    yield bomb("wide-canvas.webp", _webp_animation((1 << 24, 100), (16, 16), 2), "a canvas 16777216 wide")
    # It is decoded with alpha and copied without, which takes more memory than there may be.
    large = _one_colour(9_000, 9_000, "WEBP", lossless=True, method=0)
    yield bomb("large.webp", large, "9000 x 9000, lossless and whole")
    lossless = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(16)
    moving = _webp_animation((6_000, 6_000), (6_000, 6_000), 2)
    yield bomb("large-animation.webp", moving, "2 frames of 6000 x 6000, lossless and whole", SCREENED)
    yield bomb("lossless.webp", _riff(_chunk(b"VP8L", lossless)), "16384 x 16384 and 16 bytes of data")
    yield bomb("rle.bmp", _bmp(16_000, 16_000, b"\0\1", bits=8, compression=1), "16000 x 16000 in a two-byte RLE")
    strip = zlib.compress(bytes(1 << 26), 9)
    tags = _grey_tags(60_000, 60_000, len(strip)) | {259: (_SHORT, 1, 8)}
    yield bomb("deflate.tiff", _tiff(tags, strip), "60000 x 60000, deflated")
    tiles = _grey_tags(64, 64, 64) | {322: (_LONG, 1, 1 << 30), 323: (_LONG, 1, 1 << 30), 324: (_LONG, 1, 8)}
    tiles |= {325: (_LONG, 1, 64)}
    yield bomb("tile.tiff", _tiff(tiles, bytes(64)), "64 x 64 in a tile of 2^30 x 2^30")
    yield bomb("sparse.jpg", _with_frame(whole["baseline.jpg"], 10_000, 10_000), "10000 x 10000, data for 320 x 240", DAMAGED)
    sparse = _with_frame(whole["progressive.jpg"], 7_600, 7_600)
    yield bomb("sparse-progressive.jpg", sparse, "7600 x 7600, progressive, data for 320 x 240", DAMAGED)
    last = whole["progressive.jpg"].rindex(b"\xff\xda")
    scan = whole["progressive.jpg"][last:-2]
    scans = whole["progressive.jpg"][:-2] + scan * 2_000 + b"\xff\xd9"
    yield bomb("scans.jpg", scans, "2000 scans, all but a few the same one", DAMAGED)
    animated = png_header(64, 64, 8, 2) + png_chunk(b"acTL", struct.pack(">II", 0x7FFF_FFFF, 0))
    animated += png_chunk(b"IDAT", zlib.compress(bytes(64 * 193))) + _END
    yield bomb("frames.png", animated, "2^31 - 1 frames by its header, one in the file", DAMAGED)


def _large_and_whole() -> Iterator[Hostile]:
    """What just fits the limits: these decide how much memory and time one image may take."""

    def fits(name: str, data: bytes, why: str) -> Hostile:
        return Hostile(f"large-{name}", data, SCREENED, why)

    yield fits("progressive.jpg", _one_colour(7_600, 7_600, "JPEG", progressive=True), "7600 x 7600, progressive")
    yield fits("baseline.jpg", _one_colour(10_000, 10_000, "JPEG"), "10000 x 10000, as many pixels as may be")
    yield fits("grey.png", _saved(Image.new("L", (10_000, 10_000)), "PNG"), "10000 x 10000, grey")
    yield fits("still.webp", _one_colour(7_700, 7_700, "WEBP", lossless=True, method=0), "7700 x 7700, lossless")
    yield fits("canvas.gif", _gif(5_900, 5_900, _gif_frame() * 2), "2 frames of 5900 x 5900")
    yield fits("many-frames.gif", _gif(32, 32, _gif_frame() * 100_000), "100,000 frames of 32 x 32")
    yield fits("animated.webp", _webp_animation((4_000, 4_000), (4_000, 4_000), 2), "2 frames of 4000 x 4000")


def _impossible_sizes(whole: dict[str, bytes]) -> Iterator[Hostile]:
    sizes = [(0, 0), (0, 9), (9, 0), (0x7FFF_FFFF, 1), (1, 0x7FFF_FFFF), (0x8000_0000, 1), (0xFFFF_FFFF, 0xFFFF_FFFF)]
    for width, height in sizes + [(65_535, 65_535)]:
        size = f"{width}x{height}"

        def wrong(kind: str, data: bytes, size: str = size) -> Hostile:
            return Hostile(f"size-{size}.{kind}", data, UNDECODABLE, f"{size} by its header")

        pixels = png_chunk(b"IDAT", zlib.compress(bytes(64)))
        yield wrong("png", png_header(width, height, 8, 0) + pixels + _END)
        yield wrong("tiff", _tiff(_grey_tags(width, height, 64), bytes(64)))
        signed = [side - (1 << 32) if side >= 1 << 31 else side for side in (width, height)]

        yield wrong("bmp", _bmp(*signed, bytes(64)))
        if max(width, height) <= 65_535:
            yield wrong("jpg", _with_frame(whole["baseline.jpg"], width, height))
            yield wrong("gif", _gif(width, height, _gif_frame(width, height)))
    yield Hostile("size-min-height.bmp", _bmp(4, -(1 << 31), bytes(64)), UNDECODABLE, "a height of -2^31")
    yield Hostile("size-negative-height.bmp", _bmp(4, -4, bytes(48)), SCREENED, "top row first, as a negative height says")
    vp8 = b"\x10\0\0\x9d\x01\x2a\0\0\0\0" + bytes(32)
    yield Hostile("size-0x0.webp", _riff(_chunk(b"VP8 ", vp8)), UNDECODABLE, "0x0 by its header")


def _absurd_headers() -> Iterator[Hostile]:
    def absurd(name: str, data: bytes, why: str) -> Hostile:
        return Hostile(f"absurd-{name}", data, UNDECODABLE, why)

    pixels = bytes(64 * 64 * 3)
    yield absurd("bits.bmp", _bmp(64, 64, pixels, bits=65_535), "65535 bits a pixel")
    yield absurd("compression.bmp", _bmp(64, 64, pixels, compression=99), "a compression that there is not")
    yield absurd("offset.bmp", _bmp(64, 64, pixels, offset=0xFFFF_FFF0), "pixels that begin at 4 GB")
    grey = _grey_tags(64, 64, 4096)
    for name, tags, why in (
        ("strips", {273: (_LONG, 0xFFFF_FFFF, 8), 279: (_LONG, 0xFFFF_FFFF, 8)}, "2^32 - 1 strips"),
        ("offset", {273: (_LONG, 1, 0xFFFF_FFF0)}, "a strip at 4 GB"),
        ("samples", {277: (_SHORT, 1, 65_535)}, "65535 samples a pixel"),
        ("bits", {258: (_SHORT, 1, 65_535)}, "65535 bits a sample"),
        ("rows", {278: (_LONG, 1, 0)}, "strips of no rows"),
    ):
        yield absurd(f"{name}.tiff", _tiff(grey | tags, bytes(4096)), why)
    long = _tiff(grey | {279: (_LONG, 1, 0xFFFF_FFFF)}, bytes(4096))
    yield Hostile("absurd-length.tiff", long, SCREENED, "a strip of 4 GB, of which all that is needed is there")
    planar = _grey_tags(64, 64, 4096) | {258: (_SHORT, 1, 8), 262: (_SHORT, 1, 2), 277: (_SHORT, 1, 3)}
    planar |= {284: (_SHORT, 1, 2), 322: (_SHORT, 1, 16), 323: (_SHORT, 1, 16), 324: (_LONG, 1, 8), 325: (_LONG, 1, 256)}
    del planar[273], planar[278], planar[279]
    few = _tiff(planar, bytes(4096))
    yield Hostile("absurd-planar-tiles.tiff", few, DAMAGED, "tiles by plane, one where 48 are needed")
    own = 8 + 4096
    loop = _tiff(grey, bytes(4096), following=own)
    yield Hostile("cyclic.tiff", loop, DAMAGED, "its directory is followed by itself")
    sub = _tiff(grey | {330: (_LONG, 1, own), 34665: (_LONG, 1, own)}, bytes(4096))
    yield Hostile("cyclic-sub.tiff", sub, SCREENED, "its directory is its own child and its own EXIF")
    yield absurd("directory.tiff", b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(64), "65535 tags in 64 bytes")


def _truncations(whole: dict[str, bytes]) -> Iterator[Hostile]:
    for name, data in whole.items():
        for tenth in range(10):
            cut = data[: len(data) * tenth // 10]
            # A compressed TIFF has its directory behind its pixels, and a tenth of a WebP has no whole row.
            is_empty = tenth == 0 or name in ("lzw.tiff", "deflate.tiff")
            is_empty = is_empty or (tenth == 1 and name in ("lossy.webp", "lossless.webp"))
            yield Hostile(f"cut-{tenth}-of-10-{name}", cut, UNDECODABLE if is_empty else DAMAGED, f"cut at {tenth}/10")


def _newer_formats() -> Iterator[Hostile]:
    """AVIF, JPEG XL, and icons."""
    avif = _one_colour(320, 240, "AVIF")
    size = avif.index(b"ispe") + 8
    for width, height in ((0, 9), (60_000, 60_000), (0xFFFF_FFFF, 0xFFFF_FFFF)):
        lying = avif[:size] + struct.pack(">II", width, height) + avif[size + 8 :]
        yield Hostile(f"size-{width}x{height}.avif", lying, UNDECODABLE, f"{width}x{height} by its list of images")
    yield Hostile("large-still.avif", _one_colour(4_000, 4_000, "AVIF", speed=10), SCREENED, "4000 x 4000")
    jxl = base64.b64decode(_JPEG_XL)
    # SizeHeader (ISO/IEC 18181-1, D.2), the lowest bits first: 30 bits for the height, no ratio, 30 bits for the width.
    sides = 0b110 | (0x3FFF_FFFF << 3) | (0b11 << 36) | (0x3FFF_FFFF << 38)
    huge = b"\xff\x0a" + sides.to_bytes(9, "little") + jxl[5:]
    yield Hostile("size-2-to-the-30.jxl", huge, UNDECODABLE, "2^30 x 2^30 by its header")
    bits = png_header(60_000, 60_000, 1, 0) + png_chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)) + _END
    for name, count, offset, data, why in (
        ("bomb-png.ico", 1, 22, bits, "a PNG of 60000 x 60000"),
        ("absurd-offset.ico", 1, 0xFFFF_FFF0, bits, "an image at 4 GB"),
        ("absurd-entries.ico", 65_535, 22, bits, "65535 entries in a file of one"),
    ):
        entry = struct.pack("<HHHBBBBHHII", 0, 1, count, 0, 0, 0, 0, 1, 32, len(data), offset)
        yield Hostile(name, entry + data, UNDECODABLE, why)
    icon = _saved(Image.new("RGBA", (64, 64), (90, 140, 60, 255)), "ICO", bitmap_format="bmp", sizes=[(64, 64)])
    for tenth in range(10):
        for name, data in (("still.avif", avif), ("still.jxl", jxl), ("bitmap.ico", icon)):
            is_shown = name == "bitmap.ico" and tenth > 0
            cut = data[: len(data) * tenth // 10]
            yield Hostile(f"cut-{tenth}-of-10-{name}", cut, DAMAGED if is_shown else UNDECODABLE, f"cut at {tenth}/10")


def _masks(whole: dict[str, bytes]) -> Iterator[Hostile]:
    """Files that pretend."""
    magic = {"jpg": 3, "png": 8, "gif": 6, "bmp": 2, "webp": 12, "tiff": 4}
    one_each = {name.rsplit(".")[-1]: data for name, data in whole.items()}
    for mask, length in magic.items():
        yield Hostile(f"only-magic.{mask}", one_each[mask][:length], UNDECODABLE, "the first bytes and no more")
        yield Hostile(f"masked.{mask}", one_each[mask][:length] + bytes(9_000), UNDECODABLE, "zeros behind the first bytes")
        for kind, data in one_each.items():
            if kind != mask:
                forged = one_each[mask][:length] + data[length:]
                yield Hostile(f"{kind}-masked.{mask}", forged, UNDECODABLE, f"a {kind} behind the first bytes of a {mask}")
    for name, data in whole.items():
        yield Hostile(f"renamed-{name}.txt", data, SCREENED, "an image under another name")
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    script = b"<html><script>alert(1)</script></html>"
    for name in ("baseline.jpg", "still.png", "still.gif"):
        yield Hostile(f"zip-behind-{name}", whole[name] + archive, SCREENED, "a ZIP behind a whole image")
    commented = _with_segments(whole["baseline.jpg"], _segment(0xFE, script))
    yield Hostile("html-in.jpg", commented, SCREENED, "HTML in a comment of a whole image")
    commented = _with_segments(whole["baseline.jpg"], _segment(0xFE, archive))
    yield Hostile("zip-in.jpg", commented, SCREENED, "a ZIP in a comment of a whole image")
    # A width of 0x2A2F is the letters `/*`, which open a comment in JavaScript.
    script = b"\x3b*/=1;alert(1)"
    yield Hostile("script.gif", _gif(0x2A2F, 16, _gif_frame(), script), SCREENED, "a GIF and JavaScript at once")
    yield Hostile("html-first.jpg", b"<html>" + whole["baseline.jpg"], UNDECODABLE, "HTML before an image")


def _jpeg_in_tiff() -> Iterator[Hostile]:
    """A whole one."""
    whole = _saved(Image.new("RGB", (64, 64), (200, 30, 90)), "TIFF", compression="jpeg")
    yield Hostile("jpeg.tiff", whole, SCREENED, "a TIFF compressed as JPEG")


def _exif(tags: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """An EXIF block: little-endian TIFF with one directory of (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


def _lying_metadata(whole: dict[str, bytes]) -> Iterator[Hostile]:
    jpeg, png = whole["baseline.jpg"], whole["still.png"]
    blocks = {f"orientation-{code}": _exif([(274, _SHORT, 1, code)]) for code in (0, 9, 65_535)}
    blocks |= {
        "size": _exif([(256, _LONG, 1, 1), (257, _LONG, 1, 0xFFFF_FFFF), (274, _SHORT, 1, 1)]),
        "cyclic": _exif([(274, _SHORT, 1, 1), (34665, _LONG, 1, 8)], following=8),
        "count": _exif([(274, _SHORT, 0xFFFF_FFFF, 8), (271, 2, 0xFFFF_FFFF, 8)]),
        "type": _exif([(274, 65_535, 1, 6)]),
        "far": b"II*\0\xff\xff\xff\xff",
        "tags": b"II*\0\x08\0\0\0\xff\xff",
        "empty": b"",
    }
    for name, block in blocks.items():
        segment = _segment(0xE1, b"Exif\0\0" + block)
        yield Hostile(f"exif-{name}.jpg", _with_segments(jpeg, segment), SCREENED, "EXIF that lies, a whole image")
        chunk = png_chunk(b"eXIf", block)
        yield Hostile(f"exif-{name}.png", png[:33] + chunk + png[33:], SCREENED, "EXIF that lies, a whole image")
    profile = _segment(0xE2, b"ICC_PROFILE\0\xff\x00" + b"\xff" * 500)
    # libjpeg keeps its first warning only, and this one could hide that of a missing end.
    yield Hostile("icc.jpg", _with_segments(jpeg, profile), SCREENED, "part 255 of 0 of a colour profile of garbage")
    for name, body in (("garbage", zlib.compress(b"\xff" * 500)), ("stream", b"\xff" * 500), ("bomb", zlib.compress(bytes(1 << 27), 9))):
        chunk = png_chunk(b"iCCP", b"icc\0\0" + body)
        yield Hostile(f"icc-{name}.png", png[:33] + chunk + png[33:], SCREENED, "a colour profile of no use")
    text = zlib.compress(bytes(1 << 27), 9)
    for kind, body in ((b"zTXt", b"Comment\0\0" + text), (b"iTXt", b"Comment\0\1\0\0\0" + text)):
        name = f"text-{kind.decode()}.png"
        yield Hostile(name, png[:33] + png_chunk(kind, body) + png[33:], SCREENED, "128 MB of text, compressed")
    many = _segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 700
    yield Hostile("segments.jpg", _with_segments(jpeg, many), SCREENED, "700 segments of 65 KB before the image")
    large = png_chunk(b"eXIf", blocks["orientation-9"] + bytes(45 << 20))
    yield Hostile("exif-45-mb.png", png[:33] + large + png[33:], UNDECODABLE, "45 MB of EXIF; a header may take 16")
    padded = jpeg + bytes(_MAX_OBJECT_BYTES + 1 - len(jpeg))
    yield Hostile("padded.jpg", padded, REJECTED, "one byte more than a file may have")


def hostile_files() -> Iterator[Hostile]:
    """All of them, always the same and in the same order."""
    whole = damage.whole_files()
    yield from _bombs(whole)
    yield from _large_and_whole()
    yield from _impossible_sizes(whole)
    yield from _absurd_headers()
    yield from _truncations(whole)
    yield from _newer_formats()
    yield from _masks(whole)
    yield from _jpeg_in_tiff()
    yield from _lying_metadata(whole)
    for _, bad in damage.bad_files():
        yield Hostile(f"damage-{bad.name}", bad.data, DAMAGED if bad.is_damaged else UNDECODABLE, bad.why)


def write(folder: Path) -> int:
    """Writes every file, and `expected.jsonl` beside the folder `files` that they are in; returns how many."""
    files = folder / "files"
    files.mkdir(parents=True)
    with (folder / "expected.jsonl").open("w") as lines:
        for count, hostile in enumerate(hostile_files(), 1):
            (files / hostile.name).write_bytes(hostile.data)
            told = {key: value for key, value in asdict(hostile).items() if key != "data"}
            lines.write(json.dumps(told) + "\n")
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the hostile files.")
    parser.add_argument("folder", type=Path)
    print(f"{write(parser.parse_args().folder)} files written")
