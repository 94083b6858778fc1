"""INT8 arithmetic of the lowered network, in integers throughout.

Activations are symmetric per tensor, weights symmetric per kernel, biases 32-bit. A layer is
CMAC and CACC (exact integer sums), then the SDP: bias add, multiply by a signed 16-bit operand per
kernel, shift right with rounding half away from zero, clamp, saturate to int8 (RTL:
``NV_NVDLA_SDP_HLS_X_int_{alu,mul,trt,relu}.v``, ``NV_NVDLA_SDP_HLS_C_int.v``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rasp.errors import ConfigError
from rasp.network.float_ops import compute
from rasp.network.graph import (
    Activation,
    Add,
    Clip,
    Concat,
    Conv,
    Flatten,
    Input,
    Network,
    Node,
    PadChannels,
    Pool,
    Scale,
    moved,
)
from rasp.network.int8_conv import ExactConv
from rasp.network.int8_converter import (
    HIGH,
    LOW,
    OPERAND_MAX,
    Converter,
    add,
    in_blocks,
    round_half_away,
)
from rasp.network.int8_fused import FusedConv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rasp.nvdla.shapes import ConvShape

_INT32 = 2**31
_BIAS_MAX = 2**30  # golden sums stay below 2**30 too, so that only a fault can saturate
_KERNEL_SPREAD = 256.0  # the smallest weight scale of a layer is at least its largest over this
_RECIPROCAL_BITS = 16  # of the PDP's average
VIEWS = (Pool, Flatten, PadChannels, Concat)
"""Nodes whose output keeps the scale of their input."""


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """Integers of one convolution.

    Attributes:
        shape: the layer.
        weight: ``(K, C / groups, R, S)`` int8.
        bias: ``(K,)`` int64: 16-bit operands times one power of two, within int32.
        converter: results to int8.
        truncate: right shift of the accumulator's result, 0 to 31; the quantiser needs none.
        sums: the exact convolution with this weight.
        fused: sums, bias and converter at once; has no shift in the accumulator.
    """

    shape: ConvShape
    weight: Tensor
    bias: Tensor
    converter: Converter
    truncate: int = 0
    sums: ExactConv = field(init=False, repr=False)
    fused: FusedConv = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", ExactConv(self.shape, self.weight))
        object.__setattr__(self, "fused", FusedConv(self.sums, self.bias, self.converter))


@dataclass(frozen=True, eq=False)
class Int8Arithmetic:
    """INT8 with the scales of one calibration.

    Attributes:
        scales: real value of one step of every node's output.
        layers: integers of the convolutions.
        adds: per element-wise sum the two multipliers as one converter with two channels.
        affines: per scale node its converter (per channel) and bias in int64.
    """

    scales: Mapping[str, float]
    layers: Mapping[str, Int8Layer]
    adds: Mapping[str, Converter]
    affines: Mapping[str, tuple[Converter, Tensor]]
    format: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8

    @classmethod
    def build(cls, network: Network, scales: Mapping[str, float]) -> Int8Arithmetic:
        """Quantise a network's constants for given output scales; a pure function of both.

        Raises:
            ConfigError: a scale is missing, not positive, or does not fit the converter.
        """
        for node in network.nodes:
            scale = scales.get(node.name, 0.0)
            if not (math.isfinite(scale) and scale > 0):
                raise ConfigError(
                    f"Node '{node.name}' needs a positive finite scale, got {scale}. "
                    f"Calibrate this network again."
                )
        layers, adds, affines = {}, {}, {}
        for node in network.nodes:
            out = scales[node.name]
            if isinstance(node, Conv):
                layers[node.name] = _layer(node, scales[node.inputs[0]], out)
            elif isinstance(node, Add):
                ratios = torch.tensor([scales[name] / out for name in node.inputs])
                adds[node.name] = Converter.fit(
                    ratios, scale=out, clip=_clip(node), layer=node.name
                )
            elif isinstance(node, Scale | Activation):
                affines[node.name] = _affine(node, scales[node.inputs[0]], out)
        return cls(dict(scales), layers, adds, affines)

    def to(self, device: str) -> Int8Arithmetic:
        """The arithmetic with its integers on a torch device."""
        return replace(
            self,
            layers={name: moved(layer, device) for name, layer in self.layers.items()},
            adds={name: moved(converter, device) for name, converter in self.adds.items()},
            affines={
                name: (moved(converter, device), bias.to(device))
                for name, (converter, bias) in self.affines.items()
            },
        )

    def encode(self, images: Tensor) -> Tensor:
        """Quantise normalised images (done by the host)."""
        return self._quantise("input", images)

    def decode(self, name: str, stored: Tensor) -> Tensor:
        """Stored int8 values of a node as fp32."""
        return stored.float() * self.scales[name]

    def operands(self, conv: Conv) -> Tensor:
        """Stored int8 weight, ``(K, C / groups, R, S)``."""
        return self.layers[conv.name].weight

    def accumulate(self, conv: Conv, x: Tensor, *, padded: bool = False) -> Tensor:
        """Exact sums of products, ``(N, K, Ho, Wo)`` int32."""
        return self.layers[conv.name].sums(x, padded=padded).to(torch.int32)

    def deliver(self, conv: Conv, sums: Tensor) -> Tensor:
        """CACC's last step: shift with rounding half away, saturation to 32 bits; float64."""
        results, truncate = sums.double(), self.layers[conv.name].truncate
        if truncate:
            results = round_half_away(results * 2.0**-truncate)
        return results.clamp(-_INT32, _INT32 - 1)

    def convert(self, conv: Conv, results: Tensor, kernel: Tensor) -> Tensor:
        """SDP on delivered results of any shape; ``kernel`` is each one's kernel."""
        layer = self.layers[conv.name]
        biased = results.double() + layer.bias[kernel]
        return layer.converter(biased.clamp_(-_INT32, _INT32 - 1), kernel)

    def finish(self, conv: Conv, sums: Tensor, kernel: Tensor) -> Tensor:
        """CACC's last step and the SDP on integer sums of any shape and integer type."""
        return self.convert(conv, self.deliver(conv, sums), kernel)

    def restrict(self, node: Node, stored: Tensor, channel: Tensor | None = None) -> Tensor:
        """The results themselves: the converter, which comes before them, holds the bound."""
        del node, channel
        return stored

    def run(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """One node on stored inputs ``(N, ...)``."""
        x = inputs[0]
        match node:
            case Conv():
                return self._convolve(node, x, padded=False).reshape(-1, *node.shape)
            case Add():
                return add(self.adds[node.name], x, inputs[1])
            case Scale() | Activation():
                converter, bias = self.affines[node.name]
                channel = torch.arange(len(bias), device=x.device).view(-1, *(1,) * (x.ndim - 2))
                return converter(x.double() + bias[channel], channel)
            case Pool() if node.kind == "avg" and (node.count_padding or not any(node.padding)):
                return _average(node, x)
            case Pool() | Flatten() | PadChannels() | Concat():
                return compute(node, [value.float() for value in inputs]).round_().to(torch.int8)
            case _:
                names = zip(node.inputs, inputs, strict=True)
                real = compute(node, [self.decode(name, value) for name, value in names])
                return self._quantise(node.name, real)

    def run_window(self, conv: Conv, padded: Tensor) -> Tensor:
        """A convolution on any part of its input with the padding written out.

        Args:
            conv: the layer.
            padded: int8 ``(n, C, h, w)``, at least the kernel's size; fastest with channels last.

        Returns:
            int8 ``(n, K, h', w')``, the values :meth:`run` gives there.
        """
        return self._convolve(conv, padded, padded=True)

    def _convolve(self, conv: Conv, x: Tensor, *, padded: bool) -> Tensor:
        layer = self.layers[conv.name]
        if not layer.truncate:
            return layer.fused(x, padded=padded)
        kernel = torch.arange(conv.conv.K, device=x.device).view(-1, 1, 1)
        sums = layer.sums(x, padded=padded)
        return in_blocks(lambda part: self.finish(conv, part, kernel), sums)

    def _quantise(self, name: str, real: Tensor) -> Tensor:
        return torch.round(real / self.scales[name]).clamp_(LOW, HIGH).to(torch.int8)


def _layer(conv: Conv, scale_in: float, scale_out: float) -> Int8Layer:
    peak = conv.weight.double().flatten(1).abs().amax(1)
    top = float(peak.max()) or 1.0
    scale = peak.clamp_min(top / _KERNEL_SPREAD) / HIGH
    weight = torch.round(conv.weight.double() / scale.view(-1, 1, 1, 1)).to(torch.int8)
    bias = _operand(conv.bias.double() / (scale * scale_in))
    if float(bias.abs().max()) >= _BIAS_MAX:
        raise ConfigError(
            f"Layer '{conv.name}': the bias {float(conv.bias.abs().max()):.4g} does not fit 32 "
            f"bits at the input scale {scale_in:.4g}. Recalibrate on images like the data."
        )
    converter = Converter.fit(
        scale * scale_in / scale_out, scale=scale_out, clip=_clip(conv), layer=conv.name
    )
    return Int8Layer(conv.conv, weight, bias.long(), converter)


def _clip(node: Conv | Add | Scale | Activation) -> Clip | None:
    """The clamp and the range restriction together; those of single channels as one."""
    bound = node.bound
    if bound is None:
        return node.clip
    low, high = node.clip or (-math.inf, math.inf)
    return max(low, float(bound.low.min())), min(high, float(bound.high.max()))


def _operand(values: Tensor) -> Tensor:
    """Nearest values the SDP's ALU can add: a 16-bit operand each, one left shift for all."""
    excess = float(values.abs().max()) / OPERAND_MAX
    unit = 2.0 ** max(0, math.ceil(math.log2(excess))) if excess > 0 else 1.0
    return torch.round(values / unit) * unit


def _affine(
    node: Scale | Activation, scale_in: float, scale_out: float
) -> tuple[Converter, Tensor]:
    """``w * x + b`` as ``(x + b / w) * w``: the SDP adds before it multiplies."""
    if isinstance(node, Scale):
        weight = node.weight.double()
        safe = torch.where(weight.abs() < 1e-12, torch.full_like(weight, 1e-12), weight)
        bias = _operand(node.bias.double() / (safe * scale_in)).clamp(-_INT32, _INT32 - 1)
    else:
        safe, bias = torch.ones(node.shape[0]).double(), torch.zeros(node.shape[0]).double()
    factors = safe * scale_in / scale_out
    converter = Converter.fit(factors, scale=scale_out, clip=_clip(node), layer=node.name)
    return converter, bias


def _average(node: Pool, x: Tensor) -> Tensor:
    """PDP average: the sum times two 17-bit reciprocals, rounded after each (cal2d.v)."""
    sums = F.avg_pool2d(
        x.float(), node.kernel, node.stride, node.padding, ceil_mode=node.ceil, divisor_override=1
    ).double()
    for size in reversed(node.kernel):
        reciprocal = round(2**_RECIPROCAL_BITS / size)
        sums = round_half_away(sums * reciprocal * 2.0**-_RECIPROCAL_BITS)
    return sums.clamp_(LOW, HIGH).to(torch.int8)


def scale_groups(network: Network) -> dict[str, str]:
    """For every node the first node of the set that must share one scale.

    Pooling and views cannot rescale, and the inputs of a concatenation are one tensor in memory.
    """
    root = {node.name: node.name for node in network.nodes}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    order = {node.name: index for index, node in enumerate(network.nodes)}
    for node in network.nodes:
        if isinstance(node, VIEWS) and not isinstance(node, Input):
            for source in node.inputs:
                first, second = sorted((find(source), find(node.name)), key=order.__getitem__)
                root[second] = first
    return {name: find(name) for name in root}
