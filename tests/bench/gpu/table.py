"""What the parts have found as one page of Markdown: ratios with their targets first, then rows, then notes."""

from statistics import median


def wanted(ratio):
    if ratio["at_least"] is None:
        return " | "
    return f"≥ {ratio['at_least']} | {'met' if ratio['median'] >= ratio['at_least'] else '**missed**'}"


def ratios(parts):
    yield "| ratio | median | rounds | wanted | |"
    yield "|---|---:|---:|---:|---|"
    for part in parts:
        for ratio in part["ratios"]:
            yield f"| {ratio['name']} | {ratio['median']:.3g} | {len(ratio['values'])} | {wanted(ratio)} |"


def rows(part):
    yield "| row | median | spread | rounds |"
    yield "|---|---:|---:|---:|"
    for name, row in part["rows"].items():
        values = sorted(row["values"])
        spread = f"{values[0]:.4g} to {values[-1]:.4g}" if len(values) > 1 else ""
        yield f"| {name} | {median(values):.4g} {row['unit']} | {spread} | {len(values)} |"


def page(title, command, parts, took):
    """`parts` are what was found by name; `took` says how long each lasted, and what became of it if it failed."""
    lines = [f"# {title}", "", f"`{command}`", ""]
    for machine in [part["machine"] for part in parts.values()][:1]:
        lines += [f"{machine['cores']} cores, {machine['processor']}, kernel {machine['kernel']}", ""]
    if any(part["ratios"] for part in parts.values()):
        lines += [*ratios(parts.values()), ""]
    for name in dict.fromkeys([*took, *parts]):
        part = parts.get(name, {"rows": {}, "notes": []})
        lines += [f"## {name}: {took.get(name, 'from another run')}", ""]
        lines += [*rows(part), ""] if part["rows"] else []
        lines += [f"- {note}" for note in part["notes"]] + [""] * bool(part["notes"])
    return "\n".join(lines)
