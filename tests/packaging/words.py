"""Words that readers of this project have stumbled over: docs/GLOSSARY.md and CONTRIBUTING.md describe its language.

Only what can be found without reading is checked here. The rest is for reviewers.
"""

import re

from common import ROOT

# What may stand between two words: in a name, or in a comment that breaks over two lines.
GAP = r"[\s/#*|!_-]+"
WORDS = {
    r"anew": '"again"',
    r"whoever": '"the sender", "the caller", "a person who"',
    rf"be{GAP}had": '"is available", "cannot be started", "was not found"',
    r"mended": '"fixed", "repaired"',
}
# Parts of names count, parts of words do not.
PATTERNS = [
    (re.compile(rf"(?<![a-z]){word}(?![a-z])", re.IGNORECASE), instead)
    for word, instead in WORDS.items()
]

SUFFIXES = {".md", ".rs", ".py", ".sql", ".toml", ".yaml", ".yml", ".json", ".service", ".snap", ".css", ".sh", ""}
EXCLUDED = {
    # Its own list.
    "tests/packaging/words.py",
    # Generated: the output of measurements, as it was printed.
    "docs/performance-results.md",
    # Applied migrations are checksummed: changing a comment would refuse every ledger that exists.
    "migrations/postgres/0002_lookups.sql",
    "migrations/sqlite/0002_lookups.sql",
}


def findings():
    for path in texts():
        name = path.relative_to(ROOT).as_posix()
        if name in EXCLUDED:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for pattern, instead in PATTERNS:
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield f'{name}:{line}: "{" ".join(match[0].split())}" is not used in this project; write {instead}'


def texts():
    """The files that people of this project have written."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in SUFFIXES and path.name != ".git")
    for folder in ("src", "docs", "migrations", "deploy", "models", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            generated = {"__pycache__", "corpus", "target"} & set(path.parts[len(ROOT.parts) :])
            if path.is_file() and path.suffix in SUFFIXES and not generated:
                yield path
