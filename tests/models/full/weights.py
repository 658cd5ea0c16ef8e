"""Made-up weights for real architectures, scaled so that scores spread.

A freshly initialised network answers alike for every picture, and whatever is wrong with its input goes unnoticed.
"""

from __future__ import annotations

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

SPREAD = 1.5
"""Deviation of the difference of the two logits over the pictures."""
DIRECTIONS = 2000


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> None:
    """Sets every parameter. Weights keep a layer's variance; nothing is left at the 0 or 1 that hides a mistake."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, (1.5 / parameter[0].numel()) ** 0.5)
        elif name.endswith(("gamma", "layer_scale_parameter")):
            parameter.uniform_(0.1, 0.4)
        elif name.endswith("weight"):
            parameter.uniform_(0.8, 1.2)
        else:
            parameter.normal_(0.0, 0.1)


@torch.no_grad()
def soften(network: nn.Module) -> None:
    """Makes a randomised MobileNetV3 as calm as a trained one.

    Behind batch normalisation, which brings whatever is left to the same size, fifteen layers of random differences
    turn the rounding of a resize, or of float16, into as much of a score as the tolerances are there to find. So
    depthwise kernels get no negative parts, and a branch adds less than what it is added to.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.weight.abs_()
        if isinstance(module, InvertedResidual) and module.has_skip:
            module.bn3.weight.mul_(0.3)


@torch.no_grad()
def settle_statistics(network: nn.Module, pictures: list[torch.Tensor]) -> None:
    """Gives every batch normalisation the statistics of the pictures, as training would have.

    One picture of noise is among them: the converter runs on noise too, and far outside its statistics a network
    computes with numbers so large that float32 has no digits left for what is compared.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    network(torch.stack([*pictures, torch.rand_like(pictures[0]) * 2 - 1]))
    network.eval()


@torch.no_grad()
def spread(layer: nn.Linear, features: torch.Tensor, *touched: torch.Tensor) -> None:
    """Sets a last layer of two outputs so that over `features` `[n, inputs]` its logits differ by 0 on average, and
    with a deviation of `SPREAD`.

    Untrained layers amplify noise as they amplify everything else. Of many random directions the one is taken that
    `touched` move least, features of the first pictures after a disturbance such as `touch`: a trained network ignores
    such noise too.
    """
    directions = torch.randn(layer.in_features, DIRECTIONS)
    projected = features @ directions
    # By the median, since a few outlying pictures must not carry the deviation alone.
    typical = (projected - projected.median(0).values).abs().median(0).values
    moved = torch.stack([(few @ directions - projected[: len(few)]).abs().max(0).values for few in touched]).max(0).values
    best = int((typical / moved).argmax())
    direction, values = directions[:, best], projected[:, best]
    scale = SPREAD / values.std()
    layer.weight.copy_(torch.stack([-direction, direction]) * scale / 2)
    layer.bias.copy_(torch.tensor([0.5, -0.5]) * scale * values.mean())


def touch(pictures: list[torch.Tensor], level: float) -> torch.Tensor:
    """Pictures `[n, 3, h, w]` with a tenth of their values one `level` up and a tenth one down."""
    stacked = torch.stack(pictures)
    draw = torch.rand_like(stacked)
    return stacked + level * ((draw < 0.1).float() - (draw > 0.9).float())
