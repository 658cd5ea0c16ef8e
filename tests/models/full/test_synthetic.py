"""Release 2.0 of the seed's family at its full size, with made-up weights under the keys of synthetic.pt."""

from __future__ import annotations

import json
import unittest

import timm
import torch
from common.errors import PackagingError
from conversion import seed
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from .case import PackageChecks
from .comparison import SCORE_TOLERANCE, Expected, largest_difference
from .weights import randomise, spread, touch

PARAMETERS = 198_788_162
SHAPES = {
    "model.stem.0.weight": (192, 3, 4, 4),
    "model.stages.2.blocks.26.mlp.fc1.weight": (3072, 768),
    "model.head.pre_logits.fc.weight": (1536, 1536),
    "clf.0.weight": (128, 1536),
    "clf.2.bias": (2,),
}
"""Some of what the published file holds; all of them are the network's own keys."""
TOUCHED = 3
CROPPED = 4


class Published(nn.Module):
    """As users of the published file build it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384", pretrained=False, num_classes=0)
        self.clf = nn.Sequential(nn.Linear(1536, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.clf(self.model(x))


class Synthetic20(PackageChecks, unittest.TestCase):
    # 1 for the input; 1 for the stem and each downsampling, 2 for each of 3, 3, 27 and 3 blocks.
    transposes = 1 + 4 + 2 * 36

    @classmethod
    def make(cls) -> list[str]:
        network = Published().eval()
        transform = create_transform(**resolve_data_config({}, model=network.model))
        randomise(network, seed=2)
        with torch.inference_mode():
            pictures = [transform(Image.open(file).convert("RGB")) for file in cls.files]
            behind = network.clf[:2]
            features = torch.cat([behind(network.model(picture[None])) for picture in pictures])
            level = 1 / (255 * 0.27)
            touched = torch.cat([behind(network.model(one[None])) for one in touch(pictures[:TOUCHED], level)])
            spread(network.clf[2], features, touched)
            logits = network.clf[2](features)
        source = cls.work / "synthetic.pt"
        cls.state = network.state_dict()
        torch.save(cls.state, source)
        # The backbone takes seconds a picture, and the head alone has changed since.
        cls.wanted = Expected(cls.files, logits.numpy())
        cls.model = seed.from_file(source, "2.0", None)
        return ["sumsub", str(source), "--release", "2.0"]

    def test_the_state_dict_is_that_of_the_published_file(self) -> None:
        self.assertEqual(sum(value.numel() for value in self.state.values()), PARAMETERS)
        self.assertEqual({key: tuple(self.state[key].shape) for key in SHAPES}, SHAPES)

    def test_a_wrong_crop_is_noticed(self) -> None:
        package = self.work / "package"
        kept = (package / "config.json").read_text()
        config = json.loads(kept)
        config["pretrained_cfg"]["crop_mode"] = "center"
        golden = package / "golden.json"
        hidden = golden.rename(golden.with_suffix(".hidden"))
        try:
            (package / "config.json").write_text(json.dumps(config))
            self.assertGreater(largest_difference(package, self.wanted, self.work, CROPPED), SCORE_TOLERANCE)
        finally:
            (package / "config.json").write_text(kept)
            hidden.rename(golden)

    def test_the_card_names_licence_limits_and_published_figures(self) -> None:
        text = (self.work / "package/README.md").read_text()
        for wanted in ("CC-BY-SA-3.0", "never proof", "very high-quality real pictures", "DiffusionDB | 0.920", '"by AI" (index 1)'):
            self.assertIn(wanted, text)

    def test_a_renamed_key_is_named(self) -> None:
        state = dict(self.state)
        state["clf.1.weight"] = state.pop("clf.0.weight")
        torch.save(state, self.work / "renamed.pt")
        with self.assertRaisesRegex(PackagingError, r"missing: clf\.0\.weight \[128, 1536\]; unexpected: clf\.1\.weight"):
            seed.from_file(self.work / "renamed.pt", "2.0", None)
