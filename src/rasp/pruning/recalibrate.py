"""Fit batch-norm statistics to a pruned network without training it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rasp.errors import ConfigError

_BATCH = 256


def recalibrate(model: nn.Module, images: Tensor) -> None:
    """Measure the running mean and variance of every batch-norm anew, in place.

    Removing channels shifts what every later layer reads, while its batch-norm still subtracts the
    dense network's mean. A pass over a few hundred training images, no labels and no gradients,
    repairs much of that.

    Args:
        model: network; modes and weights stay as they are.
        images: normalised ``(N, C, H, W)``, at least 2; averaged over batches of up to 256.

    Raises:
        ConfigError: fewer than two images.
    """
    if len(images) < 2:
        raise ConfigError(f"Batch statistics need at least 2 images, got {len(images)}.")
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats  # noqa: SLF001
    ]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.training = True
    try:
        with torch.no_grad():
            for chunk in torch.chunk(images, -(-len(images) // _BATCH)):
                model(chunk)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
