"""The fault models of FIdelity (He et al., MICRO 2020) on a layer of the lowered network.

A model says how a site is drawn and which elements of the layer's output change. Operand upsets
change one product of every output in reach; nothing is gated, so a zero operand can flip too
(register-accurate NVDLA models gate it). The reach of 16 that gives ``INPUT16`` and ``WEIGHT16``
their names is that of nv_full in 16-bit formats; here it is the kernel group and the stripe of the
accelerator at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rasp import rng
from rasp.faults.bits import flip, pattern
from rasp.faults.context import FIRST_FREE_WORD, BitGroup, FaultModel, LayerContext, bit_ranges
from rasp.faults.operands import Operands, tensor
from rasp.faults.sites import Integers, Sites, SparseChange

if TYPE_CHECKING:
    from rasp.faults.values import LayerValues
    from rasp.rng import Words


class _OneBit(FaultModel):
    """One bit of a stored value flips, all bits alike."""

    def bit_groups(self, context: LayerContext) -> tuple[BitGroup, ...]:
        width = context.arithmetic.bits
        found = bit_ranges(context.arithmetic.format)
        return tuple(BitGroup(bits, len(bits) / width) for bits in found if bits.stop <= width)

    def _uniform(
        self, context: LayerContext, words: Words, group: Integers | None, bound: int
    ) -> tuple[Integers, Integers]:
        """An element below ``bound`` and a bit of the format or of a group."""
        element = rng.integers(words[:, FIRST_FREE_WORD], bound)
        column = words[:, FIRST_FREE_WORD + 1]
        if group is None:
            return element, rng.integers(column, context.arithmetic.bits)
        bits = [part.bits for part in self.bit_groups(context)]
        first, size = np.array([(part.start, len(part)) for part in bits], dtype=np.int64).T
        return element, first[group] + rng.integers(column, size[group])


class Input(_OneBit):
    """A stored input value flips before it is used: every product it enters changes."""

    name = "INPUT"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Element of the input map and bit, both uniform."""
        shape = context.conv.conv
        element, bit = self._uniform(context, words, group, shape.C * shape.H * shape.W)
        channel, pixel = np.divmod(element, shape.H * shape.W)
        return Sites.of(len(words), channel=channel, pixel=pixel, bit=bit)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """Every output whose window holds the element, in every kernel that reads its channel."""
        shape = values.context.conv.conv
        rows = torch.arange(len(sites), device=values.device)
        channel, pixel = tensor(sites.channel, values), tensor(sites.pixel, values)
        value = values.input(rows, channel, pixel)
        step = _difference(values, flip(value, tensor(sites.bit, values)), value)
        in_row, in_column = pixel // shape.W, pixel % shape.W
        per_group = shape.K // shape.groups
        within = channel % (shape.C // shape.groups)
        group = channel // (shape.C // shape.groups)
        parts = []
        for r in range(shape.R):
            for s in range(shape.S):
                top = in_row + shape.padding[0] - r * shape.dilation[0]
                left = in_column + shape.padding[1] - s * shape.dilation[1]
                out_row, out_column = top // shape.stride[0], left // shape.stride[1]
                used = (top % shape.stride[0] == 0) & (left % shape.stride[1] == 0)
                used &= (top >= 0) & (out_row < shape.Ho) & (left >= 0) & (out_column < shape.Wo)
                hit = rows[used]
                kernel = group[hit, None] * per_group + torch.arange(per_group, device=hit.device)
                out = (out_row * shape.Wo + out_column)[hit, None]
                weight = _weights(values)[kernel, within[hit, None], r, s]
                delta = step[hit, None] * weight
                parts.append((hit[:, None].expand_as(delta), kernel, out.expand_as(delta), delta))
        row, kernel, out, delta = (torch.cat([p[i].flatten() for p in parts]) for i in range(4))
        return _resum(values, row, kernel, out, delta)


class Weight(_OneBit):
    """A stored weight flips before it is used: its product changes in every pixel of its kernel."""

    name = "WEIGHT"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Weight and bit, both uniform."""
        element, bit = self._uniform(context, words, group, context.conv.weight.numel())
        kernel, channel, r, s = np.unravel_index(element, context.conv.weight.shape)
        return Sites.of(len(words), kernel=kernel, channel=channel, r=r, s=s, bit=bit)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """Every pixel of the kernel."""
        pixels = torch.arange(values.context.conv.conv.pixels, device=values.device)
        return _flip_weight(sites, values, pixels.expand(len(sites), -1))


class Input16(_OneBit):
    """An activation flips in a register of the MAC array: one pixel, one product, a kernel group.

    Drawn uniformly over the register's uses: kernel group, input channel, tap, output pixel.
    """

    name = "INPUT16"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Kernel group, channel, tap and output pixel of the use, and the bit."""
        shape, mapping = context.conv.conv, context.mapping
        parts, channels = shape.groups, shape.C // shape.groups
        uses = (parts, len(mapping.kernel_groups), channels, shape.R, shape.S, shape.pixels)
        element, bit = self._uniform(context, words, group, int(np.prod(uses)))
        part, portion, channel, r, s, pixel = np.unravel_index(element, uses)
        starts = np.array([span.start for span in mapping.kernel_groups])
        kernel = part * (shape.K // shape.groups) + starts[portion]
        return Sites.of(len(words), kernel=kernel, channel=channel, r=r, s=s, pixel=pixel, bit=bit)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """One pixel in every kernel of the group."""
        shape, mapping = values.context.conv.conv, values.context.mapping
        kernel = tensor(sites.kernel, values)
        size = max(span.size for span in mapping.kernel_groups)
        lanes = kernel[:, None] + torch.arange(size, device=values.device)
        per_group = shape.K // shape.groups
        present = lanes < torch.minimum(
            kernel + mapping.atoms.kernels, (kernel // per_group + 1) * per_group
        ).unsqueeze(1)
        pixel = tensor(sites.pixel, values)
        value = _operand(sites, values, pixel[:, None]).squeeze(1)
        step = _difference(values, flip(value, tensor(sites.bit, values)), value)
        row = torch.arange(len(sites), device=values.device)[:, None].expand_as(lanes)[present]
        lane = lanes[present]
        channel, r, s = (tensor(c, values)[row] for c in (sites.channel, sites.r, sites.s))
        delta = step[row] * _weights(values)[lane, channel, r, s]
        return _resum(values, row, lane, pixel[row], delta)


class Weight16(_OneBit):
    """A weight flips in a register of the MAC array: one kernel, one product, a stripe of pixels.

    Drawn uniformly over weights and over the time a register holds one, so a stripe is drawn with
    probability proportional to its length.
    """

    name = "WEIGHT16"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Weight, bit and the first pixel of the stripe."""
        at = Weight().draw(context, words, group)
        pixel = rng.integers(words[:, FIRST_FREE_WORD + 2], context.conv.conv.pixels)
        stripes = context.mapping.stripes
        starts = np.array([stripe.start for stripe in stripes])
        start = starts[np.searchsorted(starts, pixel, side="right") - 1]
        return Sites.of(
            len(words),
            kernel=at.kernel,
            channel=at.channel,
            r=at.r,
            s=at.s,
            pixel=start,
            bit=at.bit,
        )

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """Every pixel of the stripe."""
        lengths = {stripe.start: stripe.length for stripe in values.context.mapping.stripes}
        length = tensor(np.array([lengths[start] for start in sites.pixel.tolist()]), values)
        first = tensor(sites.pixel, values)[:, None]
        pixels = first + torch.arange(max(lengths.values()), device=values.device)
        return _flip_weight(sites, values, pixels, pixels < first + length[:, None])


class OutputBitFlip(_OneBit):
    """One bit of one output element flips as it is written."""

    name = "RD_BFLIP"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Output element and bit, both uniform."""
        shape = context.conv.conv
        element, bit = self._uniform(context, words, group, shape.K * shape.pixels)
        kernel, pixel = np.divmod(element, shape.pixels)
        return Sites.of(len(words), kernel=kernel, pixel=pixel, bit=bit)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """The element."""
        row = torch.arange(len(sites), device=values.device)
        kernel, pixel = tensor(sites.kernel, values), tensor(sites.pixel, values)
        value = flip(values.output(row, kernel, pixel), tensor(sites.bit, values))
        return _written(values, row, kernel, pixel, value)


class OutputRandom(FaultModel):
    """One output element is replaced by uniformly random bits: an upset of local control."""

    name = "RD"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Output element and the bits that replace it."""
        del group
        at = OutputBitFlip().draw(context, words)
        bits = context.arithmetic.bits
        value = (words[:, FIRST_FREE_WORD + 2] >> np.uint64(64 - bits)).astype(np.int64)
        return Sites.of(len(words), kernel=at.kernel, pixel=at.pixel, value=value)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """The element."""
        row = torch.arange(len(sites), device=values.device)
        kernel, pixel = tensor(sites.kernel, values), tensor(sites.pixel, values)
        value = pattern(tensor(sites.value, values), values.y.pixels)
        return _written(values, row, kernel, pixel, value)


def _written(
    values: LayerValues, row: Tensor, kernel: Tensor, pixel: Tensor, value: Tensor
) -> SparseChange:
    """One output element a fault, held to the layer's bound as it is written."""
    conv = values.context.conv
    value = values.context.arithmetic.restrict(conv, value, kernel)
    return SparseChange(row, kernel * conv.conv.pixels + pixel, value)


def _difference(values: LayerValues, faulty: Tensor, golden: Tensor) -> Tensor:
    """``faulty - golden`` in the type products are summed in."""
    wide = torch.int64 if values.context.arithmetic.format == "int8" else torch.float32
    return faulty.to(wide) - golden.to(wide)


def _weights(values: LayerValues) -> Tensor:
    """Weights in the type products are summed in, ``(K, C / groups, R, S)``."""
    wide = torch.int64 if values.context.arithmetic.format == "int8" else torch.float32
    return values.context.arithmetic.operands(values.context.conv).to(values.device, wide)


def _operand(sites: Sites, values: LayerValues, pixels: Tensor) -> Tensor:
    """Stored inputs that the sites' weights meet in output ``pixels`` ``(n, p)``; 0 in padding."""
    shape = values.context.conv.conv
    row = torch.arange(len(sites), device=values.device)[:, None]
    columns = (sites.kernel // (shape.K // shape.groups), sites.channel, sites.r, sites.s)
    g, c, r, s = (tensor(at, values)[:, None] for at in columns)
    return Operands(values).activation(row, g, c, r, s, pixels).value


def _flip_weight(
    sites: Sites, values: LayerValues, pixels: Tensor, inside: Tensor | None = None
) -> SparseChange:
    """One product of each of ``pixels`` ``(n, p)`` where ``inside``, with the flipped weight."""
    stored = values.context.arithmetic.operands(values.context.conv).to(values.device)
    columns = (sites.kernel, sites.channel, sites.r, sites.s)
    kernel, *tap = (tensor(column, values) for column in columns)
    weight = stored[kernel, *tap]
    step = _difference(values, flip(weight, tensor(sites.bit, values)), weight)
    last = values.context.conv.conv.pixels - 1
    delta = step[:, None] * _operand(sites, values, pixels.clamp(max=last)).to(step.dtype)
    chosen = torch.ones_like(pixels, dtype=torch.bool) if inside is None else inside
    rows = torch.arange(len(sites), device=values.device)[:, None].expand_as(pixels)[chosen]
    return _resum(values, rows, kernel[rows], pixels[chosen], delta[chosen])


def _resum(
    values: LayerValues, row: Tensor, kernel: Tensor, pixel: Tensor, delta: Tensor
) -> SparseChange:
    """The outputs whose sums change by ``delta``."""
    hit = delta != 0
    row, kernel, pixel, delta = (column[hit] for column in (row, kernel, pixel, delta))
    conv = values.context.conv
    faulty = values.sums(row, kernel, pixel).to(delta.dtype) + delta
    value = values.context.arithmetic.finish(conv, faulty, kernel)
    return SparseChange(row, kernel * conv.conv.pixels + pixel, value)
