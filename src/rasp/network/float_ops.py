"""fp32 and fp16 arithmetic of the lowered network."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from rasp.errors import UnsupportedModelError, unknown_name
from rasp.network.graph import (
    Activation,
    Add,
    Clip,
    Concat,
    Conv,
    Flatten,
    Host,
    Node,
    PadChannels,
    Pool,
    Scale,
)
from rasp.network.onednn import two_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatFormat = Literal["fp32", "fp16"]
_STORED = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class FloatArithmetic:
    """Floating point: operands and results in the format, sums in fp32.

    NVDLA has no fp32 datapath; fp32 is an arithmetic model on the same schedule. In fp16 every
    stored value and weight is rounded to binary16, products are summed in fp32 and the result of
    each node is rounded once, as nv_full's CACC and SDP do up to the width of its accumulator.

    Example:
        >>> FloatArithmetic("fp16").encode(torch.tensor([0.1])).dtype
        torch.float16
    """

    format: FloatFormat

    def __post_init__(self) -> None:
        if self.format not in _STORED:
            raise unknown_name("floating-point format", self.format, _STORED)

    @property
    def bits(self) -> int:
        """Bits of a stored value."""
        return 32 if self.format == "fp32" else 16

    def to(self, device: str) -> FloatArithmetic:
        """Itself: the format holds no constants."""
        del device
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Round normalised images to the format."""
        return images.to(_STORED[self.format])

    def decode(self, name: str, stored: Tensor) -> Tensor:
        """Stored values as fp32; ``name`` does not matter in floating point."""
        del name
        return stored.float()

    def operands(self, conv: Conv) -> Tensor:
        """Weight as the multipliers see it, ``(K, C / groups, R, S)`` in the format."""
        return conv.weight.to(_STORED[self.format])

    def accumulate(self, conv: Conv, x: Tensor, *, padded: bool = False) -> Tensor:
        """Sums of products in fp32, ``(N, K, Ho, Wo)``."""
        return convolve(conv, x.float(), self.operands(conv).float(), padded=padded)

    def deliver(self, conv: Conv, sums: Tensor) -> Tensor:
        """The sums themselves."""
        del conv
        return sums

    def convert(self, conv: Conv, results: Tensor, kernel: Tensor) -> Tensor:
        """Bias, clamp and rounding of any set of sums; ``kernel`` gives the bias of each."""
        bias = self.encode(conv.bias).float()[kernel]
        return self.restrict(conv, self.encode(clamp(results + bias, conv.clip)), kernel)

    def finish(self, conv: Conv, sums: Tensor, kernel: Tensor) -> Tensor:
        """:meth:`convert`, since nothing happens in between."""
        return self.convert(conv, sums, kernel)

    def restrict(self, node: Node, stored: Tensor, channel: Tensor | None = None) -> Tensor:
        """Results held to the node's bound, if it has one."""
        return stored if node.bound is None else self.encode(node.bound(stored.float(), channel))

    def run(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """One node on stored inputs ``(N, ...)``."""
        if isinstance(node, Conv):
            return self._finished(node, self.accumulate(node, inputs[0])).view(-1, *node.shape)
        values = [value.float() for value in inputs]
        return self.restrict(node, self.encode(compute(node, values)))

    def run_window(self, conv: Conv, padded: Tensor) -> Tensor:
        """A convolution on a part of its input with the padding written out."""
        return self._finished(conv, self.accumulate(conv, padded, padded=True))

    def _finished(self, conv: Conv, sums: Tensor) -> Tensor:
        kernel = torch.arange(conv.conv.K, device=sums.device).view(-1, 1, 1)
        return self.finish(conv, sums, kernel)


def convolve(conv: Conv, x: Tensor, weight: Tensor, *, padded: bool = False) -> Tensor:
    """Plain convolution without bias, in channels-last order.

    A linear layer's vectors are seen as 1 x 1 maps. ``padded`` inputs have their padding written
    out and may be any part of the map.
    """
    shape = conv.conv
    x = x if padded else x.reshape(-1, shape.C, shape.H, shape.W)
    x, weight = two_channels(shape, x, weight)
    full = cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with full if x.is_cuda else nullcontext():
        return F.conv2d(
            channels_last(x),
            weight.contiguous(memory_format=torch.channels_last),
            stride=shape.stride,
            padding=(0, 0) if padded else shape.padding,
            dilation=shape.dilation,
            groups=shape.groups,
        )


def channels_last(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` with the strides of channels-last order, also those of axes of length 1.

    Strides that reach nothing are kept by ``contiguous``, and oneDNN's choice of a kernel, and with
    it the rounding, was seen to depend on them.
    """
    by_pixel = x.permute(0, 2, 3, 1)
    return by_pixel.reshape(len(x), -1).view(by_pixel.shape).permute(0, 3, 1, 2)


def clamp(x: Tensor, clip: Clip | None) -> Tensor:
    """Clamp that lets NaN through."""
    if clip is None:
        return x
    return F.relu(x) if clip == (0.0, float("inf")) else x.clamp(*clip)


def compute(node: Node, values: Sequence[Tensor]) -> Tensor:
    """Any node but a convolution on fp32 values; the reference for every format."""
    x = values[0]
    match node:
        case Add():
            return clamp(x + values[1], node.clip)
        case Scale():
            shape = (-1,) + (1,) * (x.ndim - 2)
            return clamp(x * node.weight.view(shape) + node.bias.view(shape), node.clip)
        case Activation():
            return clamp(x, node.clip)
        case Pool():
            return _pool(node, x)
        case Flatten():
            return x.flatten(1)
        case Concat():
            return torch.cat(list(values), dim=1)
        case PadChannels():
            return F.pad(x, (0, 0, 0, 0, node.before, node.after))
        case Host():
            return _image_by_image(node, values)
        case _:
            raise UnsupportedModelError(f"Node '{node.name}' ({type(node).__name__}) cannot run.")


def _image_by_image(node: Host, values: Sequence[Tensor]) -> Tensor:
    """A host operation on one image after the other, each in the same order in memory.

    Libraries round by strides and by the place in a batch: torch computes the last elements of a
    sigmoid without vectors. Every image runs beside itself, as the batch was when it was exported,
    because a batch of one can mean something else (``squeeze``).
    """

    def alone(image: int) -> Tensor:
        pair = (
            value[[image, image]].clone(memory_format=torch.contiguous_format) for value in values
        )
        return node.call(*pair)[:1]

    return torch.cat([alone(image) for image in range(len(values[0]))])


def _pool(node: Pool, x: Tensor) -> Tensor:
    if node.kernel == (1, 1):
        return x[:, :, :: node.stride[0], :: node.stride[1]]
    if node.kind == "max":
        return F.max_pool2d(x, node.kernel, node.stride, node.padding, ceil_mode=node.ceil)
    return F.avg_pool2d(
        x,
        node.kernel,
        node.stride,
        node.padding,
        ceil_mode=node.ceil,
        count_include_pad=node.count_padding,
    )
