"""Folders as transformers saves them: a small ViT and a small ConvNext with made-up weights."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path

import torch
from common.errors import PackagingError
from conversion import hugging_face
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from .case import PackageChecks, PlantedMistakes
from .comparison import LABELS, expected
from .weights import randomise, spread, touch

NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


class HuggingFaceChecks(PlantedMistakes, PackageChecks):
    preprocessor: dict

    @classmethod
    def network(cls) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def make(cls) -> list[str]:
        folder = cls.work / "folder"
        classifier = cls.network().eval()
        randomise(classifier, seed=3)
        classifier.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(cls.preprocessor | COMMON))
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

        def transform(image: Image.Image) -> torch.Tensor:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]

        pictures = [transform(Image.open(file).convert("RGB")) for file in cls.files]
        seen: list[torch.Tensor] = []
        hook = classifier.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.inference_mode():
            classifier(torch.stack(pictures))
            classifier(touch(pictures, level=1 / (255 * cls.preprocessor["image_std"][0])))
        hook.remove()
        spread(classifier.classifier, *seen)
        classifier.save_pretrained(folder)
        cls.wanted = expected(hugging_face.Logits(classifier), transform, cls.files)
        cls.model = hugging_face.from_folder(folder, None)
        # On the drawn pictures made-up weights may saturate, and saturated scores agree whatever happens.
        return ["huggingface", str(folder), "--images", str(cls.work / "pictures")]

    def test_a_weight_that_is_missing_or_reshaped_is_named(self) -> None:
        folder = Path(shutil.copytree(self.work / "folder", self.work / "broken"))
        state = load_file(folder / "model.safetensors")
        save_file({key: value for key, value in state.items() if key != "classifier.bias"}, folder / "model.safetensors", {"format": "pt"})
        with self.assertRaisesRegex(PackagingError, r"missing: classifier\.bias"):
            hugging_face.from_folder(folder, None)
        save_file(state | {"classifier.weight": torch.zeros(2, 7)}, folder / "model.safetensors", {"format": "pt"})
        with self.assertRaisesRegex(PackagingError, r"of another shape: .*classifier\.weight"):
            hugging_face.from_folder(folder, None)
        shutil.rmtree(folder)


class SmallViT(HuggingFaceChecks, unittest.TestCase):
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 96, "width": 96},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

    @classmethod
    def network(cls) -> nn.Module:
        return ViTForImageClassification(
            ViTConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=96, **NAMES)
        )

    def plant_wrong_crop(self, package: Path) -> None:
        _change(package, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 96}, do_center_crop=True, crop_size=96)


class SmallConvNext(HuggingFaceChecks, unittest.TestCase):
    # 1 for the input; 1 for the stem and each downsampling, 2 for each of 1, 1, 2 and 1 blocks.
    transposes = 1 + 4 + 2 * 5
    preprocessor = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 96},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }

    @classmethod
    def network(cls) -> nn.Module:
        return ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], layer_scale_init_value=0.2, image_size=96, **NAMES)
        )

    def plant_wrong_crop(self, package: Path) -> None:
        _change(package, crop_pct=1.0)


def _change(package: Path, **fields: object) -> None:
    file = package / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
