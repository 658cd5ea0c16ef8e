"""The scores of a package by Pillow, NumPy and ONNX Runtime, for the packages that recipes make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from common.graph import open_session, probabilities
from common.pixels import as_seen


def pixels(image: Image.Image, preprocessor: dict) -> np.ndarray:
    """`[height, width, 3]` uint8: resized without keeping the aspect, then the middle."""
    size = preprocessor["size"]
    resized = np.asarray(as_seen(image).resize((size["width"], size["height"]), preprocessor["resample"]))
    if not preprocessor["do_center_crop"]:
        return resized
    height, width = preprocessor["crop_size"]["height"], preprocessor["crop_size"]["width"]
    top, left = (size["height"] - height) // 2, (size["width"] - width) // 2
    return resized[top : top + height, left : left + width]


def model_input(batch: np.ndarray, config: dict, preprocessor: dict, session: ort.InferenceSession) -> np.ndarray:
    """`[n, height, width, 3]` uint8 to what the model takes."""
    if session.get_inputs()[0].type == "tensor(uint8)":
        return batch
    floats = batch.astype(np.float32)
    if preprocessor["do_normalize"]:
        floats = (floats - np.array(preprocessor["image_mean"], np.float32)) / np.array(preprocessor["image_std"], np.float32)
    return np.ascontiguousarray(floats[..., ::-1]) if config["pixwarden"].get("pixel_order") == "BGR" else floats


def scores(package: Path, images: list[Image.Image], threads: int = 1) -> list[dict[str, float]]:
    """One probability for each label, for each image."""
    config, preprocessor = (json.loads((package / name).read_text()) for name in ("config.json", "preprocessor_config.json"))
    session = open_session(package / "model.onnx", threads)
    name = session.get_inputs()[0].name
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    found = []
    for image in images:
        values = model_input(pixels(image, preprocessor)[None], config, preprocessor, session)
        row = session.run(None, {name: values})[0][0]
        if config["pixwarden"]["output"] == "logits":
            row = probabilities(row)
        found.append(dict(zip(labels, map(float, row), strict=True)))
    return found
