#!/usr/bin/env python3
"""Prints every text that Pixwarden shows to people: help, errors, hints, log messages and metric help.

A person who changes texts reads this list line by line against the rules in CONTRIBUTING.md. Help comes from the binary, the
rest from the string literals in the source; texts in tests are left out.
"""

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LITERAL = r'"(?:[^"\\]|\\[\s\S])*"'
KINDS = {
    "errors": rf"#\[error\(\s*({LITERAL})",
    "log messages": rf"(?:tracing::)?(?:error|warn|info|debug)!\((?:[^;]*?[,(]\s*)?({LITERAL})\s*(?:,[^;]*?)?\)[;,\s}}]",
    "metric help": rf"describe_\w+!\([^;]*?({LITERAL})\s*,?\s*\)",
    "texts of commands": rf"e?println!\(\s*({LITERAL})",
    "failures": rf"(?:bail!|anyhow!|context|UsageError|invalid|what: )\(?(?:\|\| )?(?:format!\()?\s*({LITERAL})",
    "hints and other texts": rf"({LITERAL})",
}


def code(path: Path) -> str:
    text = path.read_text().split("#[cfg(test)]\nmod tests", 1)[0]
    lines = ("" if line.lstrip().startswith("//") else line for line in text.splitlines())
    # A quote as a character, and the reasons of lint exceptions, which nobody is shown.
    return re.sub(r"'\\?\"'|b'\"'|reason = " + LITERAL, "", "\n".join(lines))


def texts_of_source() -> None:
    files = {path.relative_to(ROOT): code(path) for path in sorted((ROOT / "src").rglob("*.rs"))}
    seen = set()
    for kind, pattern in KINDS.items():
        print(f"\n## {kind}\n")
        for path, text in files.items():
            for literal in re.findall(pattern, text):
                words = re.sub(r"\\\n\s*", "", literal[1:-1])
                # The last kind takes in every literal that is a sentence.
                if words in seen or words.count(" ") < (2 if kind == "hints and other texts" else 1):
                    continue
                seen.add(words)
                if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|WHERE|AND|ORDER) ", words):
                    continue
                print(f"{path}: {words}")


def help_of(binary: Path, command: list[str]) -> None:
    done = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, check=True)
    text = done.stdout.split("\nOptions of every command", 1)[0] if command else done.stdout
    print(f"\n## pixwarden {' '.join(command)}\n\n{text.rstrip()}")
    listed = re.search(r"\nCommands:\n(.*?)\n\n", text, re.DOTALL)
    for name in re.findall(r"^  ([a-z]+)", listed[1] if listed else "", re.MULTILINE):
        if name != "help":
            help_of(binary, [*command, name])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixwarden", type=Path, metavar="PATH", help="the binary, for the help texts")
    binary = parser.parse_args().pixwarden
    if binary:
        help_of(binary.resolve(), [])
    texts_of_source()
