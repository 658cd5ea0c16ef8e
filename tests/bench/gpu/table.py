"""What the parts have found as one page of Markdown: ratios with their targets first, then rows, then notes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tables  # noqa: E402  (found beneath tests/bench)

# Notes of what failed begin with it, so that the author of the report finds them.
FAILED = "FAILED: "


def page(title, command, parts, took):
    """`parts` are what was found by name; `took` says how long each lasted, and what became of it if it failed."""
    lines = [f"# {title}", "", f"`{command}`", ""]
    for machine in [part["machine"] for part in parts.values()][:1]:
        lines += [f"{machine['cores']} cores, {machine['processor']}, kernel {machine['kernel']}", ""]
    if any(part["ratios"] for part in parts.values()):
        lines += [*tables.ratios(ratio for part in parts.values() for ratio in part["ratios"]), ""]
    for name in dict.fromkeys([*took, *parts]):
        part = parts.get(name, {"rows": {}, "notes": []})
        lines += [f"## {name}: {took.get(name, 'from another run')}", ""]
        lines += [*tables.rows(part), ""] if part["rows"] else []
        lines += [*(f"- {note}" for note in part["notes"]), ""] if part["notes"] else []
    return "\n".join(lines)
