"""JPEG files: every kind that libjpeg shows although something about it is unusual or missing."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import icc
import numpy as np
from drawing import HEIGHT, WIDTH, Kind, cuts, flips, picture, plain, saved
from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
DQT, SOF, SOS, DHT, APP0, APP1, APP2, APP14 = 0xDB, 0xC0, 0xDA, 0xC4, 0xE0, 0xE1, 0xE2, 0xEE


def kinds() -> Iterator[Kind]:
    baseline = saved(picture(), "JPEG", quality=90, subsampling=0)
    progressive = saved(picture(), "JPEG", quality=90, progressive=True)
    yield from _plain(baseline, progressive)
    for name, data in (("baseline", baseline), ("progressive", progressive)):
        yield from cuts(f"jpeg/{name}", "jpg", data)
        yield from flips(f"jpeg/{name}", "jpg", data, _scan_start(data))
        yield from _junk(name, data)
        yield from _headers(name, data)
    yield from _ends(baseline)
    yield from _profiles(baseline)
    yield from _orientations(baseline)


def _plain(baseline: bytes, progressive: bytes) -> Iterator[Kind]:
    yield Kind("jpeg/baseline.jpg", baseline)
    yield Kind("jpeg/progressive.jpg", progressive)
    yield Kind("jpeg/half-chroma.jpg", saved(picture(), "JPEG", quality=90, subsampling=2))
    yield Kind("jpeg/grey.jpg", saved(picture()[..., 1], "JPEG", quality=90))
    yield Kind("jpeg/four-inks.jpg", _four_inks())
    yield Kind("jpeg/restart-markers.jpg", saved(picture(), "JPEG", quality=90, restart_marker_blocks=4))


def _four_inks() -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(out, "JPEG", quality=90)
    return out.getvalue()


def _with_black() -> bytes:
    """The picture in cyan, which is darker to the right by black ink."""
    inks = np.zeros((*picture().shape[:2], 4), np.uint8)
    inks[..., 0], inks[..., 3] = picture()[..., 0], np.arange(WIDTH) * 2
    out = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(out, "JPEG", quality=95)
    return out.getvalue()


def _junk(name: str, data: bytes) -> Iterator[Kind]:
    for length in (1, 4, 24, 1000):
        junk = b"\x11" * length
        yield Kind(f"jpeg/{name}-{length}-bytes-before-tables.jpg", _before(data, DQT, junk))
    yield Kind(f"jpeg/{name}-zeros-before-tables.jpg", _before(data, DQT, bytes(16)))
    yield Kind(f"jpeg/{name}-junk-before-frame.jpg", _before(data, _frame_marker(data), b"\x11" * 4))
    yield Kind(f"jpeg/{name}-junk-before-scan.jpg", _before(data, SOS, b"\x11" * 4))
    yield Kind(f"jpeg/{name}-junk-before-end.jpg", data[:-2] + b"\x11" * 100 + EOI)
    yield Kind(f"jpeg/{name}-filled-with-ff.jpg", _before(data, DQT, b"\xff" * 9))


def _headers(name: str, data: bytes) -> Iterator[Kind]:
    frame = _frame_marker(data)
    yield Kind(f"jpeg/{name}-jfif-revision-3.jpg", _patched(data, APP0, 5, b"\x03\x00"))
    yield Kind(f"jpeg/{name}-no-jfif.jpg", _without(data, APP0))
    yield Kind(f"jpeg/{name}-adobe-transform-1.jpg", _adobe(data, 1))
    yield Kind(f"jpeg/{name}-adobe-transform-0-means-rgb.jpg", _adobe(_without(data, APP0), 0))
    yield Kind(f"jpeg/{name}-adobe-transform-7.jpg", _adobe(data, 7))
    yield Kind(f"jpeg/{name}-height-doubled.jpg", _patched(data, frame, 1, struct.pack(">H", 2 * HEIGHT)))
    yield Kind(f"jpeg/{name}-height-less.jpg", _patched(data, frame, 1, struct.pack(">H", HEIGHT * 7 // 10)))
    yield Kind(f"jpeg/{name}-end-marker-at-half.jpg", data[: (_scan_start(data) + len(data)) // 2] + EOI)
    yield Kind(f"jpeg/{name}-profile-0-of-0.jpg", _profile(data, icc.inverted(), [(0, 0)]))
    yield Kind(f"jpeg/{name}-profile-1-of-2.jpg", _profile(data, icc.inverted(), [(1, 2)]))
    yield Kind(f"jpeg/{name}-profile-twice.jpg", _profile(data, icc.inverted(), [(1, 1), (1, 1)]))


def _ends(data: bytes) -> Iterator[Kind]:
    scan = _scan_start(data)
    spectral = scan - 3
    yield Kind("jpeg/samsung-spectral-end-0.jpg", data[: spectral + 1] + b"\0" + data[spectral + 2 :])
    yield Kind("jpeg/samsung-approximation.jpg", data[: spectral + 2] + b"\x01" + data[spectral + 3 :])
    yield Kind("jpeg/no-end-marker.jpg", data[:-2])
    yield Kind("jpeg/no-end-marker-zeros-behind.jpg", data[:-2] + bytes(64))
    yield Kind("jpeg/no-end-marker-junk-behind.jpg", data[:-2] + b"\x11" * 100)
    second = saved(plain(255), "JPEG")
    movie = struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + struct.pack(">I", 4096) + b"mdat" + bytes(4088)
    yield Kind("jpeg/second-image-behind.jpg", data + second)
    yield Kind("jpeg/padding-then-second-image.jpg", data + bytes(16) + second)
    yield Kind("jpeg/white-image-then-picture.jpg", second + data)
    yield Kind("jpeg/film-behind.jpg", data + bytes(16) + movie)
    yield Kind("jpeg/cut-image-then-second-image.jpg", data[: (scan + len(data)) // 2] + second, True)
    yield Kind("jpeg/standard-code-tables-left-out.jpg", _without(data, DHT))


def _profiles(data: bytes) -> Iterator[Kind]:
    whole = [(1, 1)]
    yield Kind("jpeg/profile-inverted.jpg", _profile(data, icc.inverted(), whole))
    yield Kind("jpeg/profile-red-and-blue-swapped.jpg", _profile(data, icc.swapped(), whole))
    yield Kind("jpeg/profile-linear.jpg", _profile(data, icc.profile(curve=icc.gamma(1.0)), whole))
    yield Kind("jpeg/profile-in-two-parts.jpg", _profile(data, icc.inverted(), [(1, 2), (2, 2)]))
    yield Kind("jpeg/profile-in-two-parts-second-first.jpg", _profile(data, icc.inverted(), [(2, 2), (1, 2)]))
    yield Kind("jpeg/profile-cut.jpg", _profile(data, icc.inverted()[:300], whole))
    yield Kind("jpeg/profile-of-zeros.jpg", _profile(data, bytes(500), whole))
    yield Kind("jpeg/profile-for-grey-in-colour.jpg", _profile(data, icc.grey(icc.gamma(1.0)), whole))
    grey = saved(picture()[..., 1], "JPEG", quality=90)
    yield Kind("jpeg/profile-for-grey.jpg", _profile(grey, icc.grey(icc.gamma(1.0)), whole))
    yield Kind("jpeg/profile-for-inks.jpg", _profile(_four_inks(), icc.of_cyan(), whole))
    yield Kind("jpeg/profile-for-inks-and-black.jpg", _profile(_with_black(), icc.of_cyan(), whole))
    faint = saved(235 + picture() // 13, "JPEG", quality=98, subsampling=0)
    yield Kind("jpeg/profile-shows-picture-in-high-levels.jpg", _profile(faint, icc.steep(), whole))


def _orientations(data: bytes) -> Iterator[Kind]:
    for code in range(2, 9):
        yield Kind(f"jpeg/turned-{code}.jpg", _with_exif(data, code))
    yield Kind("jpeg/turned-1-then-6.jpg", _with_exif(data, 1, 6))
    yield Kind("jpeg/turned-6-then-1.jpg", _with_exif(data, 6, 1))
    yield Kind("jpeg/turned-9.jpg", _with_exif(data, 9))


def exif(code: int) -> bytes:
    """A TIFF header and one directory with an orientation (TIFF 6.0, section 2)."""
    return struct.pack("<2sHIH", b"II", 42, 8, 1) + struct.pack("<HHIHHI", 0x0112, 3, 1, code, 0, 0)


def _with_exif(data: bytes, *codes: int) -> bytes:
    blocks = b"".join(_segment(APP1, b"Exif\0\0" + exif(code)) for code in codes)
    return _without(data, APP0).replace(SOI, SOI + blocks, 1)


def _profile(data: bytes, profile: bytes, parts: list[tuple[int, int]]) -> bytes:
    """Puts a profile into segments with these numbers and counts (ICC.1:2010, B.4)."""
    count = max(total for _, total in parts) or 1
    length = -(-len(profile) // count)
    blocks = b""
    for number, total in parts:
        part = profile[max(number - 1, 0) * length :][:length]
        blocks += _segment(APP2, b"ICC_PROFILE\0" + bytes([number, total]) + part)
    return _before(data, DQT, blocks)


def _adobe(data: bytes, transform: int) -> bytes:
    return _before(data, DQT, _segment(APP14, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)))


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment, up to the first scan's header."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">xBH", data, at)
        yield marker, at, at + 2 + length
        if marker == SOS:
            return
        at += 2 + length


def _frame_marker(data: bytes) -> int:
    return next(marker for marker, _, _ in _segments(data) if marker in (SOF, SOF + 2))


def _scan_start(data: bytes) -> int:
    return next(end for marker, _, end in _segments(data) if marker == SOS)


def _before(data: bytes, wanted: int, inserted: bytes) -> bytes:
    start = next(start for marker, start, _ in _segments(data) if marker == wanted)
    return data[:start] + inserted + data[start:]


def _without(data: bytes, unwanted: int) -> bytes:
    for marker, start, end in reversed(list(_segments(data))):
        if marker == unwanted:
            data = data[:start] + data[end:]
    return data


def _patched(data: bytes, wanted: int, offset: int, value: bytes) -> bytes:
    """Overwrites bytes of the first segment of a kind, counted from the start of its body."""
    at = 4 + offset + next(start for marker, start, _ in _segments(data) if marker == wanted)
    return data[:at] + value + data[at + len(value) :]
