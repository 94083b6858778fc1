"""Size of a network: multiply-accumulates of one image and number of parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """What a network costs.

    Attributes:
        macs: multiply-accumulates of the convolutions and linear layers for one image, padding
            included; batch-norm, activations and pooling are not counted.
        parameters: number of trainable and frozen parameters, buffers not counted.
    """

    macs: int
    parameters: int


def count(model: nn.Module, example: Tensor) -> Complexity:
    """Count multiply-accumulates (half the operations PyTorch counts) and parameters.

    Args:
        model: the network; its mode and its state stay as they are.
        example: images ``(N, C, H, W)``; the result is per image.

    Example:
        >>> count(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 4, 4))
        Complexity(macs=3456, parameters=224)
    """
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(example)
    finally:
        for module, training in modes.items():
            module.training = training
    return Complexity(
        macs=counter.get_total_flops() // (2 * len(example)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
