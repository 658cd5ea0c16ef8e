"""What a recipe states: where a detector comes from, what it is, and what a package of it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One archive of a package registry, pinned."""

    client: str
    """`pip` or `npm`, which downloads it from the registry that it is configured for."""
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({'PyPI' if self.client == 'pip' else 'npm'})"


@dataclass(frozen=True)
class Rule:
    """A rule that the recipe suggests. Thresholds are chosen on the scores of Pixwarden; the card names the pictures."""

    label: str
    category: str
    severity: int
    review_at: float | None = None
    flag_at: float | None = None
    note_at: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One detector."""

    name: str
    """The package's folder."""
    title: str
    licence: str
    attribution: str
    source: Source
    labels: list[str]
    config: dict
    """`config.json`, without the labels."""
    preprocessor: dict
    """`preprocessor_config.json`"""
    build: Callable[[Path, Path], None]
    """Makes `model.onnx` in the second folder from the unpacked archive in the first."""
    model_sha256: str
    """Of that file: what the golden scores and the figures were measured with."""
    golden: dict[str, float]
    """The scores of `golden/NAME.png` by the original runtime, with its pixels resized by Pillow."""
    rules: list[Rule]
    facts: list[tuple[str, str]]
    """Rows of the card: what it takes, what it gives."""
    limits: list[str]
    licences: dict[str, str] = field(default_factory=dict)
    """Files of the archive that go into the package, by their names there."""
    needs: tuple[str, ...] = ()
    """Python packages that `build` imports."""
