"""The card of a converted package, written from what the conversion measured. Needs no PyTorch."""

from __future__ import annotations


def card(facts: dict, name: str) -> str:
    """Markdown for the package `name`; `facts` is the content of its conversion.json."""
    origin, graph = facts["origin"], facts["graph"]
    height, width = facts["size"]
    activation = "sigmoid" if facts["multi_label"] else "softmax"
    sections = [
        f"# {name}",
        f"{origin['title']}, converted by `models/convert.py` from `{origin['file']}` (sha256 `{origin['sha256']}`).",
        f"Licence: **{origin['licence']}**. Author: {origin['attribution']}.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in origin["limits"]),
        "## Input and output",
        _table(
            ("", ""),
            [
                ("input", f"`pixels`, uint8, `[batch, {height}, {width}, 3]`, RGB; resized and cropped as the JSON files here say"),
                ("inside the graph", "transposition to NCHW and normalisation"),
                ("output", f"`logits`, float32, `[batch, {len(facts['labels'])}]`; {activation} gives the scores"),
                ("labels", _labels(facts["labels"])),
                ("precision", f"{facts['precision']}{_PRECISION[facts['precision']]}"),
                ("parameters", f"{facts['parameters']:,}"),
                ("size", f"{graph['bytes']:,} bytes, no external data"),
                ("sha256 of `model.onnx`", f"`{graph['sha256']}`"),
                ("operators", f"opset {graph['opset']}; {graph['transposes']} Transposes"),
            ],
        ),
        "## Checked",
        f"ONNX Runtime on the CPU against PyTorch, on {facts['agreement']['images']} images, noise and {facts['images']}: logits differ by "
        f"at most {facts['agreement']['logits']:.1e} (relative above 1), scores by at most {facts['agreement']['probabilities']:.1e}. "
        "`golden.json` holds the scores of `golden.png`, which the conversion drew. `conversion.json` holds every figure of this card.",
    ]
    if origin["notes"]:
        sections += ["## Notes", "\n".join(f"- {note}" for note in origin["notes"])]
    if origin["published"]:
        rows = [(name, f"{accuracy:.3f}") for name, accuracy in origin["published"].items()]
        sections += [
            "## What its authors published",
            "Accuracy on each data set. The conversion has not measured these; `pixwarden evaluate` does where the data is at hand.",
            _table(("data set", "accuracy"), rows),
        ]
    return "\n\n".join(sections) + "\n"


_PRECISION = {"fp32": "", "fp16": "; normalisation, last layer and LayerNormalization's statistics in fp32"}
_LISTED = 12


def _labels(labels: list[str]) -> str:
    shown = ", ".join(f'"{label}" (index {index})' for index, label in enumerate(labels[:_LISTED]))
    return shown if len(labels) <= _LISTED else f"{shown} and {len(labels) - _LISTED} more, in `config.json`"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"] if any(head) else ["| | |", "|---|---|"]
    # A label may hold anything, and a bar would open another column.
    return "\n".join(lines + [f"| {left} | {right.replace('|', '&#124;')} |" for left, right in rows])
