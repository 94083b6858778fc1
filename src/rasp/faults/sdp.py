"""What an upset of a value in the SDP makes of one output element.

A result passes a chain of registers, each with its own width: the bias is added in 33 bits, the sum
saturated to 32, ReLU, the converter's subtraction in 33 bits, its product in 49, the shift that
rounds and saturates to 17, and int8 (RTL: ``NV_NVDLA_SDP_HLS_X_int_{alu,trt,relu}.v``,
``NV_NVDLA_SDP_HLS_C_int.v``). As in the recorded layers the bias is added in BS, and BN and the
multiplier of BS are bypassed: the factor of each kernel is taken to stand in the converter. In fp16
and fp32 the same registers hold fp32 values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rasp.faults.bits import flip, flip_sum
from rasp.network.float_ops import clamp
from rasp.network.int8_converter import LOW
from rasp.network.int8_ops import Int8Arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rasp.faults.context import LayerContext
    from rasp.network.int8_ops import Int8Layer
    from rasp.nvdla.signals import Effect

EFFECTS: frozenset[Effect] = frozenset(
    (
        "result",
        "bias",
        "operand",
        "biased",
        "saturated",
        "rectified",
        "offset",
        "scaled",
        "shifted",
        "output",
    )
)
"""Effects of upsets in the SDP."""

_BIAS_BITS, _OPERAND_BITS = 16, 32


class _Register(NamedTuple):
    """A register in the chain: how its value follows from the one before, and its width."""

    effect: Effect
    width: int
    step: Callable[[Tensor], Tensor]


def convert_hit(
    context: LayerContext, effect: Effect, results: Tensor, kernel: Tensor, bit: Tensor
) -> Tensor:
    """The SDP on delivered results with one bit inverted on the way.

    Args:
        context: the layer.
        effect: register that is hit, one of :data:`EFFECTS`.
        results: ``(m,)`` int64, or float32 in floating point.
        kernel: ``(m,)`` kernel of each result.
        bit: ``(m,)`` bit of the register.

    Returns:
        ``(m,)`` stored outputs.
    """
    arithmetic = context.arithmetic
    if isinstance(arithmetic, Int8Arithmetic):
        chain = _integers(arithmetic.layers[context.conv.name], effect, kernel, bit)
    else:
        chain = _floats(context, effect, kernel, bit)
    value = results
    for register in chain:
        value = register.step(value)
        if register.effect == effect:
            value = flip_sum(value, bit, register.width)
    return value if value.is_floating_point() else value.to(torch.int8)


def _integers(layer: Int8Layer, effect: Effect, kernel: Tensor, bit: Tensor) -> Iterator[_Register]:
    converter, operand = layer.converter, layer.bias[kernel]
    if effect == "bias":
        unit = bias_unit(layer.bias)
        operand = flip_sum(operand // unit, bit, _BIAS_BITS) * unit
    elif effect == "operand":
        operand = flip_sum(operand, bit, _OPERAND_BITS)
    rectified = converter.low == 0
    low = LOW if rectified else converter.low
    yield _Register("result", 32, _same)
    yield _Register("biased", 33, lambda v: v + operand)
    yield _Register("saturated", 32, lambda v: _saturate(v, 32))
    yield _Register("rectified", 32, lambda v: v.clamp(min=0) if rectified else v)
    yield _Register("offset", 33, _same)
    yield _Register("scaled", 49, lambda v: v * converter.multiplier[kernel])
    yield _Register("shifted", 17, lambda v: _saturate(_shift(v, converter.shift), 17))
    yield _Register("output", 8, lambda v: v.clamp(low, converter.high))


def _floats(
    context: LayerContext, effect: Effect, kernel: Tensor, bit: Tensor
) -> Iterator[_Register]:
    arithmetic, conv = context.arithmetic, context.conv
    stored = arithmetic.encode(conv.bias)[kernel]
    operand = (flip(stored, bit) if effect == "bias" else stored).float()
    if effect == "operand":
        operand = flip(operand, bit)
    yield _Register("result", 32, _same)
    yield _Register("biased", 32, lambda v: v + operand)
    yield _Register("saturated", 32, _same)
    yield _Register("rectified", 32, lambda v: clamp(v, conv.clip))
    for last in ("offset", "scaled", "shifted"):
        yield _Register(last, 32, _same)
    yield _Register("output", arithmetic.bits, arithmetic.encode)


def bias_unit(bias: Tensor) -> int:
    """Power of two that the 16-bit operands of a layer's biases are shifted by.

    Example:
        >>> bias_unit(torch.tensor([-4096, 12])), bias_unit(torch.tensor([65536, 4]))
        (1, 4)
    """
    unit, largest = 1, int(bias.abs().max())
    while largest > unit * (2 ** (_BIAS_BITS - 1) - 1):
        unit *= 2
    return unit


def _same(values: Tensor) -> Tensor:
    return values


def _saturate(values: Tensor, width: int) -> Tensor:
    return values.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1)


def _shift(values: Tensor, shift: int) -> Tensor:
    """Shift right, halves away from zero."""
    half = (1 << shift) >> 1
    return values.sign() * ((values.abs() + half) >> shift)
