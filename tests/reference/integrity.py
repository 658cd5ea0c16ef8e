"""Whether a file is whole, judged by its structure: what Pillow lets pass when the damage lies between two parts."""

from __future__ import annotations

import zlib


def broken_part(kind: str, data: bytes) -> str | None:
    """What is missing or wrong in a file of this format, or None. Formats that Pillow judges well are not looked at."""
    check = {"png": _png, "gif": _gif, "jpeg": _jpeg, "webp": _webp}.get(kind)
    try:
        return check(data) if check else None
    except IndexError:
        return "the file ends inside a header"


def _png(data: bytes) -> str | None:
    """Every chunk whole and with the right checksum, up to IEND (PNG specification, section 5.3)."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"wrong checksum in chunk {name.decode('latin-1')}"
        if name == b"IEND":
            return None
        at = end
    return "the file ends before the IEND chunk"


def _gif(data: bytes) -> str | None:
    """Blocks up to the trailer (GIF89a, appendix A)."""
    at = 13 + _gif_colours(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x21:
            at += 2
        elif data[at] == 0x2C:
            at += 11 + _gif_colours(data[at + 9])
        else:
            return "a block of unknown kind"
        while data[at]:
            at += 1 + data[at]
        at += 1
    return None


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _jpeg(data: bytes) -> str | None:
    """An end-of-image marker behind the first scan; one in an embedded thumbnail does not count (ITU-T T.81, B.1)."""
    at = 2
    while data[at : at + 2] != b"\xff\xda":
        if data[at] != 0xFF:
            return "no marker where one must be"
        # A marker may be led by any number of fill bytes.
        if data[at + 1] == 0xFF:
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None if data.find(b"\xff\xd9", at) > 0 else "no end-of-image marker"


def _webp(data: bytes) -> str | None:
    """As long as the RIFF header says (WebP container specification)."""
    return "shorter than its header says" if len(data) < 8 + int.from_bytes(data[4:8], "little") else None
