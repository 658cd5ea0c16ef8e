"""Exports a model, checks it, and writes its package folders. Needs PyTorch."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from PIL import Image

from common.errors import PackagingError
from common.export import BytesIn, export
from common.folder import in_place_of, refuse_taken, sha256, write_checksums, write_json
from common.golden import choose, expected
from common.graph import check_graph, logits, open_session, transposes
from conversion.card import card
from conversion.check import BATCH, Agreement, Reference, compare, judge, reference
from conversion.exportable import needed_transposes, simplify
from conversion.half import to_half
from conversion.model import Model
from conversion.transposes import pairs_left, reduce_transposes

MAX_BYTES = 2**31 - 1
"""What one protobuf may hold; the weights lie inside the file."""
LARGE = 50_000_000
"""Parameters from which on the golden image is chosen among fewer drawings: each costs seconds."""


@dataclass(frozen=True)
class Wish:
    """What is to be written where."""

    package: Path
    precisions: list[str]
    images: list[Image.Image]
    images_are: str
    """For the card: which images the check ran on."""
    threads: int

    def folder(self, precision: str) -> Path:
        return self.package if precision == "fp32" else self.package.with_name(f"{self.package.name}-{precision}")

    def refuse_taken(self) -> None:
        for folder in map(self.folder, self.precisions):
            refuse_taken(folder)


@dataclass(frozen=True)
class Exported:
    """What all precisions share."""

    graph: Path
    """In float32, not yet compared."""
    golden: Image.Image


def convert(model: Model, wish: Wish) -> None:
    wish.refuse_taken()
    wanted = reference(model, wish.images)
    wish.package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wish.package.parent, prefix=".graph-") as scratch:
        path = Path(scratch) / "model.onnx"
        write_graph(model, path)
        exported = Exported(path, golden_image(model, wanted, path, wish.threads))
        for precision in wish.precisions:
            write_package(model, wanted, exported, wish, precision)


def write_graph(model: Model, path: Path) -> None:
    """The float32 graph; changes the model's network for it."""
    simplify(model.network)
    export(BytesIn(model.network, model.normalisation), model.size, path)
    graph = onnx.load(path)
    reduce_transposes(graph)
    onnx.save(graph, path)
    if pairs_left(graph.graph):
        raise PackagingError(f"{pairs_left(graph.graph)} Transposes in the graph follow another one")
    needed = needed_transposes(model.network)
    check_graph(path, allowed_transposes=transposes(graph.graph) if needed is None else needed, max_bytes=MAX_BYTES)


def write_package(model: Model, wanted: Reference, exported: Exported, wish: Wish, precision: str) -> None:
    target = wish.folder(precision)
    with in_place_of(target) as folder:
        path = folder / "model.onnx"
        graph = onnx.load(exported.graph)
        allowed = transposes(graph.graph)
        if precision == "fp16":
            to_half(graph)
        onnx.save(graph, path)
        check_graph(path, allowed_transposes=allowed, max_bytes=MAX_BYTES)
        agreement = compare(wanted, path, wish.threads)
        judge(agreement, precision)
        facts = {"precision": precision, "images": wish.images_are, **describe(model, path, agreement)}
        for name, content in model.files.items():
            write_json(folder / name, content)
        write_golden(model, wanted, exported.golden, folder)
        write_json(folder / "conversion.json", facts)
        (folder / "README.md").write_text(card(facts, target.name))
        write_checksums(folder)
    print(
        f"{target}: {facts['graph']['bytes']} bytes, {facts['graph']['transposes']} Transposes; on {agreement.images} images logits "
        f"differ by {agreement.logits:.1e}, scores by {agreement.probabilities:.1e}; sha256 {facts['graph']['sha256']}",
        flush=True,
    )


def describe(model: Model, path: Path, agreement: Agreement) -> dict:
    """Every figure the card states."""
    graph = onnx.load(path, load_external_data=False)
    origin = asdict(model.origin)
    return {
        "origin": {**origin, "file": model.origin.file.name, "sha256": sha256(model.origin.file)},
        "labels": model.labels,
        "multi_label": model.multi_label,
        "size": list(model.size),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "graph": {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "opset": graph.opset_import[0].version,
            "transposes": transposes(graph.graph),
        },
        "agreement": {
            "images": agreement.images,
            "logits": float(f"{agreement.logits:.2e}"),
            "probabilities": float(f"{agreement.probabilities:.2e}"),
        },
    }


def golden_image(model: Model, wanted: Reference, graph: Path, threads: int) -> Image.Image:
    session = open_session(graph, threads)
    large = sum(p.numel() for p in model.network.parameters()) > LARGE
    effort = {"variants": 3, "roundings": 2} if large else {"variants": 12, "roundings": 16}
    return choose(model.pixels, lambda pixels: wanted.scores(logits(session, pixels, BATCH)), **effort)


def write_golden(model: Model, wanted: Reference, image: Image.Image, folder: Path) -> None:
    """Scores are taken from the image as written, through the library's own resize and ONNX Runtime on the CPU."""
    image.save(folder / "golden.png")
    with Image.open(folder / "golden.png") as written:
        pixels = model.pixels(written.convert("RGB"))
    found = logits(open_session(folder / "model.onnx", threads=1), pixels[None])
    write_json(folder / "golden.json", expected(model.labels, wanted.scores(found)[0]))
