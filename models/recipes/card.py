"""The card of a package that a recipe makes, and its suggested rules as a configuration file."""

from __future__ import annotations

from recipes.recipe import Recipe, Rule

_WORDS = {"note_at": "noted", "review_at": "for review", "flag_at": "flagged"}


def card(recipe: Recipe) -> str:
    """Markdown."""
    lines = [
        f"# {recipe.name}",
        "",
        f"{recipe.title}. Made by `models/get {recipe.name}` from {recipe.source},",
        f"whose archive has the SHA-256 `{recipe.source.sha256}`.",
        "",
        f"Licence: **{recipe.licence}**. Author: {recipe.attribution.removesuffix('.')}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {left} | {right} |" for left, right in [*recipe.facts, ("labels", ", ".join(recipe.labels)), ("SHA-256 of `model.onnx`", f"`{recipe.model_sha256}`")]),
        "",
        "## Suggested rules",
        "",
        "Also in `pixwarden.toml`, which `--config` takes as it is. Measure them on your own pictures first.",
        "",
        "| label | category | thresholds |",
        "|---|---|---|",
        *(f"| {rule.label} | `{rule.category}` | {_thresholds(rule)} |" for rule in recipe.rules),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in recipe.limits),
        "- A score is an indication, never proof.",
    ]
    return "\n".join(lines) + "\n"


def _stated(rule: Rule) -> list[tuple[str, float]]:
    return [(name, getattr(rule, name)) for name in _WORDS if getattr(rule, name) is not None]


def _thresholds(rule: Rule) -> str:
    return ", ".join(f"{_WORDS[name]} from {value}" for name, value in _stated(rule))


def rules_file(recipe: Recipe) -> str:
    """A configuration with the detector and its rules. The path is relative to the file."""
    lines = [
        f"# {recipe.title}, with suggested rules: `pixwarden --config THIS scan PATH...`",
        "[[detectors]]",
        f'name = "{recipe.name}"',
        'path = "."',
        f'sha256 = "{recipe.model_sha256}"',
        "",
        "[policy]",
        f'name = "{recipe.name}-suggested"',
    ]
    for rule in recipe.rules:
        lines += [
            "",
            "[[policy.rules]]",
            f'detector = "{recipe.name}"',
            f'label = "{rule.label}"',
            f'category = "{rule.category}"',
            f"severity = {rule.severity}",
            *(f"{name} = {value}" for name, value in _stated(rule)),
        ]
    return "\n".join(lines) + "\n"
