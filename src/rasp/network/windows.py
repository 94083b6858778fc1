"""Windows of feature maps: how far a change of a few pixels reaches through a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rasp.network.graph import Activation, Add, Concat, Conv, Node, PadChannels, Pool, Scale
from rasp.network.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.network.graph import Arithmetic
    from rasp.nvdla.shapes import ConvShape

_BLOCK = 16
_POINTWISE = (Add, Scale, Activation, Concat, PadChannels)
_WHOLE = 0.6  # share of a map from which on it is not worth cutting out


class Window(NamedTuple):
    """A rectangle of pixels in the map of each of ``n`` trials, of one size for all.

    Attributes:
        top, left: ``(n,)`` int64 first row and column; outside the map where padding is read.
        height, width: its size.
    """

    top: Tensor
    left: Tensor
    height: int
    width: int

    @classmethod
    def whole(cls, size: tuple[int, int], image: Tensor) -> Window:
        """Whole maps of a size, one for each entry of ``image`` ``(n,)``."""
        return cls(torch.zeros_like(image), torch.zeros_like(image), *size)

    def rows(self) -> Tensor:
        """``(n, height)`` row numbers."""
        return self.top[:, None] + torch.arange(self.height, device=self.top.device)

    def columns(self) -> Tensor:
        """``(n, width)`` column numbers."""
        return self.left[:, None] + torch.arange(self.width, device=self.left.device)

    def equals(self, other: Window) -> bool:
        """Whether all windows are the same."""
        return (
            self[2:] == other[2:]
            and torch.equal(self.top, other.top)
            and torch.equal(self.left, other.left)
        )

    def pick(self, trials: Tensor) -> Window:
        """The windows of some of the trials."""
        return self._replace(top=self.top[trials], left=self.left[trials])


class Reach(NamedTuple):
    """How a node reads its input along rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def needs(self, out: Window) -> Window:
        """The part of the input that a window of the output reads."""
        (r, s), (down, right), (above, before), (dy, dx) = self
        return Window(
            out.top * down - above,
            out.left * right - before,
            (out.height - 1) * down + (r - 1) * dy + 1,
            (out.width - 1) * right + (s - 1) * dx + 1,
        )

    def touches(self, changed: Window, size: tuple[int, int]) -> Window:
        """The part of an output of ``size`` that a window of the input can change."""
        axes = zip(
            (changed.top, changed.left), (changed.height, changed.width), size, *self, strict=True
        )
        (top, height), (left, width) = (_touched(*axis) for axis in axes)
        return Window(top, left, height, width)


class Touched(NamedTuple):
    """A window of a node's output and the part of its inputs that it is computed from."""

    output: Window
    inputs: Window


def conv_reach(shape: ConvShape) -> Reach:
    """How a convolution reads its input."""
    return Reach((shape.R, shape.S), shape.stride, shape.padding, shape.dilation)


def reach(node: Node) -> Reach | None:
    """How a node reads its input; ``None`` if it has to see whole maps."""
    match node:
        case Conv(linear=False):
            return conv_reach(node.conv)
        case Pool(padding=(0, 0), ceil=False):
            return Reach(node.kernel, node.stride)
        case _ if isinstance(node, _POINTWISE) and len(node.shape) == 3:
            return Reach((1, 1))
        case _:
            return None


def touched(node: Node, changed: Sequence[Window]) -> Touched | None:
    """What the windows of a node's inputs can change in its output; ``None`` for most of it."""
    how = reach(node)
    if how is None:
        return None
    height, width = node.shape[1:]
    window = how.touches(_union(changed), (height, width))
    if window.height * window.width >= _WHOLE * height * width:
        return None
    return Touched(window, how.needs(window))


def area(conv: Conv, extent: Tensor) -> int:
    """Output pixels that are computed for changes of an ``extent`` (rows, columns)."""
    shape = conv.conv
    how = conv_reach(shape)
    zero = torch.zeros(1, dtype=torch.int64)
    height, width = extent.tolist()
    window = how.touches(Window(zero, zero, height, width), (shape.Ho, shape.Wo))
    pixels = window.height * window.width
    return pixels if pixels < _WHOLE * shape.pixels else shape.pixels


def _touched(
    first: Tensor,
    length: int,
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Tensor, int]:
    span = (kernel - 1) * dilation
    most = min(size, (length - 1 + span) // stride + 1)
    start = -((span - padding - first) // stride)
    return start.clamp(min=0).clamp(max=size - most), most


def _union(windows: Sequence[Window]) -> Window:
    if len(windows) == 1:
        return windows[0]
    top = torch.stack([w.top for w in windows]).amin(0)
    left = torch.stack([w.left for w in windows]).amin(0)
    bottom = torch.stack([w.top + w.height for w in windows]).amax(0)
    right = torch.stack([w.left + w.width for w in windows]).amax(0)
    height, width = torch.stack([bottom - top, right - left]).amax(1).tolist()
    return Window(top, left, height, width)


def filled(rows: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Rows repeated up to a multiple of 16 where the arithmetic is floating point.

    Libraries choose another order of summation for small or odd batches: measured with oneDNN on
    x86, linear layers round differently in batches of 2, 3 or 5, convolutions in a batch of 1, and
    neither in multiples of 16. Integers have no such difference.

    Args:
        rows: ``(n,)`` row numbers, n >= 1.
        arithmetic: what they will run in.
    """
    missing = -len(rows) % _BLOCK
    if arithmetic.format == "int8" or not missing:
        return rows
    return torch.cat([rows, rows[:1].expand(missing)])


def exact(arithmetic: Arithmetic, conv: Conv, height: int, width: int) -> bool:
    """Whether windows of a convolution's output have the bits of the whole map.

    Integers always do. Floating-point libraries may sum in another order for another size: oneDNN
    was seen to do so for single pixels, for one input channel, and where padding is not that of an
    odd kernel that keeps the map's size. It is tried on random maps, with batches in multiples of
    16 as everywhere.
    """
    if arithmetic.format == "int8":
        return True
    shape = conv.conv
    generator = torch.Generator().manual_seed(0)
    device = conv.weight.device
    x = torch.randn(16, shape.C, shape.H, shape.W, generator=generator).to(device)
    stored = arithmetic.encode(x.contiguous(memory_format=torch.channels_last))
    whole = Maps.of(arithmetic.accumulate(conv, stored))
    image = torch.arange(16, device=device)
    top, left = (
        torch.randint(0, limit, (16,), generator=generator).to(device)
        for limit in (shape.Ho - height + 1, shape.Wo - width + 1)
    )
    window = Window(top, left, height, width)
    patch = Maps.of(stored).window(image, conv_reach(shape).needs(window)).permute(0, 3, 1, 2)
    sums = arithmetic.accumulate(conv, patch, padded=True)
    return torch.equal(sums.permute(0, 2, 3, 1), whole.window(image, window))
