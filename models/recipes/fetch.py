"""Downloads an archive with the ordinary client of its registry, and proves that it is the pinned one.

No address of a registry is named here: pip and npm use those that they are configured for. Nothing of an archive is run,
and pip installs nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from common.errors import PackagingError
from recipes.recipe import Source

TIMEOUT_S = 600
MAX_BYTES = 1 << 30
"""Of what an archive unpacks to."""


def archive(source: Source, folder: Path) -> Path:
    """The archive, downloaded to `folder` and verified."""
    if source.client == "pip":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "1"]
        command += ["--only-binary=:all:", "--dest", str(folder), f"{source.name}=={source.version}"]
    else:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), f"{source.name}@{source.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise PackagingError(f"cannot download {source}: there is no {command[0]}; install it, or choose a detector that does not need it") from None
    except subprocess.TimeoutExpired:
        raise PackagingError(f"cannot download {source}: {command[0]} has not ended after {TIMEOUT_S} s") from None
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if done.returncode or len(files) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PackagingError(f"cannot download {source}: {' / '.join(said) or 'no archive came'}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != source.sha256:
        raise PackagingError(f"{source} has the SHA-256 {found}, but the recipe pins {source.sha256}; nothing of it was used")
    return files[0]


def unpack(file: Path, folder: Path) -> None:
    """Writes the archive's files below `folder`. A name that leads out of it is refused."""
    total = 0
    for name, size, read in _members(file):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise PackagingError(f"{file.name} has a file {name!r}, which leads out of its folder")
        total += size
        if total > MAX_BYTES:
            raise PackagingError(f"{file.name} unpacks to more than {MAX_BYTES} bytes")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read())


def _members(file: Path):
    """Name, size and reader of every regular file."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: wheel.read(info)
    else:
        with tarfile.open(file) as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, member.size, lambda member=member: tar.extractfile(member).read()
