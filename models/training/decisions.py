"""What people decided, as labelled images for `models/train.py head`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import PackagingError


@dataclass(frozen=True)
class Decided:
    """An image that people decided about."""

    source: str
    """The bucket: images of one bucket resemble one another."""
    positive: bool
    file: Path


def decided_images(decisions: Path, verdicts: Path, folder: Path, category: str | None) -> list[Decided]:
    """Of each content the last decision that stands, with the image at FOLDER/BUCKET/KEY.

    With a category, an image is positive where people flagged it for this one. Prints how many were left out, and why.
    """
    rows = {row["id"]: row for row in json_lines(verdicts, "id")}
    left_out: Counter[str] = Counter()
    # Equal content counts once, so that one picture that came a thousand times is one example.
    by_content: dict[str, Decided] = {}
    for verdict, decision in standing(json_lines(decisions, "verdict_id")).items():
        row = rows.get(verdict)
        if row is None:
            left_out["their verdict is not in --verdicts"] += 1
            continue
        # Restricted content is never used for training.
        if any(finding.get("restricted") for finding in row["findings"] or []):
            left_out["they are restricted"] += 1
            continue
        positive = is_positive(decision, row, category)
        if positive is None:
            left_out["people did not say it of this category"] += 1
            continue
        file = folder / row["bucket"] / row["key"]
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            left_out["their image is not in --images"] += 1
            continue
        by_content[row["sha256"] or verdict] = Decided(row["bucket"], positive, file)
    for why, count in left_out.items():
        print(f"decisions left out: {count}, because {why}", flush=True)
    return list(by_content.values())


def standing(decisions: Iterator[dict]) -> dict[str, dict]:
    """Of each verdict the last decision that says something of the image, in the order of the file, which is that of time."""
    decided: dict[str, list[dict]] = {}
    for row in decisions:
        earlier = decided.setdefault(row["verdict_id"], [])
        if row["action"] == "undo":
            del earlier[-1:]
        elif row["action"] in ("flag", "clear", "uphold"):
            earlier.append(row)
    return {verdict: rows[-1] for verdict, rows in decided.items() if rows}


def is_positive(decision: dict, verdict: dict, category: str | None) -> bool | None:
    """Whether people called the image positive; `None` where they said nothing of the category."""
    # What was upheld is what the verdict says.
    flagged = decision["action"] == "flag" or (decision["action"] == "uphold" and verdict["outcome"] == "flagged")
    if not flagged or category is None:
        return flagged
    named = decision["category"] or next((finding.get("category") for finding in verdict["findings"] or []), None)
    return True if named == category else None


def json_lines(file: Path, needed: str) -> Iterator[dict]:
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PackagingError(f"{file}, line {number} is no JSON: {error}; make it with `pixwarden export --format jsonl`") from error
        if needed not in row:
            raise PackagingError(f"{file}, line {number} has no {needed}; make it with `pixwarden export`, with --decisions for --decisions")
        yield row
