"""From a PyTorch network to the ONNX file of common/graph.py. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.graph import INPUT, OUTPUT, strip

# From opset 20 on GELU is one operator. Spelt out as an error function it is five, and the exporter orders them in a
# way that ONNX Runtime does not put together again.
OPSET = 20


@dataclass(frozen=True)
class Normalisation:
    """`(byte * scale - mean) / std`, a channel. `mean` and `std` are in units after `scale`."""

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 1 / 255

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x `[b, 3, h, w]` of any number type, 0 to 255 -> the network's range, float32."""
        offset = torch.tensor([m / self.scale for m in self.mean], device=x.device).view(1, 3, 1, 1)
        factor = torch.tensor([self.scale / s for s in self.std], device=x.device).view(1, 3, 1, 1)
        return (x.float() - offset) * factor


class BytesIn(nn.Module):
    """The graph a worker runs: pixels `[b, h, w, 3]` uint8 -> logits `[b, labels]` float32.

    Pixels cross to the device as bytes, a quarter of the float size, and no caller can normalise them wrongly. They
    are transposed as bytes too, before they grow.
    """

    def __init__(self, network: nn.Module, normalisation: Normalisation):
        super().__init__()
        self.network, self.normalisation = network, normalisation

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalisation(pixels.permute(0, 3, 1, 2)))


def export(module: BytesIn, size: tuple[int, int], path: Path) -> None:
    """Writes `path` for images of `size` (height, width) and any batch; the weights lie inside the file."""
    torch.onnx.export(
        module.eval(),
        (torch.zeros(2, *size, 3, dtype=torch.uint8),),
        path,
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    strip(path)
