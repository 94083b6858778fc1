"""Upsets in training: bits that flip in layers' results while a network learns.

A network that never saw a wrong value leans on few large ones. Trained with them it keeps its
margins wide against what a flip can do, in INT8 too, where no bound helps.

Source:
    U. Zahid, G. Gambardella, N. J. Fraser, M. Blott, K. Vissers, "FAT: Training Neural Networks
    for Reliable Inference Under Hardware Faults", ITC 2020.
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
_BITS = 8


@contextmanager
def upset(model: nn.Module, images: Tensor, rate: float) -> Iterator[None]:
    """Strike the results of every layer but the last, in training mode, while the block runs.

    A result is what a layer's batch-norm gives, or the layer itself where none follows. An upset
    adds or takes ``2**b`` of the 127 steps up to the batch's largest magnitude, ``b`` uniform over
    0 to 7: an int8 bit flip. Real ones are rare and alone; many at once teach in a few epochs.
    Draws come from torch's generator of the CPU.

    Args:
        model: gives logits for images.
        images: ``(N, C, H, W)``, to see which layers a batch-norm follows.
        rate: share of the values of a result that are struck; 0 is none.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> images = torch.rand(8, 1, 2, 2)
        >>> with upset(model, images, rate=0.5):
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
        count = round(self.rate * output.numel())
        index = tuple(torch.randint(size, (count,)).to(output.device) for size in output.shape)
        bit = torch.randint(_BITS, (count,))
        sign = 1 - 2 * torch.randint(2, (count,))
        step = output.detach().abs().amax() / 127
        change = (sign * 2**bit).to(output) * step
        return output.index_put(index, change, accumulate=True)
