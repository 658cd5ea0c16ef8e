"""What must come out for every fixture: the reference's scores and outcomes, `undecodable`, or damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reference import damage, detectors, images
from reference.screen import FLAG_AT, REVIEW_AT, Decoded, Detector, Undecodable, decode, outcome

SCORE_TOLERANCE = 0.005
"""How far Pixwarden's scores may be from the reference's."""


@dataclass
class Expected:
    """One file and what screening it must give, detector by detector."""

    file: Path
    kind: str
    sha256: str
    size_bytes: int
    decoded: Decoded | None
    """None for a bad file."""
    why: str | None = None
    """What is wrong with a bad file."""
    is_damaged: bool = False
    """Whether a bad file shows something, so that it is screened and does not pass. Other bad files are `undecodable`."""
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    """The first frame as the model sees it, `[height, width, 3]` uint8."""
    scores: dict[str, dict[str, float] | None] = field(default_factory=dict)
    """Probability by label; None where the model gives something that is not a number."""

    def outcome(self, detector: str) -> str:
        """The outcome under a single rule for the positive label at the default thresholds."""
        if self.decoded is None:
            return "undecodable"
        scores = self.scores[detector]
        return outcome(scores and scores[detectors.POSITIVE], REVIEW_AT, FLAG_AT)

    def near_threshold(self, detector: str) -> bool:
        """Whether a score that still agrees may fall on the other side of a threshold."""
        scores = self.scores[detector]
        if scores is None:
            return False
        gaps = [abs(scores[detectors.POSITIVE] - threshold) for threshold in (REVIEW_AT, FLAG_AT)]
        return min(gaps) <= SCORE_TOLERANCE

    def line(self, root: Path) -> dict:
        """The record that `expected.jsonl` holds.

        `near_threshold` names the detectors whose outcome may rightly be another one.
        """
        shape = self.decoded
        return {
            "file": self.file.relative_to(root).as_posix(),
            "kind": self.kind,
            "sha256": self.sha256,
            "bytes": self.size_bytes,
            "format": shape and shape.format,
            "width": shape and shape.width,
            "height": shape and shape.height,
            "frames": shape and shape.frame_count,
            "undecodable": shape is None and not self.is_damaged,
            "damaged": self.is_damaged,
            "why": self.why,
            "scores": self.scores or None,
            "outcomes": {name: self.outcome(name) for name in self.scores} or None,
            "near_threshold": [name for name in self.scores if self.near_threshold(name)],
        }


def make(root: Path, leave_out: Collection[str] = ()) -> tuple[list[Path], list[Expected]]:
    """Writes `images/`, `bad/`, `detectors/` and `expected.jsonl` under `root`.

    Returns the detectors' folders and what is expected of every file, but for the detectors in `leave_out`, which
    are written and not run.
    """
    folders = [path for path in detectors.write(root / "detectors") if path.name not in leave_out]
    loaded = [Detector(folder) for folder in folders]
    results = []
    for fixture in images.write(root / "images"):
        one = _record(root / "images" / fixture.name, fixture.kind, fixture.data)
        one.decoded = decode(fixture.data)
        for detector in loaded:
            pixels, scores = detector.screen(one.decoded.frames, detectors.POSITIVE)
            one.pixels[detector.name], one.scores[detector.name] = pixels, scores
        # The decoded frames are large and no longer needed.
        one.decoded.frames.clear()
        results.append(one)
    for kind, bad in damage.write(root / "bad"):
        one = _record(root / "bad" / bad.name, kind, bad.data)
        one.why, one.is_damaged = bad.why, bad.is_damaged
        _check_refused(bad)
        results.append(one)
    with open(root / "expected.jsonl", "w", encoding="utf-8") as out:
        for one in results:
            out.write(json.dumps(one.line(root)) + "\n")
    return folders, results


def _record(file: Path, kind: str, data: bytes) -> Expected:
    return Expected(file, kind, hashlib.sha256(data).hexdigest(), len(data), None)


def _check_refused(bad: damage.Bad) -> None:
    """A bad file must be refused by the reference too, unless it is listed as one that fools Pillow."""
    try:
        decode(bad.data)
    except Undecodable:
        if bad.pillow_is_fooled:
            raise AssertionError(f"{bad.name} is listed as fooling Pillow, which refuses it") from None
    else:
        if not bad.pillow_is_fooled:
            raise AssertionError(f"{bad.name} must be undecodable, and the reference reads it")
