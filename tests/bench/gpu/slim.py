#!/usr/bin/env python3
"""Takes most device code out of ONNX Runtime's CUDA provider, so that what is left is small once compressed.

    python tests/bench/gpu/slim.py libonnxruntime_providers_cuda.so slim.so --architecture 90 [--language]

The provider carries its kernels for every architecture, and most of them are for language models: attention, experts,
weights of few bits. Kept is the machine code of one architecture, without these unless --language is given. The rest
is overwritten with zeros. Nothing moves, so the library loads as before; what is gone is missed when it is called.

Kernels lie in fat binaries, one a source file: a header of 16 bytes (magic, version 1, its own size, the size of what
follows), then one entry an architecture: {u16 kind, u16, u32 size of the entry's header, u64 size of the code, ..., u32
architecture at byte 28}. Kind 2 is machine code, kind 1 is PTX, which a driver would compile. Newer compilers compress
the code with zstd: kernels' names are read by the libzstd of the system.
"""

import argparse
import ctypes
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
VERSION, HEADER = 1, 16
PTX, MACHINE = 1, 2
ENTRY, LARGEST_HEADER = 64, 4096
ARCHITECTURE = 28
"""Where an entry's header says what its code is for."""
ZSTD = b"\x28\xb5\x2f\xfd"

# Words in names of kernels. Of 1.31.1 they fit 426 of 600 source files, 70 of 77 MB: all of attention or of experts.
LANGUAGE = (b"attention", b"cutlass", b"flash", b"3llm", b"moe", b"paged")


@dataclass
class Slimmed:
    """Bytes of code by architecture, 90 for sm_90; PTX counts as removed, whatever it was made for."""

    kept: Counter = field(default_factory=Counter)
    removed: Counter = field(default_factory=Counter)


def fat_binaries(data):
    """Where the entries of each fat binary begin and end."""
    at = data.find(MAGIC)
    while at >= 0:
        following = at + len(MAGIC)
        if at + HEADER <= len(data):
            version, header, size = struct.unpack_from("<HHQ", data, at + 4)
            # The same four bytes occur by chance too, in code and in tables.
            if version == VERSION and header == HEADER and size <= len(data) - at - HEADER:
                following = at + HEADER + size
                yield at + HEADER, following
        at = data.find(MAGIC, following)


def entries(data, begin, end):
    """Of one fat binary: kind, architecture, where the entry begins, and where its code begins and ends."""
    while begin + ENTRY <= end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, begin)
        if kind not in (PTX, MACHINE) or not ENTRY <= header <= LARGEST_HEADER or begin + header + size > end:
            return
        (architecture,) = struct.unpack_from("<I", data, begin + ARCHITECTURE)
        yield kind, architecture, begin, begin + header, begin + header + size
        begin += header + size


def slim(data, architecture, without=()):
    """Overwrites in `data`, a bytearray, all device code but the machine code of `architecture`.

    Source files that have a kernel with one of the words `without` in its name go too. ValueError if nothing is left.
    """
    done = Slimmed()
    # No driver takes another architecture's code, so none tries to load what is zeros now.
    other = 120 if architecture < 100 else 75
    for binary in fat_binaries(data):
        for kind, of, entry, begin, end in entries(data, *binary):
            wanted = kind == MACHINE and of == architecture
            if wanted and without and any(word in plain(bytes(data[begin:end])) for word in without):
                wanted = False
                struct.pack_into("<I", data, entry + ARCHITECTURE, other)
            if wanted:
                done.kept[of] += end - begin
            else:
                done.removed[of] += end - begin
                data[begin:end] = bytes(end - begin)
    if not done.kept:
        there = ", ".join(map(str, sorted(done.removed))) or "none"
        raise ValueError(f"no machine code is left for architecture {architecture}; there was for: {there}")
    return done


def plain(code):
    """Code as it is before it was compressed; as it stands where it is compressed in another way, or not at all."""
    if not code.startswith(ZSTD):
        return code
    library = zstd()
    # Up to the entry's end there is padding, which is no part of the frame.
    frame = library.ZSTD_findFrameCompressedSize(code, len(code))
    size = library.ZSTD_getFrameContentSize(code, len(code))
    out = ctypes.create_string_buffer(size)
    if library.ZSTD_decompress(out, size, code, frame) != size:
        raise ValueError("device code cannot be decompressed")
    return out.raw


def zstd():
    library = ctypes.CDLL("libzstd.so.1")
    for name, arguments in (
        ("ZSTD_findFrameCompressedSize", [ctypes.c_char_p, ctypes.c_size_t]),
        ("ZSTD_getFrameContentSize", [ctypes.c_char_p, ctypes.c_size_t]),
        ("ZSTD_decompress", [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_size_t
    return library


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("slim", type=Path)
    parser.add_argument(
        "--architecture", type=int, default=90, help="compute capability without its point (default 90)"
    )
    parser.add_argument("--language", action="store_true", help="keep the kernels of language models")
    options = parser.parse_args()
    data = bytearray(options.library.read_bytes())
    try:
        done = slim(data, options.architecture, () if options.language else LANGUAGE)
    except ValueError as error:
        sys.exit(f"{options.library}: {error}")
    options.slim.write_bytes(data)
    print(f"kept {done.kept.total() / 1e6:.1f} MB, removed {done.removed.total() / 1e6:.1f} MB of device code")


if __name__ == "__main__":
    main()
