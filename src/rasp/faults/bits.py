"""Single-bit upsets of stored values and of sums, in the bits of the format."""

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


def drive(values: Tensor, bit: Tensor, edge: Tensor) -> Tensor:
    """Set (``edge`` 1), clear (-1) or invert (0) one bit of each value.

    Args:
        values: float32, float16 or int8 of any shape.
        bit: int64 bit number of each value.
        edge: int64 direction of each upset.

    Example:
        >>> drive(torch.tensor([3, 3, 3], dtype=torch.int8), torch.tensor([0, 0, 0]),
        ...       torch.tensor([1, -1, 0])).tolist()
        [3, 2, 2]
    """
    stored = values.contiguous().view(_AS_INTEGER[values.dtype]).long()
    high = (stored >> bit) & 1
    same = ((edge > 0) & (high == 1)) | ((edge < 0) & (high == 0))
    return torch.where(same, values, flip(values, bit))


def flip_sum(values: Tensor, bit: Tensor, width: int) -> Tensor:
    """Invert one bit of sums as a register of ``width`` bits holds them.

    Args:
        values: int64 read as two's complement of ``width`` bits, or float32 in its own 32.
        bit: int64 bit number of each value, below ``width``.
        width: bits of the register; not read in floating point.

    Example:
        >>> flip_sum(torch.tensor([5]), torch.tensor([18]), 19).item()
        -262139
    """
    if values.dtype != torch.int64:
        return flip(values, bit)
    low = (values ^ (torch.ones_like(bit) << bit)) & ((1 << width) - 1)
    return low - ((low >> (width - 1)) << width)


def pattern(values: Tensor, like: Tensor) -> Tensor:
    """The low bits of int64 ``values`` read as the type of ``like``.

    Example:
        >>> pattern(torch.tensor([0x3F800000]), torch.zeros(1)).item()
        1.0
    """
    integer = _AS_INTEGER[like.dtype]
    return values.to(integer).view(like.dtype)
