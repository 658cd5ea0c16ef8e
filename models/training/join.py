"""`models/train.py join`: several heads on one encoder as one package. The encoder runs once for all of them.

Each head becomes one label with a probability for itself. Its calibration becomes a part of its weights. The heads must be on
the same encoder and features, which their measurements.json names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from common.errors import PackagingError
from common.folder import in_place_of, refuse_taken, write_checksums, write_json
from onnx import TensorProto, helper, numpy_helper


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="train.py join", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, nargs="+", metavar="PACKAGE", help="packages that train.py head has written")
    parser.add_argument("--package", type=Path, required=True, help="package folder to write")
    options = parser.parse_args(arguments)
    refuse_taken(options.package)
    heads = [read(folder) for folder in options.heads]
    check(options.heads, heads)
    weights = np.stack([head["weights"] for head in heads], axis=1).astype(np.float32)
    bias = np.array([head["bias"] for head in heads], np.float32)
    model = heads[0]["model"]
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name not in ("head_weights", "head_bias")]
    del graph.initializer[:], graph.output[:]
    graph.initializer.extend([*kept, numpy_helper.from_array(weights, "head_weights"), numpy_helper.from_array(bias, "head_bias")])
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(heads)]))
    onnx.checker.check_model(model)
    with in_place_of(options.package) as folder:
        onnx.save(model, folder / "model.onnx")
        config = json.loads((options.heads[0] / "config.json").read_text())
        labels = {str(index): head["label"] for index, head in enumerate(heads)}
        write_json(folder / "config.json", {**config, "id2label": labels, "problem_type": "multi_label_classification"})
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (options.heads[0] / name).exists():
                (folder / name).write_text((options.heads[0] / name).read_text())
        write_json(folder / "measurements.json", {head["label"]: head["facts"] for head in heads})
        cards = "\n".join((path / "README.md").read_text().replace("\n#", "\n##").replace("# ", "## ", 1) for path in options.heads)
        (folder / "README.md").write_text(f"# {options.package.name}\n\n{len(heads)} heads on one encoder, which runs once for all of them. The cards of the heads follow.\n\n{cards}")
        write_checksums(folder)
    print(f"{options.package}: {len(heads)} heads on one encoder, labels {', '.join(labels.values())}")


def read(folder: Path) -> dict:
    """One head, with its calibration in its weights."""
    if not (folder / "measurements.json").exists():
        raise PackagingError(f"{folder} is no package of train.py head: it has no measurements.json")
    facts = json.loads((folder / "measurements.json").read_text())
    model = onnx.load(folder / "model.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if "head_weights" not in tensors or "encoder" not in facts:
        raise PackagingError(f"{folder} is no package of train.py head")
    weights, bias, t = tensors["head_weights"], tensors["head_bias"], facts["temperature"]
    label = json.loads((folder / "config.json").read_text())["id2label"]["1"]
    return {"model": model, "facts": facts, "label": label, "weights": (weights[:, 1] - weights[:, 0]) / t, "bias": (bias[1] - bias[0]) / t}


def check(folders: list[Path], heads: list[dict]) -> None:
    for folder, head in zip(folders, heads, strict=True):
        for what in ("encoder", "features"):
            if head["facts"][what] != heads[0]["facts"][what]:
                raise PackagingError(f"{folder} and {folders[0]} do not have the same {what}: {head['facts'][what]} and {heads[0]['facts'][what]}")
    labels = [head["label"] for head in heads]
    if len(set(labels)) != len(labels):
        raise PackagingError(f"two heads look for the same label: {', '.join(labels)}; train one of them with another label")
