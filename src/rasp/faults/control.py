"""What upsets of control registers look like when they do not hang the accelerator.

Two patterns seen in the RTL of nv_small: the stream of results slips (delivery pointers, valids and
pack counters of CACC and SDP), and a whole stripe of a kernel group is wrong (sequence counters,
package FIFOs). They are models of the pattern alone: how often each register class shows a change
is measured (:func:`rasp.nvdla.registers.registers`), and neither belongs to a datapath mix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rasp import rng
from rasp.faults.bits import pattern
from rasp.faults.context import FIRST_FREE_WORD, FaultModel, LayerContext
from rasp.faults.operands import tensor
from rasp.faults.sites import Sites, SparseChange

if TYPE_CHECKING:
    from rasp.faults.sites import Integers
    from rasp.faults.values import LayerValues
    from rasp.rng import Words


class StreamShift(FaultModel):
    """From one output element on, every result of the layer is written one place late.

    Results stream by kernel group, raster pixel and kernel lane; from the site on each place gets
    the value of the place before it.
    """

    name = "STREAM_SHIFT"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """The first late element, uniform over the stream but its first."""
        del group
        order = _stream(context)
        at = 1 + rng.integers(words[:, FIRST_FREE_WORD], len(order) - 1) if len(order) > 1 else None
        position = np.zeros(len(words), dtype=np.int64) if at is None else at
        kernel, pixel = np.divmod(order[position], context.conv.conv.pixels)
        return Sites.of(len(words), kernel=kernel, pixel=pixel, value=position)

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """Every element from the site to the end of the stream."""
        order = tensor(_stream(values.context), values)
        first = tensor(np.maximum(sites.value, 1), values)[:, None]
        late = torch.arange(len(order), device=values.device) >= first
        row, place = torch.nonzero(late, as_tuple=True)
        before, pixels = order[place - 1], values.context.conv.conv.pixels
        value = values.output(row, before // pixels, before % pixels)
        return SparseChange(row, order[place], value)


class StripeRandom(FaultModel):
    """One stripe of pixels of one kernel group is replaced by uniformly random bits."""

    name = "STRIPE_RANDOM"

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Kernel group and the stripe of a uniform pixel; ``value`` seeds the random bits."""
        del group
        shape, mapping = context.conv.conv, context.mapping
        first = np.array([span.start for span in mapping.kernel_groups])
        part, portion = np.divmod(
            rng.integers(words[:, FIRST_FREE_WORD], shape.groups * len(first)), len(first)
        )
        starts = np.array([stripe.start for stripe in mapping.stripes])
        pixel = rng.integers(words[:, FIRST_FREE_WORD + 1], shape.pixels)
        return Sites.of(
            len(words),
            kernel=part * (shape.K // shape.groups) + first[portion],
            pixel=starts[np.searchsorted(starts, pixel, side="right") - 1],
            value=(words[:, FIRST_FREE_WORD + 2] >> np.uint64(1)).astype(np.int64),
        )

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """Every element of the stripe in every kernel of the group."""
        shape, mapping = values.context.conv.conv, values.context.mapping
        sizes = {span.start: span.size for span in mapping.kernel_groups}
        lengths = {stripe.start: stripe.length for stripe in mapping.stripes}
        rows, elements, patterns = [], [], []
        for row in range(len(sites)):
            kernel, start = int(sites.kernel[row]), int(sites.pixel[row])
            kernels = kernel + np.arange(sizes[kernel % (shape.K // shape.groups)])
            pixels = start + np.arange(lengths[start])
            hit = (kernels[:, None] * shape.pixels + pixels).ravel()
            bits = rng.words(int(sites.value[row]), "stripe", 0, len(hit), 4)[:, 0]
            rows.append(np.full(len(hit), row))
            elements.append(hit)
            wide = np.uint64(64 - values.context.arithmetic.bits)
            patterns.append((bits >> wide).astype(np.int64))
        row_of, element, value = (
            tensor(np.concatenate(column), values) for column in (rows, elements, patterns)
        )
        return SparseChange(row_of, element, pattern(value, values.y.pixels))


def _stream(context: LayerContext) -> Integers:
    """Flat indices of the layer's output in the order in which results are delivered."""
    shape = context.conv.conv
    pixels = np.arange(shape.pixels)[:, None]
    parts = [
        (group * (shape.K // shape.groups) + span.start + np.arange(span.size)) * shape.pixels
        + pixels
        for group in range(shape.groups)
        for span in context.mapping.kernel_groups
    ]
    return np.concatenate([part.ravel() for part in parts])
