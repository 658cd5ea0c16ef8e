"""What the parts of the GPU's benchmark have in common.

Each is a program of its own, for what crashes or hangs on a GPU takes its process along. Figures are written as they
come. What fails is noted, and the part goes on.
"""

import argparse
import contextlib
import signal
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The prepared folder has the repository's layout, with what was built and fetched in `prepared/`.
ROOT = HERE.parents[2]
PREPARED = ROOT / "prepared"
sys.path.insert(0, str(HERE.parent))

from figures import Figures  # noqa: E402  (found beneath tests/bench)
from table import FAILED  # noqa: E402

# Letters of an error at either end.
SHOWN = 200


class Part(Figures):
    """The figures of one part, kept in a file at every step."""

    def __init__(self, name, options):
        super().__init__(name)
        self.options = options
        self.file = options.folder / f"{name}.json"
        self.end = time.monotonic() + options.limit_s
        self.save(self.file)
        # The time is over: what is known is written already.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def add(self, name, value, unit):
        super().add(name, value, unit)
        self.save(self.file)

    def ratio(self, *arguments, **wanted):
        super().ratio(*arguments, **wanted)
        self.save(self.file)

    def note(self, text):
        super().note(text)
        self.save(self.file)

    @contextlib.contextmanager
    def attempt(self, what):
        """Notes what fails inside, and goes on behind it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.note(f"{FAILED}{what}: {in_short(error)}")

    def left(self):
        """Seconds until this part is ended."""
        return self.end - time.monotonic()


def in_short(error):
    """An exception as one line, the middle of a long one left out: causes stand last. The log has all of it."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 2 * SHOWN else f"{line[:SHOWN]} [...] {line[-SHOWN:]}"


def arguments(about):
    """What `run` tells every part."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where figures go (default results)")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where packages are made (default work)")
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds until it is ended (default 600)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a small model: whether it works")
    parser.add_argument("--price-per-hour", type=float, help="what an hour of this machine costs, in any currency")
    return parser.parse_args()
