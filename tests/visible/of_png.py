"""PNG and animated PNG files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import icc
import numpy as np
from drawing import FIFTH_LONG, HEIGHT, WIDTH, Kind, animated, cuts, fifth_of_ten, flips, hidden, picture, plain, shapes
from of_jpeg import exif

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def kinds() -> Iterator[Kind]:
    whole = png(picture(), RGB)
    yield Kind("png/plain.png", whole)
    yield Kind("png/interlaced.png", interlaced())
    yield Kind("png/sixteen-bits.png", png(picture().astype(">u2") * 257, RGB, 16))
    # Large enough for Chromium to show rows before the data ends.
    large = picture().repeat(3, axis=0).repeat(3, axis=1)
    yield from cuts("png/large", "png", png(large, RGB))
    yield from flips("png/large", "png", png(large, RGB), 41)
    yield from _palettes()
    yield from _transparency()
    yield from _data(large)
    yield from _oddities(whole)
    yield from _colours()
    yield from _animations()


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    """A chunk, whose checksum is wrong where `wrong` is not 0."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def header(colour: int, depth: int = 8, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def rows(samples: np.ndarray) -> bytes:
    """All rows without a filter, each behind the filter's number."""
    height = samples.shape[0]
    flat = np.ascontiguousarray(samples).view(np.uint8).reshape(height, -1)
    return np.hstack([np.zeros((height, 1), np.uint8), flat]).tobytes()


def png(samples: np.ndarray, colour: int, depth: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """A whole file; `before` and `after` are chunks before and behind the data."""
    data = chunk(b"IDAT", zlib.compress(rows(samples)))
    height, width = (samples.shape[0], samples.shape[1] if depth >= 8 else samples.shape[1] * 8 // depth)
    return header(colour, depth, width, height) + before + data + after + END


END = chunk(b"IEND", b"")


def packed(indices: np.ndarray, depth: int) -> np.ndarray:
    """Palette indices, several to a byte."""
    per_byte = 8 // depth
    grouped = indices.reshape(indices.shape[0], -1, per_byte).astype(np.uint8)
    shifts = np.arange(per_byte)[::-1] * depth
    return (grouped << shifts.astype(np.uint8)).sum(axis=2).astype(np.uint8)


def interlaced() -> bytes:
    """Adam7 (PNG, third edition, section 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    data = b"".join(rows(picture()[top::down, left::right]) for top, left, down, right in passes)
    start = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, RGB, 0, 0, 1)
    return SIGNATURE + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(data)) + END


def _palettes() -> Iterator[Kind]:
    for depth in (1, 2, 4, 8):
        beyond = packed(np.where(shapes(), 2**depth - 1, 0), depth)
        for name, palette in (("white", b"\xff\xff\xff"), ("black-and-red", b"\0\0\0\xff\0\0")):
            if depth > 1 or len(palette) == 3:
                yield Kind(
                    f"png/{depth}-bits-index-beyond-{name}.png", png(beyond, PALETTE, depth, chunk(b"PLTE", palette))
                )
    greys = bytes(level for level in range(200) for _ in range(3))
    indices = picture()[..., 0] % 200
    before = chunk(b"PLTE", greys)
    yield Kind("png/trns-shorter-than-palette.png", png(indices, PALETTE, 8, before + chunk(b"tRNS", b"\0" * 80)))
    yield Kind("png/trns-longer-than-palette.png", png(indices, PALETTE, 8, before + chunk(b"tRNS", b"\x80" * 256)))
    one = np.where(shapes(), 1, 0).astype(np.uint8)
    see = bytes([255, 0]) + bytes(254)
    yield Kind("png/picture-in-trns-longer-than-palette.png", png(one, PALETTE, 8, chunk(b"PLTE", b"\0" * 6) + chunk(b"tRNS", see)))
    yield Kind("png/picture-in-trns.png", png(one, PALETTE, 8, chunk(b"PLTE", b"\0" * 6) + chunk(b"tRNS", see[:2])))


def _transparency() -> Iterator[Kind]:
    yield Kind("png/black-picture-in-alpha.png", png(hidden(0), RGBA))
    yield Kind("png/white-picture-in-alpha.png", png(hidden(255), RGBA))
    half = hidden(255)
    half[..., 3] //= 2
    yield Kind("png/white-picture-in-half-alpha.png", png(half, RGBA))
    grey = np.dstack([plain(255)[..., 0], hidden(0)[..., 3]])
    yield Kind("png/white-picture-in-grey-alpha.png", png(grey, GREY_ALPHA))
    marked = np.where(shapes()[..., None], 255, 254).astype(np.uint8).repeat(3, axis=2)
    key = chunk(b"tRNS", struct.pack(">HHH", 255, 255, 255))
    yield Kind("png/colour-key.png", png(marked, RGB, 8, key))
    yield Kind("png/colour-key-with-high-byte.png", png(marked, RGB, 8, chunk(b"tRNS", b"\1\xff" * 3)))
    yield Kind("png/colour-key-wrong-checksum.png", png(marked, RGB, 8, chunk(b"tRNS", key[8:14], 1)))
    yield Kind("png/colour-key-behind-data.png", png(marked, RGB, 8, after=key))
    deep = np.where(shapes(), 0x8001, 0x8000).astype(">u2")
    yield Kind("png/sixteen-bits-key-in-low-byte.png", png(deep, GREY, 16, chunk(b"tRNS", struct.pack(">H", 0x8001))))
    bits = np.packbits(shapes(), axis=1)
    yield Kind("png/one-bit-grey-key.png", png(bits, GREY, 1, chunk(b"tRNS", b"\0\1")))


def _data(samples: np.ndarray) -> Iterator[Kind]:
    raw = rows(samples)
    height, width, _ = samples.shape
    row = len(raw) // height

    def of(data: bytes) -> bytes:
        return header(RGB, 8, width, height) + data + END

    packed_rows = zlib.compress(raw)
    half = len(packed_rows) // 2
    yield Kind("png/one-row-missing.png", of(chunk(b"IDAT", zlib.compress(raw[:-row]))), True)
    yield Kind("png/half-of-rows-missing.png", of(chunk(b"IDAT", zlib.compress(raw[: row * height // 2]))), True)
    yield Kind("png/rows-too-many.png", of(chunk(b"IDAT", zlib.compress(raw + raw[: 5 * row]))))
    yield Kind("png/data-cut.png", of(chunk(b"IDAT", packed_rows[:half])), True)
    yield Kind("png/data-without-adler.png", of(chunk(b"IDAT", packed_rows[:-4])))
    yield Kind("png/data-wrong-adler.png", of(chunk(b"IDAT", packed_rows[:-4] + b"\1\2\3\4")))
    yield Kind("png/data-wrong-checksum.png", of(chunk(b"IDAT", packed_rows, 1)))
    first, second = packed_rows[:half], packed_rows[half:]
    yield Kind("png/first-part-wrong-checksum.png", of(chunk(b"IDAT", first, 1) + chunk(b"IDAT", second)), True)
    yield Kind("png/second-part-wrong-checksum.png", of(chunk(b"IDAT", first) + chunk(b"IDAT", second, 1)), True)
    text = chunk(b"tEXt", b"Comment\0between")
    yield Kind("png/text-between-parts.png", of(chunk(b"IDAT", first) + text + chunk(b"IDAT", second)))
    empty = chunk(b"IDAT", b"")
    yield Kind("png/empty-part-between.png", of(chunk(b"IDAT", first) + empty + chunk(b"IDAT", second)))
    unknown = bytearray(raw)
    unknown[row * (height // 2)] = 9
    yield Kind("png/unknown-filter.png", of(chunk(b"IDAT", zlib.compress(bytes(unknown)))), True)
    flipped = packed_rows[:half] + bytes([packed_rows[half] ^ 16]) + packed_rows[half + 1 :]
    yield Kind("png/bit-flipped-checksum-right.png", of(chunk(b"IDAT", flipped)))


def _oddities(whole: bytes) -> Iterator[Kind]:
    yield Kind("png/no-end.png", whole[:-12])
    yield Kind("png/end-without-checksum.png", whole[:-4])
    yield Kind("png/junk-instead-of-end.png", whole[:-12] + b"\x11" * 50)
    yield Kind("png/end-wrong-checksum.png", whole[:-1] + b"\0")
    yield Kind("png/junk-behind.png", whole + b"\x11" * 100)
    yield Kind("png/second-file-behind.png", whole + png(plain(255), RGB))
    yield Kind("png/text-wrong-checksum.png", png(picture(), RGB, 8, chunk(b"tEXt", b"Comment\0hello", 1)))
    yield Kind("png/unknown-chunk.png", png(picture(), RGB, 8, chunk(b"abCd", b"hello")))
    yield Kind("png/turned-6.png", png(picture(), RGB, 8, chunk(b"eXIf", exif(6))))
    long = np.full((10, 25_085, 3), 200, np.uint8)
    long[3:7, ::50] = (10, 40, 90)
    long[:, 9000:14_000, 0] = 30
    yield Kind("png/10-by-25085.png", png(long.transpose(1, 0, 2), RGB))
    yield Kind("png/25085-by-10.png", png(long, RGB))


def _colours() -> Iterator[Kind]:
    def of(name: str, before: bytes, samples: np.ndarray | None = None, colour: int = RGB, depth: int = 8) -> Kind:
        return Kind(f"png/{name}.png", png(picture() if samples is None else samples, colour, depth, before))

    def gama(value: int) -> bytes:
        return chunk(b"gAMA", struct.pack(">I", value))

    def iccp(profile: bytes) -> bytes:
        return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))

    srgb = chunk(b"sRGB", b"\0")
    swapped = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000))
    usual = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    yield of("gamma-1", gama(100_000))
    yield of("gamma-as-usual", gama(45_455) + usual)
    yield of("gamma-1-and-srgb", gama(100_000) + srgb)
    yield of("srgb-before-gamma-1", srgb + gama(100_000))
    yield of("gamma-1-wrong-checksum", chunk(b"gAMA", struct.pack(">I", 100_000), 1))
    yield of("gamma-1-two-chunks", gama(45_455) + gama(100_000))
    yield of("gamma-absurd", gama(0))
    yield of("primaries-swapped", gama(45_455) + swapped)
    yield of("primaries-swapped-without-gamma", swapped)
    fine = np.where((np.mgrid[:HEIGHT, :WIDTH].sum(axis=0) % 2)[..., None], 254, 0)
    ground = np.where(shapes()[..., None], fine, 188).repeat(3, axis=2)[..., :3].astype(np.uint8)
    yield of("gamma-1-checkerboard-on-its-grey", gama(100_000), ground)
    yield of("gamma-shows-picture-in-high-levels", gama(2000), (236 + picture() // 14).astype(np.uint8))
    yield of("gamma-shows-picture-in-low-levels", gama(500_000), (picture() // 20).astype(np.uint8))
    yield of("sixteen-bits-gamma-shows-picture-in-low-bytes", gama(500_000), picture()[..., 1].astype(">u2"), GREY, 16)
    yield of("grey-gamma-1", gama(100_000), picture()[..., 1], GREY)
    yield of("cicp-linear", chunk(b"cICP", bytes([1, 8, 0, 1])))
    yield of("cicp-pq", chunk(b"cICP", bytes([9, 16, 0, 1])))
    yield of("cicp-srgb-and-inverted-profile", chunk(b"cICP", bytes([1, 13, 0, 1])) + iccp(icc.inverted()))
    yield of("profile-inverted", iccp(icc.inverted()))
    yield of("profile-red-and-blue-swapped", iccp(icc.swapped()))
    yield of("profile-linear", iccp(icc.profile(curve=icc.gamma(1.0))))
    yield of("profile-cut", iccp(icc.inverted()[:200]))
    yield of("profile-not-packed", chunk(b"iCCP", b"profile\0\0" + icc.inverted()))
    yield of("profile-and-srgb", srgb + iccp(icc.inverted()))
    yield of("profile-for-grey-in-colour", iccp(icc.grey(icc.gamma(1.0))))
    yield of("profile-for-grey", iccp(icc.grey(icc.gamma(1.0))), picture()[..., 1], GREY)
    yield of("profile-shows-picture-in-high-levels", iccp(icc.steep()), (236 + picture() // 14).astype(np.uint8))


class _Apng:
    """Writes the chunks of an animation in the order of the calls (PNG, third edition, section 11.3.6)."""

    def __init__(self) -> None:
        self.sequence = 0

    def control(self, delay_ms: int = 200, size: tuple[int, int] = (WIDTH, HEIGHT), at: tuple[int, int] = (0, 0)) -> bytes:
        body = struct.pack(">IIIIIHHBB", self.sequence, *size, *at, delay_ms, 1000, 0, 0)
        self.sequence += 1
        return chunk(b"fcTL", body)

    def data(self, samples: np.ndarray, wrong: int = 0) -> bytes:
        body = struct.pack(">I", self.sequence) + zlib.compress(rows(samples))
        self.sequence += 1
        return chunk(b"fdAT", body, wrong)


def actl(count: int) -> bytes:
    return chunk(b"acTL", struct.pack(">II", count, 0))


def _animations() -> Iterator[Kind]:
    first = chunk(b"IDAT", zlib.compress(rows(picture())))
    white = chunk(b"IDAT", zlib.compress(rows(plain(255))))

    def frames(count: int, start: bytes = actl(2), wrong: int = 0, skip: int = 0) -> bytes:
        """The first picture is a frame; `count` further ones follow."""
        writer = _Apng()
        out = header(RGB) + start + writer.control() + first
        for number in range(count):
            writer.sequence += skip
            out += writer.control() + writer.data(picture(3 + number), wrong)
        return out + END

    def behind_default(count: int, start: bytes) -> bytes:
        """The default image, white, is no frame."""
        writer = _Apng()
        out = header(RGB) + start + white
        for number in range(count):
            out += writer.control() + writer.data(picture(3 + number))
        return out + END

    yield Kind("png/animated.png", frames(1))
    yield Kind("png/animated-fifth-of-ten-for-a-minute.png", animated(fifth_of_ten(), "PNG", FIFTH_LONG))
    yield Kind("png/animated-default-image-is-no-frame.png", behind_default(2, actl(2)))
    yield Kind("png/animated-one-frame-behind-default-image.png", behind_default(1, actl(1)))
    yield Kind("png/animated-frame-missing.png", frames(0), True)
    yield Kind("png/animated-count-too-high.png", frames(1, actl(3)))
    yield Kind("png/animated-count-too-low.png", frames(2, actl(2)))
    yield Kind("png/animated-count-0.png", frames(1, actl(0)))
    yield Kind("png/animated-two-counts.png", frames(1, actl(1) + actl(2)))
    yield Kind("png/animated-wrong-checksum-in-frame.png", frames(1, wrong=1))
    yield Kind("png/animated-gap-in-sequence.png", frames(1, skip=1))
    late = header(RGB) + white + actl(1)
    writer = _Apng()
    yield Kind("png/animated-count-behind-data.png", late + writer.control() + writer.data(picture(3)) + END)
    whole = frames(1)
    yield Kind("png/animated-second-frame-cut.png", whole[: len(whole) * 8 // 10], True)
    writer = _Apng()
    deep = (picture().astype(">u2") * 257, picture(4).astype(">u2") * 257)
    out = header(RGB, 16) + actl(2) + writer.control() + chunk(b"IDAT", zlib.compress(rows(deep[0])))
    yield Kind("png/animated-sixteen-bits.png", out + writer.control() + writer.data(deep[1]) + END)
    clear = [hidden(255), np.roll(hidden(255), 30, axis=1)]
    yield Kind("png/animated-white-picture-in-alpha.png", animated(clear, "PNG", 200, disposal=1, blend=0))
    yield Kind("png/animated-saved-by-pillow.png", animated([picture(n) for n in range(3)], "PNG", 100))
