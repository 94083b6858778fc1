"""Upsets in training: channels that stand at an extreme while a network learns.

Where results are held to bounds, what an upset leaves is mostly a channel at its bound: one weight
flipped in the convolution buffer moves every value of its kernel. A network fine-tuned among such
channels learns to answer without any one of them. The extreme that stands in has a gradient, so it
also learns to keep extremes low; these are the bounds measured later, and the scales in INT8.

Source:
    U. Zahid, G. Gambardella, N. J. Fraser, M. Blott, K. Vissers, "FAT: Training Neural Networks
    for Reliable Inference Under Hardware Faults", ITC 2020, for faults in the forward pass;
    J. Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
    arXiv:1805.06085, for a bound that the loss pulls down.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@contextmanager
def upset(model: nn.Module, images: Tensor, rate: float) -> Iterator[None]:
    """Strike the results of every layer but the last, in training mode, while the block runs.

    A result is what a layer's batch-norm gives, or the layer itself where none follows. In a struck
    image's result one channel, uniform, holds everywhere the largest or the least value, as likely,
    that it has in the batch. Real upsets are rare; many at once teach in a few epochs. Draws come
    from torch's generator of the CPU.

    Args:
        model: gives logits for images.
        images: ``(N, C, H, W)``, to see which layers a batch-norm follows.
        rate: probability that a result of one image is struck; 0 is none.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> images = torch.rand(8, 1, 2, 2)
        >>> with upset(model, images, rate=1.0):
        ...     struck = model(images)
        >>> bool((struck == model(images)).all())
        False
    """
    struck = _results(model, images) if rate else []
    hooks = [module.register_forward_hook(_Strike(rate)) for module in struck]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _results(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """Modules that give a layer's result, in the order they run, without the last."""
    found: list[tuple[nn.Module, Tensor]] = []

    def take(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _NORMS):
            found[:] = [entry for entry in found if entry[1] is not inputs[0]]
        found.append((module, output))

    hooks = [
        module.register_forward_hook(take)
        for module in model.modules()
        if isinstance(module, (*_LAYERS, *_NORMS))
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return [module for module, _ in found[:-1]]


class _Strike:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        del inputs
        if not module.training:
            return None
        image = (torch.rand(len(output)) < self.rate).nonzero()[:, 0]
        channel = torch.randint(output.shape[1], image.shape)
        high = torch.rand(image.shape) < 0.5
        image, channel, high = (draw.to(output.device) for draw in (image, channel, high))
        values = output.movedim(1, 0)[channel].flatten(1)
        if not len(values):
            return None
        extreme = torch.where(high, values.amax(dim=1), values.amin(dim=1))
        place = extreme.view(-1, *[1] * (output.ndim - 2)).expand(-1, *output.shape[2:])
        return output.index_put((image, channel), place)
