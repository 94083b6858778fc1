"""Exact integer convolutions at the speed of the machine.

On CPUs whose oneDNN sums uint8 x int8 products in 32 bits (VNNI), that kernel is used; elsewhere,
and on GPUs, fp32 convolutions over slices of channels whose sums provably stay below 2**24, where
fp32 holds every integer. Both give the same integers.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rasp.errors import UnsupportedModelError
from rasp.nvdla.shapes import ConvShape

_EXACT = 2**24
_OFFSET = 128  # int8 as uint8
_LEAST_CHANNELS = 4  # with one channel a group, oneDNN's byte kernel was seen to give wrong sums


class ExactConv:
    """Sums of products of one layer, bias left out.

    Args:
        shape: the layer.
        weight: int8 ``(K, C / groups, R, S)``.

    Raises:
        UnsupportedModelError: one channel of a kernel alone can sum beyond 2**24.

    Example:
        >>> shape = ConvShape("fc", C=2, H=1, W=1, K=1, R=1, S=1)
        >>> conv = ExactConv(shape, torch.tensor([3, -2], dtype=torch.int8).view(1, 2, 1, 1))
        >>> conv(torch.tensor([[5, -128]], dtype=torch.int8).view(1, 2, 1, 1)).item()
        271.0
    """

    def __init__(self, shape: ConvShape, weight: Tensor) -> None:
        self._shape = shape
        self._weight = weight
        self._slices = _exact_slices(shape.name, weight)
        self._packed: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Exact integers ``(N, K, Ho, Wo)``, in fp32 where they stay below 2**24, else int32.

        Args:
            x: int8 ``(N, C, H, W)`` or ``(N, C)``.
        """
        shape = self._shape
        x = x.reshape(-1, shape.C, shape.H, shape.W)
        whole = len(self._slices) == 1 or shape.groups > 1
        inputs = [x] if whole else [x[:, a:b] for a, b in self._slices]
        wide = shape.C // shape.groups >= _LEAST_CHANNELS
        by_bytes = wide and x.device.type == "cpu" and _sums_bytes_exactly()
        parts = self._bytes(inputs) if by_bytes else self._floats(inputs)
        return parts[0] if whole else sum((part.int() for part in parts[1:]), parts[0].int())

    def _weights(self) -> list[Tensor]:
        if self._shape.groups > 1:
            return [self._weight]
        return [self._weight[:, a:b] for a, b in self._slices]

    def _floats(self, inputs: list[Tensor]) -> list[Tensor]:
        stride, padding, dilation, groups = _geometry(self._shape)
        return [
            F.conv2d(x.float(), w.float(), None, stride, padding, dilation, groups)
            for x, w in zip(inputs, self._weights(), strict=True)
        ]

    def _bytes(self, inputs: list[Tensor]) -> list[Tensor]:
        if not self._packed:
            self._packed = [_pack(weight, self._shape) for weight in self._weights()]
        return [
            _byte_conv(x, packed, weight, self._shape)
            for x, packed, weight in zip(inputs, self._packed, self._weights(), strict=True)
        ]


def _exact_slices(name: str, weight: Tensor) -> tuple[tuple[int, int], ...]:
    """Channel ranges with ``sum |w| * 255 < 2**24`` for every kernel, so also as bytes."""
    reach = weight.long().abs().sum(dim=(2, 3)) * 255
    slices, start = [], 0
    while start < reach.shape[1]:
        within = (reach[:, start:].cumsum(1).amax(0) < _EXACT).long()
        count = int(within.cumprod(0).sum())
        if not count:
            raise UnsupportedModelError(
                f"Layer '{name}': a single input channel of a {tuple(weight.shape[2:])} kernel can "
                f"sum beyond 2**24; kernels this large are not supported in INT8."
            )
        slices.append((start, start + count))
        start += count
    return tuple(slices)


def _geometry(shape: ConvShape) -> tuple[list[int], list[int], list[int], int]:
    return list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups


def _pack(weight: Tensor, shape: ConvShape) -> Tensor:
    stride, _, dilation, groups = _geometry(shape)
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight.contiguous(), torch.ones(len(weight)), 1.0, 0, stride, [0, 0], dilation, groups
    )
    return packed


def _byte_conv(x: Tensor, packed: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """uint8 x int8 with 32-bit sums, given out in fp32.

    Padding is written out, and activations with a sign are shifted by 128 and the shift taken off
    the sums again: oneDNN's own padding and zero points were seen to give wrong sums, or to read
    out of bounds, where a window lies in the padding alone.
    """
    stride, (rows, columns), dilation, groups = _geometry(shape)
    shift = _OFFSET if int(x.amin()) < 0 else 0
    x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
    x = x.contiguous(memory_format=torch.channels_last).view(torch.uint8)
    x = x.bitwise_xor(shift) if shift else x
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
    if shift:
        sums -= shift * weight.flatten(1).sum(1, dtype=torch.float32).view(-1, 1, 1)
    return sums


@cache
def _sums_bytes_exactly() -> bool:
    """Whether this machine's byte kernel never saturates a partial sum.

    Instruction sets before VNNI add pairs of products in 16 bits; the largest operands show it.
    """
    shape = ConvShape("probe", C=64, H=5, W=5, K=32, R=3, S=3, padding=(1, 1))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 1, (32, 64, 3, 3), generator=generator).mul(255).add(127)
    weight = weight.clamp(-128, 127).to(torch.int8)
    x = torch.randint(-1, 1, (2, 64, 5, 5), generator=generator).mul(255).add(127).to(torch.int8)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    try:
        got = _byte_conv(x, _pack(weight, shape), weight, shape)
    except (AttributeError, NotImplementedError, RuntimeError):  # torch built without the kernel
        return False
    return torch.equal(got.double(), expected)
