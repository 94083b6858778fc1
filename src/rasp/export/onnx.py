"""The lowered network as ONNX: what the accelerator computes, in operators that toolchains know.

Range restriction is a ``Clip``, or a ``Max`` and a ``Min`` where every channel has its own bounds.
INT8 is explicit: int8 weights, and a pair of QuantizeLinear and DequantizeLinear behind the image
and behind every node that rescales. The converter's 16-bit factor is in the weights' scales, so
results differ from the accelerator's by rounding alone: halves to even, sums in fp32.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasp import _lazy, checkpoint
from rasp.errors import ConfigError
from rasp.network.float_ops import clamp, compute
from rasp.network.graph import Conv, Host, Input, Pool
from rasp.network.int8_ops import VIEWS, Int8Arithmetic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rasp.network.graph import Bound, Network, Node

OPSET = 20
_FEATURE = "The ONNX export"
_SCOPES = "pkg.torch.onnx.name_scopes"


class Agreement(NamedTuple):
    """The written file against the network it came from, on the same images.

    Attributes:
        images: number of them.
        same_class: how many get the same class.
        largest: largest difference of a logit.
    """

    images: int
    same_class: int
    largest: float


def write(
    network: Network, out: Path, *, batch: int = 1, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a network; the file appears whole or not at all.

    Args:
        network: in fp32 or int8.
        out: the file.
        batch: images of an inference; shapes are static, as accelerators want them.
        metadata: JSON values, kept as properties ``rasp.KEY`` of the model.

    Raises:
        PrerequisiteError: a package to write or check the file with is not installed.
        ConfigError: a network in fp16, or a batch below 1.
    """
    onnx = _lazy.require("onnx", extra="export", feature=_FEATURE)
    for package in ("onnxscript", "onnxruntime"):
        _lazy.require(package, extra="export", feature=_FEATURE)
    if network.format not in ("fp32", "int8"):
        raise ConfigError(f"ONNX is written in fp32 or int8, got {network.format}.")
    if batch < 1:
        raise ConfigError(f"--batch must be at least 1, got {batch}.")
    images = torch.zeros(batch, *network.input_shape)
    with _quiet():
        program = torch.onnx.export(
            _Graph(network, batch).eval(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    if program is None:
        raise ConfigError("This torch writes ONNX without a program. Install torch 2.9 or later.")
    _rename(program.model.graph, network)
    model = program.model_proto
    for key, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=f"rasp.{key}", value=text)
    onnx.checker.check_model(model, full_check=True)
    checkpoint.write_atomic(out, model.SerializeToString())


def agreement(file: Path, network: Network, images: Tensor) -> Agreement:
    """Run a written file in onnxruntime and hold its logits against the network's.

    Args:
        file: from :func:`write`.
        network: the one it was written from.
        images: normalised ``(N, C, H, W)``; the first ones fill up the last batch.
    """
    runtime = _lazy.require("onnxruntime", extra="export", feature=_FEATURE)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()
    batch = entry.shape[0]
    whole = images[torch.arange(-(-len(images) // batch) * batch) % len(images)]
    got = torch.cat(
        [
            torch.from_numpy(session.run(None, {entry.name: part.numpy()})[0])
            for part in torch.split(whole, batch)
        ]
    )[: len(images)]
    with torch.inference_mode():
        wanted = network(images)
    same = int((got.argmax(1) == wanted.argmax(1)).sum())
    return Agreement(len(images), same, float((got - wanted).abs().max()))


class _Graph(nn.Module):
    """A lowered network in plain torch, a child for each node."""

    def __init__(self, network: Network, batch: int) -> None:
        super().__init__()
        self.nodes, self.output = network.nodes, network.output
        arithmetic = network.arithmetic
        int8 = arithmetic if isinstance(arithmetic, Int8Arithmetic) else None
        self.steps = nn.ModuleList(
            _Step(node, int8, whole=_takes_batch(node, network, batch)) for node in network.nodes
        )

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for node, step in zip(self.nodes, self.steps, strict=True):
            values[node.name] = step(*[values[name] for name in node.inputs] or [images])
        return values[self.output]


class _Step(nn.Module):
    """One node on real values, quantised behind it in INT8."""

    weight: Tensor
    bias: Tensor

    def __init__(self, node: Node, int8: Int8Arithmetic | None, *, whole: bool) -> None:
        super().__init__()
        self.node, self.whole = node, whole
        self.result = self.kernel = self.held = None
        if int8 is not None and not _keeps_grid(node):
            self.result = _Grid(torch.tensor(int8.scales[node.name]))
        if int8 is None and node.bound is not None:
            self.held = _Held(node.bound, node)
        if not isinstance(node, Conv):
            return
        weight, bias = node.weight, node.bias
        if int8 is not None:
            layer = int8.layers[node.name]
            factor = layer.converter.multiplier.double() * 2.0**-layer.converter.shift
            step = factor * int8.scales[node.name]
            weight, bias = layer.weight, (layer.bias * step).float()
            self.kernel = _Grid((step / int8.scales[node.inputs[0]]).float())
        self.register_buffer("weight", weight.flatten(1) if node.linear else weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, *values: Tensor) -> Tensor:
        result = self._computed(values)
        if self.held is not None:
            result = self.held(result)
        return result if self.result is None else self.result(result)

    def _computed(self, values: tuple[Tensor, ...]) -> Tensor:
        node, x = self.node, values[0]
        match node:
            case Input():
                return x
            case Conv():
                return clamp(self._convolved(node, x), node.clip)
            case Host() if self.whole:
                return node.call(*values)
            case _:
                return compute(node, values)

    def _convolved(self, node: Conv, x: Tensor) -> Tensor:
        weight = self.weight if self.kernel is None else self.kernel.real(self.weight)
        if node.linear:
            return F.linear(x, weight, self.bias)
        conv = node.conv
        return F.conv2d(x, weight, self.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class _Grid(nn.Module):
    """A scale, or one of every kernel, with zero points of 0."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Real values to the nearest on the grid."""
        stored = torch.onnx.ops.symbolic(
            "QuantizeLinear", [x, self.scale, self.zero_point], dtype=torch.int8, shape=x.shape
        )
        return self.real(stored)

    def real(self, stored: Tensor) -> Tensor:
        """int8 to real values; kernels are axis 0."""
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            [stored, self.scale, self.zero_point],
            {"axis": 0} if self.scale.ndim else {},
            dtype=torch.float32,
            shape=stored.shape,
        )


class _Held(nn.Module):
    """Range restriction; a lower end that the node's clamp has already is left to it."""

    low: Tensor
    high: Tensor

    def __init__(self, bound: Bound, node: Node) -> None:
        super().__init__()
        self.zero = bound.zero
        clip = getattr(node, "clip", None)
        self.lowest = clip is not None and bool((bound.low <= clip[0]).all())
        shape = (-1, *[1] * (len(node.shape) - 1))
        self.ends = [float(end) if len(end) == 1 else None for end in (bound.low, bound.high)]
        self.register_buffer("low", bound.low.view(shape))
        self.register_buffer("high", bound.high.view(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.zero:
            return torch.where((x >= self.low) & (x <= self.high), x, 0.0)
        low, high = self.ends
        if low is not None and high is not None:
            return x.clamp(None if self.lowest else low, high)
        held = x if self.lowest else torch.maximum(x, self.low)
        return torch.minimum(held, self.high)


def _takes_batch(node: Node, network: Network, batch: int) -> bool:
    """Whether a host's operation means on a batch what it means image by image, which is tried.

    One image can mean something else (``squeeze``), and sizes may be those it was exported with.
    """
    if not isinstance(node, Host):
        return False
    draw = torch.Generator().manual_seed(0)
    values = [torch.rand(batch, *network[name].shape, generator=draw) for name in node.inputs]
    try:
        found = node.call(*values)
    except (RuntimeError, IndexError):
        return False
    expected = compute(node, values)
    return found.shape == expected.shape and torch.allclose(found, expected, equal_nan=True)


def _keeps_grid(node: Node) -> bool:
    """Whether the node's values are steps of its scale because its inputs' are."""
    return isinstance(node, VIEWS) and not (isinstance(node, Pool) and node.kind == "avg")


def _rename(graph: Any, network: Network) -> None:
    """Name operators and constants after the torch modules they come from."""
    names = [node.name for node in network.nodes]
    for operator in graph:
        scope = re.search(r"'steps\.(\d+)'", operator.metadata_props[_SCOPES])
        if scope is not None:
            operator.name = f"{names[int(scope[1])]}/{operator.name.removeprefix('node_')}"
    for value in list(graph.initializers.values()):
        _, _, rest = str(value.name).partition("steps.")
        index, _, rest = rest.partition(".")
        if index:
            value.name = f"{names[int(index)]}.{rest}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
