"""`models/train.py head`: a small classifier on the features of a package's network, written as one package. No PyTorch.

The pixels are those that Pixwarden feeds to the encoder (`scan --save-pixels`), so that training and screening see the same.
Features are computed once and cached. The figure of the card is that of leaving a whole source out: images of one source
resemble one another in size, compression and origin, and a detector that learns those looks good until another source comes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from common.errors import PackagingError
from common.folder import in_place_of, refuse_taken, sha256, write_checksums, write_json
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from training import logistic
from training.decisions import decided_images

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
RATES = {"review_at": 0.05, "flag_at": 0.01}
"""The share of negative images, of sources that were left out, that may reach a threshold."""


@dataclass(frozen=True)
class Labelled:
    """Images of one source and label."""

    source: str
    label: str
    files: list[Path]


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    refuse_taken(options.package)
    data = [dataset(text) for text in options.data] + from_decisions(options)
    files = [file for part in data for file in part.files]
    labels = list(dict.fromkeys(part.label for part in data))
    if options.positive not in labels or len(labels) != 2:
        raise PackagingError(f"two labels are needed, one of them {options.positive!r} (--positive); found are {labels}")
    labels.sort(key=lambda label: label == options.positive)
    positive = np.array([part.label == options.positive for part in data for _ in part.files])
    sources = np.array([part.source for part in data for _ in part.files])
    began = time.monotonic()
    encoder = Encoder(options.encoder, options.features)
    features = encoder.cached(files, options.cache, options.pixwarden, changed=False)
    extra = encoder.cached(files, options.cache, options.pixwarden, changed=True) if options.augment else None
    print(f"{len(files)} images, {features.shape[1]} features, {time.monotonic() - began:.0f} s", flush=True)
    result = train(features, positive, sources, extra, options.seed)
    result.update(images=len(files), sources=sorted(set(sources)), seconds=round(time.monotonic() - began), augmented=options.augment)
    write(encoder, result, labels, options)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="train.py head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--encoder", type=Path, required=True, metavar="PACKAGE", help="a package whose network makes the features")
    add("--features", action="append", metavar="TENSOR", help="tensors of its graph, repeatable; maps are averaged (default: what the last layer takes)")
    add("--data", action="append", default=[], metavar="SOURCE=LABEL:FOLDER", help="images of one source and label, repeatable")
    add("--decisions", type=Path, metavar="FILE", help="what people decided, from `pixwarden export --decisions`; each bucket is a source")
    add("--verdicts", type=Path, metavar="FILE", help="the verdicts that they decided about, from `pixwarden export`")
    add("--images", type=Path, metavar="FOLDER", help="their images, as BUCKET/KEY below the folder")
    add("--category", help="only what was flagged for this category is positive (default: whatever was flagged)")
    add("--negative", default="other", help='the label of images that people cleared (default "other")')
    add("--positive", default="by AI", help='the label that is looked for (default "by AI")')
    add("--package", type=Path, required=True, help="package folder to write")
    add("--cache", type=Path, metavar="FOLDER", help="where features are kept between runs")
    add("--augment", action="store_true", help="train also on copies of other size and JPEG quality; doubles the time")
    add("--seed", type=int, default=0)
    add("--pixwarden", type=Path, default=Path(os.environ.get("PIXWARDEN", ROOT / "target/debug/pixwarden")), metavar="FILE")
    return result


def from_decisions(options: argparse.Namespace) -> list[Labelled]:
    given = [options.decisions, options.verdicts, options.images]
    if not any(given):
        return []
    if not all(given):
        raise PackagingError("--decisions, --verdicts and --images belong together")
    images: dict[tuple[str, str], list[Path]] = {}
    for one in decided_images(options.decisions, options.verdicts, options.images, options.category):
        images.setdefault((one.source, options.positive if one.positive else options.negative), []).append(one.file)
    return [Labelled(source, label, files) for (source, label), files in images.items()]


def dataset(text: str) -> Labelled:
    source, _, rest = text.partition("=")
    label, _, folder = rest.partition(":")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES) if folder else []
    if not source or not label or not files:
        raise PackagingError(f"--data {text!r} is not SOURCE=LABEL:FOLDER with images in the folder")
    return Labelled(source, label, files)


class Encoder:
    """The network of a package up to some of its tensors."""

    def __init__(self, package: Path, tensors: list[str] | None):
        self.package = package
        self.path = next((path for path in (package / "model.onnx", package / "onnx/model.onnx") if path.exists()), None)
        if self.path is None:
            raise PackagingError(f"{package} has no model.onnx")
        self.model = onnx.load(self.path)
        self.tensors = tensors or [self._last_layer_s_input()]
        graph = self.model.graph
        made = {name for node in graph.node for name in node.output}
        if missing := [name for name in self.tensors if name not in made]:
            raise PackagingError(f"the encoder has no tensor {', '.join(missing)}; it has, near its end, {', '.join(list(made)[-8:])}")
        del graph.output[:]
        self.pooled = [self._pooled(index, name) for index, name in enumerate(self.tensors)]
        graph.node.append(helper.make_node("Concat", self.pooled, ["features"], axis=1))
        keep_reachable(graph, "features")
        # Its other outputs and the layers behind them are gone.
        graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
        self.session = ort.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])

    def _last_layer_s_input(self) -> str:
        for node in reversed(self.model.graph.node):
            if node.op_type in ("Gemm", "MatMul"):
                return node.input[0]
        raise PackagingError("the encoder ends in no linear layer; name a tensor with --features")

    def _pooled(self, index: int, name: str) -> str:
        """A tensor as `[batch, n]`: maps `[batch, n, height, width]` and tokens `[batch, tokens, n]` by their mean."""
        rank = len(shape_of(self.model, name))
        if rank == 2:
            return name
        axes = {3: [1], 4: [2, 3]}.get(rank)
        if axes is None:
            raise PackagingError(f"the tensor {name} has {rank} axes; 2 to 4 are supported")
        self.model.graph.node.append(helper.make_node("ReduceMean", [name], [f"pooled_{index}"], axes=axes, keepdims=0))
        return f"pooled_{index}"

    def cached(self, files: list[Path], cache: Path | None, pixwarden: Path, *, changed: bool) -> np.ndarray:
        """`[images, n]` float32, from the cache where it has them."""
        key = hashlib.sha256(json.dumps([sha256(self.path), self.tensors, changed, [[str(file), file.stat().st_size] for file in files]]).encode())
        kept = cache / f"{key.hexdigest()[:32]}.npy" if cache else None
        if kept and kept.exists():
            return np.load(kept)
        features = self._features(files, pixwarden, changed)
        if kept:
            cache.mkdir(parents=True, exist_ok=True)
            np.save(kept, features)
        return features

    def _features(self, files: list[Path], pixwarden: Path, changed: bool) -> np.ndarray:
        rows = []
        with tempfile.TemporaryDirectory() as scratch:
            for start in range(0, len(files), 500):
                part = files[start : start + 500]
                folder = Path(scratch, str(start))
                folder.mkdir()
                if changed:
                    part = [changed_copy(file, folder / f"{start + index}.jpg", start + index) for index, file in enumerate(part)]
                for pixels in as_fed(part, self.package, pixwarden, folder / "pixels"):
                    rows.append(self.session.run(["features"], {self.session.get_inputs()[0].name: self._input(pixels)})[0][0])
        return np.array(rows, np.float32)

    def _input(self, pixels: np.ndarray) -> np.ndarray:
        """`[height, width, 3]` uint8 to what the network takes: bytes as they are; floats by the package's numbers."""
        entry = self.session.get_inputs()[0]
        if entry.type == "tensor(uint8)":
            return pixels[None] if entry.shape[3] == 3 else pixels.transpose(2, 0, 1)[None]
        scale, mean, std, is_bgr = normalisation(self.package)
        values = ((pixels.astype(np.float32) * scale - mean) / std)[..., :: -1 if is_bgr else 1]
        values = values if entry.shape[3] == 3 else values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None])


def shape_of(model: onnx.ModelProto, name: str) -> list:
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.value_info:
        if value.name == name:
            return list(value.type.tensor_type.shape.dim)
    raise PackagingError(f"the shape of the tensor {name} is not known; name another one with --features")


def keep_reachable(graph: onnx.GraphProto, output: str) -> None:
    """Removes the nodes and weights that do not lead to an output."""
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    kept.reverse()
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)


def normalisation(package: Path) -> tuple[float, np.ndarray, np.ndarray, bool]:
    config = json.loads((package / "config.json").read_text())
    fields = processor(package)
    flipped = False
    if fields is not None:
        scale = fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 1.0
        mean, std = (fields["image_mean"], fields["image_std"]) if fields.get("do_normalize", True) else (0.0, 1.0)
        # Only MobileViT has the field, and flips without it too.
        is_mobilevit = "MobileViT" in str(fields.get("image_processor_type", fields.get("feature_extractor_type")))
        flipped = fields.get("do_flip_channel_order", is_mobilevit)
    else:
        fields, scale = config["pretrained_cfg"], 1 / 255
        mean, std = fields["mean"], fields["std"]
    is_bgr = flipped or config.get("pixwarden", {}).get("pixel_order") == "BGR"
    return scale, np.array(mean, np.float32), np.array(std, np.float32), is_bgr


def processor(package: Path) -> dict | None:
    """The fields of a Hugging Face image processor, from either of its files; `None` for a package of timm."""
    for name, within in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (package / name).exists():
            fields = json.loads((package / name).read_text())
            fields = fields if within is None else fields.get(within)
            if fields is not None:
                return fields
    return None


def changed_copy(file: Path, target: Path, number: int) -> Path:
    """Another size and JPEG quality, decided by the image's number alone."""
    random = np.random.default_rng(number)
    with Image.open(file) as image:
        image = image.convert("RGB")
    share = random.uniform(0.5, 1)
    image = image.resize((max(round(image.width * share), 8), max(round(image.height * share), 8)), Image.Resampling.BICUBIC)
    image.save(target, "JPEG", quality=int(random.integers(40, 96)))
    return target


def as_fed(files: list[Path], package: Path, pixwarden: Path, folder: Path) -> list[np.ndarray]:
    """The pixels that Pixwarden feeds to the package, one array an image."""
    config = folder.with_suffix(".toml")
    # A shadow needs no rule; a rule is needed for something.
    config.write_text(f'[[detectors]]\nname = "encoder"\npath = {json.dumps(str(package.resolve()))}\n[[policy.rules]]\ndetector = "encoder"\nlabel = {json.dumps(first_label(package))}\nnote_at = 1.0\n')
    command = [str(pixwarden), "scan", "--log", "off", "--config", str(config), "--format", "jsonl", "--save-pixels", str(folder), "-"]
    done = subprocess.run(command, input="\n".join(map(str, files)), capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(rows) != len(files):
        raise PackagingError(f"`scan` ended with {done.returncode} and {len(rows)} rows for {len(files)} images: {done.stderr.strip()}")
    found = []
    for row in rows:
        path = folder / "encoder" / f"{row['sha256']}.png"
        if not path.exists():
            raise PackagingError(f"{row['image']} was not screened: {row['reason']}; take it out of the data")
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def first_label(package: Path) -> str:
    config = json.loads((package / "config.json").read_text())
    return config["id2label"]["0"] if "id2label" in config else (config.get("label_names") or config["labels"])[0]


def train(features: np.ndarray, positive: np.ndarray, sources: np.ndarray, extra: np.ndarray | None, seed: int) -> dict:
    """The fit on everything, and what validation says of it."""
    features = features.astype(np.float64)
    extra = None if extra is None else extra.astype(np.float64)
    within = np.random.default_rng(seed).integers(0, 5, len(features))
    by_source = np.unique(sources, return_inverse=True)[1]
    several = len(set(by_source)) > 1
    penalty = logistic.choose_penalty(features, positive, by_source if several else within)
    facts: dict = {"penalty": penalty}
    logits = logistic.out_of_fold(features, positive, within, penalty, extra)
    facts["within_source_auc"] = logistic.auc(logits, positive)
    if several:
        logits = logistic.out_of_fold(features, positive, by_source, penalty, extra)
        known = ~np.isnan(logits)
        facts["leave_source_out_auc"] = logistic.auc(logits[known], positive[known])
        facts["by_source"] = {name: logistic.auc(logits[(sources == name) & known], positive[(sources == name) & known]) for name in sorted(set(sources))}
    known = ~np.isnan(logits)
    facts.update(calibrated(logits[known], positive[known], seed))
    whole, labels = (features, positive) if extra is None else (np.concatenate([features, extra]), np.concatenate([positive, positive]))
    facts["linear"] = logistic.fit(whole, labels, penalty)
    return facts


def calibrated(logits: np.ndarray, positive: np.ndarray, seed: int) -> dict:
    """The temperature, and the error before and after it. `after` is of halves whose temperature the other half gave."""
    half = np.random.default_rng(seed).integers(0, 2, len(logits)).astype(bool)
    after = np.empty(len(logits))
    for part in (half, ~half):
        after[part] = logistic.sigmoid(logits[part] / logistic.temperature(logits[~part], positive[~part]))
    t = logistic.temperature(logits, positive)
    scores = logistic.sigmoid(logits / t)
    before = logistic.calibration_error(logistic.sigmoid(logits), positive)
    thresholds = {name: logistic.threshold(scores, positive, rate) for name, rate in RATES.items()}
    return {"temperature": t, "ece_before": before, "ece_after": logistic.calibration_error(after, positive), **thresholds}


def write(encoder: Encoder, result: dict, labels: list[str], options: argparse.Namespace) -> None:
    linear: logistic.Linear = result.pop("linear")
    graph = encoder.model.graph
    # Two opposed logits, so that their softmax is the sigmoid of the one.
    weights = np.stack([-linear.weights / 2, linear.weights / 2], axis=1).astype(np.float32)
    bias = np.array([-linear.bias / 2, linear.bias / 2], np.float32)
    graph.initializer.extend([numpy_helper.from_array(weights, "head_weights"), numpy_helper.from_array(bias, "head_bias")])
    graph.node.append(helper.make_node("Gemm", ["features", "head_weights", "head_bias"], ["logits"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]))
    onnx.checker.check_model(encoder.model)
    with in_place_of(options.package) as folder:
        onnx.save(encoder.model, folder / "model.onnx")
        config = json.loads((options.encoder / "config.json").read_text())
        stated = {**config.get("pixwarden", {}), "output": "logits"}
        config = {key: value for key, value in config.items() if key not in ("label2id", "label_names", "labels", "num_labels", "num_classes", "problem_type")}
        write_json(folder / "config.json", {**config, "id2label": {"0": labels[0], "1": labels[1]}, "pixwarden": stated})
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (options.encoder / name).exists():
                (folder / name).write_text((options.encoder / name).read_text())
        write_json(folder / "calibration.json", {"method": "temperature", "temperature": result["temperature"], "fitted_on": "logits of images whose source was left out" if "leave_source_out_auc" in result else "logits of images that were left out"})
        write_json(folder / "measurements.json", {**result, "encoder": sha256(encoder.path), "features": encoder.tensors})
        (folder / "README.md").write_text(card(result, labels, options))
        write_checksums(folder)
    print((options.package / "README.md").read_text())


def card(result: dict, labels: list[str], options: argparse.Namespace) -> str:
    def figure(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.3f}"

    out = result.get("leave_source_out_auc")
    lines = [
        f"# {options.package.name}",
        "",
        f'A head on the features of {options.encoder.name}: "{labels[1]}" against "{labels[0]}". Its licence is at most as free as that of the encoder and of the images.',
        "",
        "| | |",
        "|---|---|",
        f"| images | {result['images']}, of the sources {', '.join(result['sources'])} |",
        f"| ROC AUC on a source that was left out | {figure(out) if 'leave_source_out_auc' in result else 'unknown: there is one source only'} |",
        *(f"| ... on {name} alone | {figure(value)} |" for name, value in result.get("by_source", {}).items()),
        f"| ROC AUC within its sources, which says nothing of others | {figure(result['within_source_auc'])} |",
        f"| calibration error before and after | {result['ece_before']:.3f}, {result['ece_after']:.3f} (temperature {result['temperature']:.2f}) |",
        f"| suggested | review_at {figure(result['review_at'])}, flag_at {figure(result['flag_at'])}: {RATES['review_at']:.0%} and {RATES['flag_at']:.0%} of the negative images reach them |",
        f"| trained on other sizes and JPEG qualities too | {'yes' if result['augmented'] else 'no'} |",
        "",
        "Between `review_at` and `flag_at` the head abstains: a person decides.",
        "",
        "- A score is an indication, never proof.",
        "- Images of one source resemble one another in size, compression and origin. Only the figure with the source left out",
        "  says how it does on images that it was not made with.",
        "",
    ]
    return "\n".join(lines)
