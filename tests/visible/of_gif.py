"""GIF files (GIF89a)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from drawing import FIFTH_LONG, HEIGHT, WIDTH, Kind, animated, cuts, fifth_of_ten, flips, picture, plain, shapes
from PIL import Image

TRAILER = b"\x3b"
_GREYS = bytes(level for level in range(256) for _ in range(3))


def kinds() -> Iterator[Kind]:
    whole = gif([image(GREYS)])
    yield Kind("gif/plain.gif", whole)
    yield from cuts("gif/plain", "gif", whole)
    yield from flips("gif/plain", "gif", whole, 13 + len(_GREYS) + 12)
    yield from _blocks()
    yield from _screens()
    yield from _tables()
    yield from _animations()


def _greys() -> np.ndarray:
    return np.asarray(Image.fromarray(picture()).convert("L"))


GREYS = _greys()


def codes(indices: np.ndarray, bits: int = 8) -> bytes:
    """LZW without a dictionary: a clear code comes before codes would grow longer (GIF89a, appendix F)."""
    clear, width = 1 << bits, bits + 1
    value = filled = 0
    out = bytearray()
    run = clear - 2

    def put(code: int) -> None:
        nonlocal value, filled
        value |= code << filled
        filled += width
        while filled >= 8:
            out.append(value & 255)
            value >>= 8
            filled -= 8

    for number, index in enumerate(indices.ravel().tolist()):
        if number % run == 0:
            put(clear)
        put(index)
    put(clear + 1)
    if filled:
        out.append(value & 255)
    return bytes(out)


def blocks(data: bytes) -> bytes:
    return b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)) + b"\0"


def image(indices: np.ndarray, left: int = 0, top: int = 0, data: bytes | None = None, flags: int = 0, table: bytes = b"") -> bytes:
    height, width = indices.shape
    start = struct.pack("<BHHHHB", 0x2C, left, top, width, height, flags) + table + b"\x08"
    return start + (blocks(codes(indices)) if data is None else data)


def control(delay_ms: int = 0, transparent: int | None = None, disposal: int = 0) -> bytes:
    flags = disposal << 2 | (transparent is not None)
    return struct.pack("<BBBBHBB", 0x21, 0xF9, 4, flags, delay_ms // 10, transparent or 0, 0)


def gif(parts: list[bytes], screen: tuple[int, int] = (WIDTH, HEIGHT), palette: bytes = _GREYS, end: bytes = TRAILER) -> bytes:
    """`palette` has 2 to 256 colours, a power of two, or none."""
    flags = 0x80 | 0x70 | (len(palette) // 3).bit_length() - 2 if palette else 0
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + palette + b"".join(parts) + end


LOOP = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


def _blocks() -> Iterator[Kind]:
    one = image(GREYS)
    yield Kind("gif/no-trailer.gif", gif([one], end=b""))
    yield Kind("gif/trailer-0.gif", gif([one], end=b"\0"))
    yield Kind("gif/zero-before-trailer.gif", gif([one, b"\0"]))
    yield Kind("gif/junk-before-trailer.gif", gif([one, b"\x11" * 100]))
    yield Kind("gif/junk-behind.gif", gif([one]) + b"\x11" * 100)
    yield Kind("gif/second-file-behind.gif", gif([one]) + gif([image(np.full_like(GREYS, 255))]))
    yield Kind("gif/unknown-extension.gif", gif([b"\x21\x55" + blocks(b"hello"), one]))
    yield Kind("gif/no-block-terminator.gif", gif([one[:-1]]))
    yield Kind("gif/no-block-terminator-no-trailer.gif", gif([one[:-1]], end=b""))
    data = blocks(codes(GREYS))
    parts = [data[at : at + 256] for at in range(0, len(data) - 256, 256)]
    yield Kind("gif/half-of-blocks-missing.gif", gif([image(GREYS, data=b"".join(parts[: len(parts) // 2]) + b"\0")]), True)
    yield Kind("gif/last-block-missing.gif", gif([image(GREYS, data=b"".join(parts[:-1]) + b"\0")]), True)
    yield Kind("gif/interlace-flag-on-plain-data.gif", gif([image(GREYS, flags=0x40)]))
    yield Kind("gif/profile-in-extension.gif", gif([b"\x21\xff\x0bICCRGBG1012" + blocks(b"x" * 300), one]))


def _screens() -> Iterator[Kind]:
    one = image(GREYS)
    for name, screen in {"0x0": (0, 0), "1x1": (1, 1), "half": (WIDTH // 2, HEIGHT // 2), "larger": (200, 130)}.items():
        yield Kind(f"gif/screen-{name}.gif", gif([one], screen))
        more = image(np.roll(GREYS, 40, axis=1))
        yield Kind(f"gif/animated-screen-{name}.gif", gif([LOOP, control(200), one, control(200), more], screen))
    yield Kind("gif/frame-half-outside.gif", gif([image(GREYS, left=WIDTH // 2)]))
    yield Kind("gif/frame-outside.gif", gif([image(GREYS, left=WIDTH + 10, top=5)]))
    yield Kind("gif/screen-8x8-frame-beside.gif", gif([image(GREYS, 8, 8)], (8, 8)))
    small = image(np.full((8, 8), 255, np.uint8))
    yield Kind("gif/small-white-frame-then-picture.gif", gif([LOOP, control(200), small, control(200), one]))
    yield Kind("gif/small-white-frame-then-picture-small-screen.gif", gif([control(200), small, control(200), one], (8, 8)))


def _tables() -> Iterator[Kind]:
    marks = np.where(shapes(), 7, 0).astype(np.uint8)
    two = b"\xff" * 6
    yield Kind("gif/index-beyond-white-palette.gif", gif([image(marks)], palette=two))
    yield Kind("gif/index-beyond-black-palette.gif", gif([image(marks)], palette=bytes(6)))
    yield Kind("gif/index-beyond-own-palette.gif", gif([image(marks, flags=0x80, table=two)]))
    yield Kind("gif/no-palette.gif", gif([image(GREYS)], palette=b""))
    see = np.where(shapes(), 0, 255).astype(np.uint8)
    yield Kind("gif/white-picture-in-transparency.gif", gif([control(0, 0), image(see)], palette=b"\xff" * 768))
    yield Kind("gif/black-picture-in-transparency.gif", gif([control(0, 0), image(see)], palette=bytes(768)))
    yield Kind("gif/transparent-index-beyond.gif", gif([control(0, 7), image(marks)], palette=two))
    yield Kind("gif/control-twice.gif", gif([control(0), control(0, 0), image(see)], palette=bytes(768)))
    yield Kind("gif/control-behind-image.gif", gif([image(see), control(0, 0)]))


def _animations() -> Iterator[Kind]:
    yield Kind("gif/animated.gif", animated([picture(n) for n in range(4)], "GIF", 150))
    yield Kind("gif/animated-fifth-of-ten-for-a-minute.gif", animated(fifth_of_ten(), "GIF", FIFTH_LONG))
    one, two = image(GREYS), image(np.roll(GREYS, 40, axis=1))
    yield Kind("gif/animated-zero-between-frames.gif", gif([control(200), one, b"\0", control(200), two]))
    yield Kind("gif/animated-no-trailer.gif", gif([control(200), one, control(200), two], end=b""))
    whole = gif([control(200), one, control(200), two])
    yield Kind("gif/animated-second-frame-cut.gif", whole[: len(whole) * 8 // 10], True)
    part = image(GREYS[20:60, 30:90], 30, 20)
    frames = [control(100, disposal=2), image(np.full_like(GREYS, 200)), control(100, disposal=3), part, control(100), image(GREYS[:30])]
    yield Kind("gif/animated-disposals.gif", gif([LOOP, *frames]))
    long = [np.full_like(plain(0), 3 * n) for n in range(80)]
    long[60] = picture(5)
    yield Kind("gif/animated-eighty-frames-one-is-a-picture-for-a-minute.gif", animated(long, "GIF", [50] * 60 + [60_000] + [50] * 19))
