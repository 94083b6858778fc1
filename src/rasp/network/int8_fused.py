"""A whole INT8 layer in one oneDNN kernel: sums, bias and converter, exact all the same.

The kernel's epilogue multiplies and adds in fp32, so a result near the middle of two integers may
fall to the wrong side. Its error has a bound (:class:`_Epilogue`): a result is taken where both
ends of it round to one integer, and the others, one in ten thousand, are computed again from their
integer sums.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rasp.network.int8_conv import pad
from rasp.network.int8_converter import in_blocks

if TYPE_CHECKING:
    from rasp.network.int8_conv import ByteConv, ExactConv
    from rasp.network.int8_converter import Converter

_LARGE = 1 << 17  # results from which the epilogue saves more than its many steps cost
_CHUNK = 1 << 19  # results at a time, 2 MiB of fp32, which the CPU's cache may hold
_STEP = 2.5  # margins between the two values that are rounded: two, and room for their rounding
_MARGIN_MAX = 2.0**-7
_DOUBT_MAX = 64  # with one doubtful result in so many, all are computed in integers
_WORD = 8  # bytes compared at once
_BYTES = torch.arange(_WORD)
_INT32 = 2**31


class _Epilogue(NamedTuple):
    """``floor(sum * factor + offset)`` is the result, or one more than it.

    With ``c`` the offset and ``u`` the value, each of the operations in fp32 (sum to float, times
    the factor, ``c`` to float, plus ``c``, in this order or with ``c`` divided by the factor and
    added first) errs by 2**-24 of what it gives, at most ``3 * 2**-24 * (abs(u) + abs(c))`` in
    all, since ``abs(sum * factor) <= abs(u) + abs(c)``. The margin is a third more.

    Attributes:
        start: float64 ``(K,)``: bias, less what a shift of the activations added to the sum.
        offset: fp32 ``(K,)``: ``start * factor + 1/2 + margin``.
        margin: bound of the error where the value is not clipped.
        lowest: float64 ``(K,)``: offset less the step between the two values that are rounded.
        dense: ``(K,)``: whether values of neighbouring sums are too near to tell them apart, or
            ``None`` if that is so for no kernel.
    """

    start: Tensor
    offset: Tensor
    margin: float
    lowest: Tensor
    dense: Tensor | None


class FusedConv:
    """One layer from int8 to int8 whose accumulator shifts nothing.

    Args:
        sums: the layer's convolution.
        bias: int64 ``(K,)``; more of them, as the converter's, are those of lanes without a kernel.
        converter: to int8.
    """

    def __init__(self, sums: ExactConv, bias: Tensor, converter: Converter) -> None:
        shape, (down, right) = sums.shape, sums.shape.dilation
        self._sums, self._bias, self._converter = sums, bias[: shape.K].double(), converter
        self._factor = converter.multiplier[: shape.K].double() * 2.0**-converter.shift
        self._scale = self._factor.float()
        self._clip = (converter.low + 0.5, converter.high + 0.5)
        self._span = down * (shape.R - 1) + 1, right * (shape.S - 1) + 1
        self._kernel = torch.arange(shape.K, device=bias.device).view(-1, 1, 1)

    def __call__(self, x: Tensor, *, padded: bool = False) -> Tensor:
        """Results ``(n, K, h', w')`` with channels last.

        Args:
            x: int8 ``(n, C, h, w)``.
            padded: the padding is written out, and ``x`` may be any part of the map, at least of
                the kernel's size.
        """
        x, kernel = self._sums.choose(x, padded=padded)
        results = None
        if kernel is not None and self._count(kernel, x) >= _LARGE:
            results = self._whole(kernel, x)
        if results is None:
            results = in_blocks(self._integers, self._sums.sums(x, kernel))
        return results

    def _integers(self, sums: Tensor) -> Tensor:
        biased = sums.double().add_(self._bias.view(-1, 1, 1))
        if self._saturates:
            biased.clamp_(-_INT32, _INT32 - 1)
        return self._converter(biased, self._kernel)

    def _whole(self, kernel: ByteConv, x: Tensor) -> Tensor | None:
        """With the kernel's epilogue, ``None`` if it is of no use."""
        data = kernel.encode(x)
        epilogue = self._epilogues[data.shifted]
        if self._saturates or epilogue.margin > _MARGIN_MAX:
            return None
        size = self._map(kernel, x)
        results = torch.empty((len(x), *size, self._sums.shape.K), dtype=torch.int8)
        images = max(1, _CHUNK // max(1, results[0].numel()))
        doubtful = []
        for start in range(0, len(x), images):
            rows = slice(start, start + images)
            u = kernel(data.values[rows], self._scale, epilogue.offset, self._clip)
            u = u.permute(0, 2, 3, 1).contiguous()
            index = self._round(u, results[rows], epilogue)
            if len(index) > max(_DOUBT_MAX, u.numel() // _DOUBT_MAX):
                return None
            if len(index):
                doubtful.append((index + start * results[0].numel(), u.view(-1)[index]))
        if doubtful:
            index, u = (torch.cat(tensors) for tensors in zip(*doubtful, strict=True))
            padded = pad(data.values, kernel.padding)
            again = self._again(padded, results.shape, index, u, epilogue)
            results.view(-1)[index] = again
        return results.permute(0, 3, 1, 2)

    def _map(self, kernel: ByteConv, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the results."""
        (down, right), (high, wide) = self._sums.shape.stride, self._span
        rows, columns = x.shape[2] + 2 * kernel.padding[0], x.shape[3] + 2 * kernel.padding[1]
        return (rows - high) // down + 1, (columns - wide) // right + 1

    def _count(self, kernel: ByteConv, x: Tensor) -> int:
        return len(x) * self._sums.shape.K * math.prod(self._map(kernel, x))

    def _round(self, u: Tensor, results: Tensor, epilogue: _Epilogue) -> Tensor:
        """Fill in ``results`` and lower ``u``; flat positions where that changes the integer."""
        signed = self._converter.low < 0  # else to truncate is to floor
        whole = u.floor() if signed else u
        results.copy_(whole)
        u.sub_(_STEP * epilogue.margin)
        lower = (torch.floor(u, out=whole) if signed else u).to(torch.int8)
        difference = lower.bitwise_xor_(results).view(-1)
        if len(difference) % _WORD:
            return torch.nonzero(difference).view(-1)
        words = torch.nonzero(difference.view(torch.int64))
        index = (words * _WORD + _BYTES).view(-1)
        return index[difference[index] != 0]

    def _again(
        self, values: Tensor, shape: torch.Size, index: Tensor, u: Tensor, epilogue: _Epilogue
    ) -> Tensor:
        """Results at flat positions of ``shape``; their lowered values still tell the sums.

        One step of a sum changes ``u`` by the factor, which must be over twice the error.
        """
        k = index % shape[3]
        sums = u.double().sub_(epilogue.lowest[k]).div_(self._factor[k]).round_()
        if epilogue.dense is not None:
            near = epilogue.dense[k]
            image, row, column, kernel = torch.unravel_index(index[near], shape)
            x = values[:, : self._sums.shape.C]
            sums[near] = self._sums.at(x, (image, row, column, kernel)).double()
        return self._converter(sums.add_(epilogue.start[k]), k)

    @cached_property
    def _saturates(self) -> bool:
        """Whether a sum with its bias may not fit 32 bits."""
        return self._sums.reach * 128 + float(self._bias.abs().max()) >= _INT32

    @cached_property
    def _epilogues(self) -> tuple[_Epilogue, _Epilogue]:
        """For inputs as they are and for shifted ones."""
        plain, kernel = self._bias, self._sums.bytes
        shift = 0 if kernel is None else kernel.correction.view(-1).double()
        return self._epilogue(plain), self._epilogue(plain - shift)

    def _epilogue(self, start: Tensor) -> _Epilogue:
        offset = start * self._factor + 0.5
        margin = 2.0**-22 * (130 + float(offset.abs().max()))
        held = (offset + margin).float()
        dense = self._factor.abs() < 4 * margin
        return _Epilogue(
            start, held, margin, held.double() - _STEP * margin, dense if dense.any() else None
        )
