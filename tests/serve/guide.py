#!/usr/bin/env python3
"""Whether the programs of docs/guide/http.md do what the guide shows.

    .tools/venv/bin/python tests/serve/guide.py --pixwarden target/debug/pixwarden

The command with curl, and the programs in Python and Node, are run as they stand there. That the program in Go was not run, the
guide states.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import ROOT, create_key, serving

GUIDE = ROOT / "docs/guide/http.md"
_TIMEOUT_S = 60


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def session(block: str) -> tuple[str, str]:
    """The command of a block, which may go on over lines, and what it prints."""
    found = re.fullmatch(r"\$ ((?:.*\\\n)*.*\n)([\s\S]*)", block)
    return found[1], found[2]


def node() -> str | None:
    """As tests/browser/run chooses it."""
    own = ROOT / ".tools/node/bin/node"
    return str(own) if own.exists() else shutil.which("node")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="PATH")
    binary = parser.parse_args().pixwarden.resolve()
    text = GUIDE.read_text()
    (python,), (javascript,) = blocks(text, "python"), blocks(text, "js")
    by_curl, by_program = map(session, blocks(text, "text"))
    key, table = create_key(binary, "guide", "--scope", "screen")
    faults = []
    with tempfile.TemporaryDirectory(prefix="guide-") as name:
        folder = Path(name)
        (folder / "screen.py").write_text(python)
        (folder / "screen.mjs").write_text(javascript)
        arguments = by_program[0].removeprefix("python screen.py ")
        commands = {
            "curl": by_curl,
            "Python": (f"{sys.executable} {folder}/screen.py {arguments}", by_program[1]),
            "Node": (f"{node()} {folder}/screen.mjs {arguments}", by_program[1]),
        }
        with serving(binary, folder, table) as pixwarden:
            environment = {**os.environ, "SCREENING_URL": f"http://{pixwarden.address}", "SCREENING_KEY": key}
            for what, (command, expected) in commands.items():
                done = subprocess.run(
                    command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=_TIMEOUT_S, check=False
                )
                if done.stdout != expected:
                    faults.append(f"the program with {what} printed:\n{done.stdout}{done.stderr}\ninstead of:\n{expected}")
        # Nothing answers any more, and a picture that passed before is held.
        command = f"{sys.executable} {folder}/screen.py models/samples/palette.png"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        if not done.stdout.startswith("hold models/samples/palette.png - no answer"):
            faults.append(f"without an answer the program with Python printed:\n{done.stdout}{done.stderr}")
    for fault in faults:
        print(f"guide: {fault}", file=sys.stderr)
    print(f"guide: {len(commands)} programs of {GUIDE.name} were run, {len(faults)} differ")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
