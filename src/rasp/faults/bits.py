"""Single-bit flips of stored values, in the bits of the format."""

from __future__ import annotations

import torch
from torch import Tensor

_AS_INTEGER = {torch.float32: torch.int32, torch.float16: torch.int16, torch.int8: torch.int8}


def flip(values: Tensor, bit: Tensor) -> Tensor:
    """Invert one bit of each value.

    Args:
        values: float32, float16 or int8 of any shape.
        bit: int64 bit number of each value, 0 the least significant, broadcastable to it.

    Returns:
        New values of the same type; NaN and infinities come out as the bits say.

    Example:
        >>> flip(torch.tensor([1.0]), torch.tensor([30])).item()
        inf
        >>> flip(torch.tensor([3], dtype=torch.int8), torch.tensor([7])).item()
        -125
    """
    integer = _AS_INTEGER[values.dtype]
    mask = torch.ones_like(bit) << bit
    return (values.contiguous().view(integer).long() ^ mask).to(integer).view(values.dtype)


def pattern(values: Tensor, like: Tensor) -> Tensor:
    """The low bits of int64 ``values`` read as the type of ``like``.

    Example:
        >>> pattern(torch.tensor([0x3F800000]), torch.zeros(1)).item()
        1.0
    """
    integer = _AS_INTEGER[like.dtype]
    return values.to(integer).view(like.dtype)
