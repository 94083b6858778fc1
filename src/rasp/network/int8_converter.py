"""The SDP's output converter: a 16-bit multiplier and a right shift, half away from zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rasp.network.graph import Clip

LOW, HIGH = -128, 127
OPERAND_MAX = 2**15 - 1
"""The SDP's operands are 16 bits signed."""

_SHIFT_MAX = 63  # its 6-bit right shift
_BLOCK = 1 << 15  # elements converted at a time, few enough that torch starts no threads
_AWAY = 1 + 2.0**-50  # see round_half_away


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
    _factor: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        factor = self.multiplier.double() * (2.0**-self.shift * _AWAY)
        object.__setattr__(self, "_factor", factor)

    @classmethod
    def fit(cls, factors: Tensor, *, scale: float, clip: Clip | None, layer: str) -> Converter:
        """The converter nearest to multiplying by ``factors`` that the SDP's fields can hold.

        Raises:
            ConfigError: no shift makes the factors fit; names the layer and the value.
        """
        largest = float(factors.abs().max())
        if not 0 < largest < OPERAND_MAX:
            raise ConfigError(
                f"Layer '{layer}' needs a rescaling by {largest:.4g}, the output converter holds "
                f"more than 0 and less than {OPERAND_MAX}. Recalibrate on images like the data."
            )
        shift = min(_SHIFT_MAX, math.floor(math.log2(OPERAND_MAX / largest)))
        multiplier = torch.round(factors.double() * 2.0**shift).long()
        return cls(multiplier, shift, *_bounds(clip, scale))

    def __call__(self, v: Tensor, channel: Tensor) -> Tensor:
        """Integers below 2**31, held in float64, to int8; they are overwritten.

        ``channel`` picks each value's multiplier, broadcastable to ``v``.
        """
        return v.mul_(self._factor[channel]).round_().clamp_(self.low, self.high).to(torch.int8)


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


def add(converter: Converter, a: Tensor, b: Tensor) -> Tensor:
    """Element-wise sum of int8 tensors; the converter's two channels are their multipliers.

    fp32 holds all of it exactly: a sum is a multiple of ``2**-shift`` below ``2**(23 - shift)``,
    and adding a half and cutting off what follows the point rounds halves away from zero.
    """
    left, right = (converter.multiplier.double() * 2.0**-converter.shift).tolist()
    low, high = converter.low, converter.high

    half = torch.tensor(0.5, device=a.device)
    start = half if low >= 0 else torch.zeros_like(half)

    def block(a: Tensor, b: Tensor) -> Tensor:
        v = torch.add(start, a, alpha=left).add_(b, alpha=right)
        return (v if low >= 0 else v.add_(torch.copysign(half, v))).clamp_(low, high)

    return in_blocks(block, a, b)


def in_blocks(convert: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Whole tensors to int8, a few images at a time so that they stay in the CPU's cache."""
    first = tensors[0]
    rows = max(1, _BLOCK // max(1, first[0].numel())) if first.device.type == "cpu" else len(first)
    if rows >= len(first):
        return convert(*tensors).to(torch.int8)
    result = torch.empty_like(first, dtype=torch.int8)
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        result[part] = convert(*(tensor[part] for tensor in tensors))
    return result


def _bounds(clip: Clip | None, scale: float) -> tuple[int, int]:
    low, high = clip or (-math.inf, math.inf)
    return (
        max(LOW, min(HIGH, round(low / scale) if math.isfinite(low) else LOW)),
        max(LOW, min(HIGH, round(high / scale) if math.isfinite(high) else HIGH)),
    )
