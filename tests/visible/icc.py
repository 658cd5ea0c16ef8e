"""ICC profiles of our own, version 2, display class, with a matrix and curves or with a table (ICC.1:2010, 8.3)."""

from __future__ import annotations

import struct

# sRGB's primaries, adapted to D50.
RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
WHITE = (0.9642, 1.0, 0.8249)


def profile(primaries=(RED, GREEN, BLUE), curve: bytes | None = None) -> bytes:
    """A profile for RGB. `curve` is the body of the tag that all three channels share."""
    curve = curve or gamma(2.2)
    tags = [
        (b"desc", _description(b"made by tests")),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz(WHITE)),
        *((name, _xyz(value)) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    return _assembled(b"RGB ", tags)


def grey(curve: bytes) -> bytes:
    tags = [(b"desc", _description(b"made by tests")), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", _xyz(WHITE))]
    return _assembled(b"GRAY", [*tags, (b"kTRC", curve)])


def gamma(exponent: float) -> bytes:
    return struct.pack(">4sIIH", b"curv", 0, 1, round(exponent * 256))


def table(values: list[int]) -> bytes:
    """A curve of 16-bit values at equal distances."""
    return struct.pack(f">4sII{len(values)}H", b"curv", 0, len(values), *values)


def inverted() -> bytes:
    return profile(curve=table([65535 - 257 * level for level in range(256)]))


def swapped() -> bytes:
    return profile(primaries=(BLUE, GREEN, RED))


def steep() -> bytes:
    """Everything happens in the highest twenty levels."""
    return profile(curve=table([max(0, level - 235) * 65535 // 20 for level in range(256)]))


def of_cyan() -> bytes:
    """A profile for four inks, of which only cyan is dark. Its table has two points for each ink (10.10)."""
    straight = bytes(range(256))
    grid = b"".join(bytes([0 if at & 8 else 255, 128, 128]) for at in range(16))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + bytes(36) + straight * 4 + grid + straight * 3
    tags = [(b"desc", _description(b"made by tests")), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", _xyz(WHITE))]
    return _assembled(b"CMYK", [*tags, (b"A2B0", table)], b"Lab ")


def _xyz(value: tuple[float, float, float]) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(part * 65536) for part in value))


def _description(text: bytes) -> bytes:
    return struct.pack(">4sII", b"desc", 0, len(text) + 1) + text + b"\0" + bytes(4 + 4 + 2 + 1 + 67)


def _assembled(space: bytes, tags: list[tuple[bytes, bytes]], connection: bytes = b"XYZ ") -> bytes:
    offset = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        directory += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", space, connection) + date + b"acsp"
    header += bytes(128 - len(header) - 60) + struct.pack(">3i", *(round(part * 65536) for part in WHITE))
    return header + bytes(128 - len(header)) + directory + body
