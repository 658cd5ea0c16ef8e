"""Which format a file is of, by its first bytes, as a server names it to a browser."""

from __future__ import annotations

import re

MEDIA_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "ico": "image/x-icon",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "heic": "image/heic",
    "jpeg-xl": "image/jxl",
    "svg": "image/svg+xml",
}

SHOWN_BY_PILLOW = {"tiff"}
"""Formats that Chromium does not show. Pillow stands for their viewers."""

_MAGIC = [
    ("jpeg", rb"\xff\xd8\xff"),
    ("png", rb"\x89PNG\r\n\x1a\n"),
    ("gif", rb"GIF8[79]a"),
    ("webp", rb"RIFF....WEBP"),
    ("bmp", rb"BM"),
    ("ico", rb"\0\0[\1\2]\0"),
    ("tiff", rb"II[*+]\0|MM\0[*+]"),
    ("avif", rb"....ftyp(avif|avis)"),
    ("heic", rb"....ftyp(hei[cmsx]|hev[cmsx]|mif[12]|msf1)"),
    ("jpeg-xl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
]
_MAGIC = [(name, re.compile(pattern, re.DOTALL)) for name, pattern in _MAGIC]


def format_of(data: bytes) -> str:
    """The format's name, or `other`."""
    for name, pattern in _MAGIC:
        if pattern.match(data):
            return "avif" if name == "heic" and b"avif" in data[8:64] else name
    if data[4:8] == b"ftyp" and b"avif" in data[8:64]:
        return "avif"
    return "svg" if b"<svg" in data[:1024].lower() else "other"


def media_type(data: bytes) -> str | None:
    return MEDIA_TYPES.get(format_of(data))
