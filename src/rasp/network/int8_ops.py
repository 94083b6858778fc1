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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rasp.nvdla.shapes import ConvShape

LOW, HIGH = -128, 127
_OPERAND_MAX = 2**15 - 1  # the SDP's multiplier operand, 16 bits signed
_SHIFT_MAX = 63  # its 6-bit right shift
_INT32 = 2**31
_BIAS_MAX = 2**30  # golden sums stay below 2**30 too, so that only a fault can saturate
_BLOCK = 1 << 15  # elements converted at a time, few enough that torch starts no threads
_KERNEL_SPREAD = 256.0  # the smallest weight scale of a layer is at least its largest over this
_RECIPROCAL_BITS = 16  # of the PDP's average
_AWAY = 1 + 2.0**-50  # see round_half_away
VIEWS = (Pool, Flatten, PadChannels, Concat)
"""Nodes whose output keeps the scale of their input."""


@dataclass(frozen=True, slots=True)
class Converter:
    """Integer rescaling ``round(v * multiplier / 2**shift)``, half away from zero.

    Attributes:
        multiplier: ``(channels,)`` int64 in [-32767, 32767].
        shift: 0 to 63.
        low, high: clamp after it, within int8.
    """

    multiplier: Tensor
    shift: int
    low: int
    high: int

    @classmethod
    def fit(cls, factors: Tensor, *, scale: float, clip: Clip | None, layer: str) -> Converter:
        """The converter nearest to multiplying by ``factors`` that the SDP's fields can hold.

        Raises:
            ConfigError: no shift makes the factors fit; names the layer and the value.
        """
        largest = float(factors.abs().max())
        if not 0 < largest < _OPERAND_MAX:
            raise ConfigError(
                f"Layer '{layer}' needs a rescaling by {largest:.4g}, the output converter holds "
                f"more than 0 and less than {_OPERAND_MAX}. Recalibrate on images like the data."
            )
        shift = min(_SHIFT_MAX, math.floor(math.log2(_OPERAND_MAX / largest)))
        multiplier = torch.round(factors.double() * 2.0**shift).long()
        return cls(multiplier, shift, *_bounds(clip, scale))

    def __call__(self, v: Tensor, channel: Tensor) -> Tensor:
        """Integers below 2**31, held in float64, to int8; they are overwritten.

        ``channel`` picks each value's multiplier, broadcastable to ``v``.
        """
        factor = self.multiplier.double() * (2.0**-self.shift * _AWAY)
        return v.mul_(factor[channel]).round_().clamp_(self.low, self.high).to(torch.int8)


def round_half_away(v: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from zero, as NVDLA's converters do.

    Args:
        v: float64 multiples of 2**-s below 2**(46 - s) for some s, which products of an int32
            and a 15-bit multiplier are. Stretched by a factor of 1 + 2**-50, halves pass the
            middle and nothing else does.

    Example:
        >>> round_half_away(torch.tensor([0.5, -1.5, 2.25], dtype=torch.float64)).tolist()
        [1.0, -2.0, 2.0]
    """
    return torch.round(v * _AWAY)


def _bounds(clip: Clip | None, scale: float) -> tuple[int, int]:
    low, high = clip or (-math.inf, math.inf)
    return (
        max(LOW, min(HIGH, round(low / scale) if math.isfinite(low) else LOW)),
        max(LOW, min(HIGH, round(high / scale) if math.isfinite(high) else HIGH)),
    )


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
    """

    shape: ConvShape
    weight: Tensor
    bias: Tensor
    converter: Converter
    truncate: int = 0
    sums: ExactConv = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", ExactConv(self.shape, self.weight))


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
                adds[node.name] = Converter.fit(ratios, scale=out, clip=node.clip, layer=node.name)
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
        scaled = sums.double() * 2.0 ** -self.layers[conv.name].truncate
        return round_half_away(scaled).clamp_(-_INT32, _INT32 - 1)

    def convert(self, conv: Conv, results: Tensor, kernel: Tensor) -> Tensor:
        """SDP on delivered results of any shape; ``kernel`` is each one's kernel."""
        layer = self.layers[conv.name]
        biased = results.double() + layer.bias[kernel]
        return layer.converter(biased.clamp_(-_INT32, _INT32 - 1), kernel)

    def finish(self, conv: Conv, sums: Tensor, kernel: Tensor) -> Tensor:
        """CACC's last step and the SDP on integer sums of any shape and integer type."""
        return self.convert(conv, self.deliver(conv, sums), kernel)

    def run(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """One node on stored inputs ``(N, ...)``."""
        x = inputs[0]
        match node:
            case Conv():
                return self._finished(node, self.layers[node.name].sums(x)).reshape(-1, *node.shape)
            case Add():
                return _blocks(lambda a, b: _add(self.adds[node.name], a, b), x, inputs[1])
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
        """A convolution on a part of its input with the padding written out."""
        return self._finished(conv, self.layers[conv.name].sums(padded, padded=True))

    def _finished(self, conv: Conv, sums: Tensor) -> Tensor:
        layer = self.layers[conv.name]
        kernel = torch.arange(conv.conv.K, device=sums.device).view(-1, 1, 1)
        bias = layer.bias[kernel].double()
        whole = layer.truncate == 0  # golden sums never reach 32 bits
        return _blocks(
            lambda part: layer.converter(
                (part.double() if whole else self.deliver(conv, part)).add_(bias), kernel
            ),
            sums,
        )

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
        scale * scale_in / scale_out, scale=scale_out, clip=conv.clip, layer=conv.name
    )
    return Int8Layer(conv.conv, weight, bias.long(), converter)


def _add(converter: Converter, a: Tensor, b: Tensor) -> Tensor:
    left, right = converter.multiplier.tolist()
    unit = replace(converter, multiplier=torch.ones(1, dtype=torch.int64, device=a.device))
    return unit(
        a.double().mul_(left).add_(b.double(), alpha=right), torch.zeros_like(unit.multiplier)
    )


def _blocks(convert: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Convert whole tensors a few images at a time, so that float64 stays in the CPU's cache."""
    first = tensors[0]
    rows = max(1, _BLOCK // max(1, first[0].numel())) if first.device.type == "cpu" else len(first)
    result = torch.empty_like(first, dtype=torch.int8)
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        result[part] = convert(*(tensor[part] for tensor in tensors))
    return result


def _operand(values: Tensor) -> Tensor:
    """Nearest values the SDP's ALU can add: a 16-bit operand each, one left shift for all."""
    excess = float(values.abs().max()) / _OPERAND_MAX
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
    converter = Converter.fit(factors, scale=scale_out, clip=node.clip, layer=node.name)
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
