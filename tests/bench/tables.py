"""What was found as tables of Markdown: ratios with their targets, and the rows that they are made of.

It is used where numpy may not be, on a machine with a GPU.
"""

from statistics import median


def target(ratio):
    """What is wanted of a ratio: the sign, and the figure. None where it is only told."""
    for sign, bound in (("≥", "at_least"), ("≤", "at_most")):
        if ratio[bound] is not None:
            return sign, ratio[bound]
    return None


def is_met(ratio):
    """Whether the median is what is wanted; None where nothing is."""
    if not (wanted := target(ratio)):
        return None
    sign, figure = wanted
    return ratio["median"] >= figure if sign == "≥" else ratio["median"] <= figure


def ratios(found):
    yield "| ratio | median | 95 % of the medians | wanted | |"
    yield "|---|---:|---:|---:|---|"
    for ratio in found:
        wanted = " | "
        if target(ratio):
            wanted = f"{' '.join(map(str, target(ratio)))} | {'met' if is_met(ratio) else '**missed**'}"
        between = f"{ratio['low']:.3g} to {ratio['high']:.3g}"
        yield f"| {ratio['name']} | {ratio['median']:.3g} | {between} | {wanted} |"


def rows(part):
    yield "| row | median | spread | rounds |"
    yield "|---|---:|---:|---:|"
    for name, row in part["rows"].items():
        values = sorted(row["values"])
        spread = f"{values[0]:.4g} to {values[-1]:.4g}" if len(values) > 1 else ""
        yield f"| {name} | {median(values):.4g} {row['unit']} | {spread} | {len(values)} |"
