"""Files that Pillow cannot write, or not with the details a test has to choose. Each function returns the bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 4, 6

# Adam7, PNG specification (third edition), section 8.2: (first row, first column, row step, column step).
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk: length, type, body and the checksum over type and body."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, bit_depth: int, colour_type: int, interlaced: bool = False) -> bytes:
    """Signature and IHDR."""
    body = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, int(interlaced))
    return PNG_SIGNATURE + png_chunk(b"IHDR", body)


def png(samples: np.ndarray, colour_type: int, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of `[height, width, channels]` uint8 or uint16 samples; `extra` holds chunks to put before the data."""
    height, width, _ = samples.shape
    bit_depth = 8 * samples.itemsize
    if interlaced:
        passes = [samples[row::row_step, column::column_step] for row, column, row_step, column_step in _ADAM7]
    else:
        passes = [samples]
    # A pass without pixels has no rows at all, not even filter bytes.
    raw = b"".join(_filtered(part) for part in passes if part.size)
    return (
        png_header(width, height, bit_depth, colour_type, interlaced)
        + extra
        + png_chunk(b"IDAT", zlib.compress(raw, 6))
        + png_chunk(b"IEND", b"")
    )


def _filtered(samples: np.ndarray) -> bytes:
    """Rows under the Sub filter (type 1), each led by its filter byte."""
    height, width, channels = samples.shape
    pixel_bytes = channels * samples.itemsize
    big_endian = np.ascontiguousarray(samples.astype(samples.dtype.newbyteorder(">")))
    rows = big_endian.view(np.uint8).reshape(height, width * pixel_bytes)
    left = np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    return np.concatenate([np.ones((height, 1), np.uint8), rows - left], axis=1).tobytes()


@dataclass(frozen=True)
class GifFrame:
    """A frame of palette indices, `[height, width]` uint8, at a place on the canvas."""

    indices: np.ndarray
    left: int = 0
    top: int = 0
    disposal: int = 1
    """1 keep, 2 back to the background, 3 back to what was there before (GIF89a, section 23)."""


def gif(width: int, height: int, palette: np.ndarray, transparent: int, frames: list[GifFrame]) -> bytes:
    """A GIF89a with one global `[256, 3]` palette; `transparent` is the index that shows what lies below."""
    out = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF7, 0, 0), palette.astype(np.uint8).tobytes()]
    out.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    for frame in frames:
        frame_height, frame_width = frame.indices.shape
        out.append(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, frame.disposal << 2 | 1, 10, transparent, 0))
        out.append(struct.pack("<BHHHHB", 0x2C, frame.left, frame.top, frame_width, frame_height, 0))
        out.append(_gif_data(frame.indices))
    out.append(b"\x3b")
    return b"".join(out)


def _gif_data(indices: np.ndarray) -> bytes:
    """Image data in codes of nine bits that never grow.

    Clearing the table before it fills makes each code a plain palette index: valid LZW without a dictionary.
    """
    clear, end, run = 256, 257, 250
    flat = indices.reshape(-1).astype(np.uint16)
    codes = []
    for start in range(0, flat.size, run):
        codes += [np.array([clear], np.uint16), flat[start : start + run]]
    codes.append(np.array([end], np.uint16))
    bits = (np.concatenate(codes)[:, None] >> np.arange(9)) & 1
    packed = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    blocks = [packed[start : start + 255] for start in range(0, len(packed), 255)]
    return b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00"


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A 32-bit BMP with a version 4 header and an alpha mask, of `[height, width, 4]` uint8."""
    height, width, _ = rgba.shape
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    header += masks + b"BGRs" + bytes(48)
    offset = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + pixels
