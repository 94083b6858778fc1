"""The lowered network: a frozen graph of what NVDLA's engines do.

A :class:`Network` is a tuple of nodes in topological order and the arithmetic they run in. Every
tensor is written ``(N, *node.shape)``; shapes in this module leave the batch out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rasp.nvdla.shapes import ConvShape

Clip = tuple[float, float]
"""Bounds the SDP clamps to; ReLU is ``(0.0, inf)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """Range restriction: the values that a node's output has without a fault.

    It is the last step of a float SDP pass, after the activation: a minimum and a maximum, so an
    upset up to the SDP's result is held to it and one in memory is not. NaN becomes 0, as NVDLA's
    ``nan_to_zero`` has it.

    Attributes:
        low, high: fp32, ``(1,)`` for all channels or ``(C,)``.
        zero: make what is outside 0 and not the nearest bound; NVDLA's SDP cannot.

    Example:
        >>> bound = Bound(torch.tensor([0.0]), torch.tensor([6.0]))
        >>> bound(torch.tensor([[-1.0, 4.0, 9.0, float("nan")]])).tolist()
        [[0.0, 4.0, 6.0, 0.0]]
    """

    low: Tensor
    high: Tensor
    zero: bool = False

    def __call__(self, values: Tensor, channel: Tensor | None = None) -> Tensor:
        """Hold values to the range; what is inside keeps its bits.

        Args:
            values: ``(N, C, ...)``, or of any shape with their channels.
            channel: int64, broadcastable to ``values``.
        """
        low, high = (self._of(end, values, channel) for end in (self.low, self.high))
        if self.zero:
            return torch.where((values >= low) & (values <= high), values, 0.0)
        held = torch.where(values < low, low, torch.where(values > high, high, values))
        return torch.where(held.isnan(), 0.0, held)

    @staticmethod
    def _of(end: Tensor, values: Tensor, channel: Tensor | None) -> Tensor:
        if len(end) == 1:
            return end[0]
        return end.view(-1, *[1] * (values.ndim - 2)) if channel is None else end[channel]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation.

    Attributes:
        name: name of the torch module it came from, unique in the graph.
        inputs: names of the nodes it reads, in order.
        shape: output shape without the batch, ``(C, H, W)`` or ``(F,)``.
        bound: range its output is held to, ``None`` if it is not hardened.
    """

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    bound: Bound | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Input(Node):
    """The normalised image."""


@dataclass(frozen=True, slots=True, eq=False)
class Conv(Node):
    """Convolution with bias and clamp, batch-norm folded in; the layer faults are drawn in.

    A linear layer is the same node with ``linear=True``: its input is ``(F,)``, its weight
    ``(K, F, 1, 1)`` and its output ``(K,)``.

    Attributes:
        weight: ``(K, C / groups, R, S)`` fp32.
        bias: ``(K,)`` fp32.
        clip: the clamp of the SDP, ``None`` if there is none.
    """

    weight: Tensor
    bias: Tensor
    conv: ConvShape
    clip: Clip | None = None
    linear: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Add(Node):
    """Element-wise sum of two tensors, then the clamp (SDP)."""

    clip: Clip | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scale(Node):
    """Per-channel ``weight * x + bias`` and clamp that no convolution could take in (SDP)."""

    weight: Tensor
    bias: Tensor
    clip: Clip | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Activation(Node):
    """A clamp that no other node could take in (SDP)."""

    clip: Clip


@dataclass(frozen=True, slots=True, eq=False)
class Pool(Node):
    """Max or average pooling (PDP). Averages count the padding if ``count_padding``."""

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    count_padding: bool = True
    ceil: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Flatten(Node):
    """A view of ``(C, H, W)`` as ``(C*H*W,)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Concat(Node):
    """Channels of the inputs one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class PadChannels(Node):
    """Zero channels before and after: surfaces that nobody writes."""

    before: int
    after: int


@dataclass(frozen=True, slots=True, eq=False)
class Host(Node):
    """An operation no engine does; it runs on the host in fp32 and no fault is drawn in it.

    Attributes:
        op: name of the ATen operation.
        call: function from the input tensors to the output, batch first.
    """

    op: str
    call: Callable[..., Tensor]


Record = TypeVar("Record")


def moved(record: Record, device: str) -> Record:
    """A frozen record with its tensors, and those of records in it, on a torch device."""
    if not is_dataclass(record) or isinstance(record, type):
        return record
    changes: dict[str, Any] = {}
    for attribute in fields(record):
        value = getattr(record, attribute.name)
        if not attribute.init:
            continue
        if isinstance(value, Tensor):
            changes[attribute.name] = value.to(device)
        elif is_dataclass(value):
            changes[attribute.name] = moved(value, device)
    return replace(record, **changes)


class Arithmetic(Protocol):
    """A number format and what it computes; tensors are in its storage type unless said.

    ``stored`` values are what lies in memory between layers (float32, float16 or int8), ``sums``
    are a convolution's results before the SDP (float32, or int32 held in int32).
    """

    @property
    def format(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"int8"``."""

    @property
    def bits(self) -> int:
        """Bits of a stored value."""

    def to(self, device: str) -> Arithmetic:
        """The arithmetic with its constants on a torch device."""

    def encode(self, images: Tensor) -> Tensor:
        """Normalised fp32 images ``(N, C, H, W)`` to stored values."""

    def decode(self, name: str, stored: Tensor) -> Tensor:
        """Stored values of node ``name`` to fp32."""

    def run(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Stored inputs to stored output of any node but the input."""

    def operands(self, conv: Conv) -> Tensor:
        """Stored weight of a convolution, ``(K, C / groups, R, S)``."""

    def run_window(self, conv: Conv, padded: Tensor) -> Tensor:
        """A convolution on ``(n, C, h, w)``, any part of its input with the padding written out."""

    def accumulate(self, conv: Conv, x: Tensor, *, padded: bool = False) -> Tensor:
        """Sums of products of a convolution, bias left out, ``(N, K, Ho, Wo)``.

        ``padded`` inputs are any part of the layer's input with the padding written out.
        """

    def deliver(self, conv: Conv, sums: Tensor) -> Tensor:
        """What the accumulator hands to the SDP: in INT8 shifted, rounded, saturated to 32 bits."""

    def convert(self, conv: Conv, results: Tensor, kernel: Tensor) -> Tensor:
        """SDP on delivered results of any shape: bias, clamp, conversion to stored values.

        Args:
            conv: the layer.
            results: any shape.
            kernel: int64 kernel index of each result, broadcastable to ``results``.
        """

    def finish(self, conv: Conv, sums: Tensor, kernel: Tensor) -> Tensor:
        """:meth:`deliver` and :meth:`convert`: any set of sums to stored values."""

    def restrict(self, node: Node, stored: Tensor, channel: Tensor | None = None) -> Tensor:
        """Results held to the node's bound: ``(N, C, ...)``, or any with their channels."""


@dataclass(frozen=True, eq=False)
class Network:
    """What runs: nodes in topological order and the arithmetic of a number format.

    Attributes:
        nodes: topological order, the first is the only :class:`Input`.
        output: name of the node whose values are the logits.
        arithmetic: fp32, fp16 or int8.
    """

    nodes: tuple[Node, ...]
    output: str
    arithmetic: Arithmetic
    _by_name: Mapping[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @property
    def format(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"int8"``."""
        return self.arithmetic.format

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of an image."""
        return self.nodes[0].shape

    @property
    def layers(self) -> tuple[Conv, ...]:
        """Convolutions and linear layers in execution order: where faults can be drawn."""
        return tuple(node for node in self.nodes if isinstance(node, Conv))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image over all layers."""
        return sum(layer.conv.macs for layer in self.layers)

    def to(self, device: str) -> Network:
        """The network with its constants on a torch device."""
        if torch.device(device) == self._device:
            return self
        nodes = tuple(moved(node, device) for node in self.nodes)
        return replace(self, nodes=nodes, arithmetic=self.arithmetic.to(device))

    @property
    def _device(self) -> torch.device:
        weights = [layer.weight.device for layer in self.layers]
        return weights[0] if weights else torch.device("cpu")

    def with_arithmetic(self, arithmetic: Arithmetic) -> Network:
        """The same graph in another arithmetic."""
        return replace(self, arithmetic=arithmetic)

    def walk(self, images: Tensor) -> Iterator[tuple[Node, Tensor]]:
        """Nodes in order with their stored output; one that no later node reads is let go.

        Raises:
            ConfigError: images of another shape.
        """
        if tuple(images.shape[1:]) != self.input_shape:
            raise ConfigError(
                f"Images must have shape (N, {', '.join(map(str, self.input_shape))}), "
                f"got {tuple(images.shape)}."
            )
        last = {name: node.name for node in self.nodes for name in node.inputs}
        values: dict[str, Tensor] = {}
        for node in self.nodes:
            values[node.name] = (
                self.arithmetic.encode(images)
                if isinstance(node, Input)
                else self.arithmetic.run(node, [values[name] for name in node.inputs])
            )
            yield node, values[node.name]
            for name in {node.name, *node.inputs}:
                if last.get(name, node.name) == node.name:
                    del values[name]

    def trace(self, images: Tensor) -> dict[str, Tensor]:
        """Stored output of every node for normalised images ``(N, C, H, W)``.

        In fp32 gradients flow through it unless the caller turned them off.
        """
        return {node.name: value for node, value in self.walk(images)}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes)`` in fp32 for normalised images ``(N, C, H, W)``."""
        with torch.inference_mode():
            for node, value in self.walk(images):
                if node.name == self.output:
                    logits = value
            return self.arithmetic.decode(self.output, logits)
