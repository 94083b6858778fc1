"""Exact integer convolutions at the speed of the machine.

On CPUs whose oneDNN sums uint8 x int8 products in 32 bits (VNNI), that kernel is used; elsewhere,
and on GPUs, fp32 where all sums provably stay below 2**24, up to which it holds every integer, and
float64 beyond. All give the same integers.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from rasp.nvdla.shapes import ConvShape

_EXACT = 2**24
_INT32 = 2**31
_OFFSET = 128  # int8 as uint8
_LEAST_CHANNELS = 4  # with one channel a group, oneDNN's byte kernel was seen to give wrong sums


class ExactConv:
    """Sums of products of one layer, bias left out.

    Args:
        shape: the layer.
        weight: int8 ``(K, C / groups, R, S)``.

    Example:
        >>> shape = ConvShape("fc", C=2, H=1, W=1, K=1, R=1, S=1)
        >>> conv = ExactConv(shape, torch.tensor([3, -2], dtype=torch.int8).view(1, 2, 1, 1))
        >>> conv(torch.tensor([[5, -128]], dtype=torch.int8).view(1, 2, 1, 1)).item()
        271.0
    """

    def __init__(self, shape: ConvShape, weight: Tensor) -> None:
        self._shape = shape
        self._weight = weight
        self._reach = int(weight.long().abs().flatten(1).sum(1).amax())
        self._packed: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        """Without the packed weight, whose layout is this machine's."""
        return self.__dict__ | {"_packed": None}

    def __call__(self, x: Tensor, *, padded: bool = False) -> Tensor:
        """Exact integers ``(N, K, Ho, Wo)``, in fp32 where they stay below 2**24, else float64.

        Args:
            x: int8 ``(N, C, H, W)`` or ``(N, C)``.
            padded: the padding is written out, and ``x`` may be any part of the map.
        """
        shape = self._shape
        rows, columns = shape.padding
        x = x if padded else x.reshape(-1, shape.C, shape.H, shape.W)
        if not padded and (rows or columns):
            x = F.pad(x, (columns, columns, rows, rows))
        wide = shape.C // shape.groups >= _LEAST_CHANNELS and self._reach * 255 < _INT32
        if wide and x.device.type == "cpu" and _sums_bytes_exactly():
            sums = self._bytes(x)
            if sums is not None:
                return sums
        return self._floats(x)

    def _floats(self, x: Tensor) -> Tensor:
        stride, dilation, groups = _geometry(self._shape)
        exact = torch.float32 if self._reach * _OFFSET < _EXACT else torch.float64
        weight = self._weight.to(exact)
        with cudnn.flags(enabled=False) if x.is_cuda else nullcontext():  # Winograd's sums round
            return F.conv2d(x.to(exact), weight, None, stride, 0, dilation, groups)

    def _bytes(self, x: Tensor) -> Tensor | None:
        """Sums by the byte kernel, ``None`` if one of them is too large for its fp32 result.

        Padding is written out, and activations with a sign are shifted by 128 and the shift taken
        off the sums again: oneDNN's own padding and zero points were seen to give wrong sums, or to
        read out of bounds, where a window lies in the padding alone.
        """
        if self._packed is None:
            self._packed = _pack(self._weight, self._shape)
        shift = _OFFSET if int(x.amin()) < 0 else 0
        x = x.contiguous(memory_format=torch.channels_last).view(torch.uint8)
        sums = _byte_conv(x.bitwise_xor(shift) if shift else x, self._packed, self._shape)
        proven = self._reach * 255 < _EXACT
        if not proven and float(sums.abs().amax()) >= _EXACT:
            return None
        if shift:
            sums -= shift * self._weight.flatten(1).sum(1, dtype=torch.float32).view(-1, 1, 1)
            if not proven and float(sums.abs().amax()) >= _EXACT:
                return None
        return sums


def _geometry(shape: ConvShape) -> tuple[list[int], list[int], int]:
    return list(shape.stride), list(shape.dilation), shape.groups


def _pack(weight: Tensor, shape: ConvShape) -> Tensor:
    stride, dilation, groups = _geometry(shape)
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight.contiguous(), torch.ones(len(weight)), 1.0, 0, stride, [0, 0], dilation, groups
    )
    return packed


def _byte_conv(x: Tensor, packed: Tensor, shape: ConvShape) -> Tensor:
    """uint8 x int8 without padding, sums in 32 bits, given out in fp32."""
    stride, dilation, groups = _geometry(shape)
    sums: Tensor = torch.ops.onednn.qconv2d_pointwise(
        x,
        1.0,
        0,
        packed,
        torch.ones(shape.K),
        torch.zeros(shape.K, dtype=torch.int32),
        None,
        stride,
        [0, 0],
        dilation,
        groups,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return sums


@cache
def _sums_bytes_exactly() -> bool:
    """Whether this machine's byte kernel never saturates a partial sum.

    Instruction sets before VNNI add pairs of products in 16 bits; the largest operands show it.
    """
    shape = ConvShape("probe", C=64, H=5, W=5, K=32, R=3, S=3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 1, (32, 64, 3, 3), generator=generator).mul(255).add(127)
    weight = weight.clamp(-128, 127).to(torch.int8)
    x = torch.randint(-1, 1, (2, 64, 5, 5), generator=generator).mul(255).add(127).to(torch.int8)
    expected = F.conv2d(x.double(), weight.double())
    try:
        got = ExactConv(shape, weight)._bytes(x)  # noqa: SLF001
    except (AttributeError, NotImplementedError, RuntimeError):  # torch built without the kernel
        return False
    return got is not None and torch.equal(got.double(), expected)
