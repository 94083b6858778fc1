"""Upsets of the registers that write inputs and weights into the convolution buffer.

A word of ``atomic_c`` values passes the write port of its kind and then the register of its bank,
one cycle each. Every input and weight of a layer is taken to be written once, one word a cycle and
kind from the first cycle of the layer's window: how often a register is live follows from what the
layer stores. When it is written in truth depends on the memory's bandwidth and moves no rate per
inference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rasp.faults.fidelity import Input, Weight
from rasp.faults.operands import tensor
from rasp.faults.registers import RegisterModel
from rasp.faults.sites import Integers, Sites, SparseChange

if TYPE_CHECKING:
    from rasp.faults.context import LayerContext
    from rasp.faults.values import LayerValues
    from rasp.nvdla.layout import Field


class BufferWrite(RegisterModel):
    """An input or weight flips on its way into the buffer: all its uses change.

    A site is that of ``INPUT`` or of ``WEIGHT``, without any coordinate where no word passes.

    Example:
        >>> BufferWrite().summary
        'input or weight on its way into the buffer, all its uses'
    """

    def __init__(self) -> None:
        super().__init__("BUFFER_WRITE")

    def sites(
        self, context: LayerContext, which: Integers, position: Integers, cycle: Integers
    ) -> Sites:
        """Sites of given flip-flops in given cycles, as for any register model."""
        columns = np.full((6, len(which)), -1, dtype=np.int64)
        for number, (field, _) in enumerate(context.registers[self.name]):
            (mine,) = np.nonzero(which == number)
            columns[:, mine] = _written(context, field, position[mine], cycle[mine])
        kernel, channel, r, s, pixel, bit = columns
        return Sites.of(
            len(which), kernel=kernel, channel=channel, r=r, s=s, pixel=pixel, bit=bit, value=which
        )

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """What a flipped input or weight in the buffer changes."""
        parts = []
        for model, chosen in ((Input(), sites.pixel >= 0), (Weight(), sites.kernel >= 0)):
            (rows,) = np.nonzero(chosen)
            if len(rows):
                at = tensor(rows, values)
                found = model.change(sites[rows], replace(values, image=values.image[at]))
                parts.append(replace(found, row=at[found.row]))
        return SparseChange.of(parts, values.y.pixels)


def _written(context: LayerContext, field: Field, position: Integers, cycle: Integers) -> Integers:
    """Kernel, channel, r, s, pixel and bit ``(6, n)`` of what passes a register."""
    shape, lanes = context.conv.conv, context.mapping.atoms.channels
    register, lane, bit = np.unravel_index(position, (len(field.kernels), field.lanes, field.width))
    word = cycle - field.signal.stage
    half = len(field.kernels) // 2  # inputs go through the first half, weights through the other
    of_weight = register >= half
    live = (word >= 0) & (word % half == register % half)
    element = np.maximum(word, 0) * lanes + lane
    stored = context.conv.weight.shape
    weight = live & of_weight & (element < np.prod(stored))
    pixel, block = np.divmod(np.maximum(word, 0), -(-shape.C // lanes))
    channel = block * lanes + lane
    value = live & ~of_weight & (pixel < shape.H * shape.W) & (channel < shape.C)
    kernel, within, r, s = np.unravel_index(np.where(weight, element, 0), stored)
    absent = np.full_like(bit, -1)
    return np.stack(
        [
            np.where(weight, kernel, absent),
            np.where(weight, within, np.where(value, channel, absent)),
            np.where(weight, r, absent),
            np.where(weight, s, absent),
            np.where(value, pixel, absent),
            bit,
        ]
    )
