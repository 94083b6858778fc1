"""Copies of a network in a state that autograd can follow, and the shapes of its layers."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rasp.errors import ConfigError
from rasp.nvdla.shapes import ConvShape

if TYPE_CHECKING:
    from collections.abc import Iterator


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that training can go on with, whatever mode the caller is in.

    Raises:
        ConfigError: a weight or buffer is not finite.
    """
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ConfigError(f"Weights '{name}' hold NaN or Inf. Load or train the network first.")
    with torch.inference_mode(mode=False):
        return copy.deepcopy(model)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Make every tensor visible to autograd, and put modes, flags and buffers back afterwards.

    The dependency graph follows gradients: it sees neither frozen parameters nor buffers. Buffers
    with more than one element outside batch-norms become parameters for the time being.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    buffers = [
        (module, name, name not in module._non_persistent_buffers_set)  # noqa: SLF001
        for module in model.modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        for name, value in module.named_buffers(recurse=False)
        if value.is_floating_point() and value.numel() > 1
    ]
    for module, name, _ in buffers:
        value = getattr(module, name)
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value))
    with torch.inference_mode(mode=False), torch.enable_grad():
        model.eval()
        model.requires_grad_()
        try:
            yield
        finally:
            for module, name, persistent in buffers:
                value = getattr(module, name).detach()
                delattr(module, name)
                module.register_buffer(name, value, persistent=persistent)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)
                parameter.grad = None
            for name, module in model.named_modules():
                module.training = modes[name]


def layer_shapes(model: nn.Module, example: Tensor) -> tuple[ConvShape, ...]:
    """Shapes of all convolutions and linear layers, in execution order."""
    names = {module: name for name, module in model.named_modules()}
    shapes: dict[str, ConvShape] = {}

    def take(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x, name = inputs[0], names[module]
        if isinstance(module, nn.Linear):
            rows = output.numel() // (len(output) * module.out_features)
            shapes[name] = ConvShape(name, module.in_features, rows, 1, module.out_features, 1, 1)
        elif isinstance(module, nn.Conv2d):
            shapes[name] = ConvShape(
                name,
                C=module.in_channels,
                H=x.shape[2],
                W=x.shape[3],
                K=module.out_channels,
                R=module.weight.shape[2],
                S=module.weight.shape[3],
                stride=_pair(module.stride),
                padding=_padding(module),
                dilation=_pair(module.dilation),
                groups=module.groups,
            )

    hooks = [module.register_forward_hook(take) for module in names]
    try:
        with torch.no_grad():
            model(example)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The network does not take an example of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(shapes.values())


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    vertical, horizontal = values
    return vertical, horizontal


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    left, _, top, _ = conv._reversed_padding_repeated_twice  # noqa: SLF001
    return top, left
