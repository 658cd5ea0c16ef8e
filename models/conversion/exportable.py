"""Changes to a PyTorch network that leave its function as it is and make its graph smaller. Needs PyTorch."""

from __future__ import annotations

import timm.layers
import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn


def simplify(network: nn.Module) -> None:
    """In place. What is not recognised stays as it is: the result is compared with the original anyway."""
    for module in list(network.modules()):
        if isinstance(module, ConvNeXtBlock):
            fold_layer_scale(module)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, Mean())


@torch.no_grad()
def fold_layer_scale(block: ConvNeXtBlock) -> None:
    """`gamma * (W h + b)` is `(gamma W) h + gamma b`: one pass over memory less in every block."""
    if block.gamma is None:
        return
    weight = block.mlp.fc2.weight
    weight.mul_(block.gamma.view(-1, *(1,) * (weight.ndim - 1)))
    if block.mlp.fc2.bias is not None:
        block.mlp.fc2.bias.mul_(block.gamma)
    block.gamma = None


class Mean(nn.Module):
    """Average over height and width. The exporter spells the adaptive pool out with a dozen operators around it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


def needed_transposes(network: nn.Module) -> int | None:
    """How many Transposes the graph of `network` needs, where that is known; None where it is not.

    ConvNeXt: one for the input; one after the stem or the downsampling of each stage, whose result is needed channels
    last; two about each depthwise convolution, of which the first block of each later stage saves one (it takes the
    downsampling's output as it comes) and spends it before that downsampling. MobileNetV3: one for the input.
    """
    if any(isinstance(module, MobileNetV3) for module in network.modules()):
        return 1
    for module in network.modules():
        if isinstance(module, ConvNeXt):
            blocks = [list(stage.blocks) for stage in module.stages]
            if not any(isinstance(block.norm, timm.layers.LayerNorm2d) for stage in blocks for block in stage):
                return 1 + sum(1 + 2 * len(stage) for stage in blocks)
    return None
