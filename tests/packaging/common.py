"""What the checks share."""

import re
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The folder of programs that pip installed.
PROGRAMS = Path(sysconfig.get_path("scripts"))
# Variables with secrets, and placeholders for secrets in public files that cannot be mistaken for real ones.
SECRET_NAME = re.compile(r"PASS|SECRET|ACCESS_KEY")
NO_SECRET = re.compile(r"local-use-only|replace-me|(GK)?0+")


def example_options():
    """Every option of Pixwarden, with its default."""
    return tomllib.loads((ROOT / "pixwarden.example.toml").read_text())


def option_variables():
    """The environment variables of all options."""
    # The URL of the ledger has a short form.
    return {"PIXWARDEN_LEDGER"} | {"PIXWARDEN_" + "_".join(path).upper() for path in leaves(example_options())}


def leaves(table, above=()):
    """The path of each value that is not a table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)
