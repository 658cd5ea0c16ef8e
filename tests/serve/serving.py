"""A process of `pixwarden serve`, for the tests beside this file."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "models/samples"
_START_TIMEOUT_S = 60


class Pixwarden:
    """A process of `pixwarden serve`."""

    def __init__(self, binary: Path, folder: Path, more: str) -> None:
        config = folder / f"{time.monotonic_ns()}.toml"
        detector, objects = ROOT / "models/cifake-32", SAMPLES.parent
        lines = [f'detectors = ["{detector}"]', f'objects = "file://{objects}"', 'buckets = ["samples"]']
        config.write_text("\n".join([*lines, "[metrics]", 'listen = "off"', more]))
        self._log = config.with_suffix(".log")
        command = [binary, "--config", config, "serve", "--listen", "127.0.0.1:0"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (found := re.search(r'screened over HTTP","address":"([^"]+)"', self.log)) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise SystemExit(f"openapi: serve has not started:\n{self.log}")
            time.sleep(0.02)
        self.address = found[1]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@contextlib.contextmanager
def serving(binary: Path, folder: Path, more: str) -> Iterator[Pixwarden]:
    pixwarden = Pixwarden(binary, folder, more)
    try:
        yield pixwarden
    finally:
        pixwarden.stop()


def create_key(binary: Path, name: str, *options: str) -> tuple[str, str]:
    """A key, and its table for the configuration."""
    made = subprocess.run([binary, "key", "create", name, *options], check=True, capture_output=True, text=True, cwd="/")
    key, table = made.stdout.split("\n\n", 1)
    return key.strip(), table
