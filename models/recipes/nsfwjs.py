"""The MobileNetV2 of nsfwjs: Keras weights of one byte each, in an npm package, converted by tfjs.py and tfjs_graph.py."""

from __future__ import annotations

from pathlib import Path

from recipes.recipe import Recipe, Rule, Source

MODEL = "package/dist/models/mobilenet_v2"
LABELS = ["drawing", "hentai", "neutral", "porn", "sexy"]


def build(unpacked: Path, folder: Path) -> None:
    from recipes import tfjs, tfjs_graph

    model = tfjs.topology((unpacked / MODEL / "model.min.js").read_text())
    shards = [tfjs.shard((unpacked / MODEL / "group1-shard1of1.min.js").read_text())]
    weights = tfjs.weights(model["weightsManifest"], shards)
    tfjs_graph.write(tfjs.layers(model), weights, len(LABELS), 1 / 255, folder / "model.onnx")


RECIPE = Recipe(
    name="nsfwjs",
    title="The MobileNetV2 of nsfwjs, five classes",
    licence="MIT (see LICENSE)",
    attribution="Gant Laborde, Infinite Red, Inc.",
    source=Source("npm", "nsfwjs", "4.4.0", "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382"),
    labels=LABELS,
    config={"pixwarden": {"output": "logits"}},
    preprocessor={
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        # nsfwjs reads four pixels around each point, without a filter. Of Pillow's filters Lanczos and the box are the
        # closest, and the box takes whole pixels, so that two programs may take different ones.
        "resample": 1,
        "do_center_crop": False,
        # The graph divides by 255.
        "do_rescale": False,
        "do_normalize": False,
    },
    build=build,
    model_sha256="edd98d8ebaf5f7ac0adc637572e75de923876d5921e954dc2e579f7862e0c6d3",
    golden={"drawing": 0.344712, "hentai": 0.000432, "neutral": 0.654834, "porn": 0.000016, "sexy": 0.000006},
    rules=[
        Rule("porn", "sexual/explicit", 4, review_at=0.8, flag_at=0.95),
        Rule("hentai", "sexual/drawn", 4, review_at=0.8, flag_at=0.95),
    ],
    facts=[
        ("input", "bytes `[batch, 224, 224, 3]`, red first; both edges resized to 224"),
        ("output", "logits; softmax gives the scores"),
        ("size", "10.5 MB as float32, from 2.6 MB of bytes"),
    ],
    limits=[
        "`sexy` has no rule on purpose: it is high for many ordinary pictures of people, and must never flag one.",
        "`drawing` and `neutral` mean that nothing was found.",
        "nsfwjs resizes without a filter, Pixwarden with one, so that scores differ, by much for large pictures "
        "(docs/guide/detectors.md says by how much). The thresholds here are for the scores of Pixwarden.",
        "The package also has a model called mobilenet_v2_mid, which calls many ordinary photographs drawings. It is not offered.",
        "How much it finds was not measured here: that needs explicit pictures.",
    ],
    licences={"LICENSE": "package/LICENSE"},
    needs=("numpy", "onnx"),
)
