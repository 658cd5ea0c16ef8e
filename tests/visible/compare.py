"""Compares what a viewer shows with what a detector was given."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from seen import SIZE, Picture, Seen, turn

MEAN_TOLERANCE = 0.02
"""The largest difference of a mean colour, as a share of the range. Decoders round chroma in different ways."""
BLOCK_TOLERANCE = 0.06
"""The same for each of 8 x 8 blocks, so that two pictures of one mean colour do not agree."""
_BLOCKS = 8
BLACK_NEEDED = 1.2 / 255
"""A view over black must exist where the two differ by more than this in the mean. The limit is 1/255; rounding may put
a file near it on either side."""
MOST_VIEWS = 18
"""With so many views, those over black and turned ones may be left out."""

CLASSES = ["agree", "differ", "unscored", "blank", "hidden", "neither"]
SCORED = {"passed", "noted", "review", "flagged"}

_VIEW_NAME = re.compile(r"frame-(\d+)(-white|-black)?(?:-turned-(\d))?")


@dataclass(frozen=True)
class View:
    """A view as saved: what it is of, and its pixels."""

    frame: int | None
    """Not known of the first view."""
    is_black: bool
    orientation: int
    pixels: np.ndarray

    @property
    def name(self) -> str:
        if self.frame is None:
            return "the first view"
        turned = f" turned by {self.orientation}" if self.orientation != 1 else ""
        return f"frame {self.frame} over {'black' if self.is_black else 'white'}{turned}"


@dataclass
class Result:
    """One file: its class, and what is wrong with it."""

    path: Path
    format: str
    kind: str
    outcome: str
    problems: list[str] = field(default_factory=list)
    damage_passed: bool = False
    views: int = 0


def saved_files(folder: Path) -> dict[str, list[Path]]:
    """What `scan --save-pixels` has written, by the SHA-256 of the screened file."""
    files = defaultdict(list)
    for file in sorted(folder.glob("*.png")):
        files[file.name.partition(".")[0]].append(file)
    return files


def read_views(files: list[Path], sha256: str) -> list[View]:
    """All views of a screened file, the first one first."""
    views = []
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        named = _VIEW_NAME.fullmatch(file.name.removeprefix(f"{sha256}.").removesuffix(".png"))
        if named is None:
            views.insert(0, View(None, False, 1, pixels))
        else:
            views.append(View(int(named[1]), named[2] == "-black", int(named[3] or 1), pixels))
    return views


def compare(path: Path, format: str, seen: Seen, record: dict, views: list[View], other_way_up: int = 1) -> Result:
    """`other_way_up` is the EXIF code by which some viewers turn the file although Chromium does not."""
    outcome = record.get("outcome", "none")
    result = Result(path, format, "", outcome, views=len(views))
    is_scored = outcome in SCORED
    result.damage_passed = bool(record.get("damage")) and outcome == "passed"
    if seen.is_shown and is_scored:
        result.problems = list(_problems(seen, record, views, other_way_up))
        result.kind = "differ" if result.problems else "agree"
    elif seen.is_shown:
        result.kind = "unscored"
    elif is_scored:
        result.kind = "hidden"
    else:
        result.kind = "blank" if seen.picture is not None else "neither"
    return result


def _problems(seen: Seen, record: dict, views: list[View], other_way_up: int):
    size = (record.get("width"), record.get("height"))
    if size != (seen.width, seen.height):
        yield f"size is {size[0]}x{size[1]}, shown are {seen.width}x{seen.height}"
    if not views:
        yield "no pixels were saved"
        return
    first, *others = views
    yield from _difference(first.name, first.pixels, [seen.picture.white])
    for view in others:
        yield from _view_problems(view, seen)
    yield from _missing(seen, views, other_way_up)


def _view_problems(view: View, seen: Seen):
    picture = seen.picture if view.frame == 0 else seen.frames.get(view.frame)
    # Views that Chromium does not show, such as the default image of an animated PNG, cannot be checked here. A second
    # view of the first frame is what other viewers show, such as all rows of a file that ends early.
    if picture is None or (view.frame, view.is_black, view.orientation) == (0, False, 1):
        return
    grids = [grid for shown in _ways_up(picture, view.orientation) for grid in [_over(shown, view.is_black)]]
    if view.frame == 0 and 0 in seen.frames:
        grids += [_over(shown, view.is_black) for shown in _ways_up(seen.frames[0], view.orientation)]
    yield from _difference(view.name, view.pixels, grids)


def _ways_up(picture: Picture, orientation: int) -> list[Picture]:
    """A turned view is what Chromium shows, or what Chromium shows turned, where other viewers do so."""
    return [picture] if orientation == 1 else [picture, picture.turned(orientation)]


def _over(picture: Picture, is_black: bool) -> np.ndarray:
    return picture.black if is_black else picture.white


def _missing(seen: Seen, views: list[View], other_way_up: int):
    """Pictures that people see and that are no view."""
    white, black = [v for v in views if not v.is_black], [v for v in views if v.is_black]
    for name, picture in _must_be_seen(seen).items():
        if picture.painted > 0 and not _is_among(picture.white, white):
            yield f"{name} is no view"
    if len(views) >= MOST_VIEWS:
        return
    for name, picture in {"the picture": seen.picture, **_must_be_seen(seen)}.items():
        if np.abs(picture.white.astype(float) - picture.black).mean() / 255 > BLACK_NEEDED:
            if not _is_among(picture.black, black):
                yield f"{name} over black is no view"
    if other_way_up != 1 and not _is_among(turn(seen.picture.white, other_way_up), white):
        yield f"the picture turned by {other_way_up} is no view"


def _must_be_seen(seen: Seen) -> dict[str, Picture]:
    """The last frame and the longest, if there is one that is longer than all others."""
    if not seen.frames:
        return {}
    frames = {}
    last = max(seen.frames)
    if last == seen.frame_count - 1:
        frames[f"the last frame, {last},"] = seen.frames[last]
        by_time = sorted(seen.frames, key=lambda number: seen.frames[number].duration)
        if len(by_time) > 1 and seen.frames[by_time[-1]].duration > seen.frames[by_time[-2]].duration:
            frames[f"the longest frame, {by_time[-1]},"] = seen.frames[by_time[-1]]
    return frames


def _is_among(grid: np.ndarray, views: list[View]) -> bool:
    return any(not any(_difference("", view.pixels, [grid])) for view in views)


def _difference(name: str, pixels: np.ndarray, wanted: list[np.ndarray]):
    """What is wrong with a view that must be like one of some pictures."""
    if pixels.shape != (SIZE, SIZE, 3):
        yield f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels"
        return
    mean, block = min((measure(pixels, grid) for grid in wanted), key=lambda pair: pair[1])
    if mean > MEAN_TOLERANCE or block > BLOCK_TOLERANCE:
        yield f"{name} differs by {mean:.3f} in the mean, {block:.3f} in a block"


def measure(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest differences of a channel's mean, over everything and over a block, as shares of the range."""
    return _largest(a, b, 1), _largest(a, b, _BLOCKS)


def _largest(a: np.ndarray, b: np.ndarray, blocks: int) -> float:
    difference = (a.astype(float) - b).reshape(blocks, SIZE // blocks, blocks, SIZE // blocks, 3)
    return float(np.abs(difference.mean((1, 3))).max()) / 255
