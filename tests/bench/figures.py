"""What each part of the comparison has in common: rounds, medians, ratios pair by pair, and how they are written down.

What is compared is measured in turns, and a ratio is taken within a round: what slows the machine down for a minute
slows both sides down. A ratio's interval is the percentile bootstrap of its median over the rounds (Efron 1979), 95 %.
"""

import json
import platform
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import tables

RESAMPLES = 10_000


def turns(names, rounds):
    """The names round by round, forwards and backwards by turns: nobody is always first."""
    for turn in range(rounds):
        yield turn, list(names) if turn % 2 == 0 else list(reversed(names))


def interval(values):
    """95 % of the medians of samples drawn from `values` with replacement."""
    drawn = np.random.default_rng(1).choice(values, size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


class Figures:
    """The rows of one part. A row has a value a round; all rows of one ratio have the same rounds."""

    def __init__(self, part):
        self.part = part
        # As somebody else would call it, in a folder of theirs.
        words = [word.removeprefix(f"{Path.cwd()}/") for word in sys.argv]
        if "--parts" in words:
            words[words.index("--parts") + 1] = "PARTS"
        self.command = f"python {shlex.join(words)}"
        self.rows = {}
        self.ratios = []
        self.notes = []

    def add(self, name, value, unit):
        """One more value of a row, said at once: a part takes minutes."""
        self.rows.setdefault(name, {"unit": unit, "values": []})["values"].append(float(value))
        print(f"  {name:48} {value:12.3f} {unit}", flush=True)

    def ratio(self, name, over, under, at_least=None, at_most=None):
        """`over` divided by `under` in each round, and what is wanted of it."""
        pairs = zip(self.rows[over]["values"], self.rows[under]["values"], strict=True)
        values = [a / b for a, b in pairs]
        low, high = interval(values)
        self.ratios.append(
            {
                "name": name,
                "of": over,
                "to": under,
                "values": values,
                "median": statistics.median(values),
                "low": low,
                "high": high,
                "at_least": at_least,
                "at_most": at_most,
            }
        )

    def note(self, text):
        """Whatever else has to be known to read the figures."""
        self.notes.append(text)
        print(f"  note: {text}", flush=True)

    def report(self, file=None):
        """Prints the table, and writes everything to `file` as JSON."""
        print(f"\n{self.part}: {self.command}")
        width = max(map(len, [*self.rows, *(ratio["name"] for ratio in self.ratios), ""]))
        for name, row in self.rows.items():
            values = row["values"]
            spread = f"{min(values):.3f} to {max(values):.3f}, {len(values)} rounds"
            print(f"  {name:{width}} {statistics.median(values):10.3f} {row['unit']:5} {spread}")
        for ratio in self.ratios:
            between = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
            print(f"  {ratio['name']:{width}} {ratio['median']:10.3f} {'':5} {between}{wanted(ratio)}")
        self.save(file)

    def save(self, file):
        """Writes what is known so far to `file`, if there is one, as JSON."""
        if not file:
            return
        content = {
            "part": self.part,
            "command": self.command,
            "machine": machine(),
            "rows": self.rows,
            "ratios": self.ratios,
            "notes": self.notes,
        }
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(content, indent=1) + "\n")


def wanted(ratio):
    """The target, and whether the median meets it."""
    if not (wanted := tables.target(ratio)):
        return ""
    words = {"≥": "at least", "≤": "at most"}
    sign, figure = wanted
    return f"; wanted {words[sign]} {figure}: {'met' if tables.is_met(ratio) else 'MISSED'}"


def machine():
    """Processor, cores and kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    return {"processor": model, "cores": cpuinfo.count("") or 1, "kernel": platform.release().split("-")[0]}
