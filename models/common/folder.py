"""A package folder: written beside its place, moved there whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import PackagingError

CHECKSUMS = "SHA256SUMS"


@contextmanager
def in_place_of(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` at the end, in one step and only if nothing was raised until then."""
    refuse_taken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".package-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
        os.chmod(scratch, 0o755)
        # Takes the place of an empty folder, and of nothing else.
        os.rename(scratch, target)


def refuse_taken(target: Path) -> None:
    """To be asked before long work, too: a package in use is never changed under a worker."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PackagingError(f"{target} is there already; name another --package or remove it")


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def timm_config(architecture: str, labels: list[str], preprocessing: dict) -> dict:
    """timm's config.json. `mean` and `std` of `preprocessing` tell what the graph does itself: its input is bytes."""
    return {
        "architecture": architecture,
        "num_classes": len(labels),
        "label_names": list(labels),
        "pretrained_cfg": {**preprocessing, "num_classes": len(labels)},
        "pixwarden": {"output": "logits"},
    }


def sha256(path: Path) -> str:
    # `hashlib.file_digest` needs Python 3.11, and models/get runs with what a system has.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """SHA256SUMS over every other file, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files))
