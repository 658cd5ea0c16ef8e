"""What the checks share."""

import re
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where pip has put the programs that some packages bring.
PROGRAMS = Path(sysconfig.get_path("scripts"))
# Variables that hold secrets, and what a secret in a public file must look like, so that nobody takes it for a real one.
SECRET_NAME = re.compile(r"PASS|SECRET|ACCESS_KEY")
NO_SECRET = re.compile(r"local-use-only|replace-me|(GK)?0+")


def example_options():
    """Every option of Pixwarden's, with its default."""
    return tomllib.loads((ROOT / "pixwarden.example.toml").read_text())


def option_variables():
    """The variable behind each option."""
    return {"PIXWARDEN_" + "_".join(path).upper() for path in leaves(example_options())}


def leaves(table, above=()):
    """The path of each value that is no table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)
