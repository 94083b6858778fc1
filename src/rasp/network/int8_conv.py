"""Exact integer convolutions at the speed of the machine.

On CPUs whose oneDNN sums uint8 x int8 products in 32 bits (VNNI), that kernel is used; elsewhere,
and on GPUs, fp32 where all sums provably stay below 2**24, up to which it holds every integer, and
float64 beyond. All give the same integers.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from rasp.network.onednn import two_channels
from rasp.nvdla.shapes import ConvShape

_EXACT = 2**24  # fp32 holds every integer up to it
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
        self.shape = shape
        self.weight = weight
        wide = weight.long().flatten(1)
        self.reach = int(wide.abs().sum(1).amax())
        """Greatest sum of one kernel's absolute weights."""
        # bytes are never negative: the weights of one sign bound their sum
        self._side = int(torch.stack([wide.clamp_min(0), -wide.clamp_max(0)]).sum(2).amax())

    def __getstate__(self) -> dict[str, object]:
        """Without the packed weights, whose layout is this machine's."""
        packed = ("bytes", "padding_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in packed}

    def __call__(self, x: Tensor, *, padded: bool = False) -> Tensor:
        """Exact integers ``(N, K, Ho, Wo)``, in fp32 where they stay below 2**24, else float64.

        Args:
            x: int8 ``(N, C, H, W)`` or ``(N, C)``.
            padded: the padding is written out, and ``x`` may be any part of the map.
        """
        return self.sums(*self.choose(x, padded=padded))

    def choose(self, x: Tensor, *, padded: bool) -> tuple[Tensor, ByteConv | None]:
        """The input with the padding that is the caller's, and the byte kernel, if one is used."""
        here = x.device.type == "cpu" and len(x) > 0
        if not padded:
            x = x.reshape(-1, self.shape.C, self.shape.H, self.shape.W)
            if here and self.padding_bytes is not None and int(x.amin()) >= 0:
                return x, self.padding_bytes
            x = pad(x, self.shape.padding)
        return x, self.bytes if here else None

    def sums(self, x: Tensor, kernel: ByteConv | None) -> Tensor:
        """What a call gives, for what :meth:`choose` chose."""
        if kernel is not None:
            data = kernel.encode(x)
            if self._side * (255 if data.shifted else 127) < _EXACT:
                sums = kernel(data.values)
                return sums.sub_(kernel.correction) if data.shifted else sums
            x = pad(x, kernel.padding)
        return self._floats(x)

    @cached_property
    def bytes(self) -> ByteConv | None:
        """The byte kernel, ``None`` where it cannot do this layer."""
        shape = self.shape
        wide = shape.groups == 1 or shape.C // shape.groups >= _LEAST_CHANNELS
        if wide and self.reach * 255 < _INT32 and _sums_bytes_exactly():
            return ByteConv(shape, self.weight)
        return None

    @cached_property
    def padding_bytes(self) -> ByteConv | None:
        """The byte kernel that pads inputs without a sign itself, which saves what padding adds.

        ``None`` where a window might lie in the padding alone: the middle of every one must not.
        """
        shape, (rows, columns) = self.shape, self.shape.padding
        centred = 2 * rows < shape.R and 2 * columns < shape.S and shape.dilation == (1, 1)
        if self.bytes is None or not (rows or columns) or not centred:
            return None
        return ByteConv(shape, self.weight, shape.padding)

    def at(self, x: Tensor, places: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Single sums, int64 ``(M,)``, of maps that need no padding.

        Args:
            x: int8 or uint8 ``(n, C, h, w)``.
            places: image, row, column and kernel of each, int64 ``(M,)``.
        """
        shape = self.shape
        image, row, column, kernel = places
        windows = x.view(len(x), shape.groups, -1, *x.shape[2:])
        for axis, size in enumerate((shape.R, shape.S)):
            span = shape.dilation[axis] * (size - 1) + 1
            windows = windows.unfold(3 + axis, span, shape.stride[axis])
        windows = windows[..., :: shape.dilation[0], :: shape.dilation[1]]
        group = kernel // (shape.K // shape.groups)
        inputs: Tensor = windows[image, group, :, row, column]
        return (inputs.int() * self.weight[kernel].int()).flatten(1).sum(1)

    def _floats(self, x: Tensor) -> Tensor:
        shape = self.shape
        exact = torch.float32 if self.reach * _OFFSET < _EXACT else torch.float64
        values, weight = two_channels(shape, x.to(exact), self.weight.to(exact))
        with cudnn.flags(enabled=False) if x.is_cuda else nullcontext():  # Winograd's sums round
            return F.conv2d(values, weight, None, shape.stride, 0, shape.dilation, shape.groups)


def pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Maps ``(N, C, H, W)`` with rows and columns of zeros written out on each side."""
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows)) if rows or columns else x


class Bytes(NamedTuple):
    """Activations as the byte kernel takes them.

    Attributes:
        values: uint8 ``(n, C, h, w)`` with channels last.
        shifted: whether 128 was added to all, because one was negative.
    """

    values: Tensor
    shifted: bool


class ByteConv:
    """oneDNN's uint8 x int8 kernel with 32-bit sums, used around its faults.

    Activations with a sign are shifted by 128, which the caller takes off the results, and must
    have their padding written out: oneDNN's zero points, and its padding where a window lies in the
    padding alone, were seen to give wrong sums or to read out of bounds. Fewer than four channels
    become four.

    Args:
        shape: the layer.
        weight: int8 ``(K, C / groups, R, S)``.
        padding: rows and columns that the kernel adds on each side.
    """

    def __init__(self, shape: ConvShape, weight: Tensor, padding: tuple[int, int] = (0, 0)) -> None:
        self.padding = padding
        self._missing = max(0, _LEAST_CHANNELS - shape.C) if shape.groups == 1 else 0
        self._geometry = list(shape.stride), list(padding), list(shape.dilation), shape.groups
        self._ones = torch.ones(shape.K)
        self._zeros = torch.zeros(shape.K, dtype=torch.int32)
        self._packed: Tensor = torch.ops.onednn.qconv_prepack(
            self._widened(weight).contiguous(), self._ones, 1.0, 0, *self._geometry
        )
        self.correction = weight.flatten(1).sum(1).mul(_OFFSET).float().view(-1, 1, 1)
        """What a shift of the activations adds to the sums, ``(K, 1, 1)``."""

    def encode(self, x: Tensor) -> Bytes:
        """int8 maps ``(n, C, h, w)`` as bytes."""
        x = self._widened(x).contiguous(memory_format=torch.channels_last)
        shifted = int(x.amin()) < 0
        values = x.view(torch.uint8)
        return Bytes(values.bitwise_xor(_OFFSET) if shifted else values, shifted)

    def __call__(
        self,
        values: Tensor,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
        clip: tuple[float, float] | None = None,
    ) -> Tensor:
        """Sums, or ``clip(sums * scale + offset)``, in fp32 with channels last.

        Args:
            values: uint8 as :meth:`encode` gives them.
            scale: fp32 ``(K,)``.
            offset: fp32 ``(K,)``.
            clip: least and greatest result.
        """
        stride, padding, dilation, groups = self._geometry
        results: Tensor = torch.ops.onednn.qconv2d_pointwise(
            values,
            1.0,
            0,
            self._packed,
            self._ones if scale is None else scale,
            self._zeros,
            offset,
            stride,
            padding,
            dilation,
            groups,
            1.0,
            0,
            torch.float32,
            "none" if clip is None else "hardtanh",
            [] if clip is None else list(clip),
            "",
        )
        return results

    def _widened(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self._missing)) if self._missing else x


@cache
def _sums_bytes_exactly() -> bool:
    """Whether this machine's byte kernel never saturates a partial sum.

    Instruction sets before VNNI add pairs of products in 16 bits; the largest operands show it.
    """
    shape = ConvShape("probe", C=64, H=7, W=7, K=32, R=3, S=3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 1, (32, 64, 3, 3), generator=generator).mul(255).add(127)
    weight = weight.clamp(-128, 127).to(torch.int8)
    x = torch.randint(0, 2, (2, 64, 7, 7), generator=generator).mul(255).to(torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), weight.double())
    scale, offset = torch.rand(2, 32, generator=generator).div(2**10)
    scaled = expected * scale.double().view(-1, 1, 1) + offset.double().view(-1, 1, 1)
    try:
        kernel = ByteConv(shape, weight)
        sums, clipped = kernel(x), kernel(x, scale, offset, (-99.5, 99.5))
    except (AttributeError, NotImplementedError):  # torch built without the kernel
        return False
    close = torch.allclose(clipped.double(), scaled.clamp(-99.5, 99.5), rtol=0, atol=2**-16)
    return torch.equal(sums.double(), expected) and close
