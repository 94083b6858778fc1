"""Lowering: a torch module becomes a :class:`~rasp.network.graph.Network`.

``torch.export`` gives the operations, :mod:`rasp.network.translate` gives each its node, and the
passes here fold batch-norm into convolutions and clamps into the node before them, because one
pass through NVDLA's CMAC, CACC and SDP does all of that.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rasp.errors import ConfigError, RaspError, UnsupportedModelError
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Activation, Add, Clip, Conv, Network, Node, Pool, Scale
from rasp.network.translate import translate

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOLERANCE = 1e-3
_BATCHES = (2, 3)  # exported with the first, checked with the second: no batch size may be baked in


def lower(model: nn.Module, example: Tensor) -> Network:
    """Lower a trained CNN to what NVDLA's engines do, in fp32.

    The result is compared with the module on the example before it is returned, so a network that
    is not the module's function never leaves this function.

    Args:
        model: module from images ``(N, C, H, W)`` to logits ``(N, classes)``; it is not changed.
        example: normalised images ``(N, C, H, W)``, N >= 1; only the first three are used.

    Raises:
        UnsupportedModelError: the module cannot be exported, or an operation cannot be lowered;
            the message names the node.
        ConfigError: the example has the wrong rank, or a weight is NaN or infinite.

    Example:
        >>> net = lower(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(),
        ...                           nn.Linear(8, 3)), torch.zeros(1, 1, 4, 4))
        >>> [layer.name for layer in net.layers], net.macs
        (['0', '3'], 96)
    """
    if example.ndim != 4 or not len(example):
        raise ConfigError(
            f"The example must be images of shape (N, C, H, W) with N >= 1, "
            f"got {tuple(example.shape)}."
        )
    _refuse_nonfinite(model)
    frozen = copy.deepcopy(model).cpu().float().eval()
    rows = torch.arange(max(_BATCHES)) % min(len(example), max(_BATCHES))
    images = example.detach().cpu().float()[rows]
    program = _export(frozen, images[: _BATCHES[0]])
    nodes, output = translate(program)
    nodes, output = _fuse(nodes, output)
    network = Network(tuple(_live(nodes, output)), output, FloatArithmetic("fp32"))
    _check(network, frozen, images)
    return network


def _refuse_nonfinite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"Weight '{name}' holds NaN or infinite values. Load a trained checkpoint."
            )


def _export(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            shape = tuple(model(images).shape)
            if len(shape) != 2 or shape[0] != len(images):
                raise UnsupportedModelError(
                    f"The model must map images (N, C, H, W) to logits (N, classes); "
                    f"it gave {shape} for {tuple(images.shape)}."
                )
            with _quiet():
                return torch.export.export(model, (images,))
    except RaspError:
        raise
    except Exception as error:  # torch raises dozens of types here, and they are the user's model's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise UnsupportedModelError(
            f"The model cannot be exported for images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {reason}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the graphs and warnings torch prints beside the error it raises."""
    threshold = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(threshold)


def _fuse(nodes: list[Node], output: str) -> tuple[list[Node], str]:
    """Fold scales and clamps into the node before them where nobody else reads it."""
    readers = Counter(name for node in nodes for name in node.inputs)
    readers[output] += 1
    merged: dict[str, Node] = {}
    alias: dict[str, str] = {}
    for original in nodes:
        node = replace(original, inputs=tuple(alias.get(i, i) for i in original.inputs))
        source = merged.get(node.inputs[0]) if node.inputs else None
        fused = None
        if source is not None and readers[original.inputs[0]] == 1:
            fused = _absorb(source, node)
        if fused is None:
            merged[node.name] = node
        else:
            merged[fused.name] = fused
            alias[original.name] = fused.name
    return list(merged.values()), alias.get(output, output)


def _absorb(source: Node, node: Node) -> Node | None:
    """``node`` after ``source`` as one node, or ``None`` where the hardware needs two."""
    if isinstance(node, Scale) and isinstance(source, Conv) and source.clip is None:
        weight, bias = node.weight.double(), node.bias.double()
        return replace(
            source,
            weight=(source.weight.double() * weight[:, None, None, None]).float(),
            bias=(source.bias.double() * weight + bias).float(),
            clip=node.clip,
        )
    if isinstance(node, Activation) and isinstance(source, Conv | Add | Scale | Activation):
        return replace(source, clip=_meet(source.clip, node.clip))
    if (
        isinstance(node, Pool)
        and isinstance(source, Pool)
        and node.kernel == source.kernel == (1, 1)
        and node.padding == source.padding == (0, 0)
    ):
        stride = (source.stride[0] * node.stride[0], source.stride[1] * node.stride[1])
        return replace(source, stride=stride, shape=node.shape)
    return None


def _meet(first: Clip | None, then: Clip) -> Clip:
    if first is None:
        return then
    low, high = (min(max(bound, then[0]), then[1]) for bound in first)
    return (low, high)


def _live(nodes: list[Node], output: str) -> list[Node]:
    """Nodes the output depends on, and the input."""
    needed = {output, nodes[0].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [node for node in nodes if node.name in needed]


def _check(network: Network, model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = model(images)
        got = network(images)
    scale = max(1.0, float(expected.abs().max()))
    error = float((got - expected).abs().max()) / scale
    if not error < _TOLERANCE:
        raise UnsupportedModelError(
            f"The lowered network differs from the module by {error:.2g} of its largest logit "
            f"(allowed: {_TOLERANCE}). The module probably changes a tensor in place or depends on "
            f"the batch size; write that part out of place."
        )
