"""Changes one place of a made file: seeded, so that a run can be repeated."""

from __future__ import annotations

import random
from pathlib import Path

from differences import ARGUED
from pictures import Kind

_MOST_BYTES = 64


def write(made: dict[Path, Kind], folder: Path, count: int, seed: int) -> dict[Path, str]:
    """Writes mutations of all made files in turn. Returns what each was made of and how, by file."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(seed)
    # A file with an argument differs also where something else of it was changed.
    sources = sorted((kind for kind in made.values() if kind.name not in ARGUED), key=lambda kind: kind.name)
    chosen.shuffle(sources)
    names = {}
    for number in range(count):
        source = sources[number % len(sources)]
        change, data = mutated(source.data, chosen)
        file = folder / f"{number:06}.{source.name.rpartition('.')[2]}"
        file.write_bytes(data)
        names[file] = f"{file.name}, {source.name} with {change}"
    return names


def mutated(data: bytes, chosen: random.Random) -> tuple[str, bytes]:
    """One change, in words, and the bytes after it."""
    at = chosen.randrange(len(data))
    length = min(chosen.randint(1, _MOST_BYTES), len(data) - at)
    return chosen.choice(_CHANGES)(data, at, length, chosen)


def _flip(data: bytes, at: int, _length: int, chosen: random.Random) -> tuple[str, bytes]:
    bit = chosen.randrange(8)
    return f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _set(data: bytes, at: int, _length: int, chosen: random.Random) -> tuple[str, bytes]:
    value = chosen.choice([0, 1, 0x7F, 0x80, 0xFF, chosen.randrange(256)])
    return f"byte {at} set to {value}", data[:at] + bytes([value]) + data[at + 1 :]


def _zero(data: bytes, at: int, length: int, _chosen: random.Random) -> tuple[str, bytes]:
    return f"{length} zeros at byte {at}", data[:at] + bytes(length) + data[at + length :]


def _insert(data: bytes, at: int, length: int, chosen: random.Random) -> tuple[str, bytes]:
    return f"{length} bytes inserted at byte {at}", data[:at] + chosen.randbytes(length) + data[at:]


def _remove(data: bytes, at: int, length: int, _chosen: random.Random) -> tuple[str, bytes]:
    return f"{length} bytes removed at byte {at}", data[:at] + data[at + length :]


def _repeat(data: bytes, at: int, length: int, _chosen: random.Random) -> tuple[str, bytes]:
    return f"{length} bytes repeated at byte {at}", data[: at + length] + data[at:]


def _cut(data: bytes, at: int, _length: int, _chosen: random.Random) -> tuple[str, bytes]:
    return f"nothing behind byte {at}", data[:at]


_CHANGES = [_flip, _flip, _set, _set, _zero, _insert, _remove, _repeat, _cut]
