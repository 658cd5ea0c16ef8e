"""WebP files (RFC 9649)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import icc
import numpy as np
from drawing import FIFTH_LONG, HEIGHT, WIDTH, Kind, animated, fifth_of_ten, hidden, picture, saved, shapes
from of_jpeg import exif

ANIMATION, EXIF, ALPHA, ICC = 2, 8, 16, 32
"""Flags of a VP8X chunk."""
_ALPHA_USED = 0x10


def kinds() -> Iterator[Kind]:
    lossy = saved(picture(), "WEBP", quality=90)
    lossless = saved(picture(), "WEBP", lossless=True)
    moving = animated([picture(n) for n in range(3)], "WEBP", 150, quality=90)
    yield Kind("webp/lossy.webp", lossy)
    yield Kind("webp/lossless.webp", lossless)
    yield Kind("webp/animated.webp", moving)
    for name, data in (("lossy", lossy), ("lossless", lossless), ("animated", moving)):
        yield from _damage(name, data)
    yield from _alpha()
    yield from _codes()
    yield from _oddities(lossy)
    yield from _animations()


def parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and bodies of a file's chunks."""
    found, at = [], 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        found.append((name, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(chunk(name, data) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extended(flags: int, *chunks: tuple[bytes, bytes], size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    edges = b"".join((edge - 1).to_bytes(3, "little") for edge in size)
    return webp((b"VP8X", bytes([flags, 0, 0, 0]) + edges), *chunks)


def _frame(chunks: bytes, duration: int = 200, flags: int = 0) -> tuple[bytes, bytes]:
    edges = [0, 0, WIDTH - 1, HEIGHT - 1, duration]
    return b"ANMF", b"".join(edge.to_bytes(3, "little") for edge in edges) + bytes([flags]) + chunks


def _damage(name: str, data: bytes) -> Iterator[Kind]:
    for percent in (10, 50, 90, 99):
        cut = data[: len(data) * percent // 100]
        yield Kind(f"webp/{name}-cut-at-{percent}.webp", cut, percent < 99)
        yield Kind(f"webp/{name}-cut-at-{percent}-lengths-fit.webp", _shortened(data, percent), percent < 99)
    for percent in (25, 50, 75, 90):
        at = len(data) * percent // 100
        yield Kind(f"webp/{name}-bit-flipped-at-{percent}.webp", data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    at = len(data) // 2
    yield Kind(f"webp/{name}-zeros-in-the-middle.webp", data[:at] + bytes(48) + data[at + 48 :])


def _shortened(data: bytes, percent: int) -> bytes:
    """Cuts the data of the last image and makes all lengths fit, as a tool does that takes what is there for whole."""
    *before, (name, body) = parts(data)
    if name != b"ANMF":
        return webp(*before, (name, body[: len(body) * percent // 100]))
    [(inner, image)] = parts(bytes(12) + body[16:])
    return webp(*before, (name, body[:16] + chunk(inner, image[: len(image) * percent // 100])))


def _alpha() -> Iterator[Kind]:
    clear = saved(hidden(0), "WEBP", lossless=True, exact=True)
    [(_, stream)] = parts(clear)
    unused = stream[:4] + bytes([stream[4] & ~_ALPHA_USED]) + stream[5:]
    yield Kind("webp/black-picture-in-alpha.webp", clear)
    yield Kind("webp/white-picture-in-alpha.webp", saved(hidden(255), "WEBP", lossless=True, exact=True))
    yield Kind("webp/alpha-said-to-be-unused.webp", webp((b"VP8L", unused)))
    yield Kind("webp/alpha-without-flag.webp", extended(0, (b"VP8L", stream)))
    yield Kind("webp/alpha-said-to-be-unused-with-flag.webp", extended(ALPHA, (b"VP8L", unused)))
    yield Kind("webp/alpha-flag-without-alpha.webp", extended(ALPHA, *parts(saved(picture(), "WEBP", quality=90))))
    lossy = dict(parts(saved(hidden(0), "WEBP", quality=90)))
    both = [(name, lossy[name]) for name in (b"ALPH", b"VP8 ")]
    yield Kind("webp/lossy-alpha.webp", extended(ALPHA, *both))
    yield Kind("webp/lossy-alpha-without-flag.webp", extended(0, *both))
    yield Kind("webp/lossy-alpha-cut.webp", extended(ALPHA, (b"ALPH", both[0][1][:20]), both[1]))
    for count in (1, 2):
        frames = [_frame(chunk(b"VP8L", stream)) for _ in range(count)]
        yield Kind(f"webp/{count}-frames-alpha-without-flag.webp", extended(ANIMATION, (b"ANIM", bytes(6)), *frames))
    frames = [_frame(b"".join(chunk(*part) for part in both))] * 2
    yield Kind("webp/animated-lossy-alpha-without-flag.webp", extended(ANIMATION, (b"ANIM", bytes(6)), *frames))


class _Bits:
    """Bits of a lossless stream, the lowest of each byte first."""

    def __init__(self) -> None:
        self.value = self.length = 0

    def put(self, value: int, width: int) -> None:
        self.value |= value << self.length
        self.length += width

    def bytes(self) -> bytes:
        return self.value.to_bytes((self.length + 7) // 8, "little")

    def simple_code(self, *symbols: int) -> None:
        """A prefix code of one or two symbols (RFC 9649, section 6.2.1)."""
        self.put(1, 1)
        self.put(len(symbols) - 1, 1)
        self.put(1, 1)
        for symbol in symbols:
            self.put(symbol, 8)


def lossless(cache_bits: int, green: list[int] | None, marks: np.ndarray) -> bytes:
    """A stream whose green is one of two symbols; red and blue are 0. `None` takes a code with the first cache entry."""
    bits = _Bits()
    bits.put(0x2F, 8)
    bits.put(marks.shape[1] - 1, 14)
    bits.put(marks.shape[0] - 1, 14)
    bits.put(0, 1 + 3 + 1)
    bits.put(cache_bits > 0, 1)
    if cache_bits:
        bits.put(cache_bits, 4)
    bits.put(0, 1)
    if green is None:
        _green_and_cache(bits)
    else:
        bits.simple_code(*green)
    for symbol in (0, 0, 255, 0):
        bits.simple_code(symbol)
    for mark in marks.ravel().tolist():
        bits.put(int(mark), 1)
    return bits.bytes()


def _green_and_cache(bits: _Bits) -> None:
    """A code of the symbols 200 and 280, the cache's first entry, one bit each (RFC 9649, section 6.2.2)."""
    bits.put(0, 1)
    order = [17, 18, 0, 1]
    lengths = {18: 1, 0: 2, 1: 2}
    bits.put(0, 4)
    for symbol in order:
        bits.put(lengths.get(symbol, 0), 3)
    bits.put(0, 1)
    # Canonical, and written with the first bit of a code first: 18 is 0, 0 is 10, 1 is 11.
    zero, one = (0b01, 2), (0b11, 2)

    def zeros(count: int) -> None:
        bits.put(0, 1)
        bits.put(count - 11, 7)

    zeros(138)
    zeros(62)
    bits.put(*one)
    zeros(79)
    bits.put(*one)
    bits.put(*zero)


def _codes() -> Iterator[Kind]:
    marks = shapes()
    yield Kind("webp/simple-code-rising.webp", webp((b"VP8L", lossless(0, [0, 255], marks))))
    yield Kind("webp/simple-code-falling.webp", webp((b"VP8L", lossless(0, [255, 0], marks))))
    yield Kind("webp/colour-cache-never-written.webp", webp((b"VP8L", lossless(1, None, marks))))


def _oddities(lossy: bytes) -> Iterator[Kind]:
    [image] = parts(lossy)
    for code in (3, 6, 8):
        yield Kind(f"webp/turned-{code}.webp", extended(EXIF, image, (b"EXIF", exif(code))))
    yield Kind("webp/turned-6-without-flag.webp", extended(0, image, (b"EXIF", exif(6))))
    yield Kind("webp/junk-behind.webp", lossy + b"\x11" * 100)
    yield Kind("webp/unknown-chunk-before.webp", extended(0, (b"abcd", b"hello!"), image))
    yield Kind("webp/length-too-large.webp", lossy[:4] + struct.pack("<I", len(lossy) + 92) + lossy[8:])
    yield Kind("webp/canvas-larger.webp", extended(0, image, size=(2 * WIDTH, HEIGHT)))
    for name, profile in {"inverted": icc.inverted(), "swapped": icc.swapped(), "linear": icc.profile(curve=icc.gamma(1.0))}.items():
        yield Kind(f"webp/profile-{name}.webp", extended(ICC, (b"ICCP", profile), image))
    yield Kind("webp/profile-inverted-without-flag.webp", extended(0, (b"ICCP", icc.inverted()), image))
    yield Kind("webp/profile-cut.webp", extended(ICC, (b"ICCP", icc.inverted()[:200]), image))


def _animations() -> Iterator[Kind]:
    yield Kind("webp/animated-fifth-of-ten-for-a-minute.webp", animated(fifth_of_ten(), "WEBP", FIFTH_LONG, lossless=True))
    clear = [hidden(255), np.roll(hidden(255), 30, axis=1)]
    yield Kind("webp/animated-white-picture-in-alpha.webp", animated(clear, "WEBP", 200, lossless=True))
    stream = parts(saved(picture(), "WEBP", quality=90))[0]
    frames = [_frame(chunk(*stream))]
    yield Kind("webp/animated-one-frame.webp", extended(ANIMATION, (b"ANIM", bytes(6)), *frames))
    yield Kind("webp/animation-flag-without-animation.webp", extended(ANIMATION, stream))
    yield Kind("webp/frames-without-animation-flag.webp", extended(0, stream, *frames))
