"""What upsets of NVDLA's registers do to a layer's sums and output.

In int8 the arithmetic is that of the RTL: the MAC cell's sum, the adder, its saturation after every
atom, the running sum and the result in their own widths, and the SDP by the arithmetic's
``convert``, register by register where one of it is hit. Golden running sums are below 2**31, so
the accumulator saturates only after an upset. In fp16 and fp32 the reach is the same and sums have
the 32 bits of fp32: an arithmetic model, not the bits of NVDLA's floating-point accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rasp.faults.bits import drive, flip, flip_sum
from rasp.faults.operands import Operands, tensor, wide
from rasp.faults.sdp import EFFECTS, convert_hit
from rasp.faults.sites import Integers, SparseChange
from rasp.faults.stale import last_activation, last_weight
from rasp.nvdla.mapping import Atom, Outputs

if TYPE_CHECKING:
    from rasp.faults.context import LayerContext
    from rasp.faults.values import LayerValues
    from rasp.nvdla.config import Datapath
    from rasp.nvdla.signals import Signal

_GATHER = 1 << 20  # operands gathered at once


@dataclass(frozen=True, slots=True, eq=False)
class Upsets:
    """``n`` upsets of registers that hold the same kind of value; upset ``i`` is in row ``i``.

    Attributes:
        signal: kind of value and reach; its stage, kernel, lane and bit are not read.
        atom: ``(n,)`` atom in the register, the first one still to come for weights; -1 if none.
        kernel: ``(n,)`` kernel lane, the first of the half where a half is in reach.
        lane: ``(n,)`` channel lane.
        bit: ``(n,)`` bit of the value.
        edge: ``(n,)`` 1 where the register bit rose, -1 where it fell, 0 where it held the golden
            bit and went the only way it could.
    """

    signal: Signal
    atom: Integers
    kernel: Integers
    lane: Integers
    bit: Integers
    edge: Integers

    def __getitem__(self, index: slice | Integers) -> Upsets:
        columns = (getattr(self, field.name)[index] for field in fields(self)[1:])
        return Upsets(self.signal, *columns)


class SumChange(NamedTuple):
    """New results of output elements, as they leave the accumulator or are stored.

    ``kernel`` counts the result lanes: beyond the layer's kernels they are lanes nobody uses.
    """

    row: Tensor
    kernel: Tensor
    pixel: Tensor
    golden: Tensor
    faulty: Tensor


class _Elements(NamedTuple):
    """Output elements in reach and, for each, the atom that is hit and the lane and bit."""

    row: Tensor
    kernel: Tensor
    pixel: Tensor
    group: Tensor
    block: Tensor
    r: Tensor
    s: Tensor
    tap: Tensor
    channel: Tensor
    lane: Tensor
    bit: Tensor
    edge: Tensor

    def pick(self, chosen: Tensor | slice) -> _Elements:
        return _Elements(*(column[chosen] for column in self))


def change_sums(upsets: Upsets, values: LayerValues) -> SumChange:
    """Sums that ``n`` upsets change, and some they leave as they were.

    Args:
        upsets: what is hit.
        values: golden values of the layer for ``n`` trials.
    """
    context = values.context
    operands = Operands(values)
    at = _elements(context, upsets, values)
    golden = _golden(values, at)
    effect = upsets.signal.effect
    if effect in _OPERANDS:
        faulty = golden + _operand_change(context, upsets, operands, at)
    elif effect == "product":
        faulty = golden + _product_change(context, operands, at)
    elif effect == "final":
        result = _delivered(context, golden)
        faulty = flip_sum(result, at.bit, _path(context).final_bits)
        return SumChange(at.row, at.kernel, at.pixel, result, faulty)
    else:
        size = max(1, _GATHER // (context.mapping.taps * context.mapping.atoms.channels))
        parts = [
            _running(context, effect, operands, at.pick(slice(i, i + size)), golden[i : i + size])
            for i in range(0, len(golden), size)
        ]
        faulty = torch.cat(parts) if parts else golden
    golden, faulty = _delivered(context, golden), _delivered(context, faulty)
    return SumChange(at.row, at.kernel, at.pixel, golden, faulty)


def change_stored(upsets: Upsets, values: LayerValues) -> SumChange:
    """Stored outputs that ``n`` upsets of the SDP change, and some they leave as they were.

    Args:
        upsets: what is hit, with an effect of :data:`~rasp.faults.sdp.EFFECTS`.
        values: golden values of the layer for ``n`` trials.
    """
    context = values.context
    at = _elements(context, upsets, values)
    results = _delivered(context, _golden(values, at))
    golden = context.arithmetic.convert(context.conv, results, at.kernel)
    faulty = convert_hit(context, upsets.signal.effect, results, at.kernel, at.bit)
    return SumChange(at.row, at.kernel, at.pixel, golden, faulty)


def _golden(values: LayerValues, at: _Elements) -> Tensor:
    """Golden sums of elements, 0 in lanes without a kernel, in the type they are computed in."""
    last = values.context.conv.conv.K - 1
    golden = values.sums(at.row, at.kernel.clamp(max=last), at.pixel).to(wide(values.context))
    return torch.where(at.kernel <= last, golden, torch.zeros_like(golden))


def _delivered(context: LayerContext, sums: Tensor) -> Tensor:
    """Sums as the SDP gets them, in the type they came in."""
    return context.arithmetic.deliver(context.conv, sums).to(sums.dtype)


def change_outputs(upsets: Upsets, values: LayerValues) -> SparseChange:
    """Output elements that ``n`` upsets change, and some they leave as they were.

    Args:
        upsets: what is hit.
        values: golden values of the layer for ``n`` trials.
    """
    context = values.context
    shape = context.conv.conv
    if upsets.signal.effect in EFFECTS:
        row, kernel, pixel, _, faulty = change_stored(upsets, values)
        return SparseChange(row, kernel * shape.pixels + pixel, faulty)
    change = change_sums(upsets, values)
    different = (change.golden != change.faulty) & (change.kernel < shape.K)
    row, kernel, pixel, _, faulty = (column[different] for column in change)
    value = context.arithmetic.convert(context.conv, faulty, kernel)
    return SparseChange(row, kernel * shape.pixels + pixel, value)


_OPERANDS = frozenset(
    ("activation", "activation_bus", "activation_gate", "weight", "weight_bus", "weight_gate")
)


def _path(context: LayerContext) -> Datapath:
    return context.accelerator.datapath(context.arithmetic.format)


def _elements(context: LayerContext, upsets: Upsets, like: LayerValues) -> _Elements:
    """Outputs in reach of the upsets that find a live atom, one entry each."""
    mapping, signal = context.mapping, upsets.signal
    shape = mapping.shape
    live = upsets.atom >= 0
    if signal.effect == "none":
        live[:] = False
    atom = mapping.atom(np.where(live, upsets.atom, 0))
    tap = (atom.cblock * shape.R + atom.r) * shape.S + atom.s
    last = tap == mapping.taps - 1
    live &= {"any": True, "last": last, "inner": ~last, "later": tap > 0}[signal.when]
    (rows,) = np.nonzero(live)
    atom, tap, upsets = Atom(*(column[rows] for column in atom)), tap[rows], upsets[rows]
    reach = mapping.reach(signal.reach, upsets.atom, upsets.kernel)
    if signal.unused:
        reach = reach._replace(kernels=np.ones_like(reach.kernels))
    which, kernel, pixel = _expand(reach, signal.skip)
    restored = int(signal.effect == "restored")
    columns = (
        rows[which],
        kernel,
        pixel,
        atom.group[which],
        atom.cblock[which],
        atom.r[which],
        atom.s[which],
        tap[which] - restored,
        (atom.cblock * mapping.atoms.channels + upsets.lane)[which],
        upsets.lane[which],
        upsets.bit[which],
        upsets.edge[which],
    )
    return _Elements(*(tensor(column, like) for column in columns))


def _expand(reach: Outputs, skip: int) -> tuple[Integers, Integers, Integers]:
    """Every (rectangle, kernel, pixel) of rectangles of outputs."""
    pixels: Integers = np.maximum(reach.pixels - skip, 0)
    area: Integers = reach.kernels * pixels
    which: Integers = np.repeat(np.arange(len(area), dtype=np.int64), area)
    first: Integers = np.cumsum(area, dtype=np.int64) - area
    k, p = np.divmod(np.arange(len(which), dtype=np.int64) - first[which], pixels[which])
    kernel: Integers = np.asarray(reach.kernel[which] + k * reach.step[which], dtype=np.int64)
    pixel: Integers = np.asarray(reach.pixel[which] + skip + p, dtype=np.int64)
    return which, kernel, pixel


def _operand_change(
    context: LayerContext, upsets: Upsets, operands: Operands, at: _Elements
) -> Tensor:
    """What the one changed product adds to the sum of each element."""
    signal = upsets.signal
    a, inside = operands.activation(at.row, at.group, at.channel, at.r, at.s, at.pixel)
    w = operands.weight(at.kernel, at.channel, at.r, at.s)
    effect = signal.effect
    of_weight = effect.startswith("weight")
    own, partner = (w, a) if of_weight else (a, w)
    if effect.endswith("_gate"):
        faulty = torch.zeros_like(own)
        rose = (at.edge > 0) | ((at.edge == 0) & (own == 0))
        (found,) = torch.nonzero(rose & (partner != 0), as_tuple=True)
        if len(found):
            row = at.row[found].cpu().numpy()
            search = last_weight if of_weight else last_activation
            chosen = (tensor(upsets.atom[row], a), tensor(upsets.kernel[row], a))
            lane = at.lane[found]
            faulty[found] = search(context, operands, signal.held, at.row[found], *chosen, lane)
        hit = torch.ones_like(inside)
    else:
        bus = effect.endswith("_bus")
        edge = at.edge if bus else torch.zeros_like(at.edge)
        faulty = drive(own, at.bit, edge)
        hit = (own != 0) | (inside if bus or signal.ungated else torch.zeros_like(inside))
    step = faulty.to(operands.wide) - own.to(operands.wide)
    return operands.product(torch.where(hit, step, torch.zeros_like(step)), partner)


def _product_change(context: LayerContext, operands: Operands, at: _Elements) -> Tensor:
    lanes = torch.arange(context.mapping.atoms.channels, device=at.row.device)
    channel = (at.block * len(lanes))[:, None] + lanes
    row, group, kernel, r, s, pixel = (
        column[:, None] for column in (at.row, at.group, at.kernel, at.r, at.s, at.pixel)
    )
    a = operands.activation(row, group, channel, r, s, pixel).value
    w = operands.weight(kernel, channel, r, s)
    cell = (a.to(operands.wide) * w.to(operands.wide)).sum(1)
    return flip_sum(cell, at.bit, _path(context).mac_bits) - cell


def _running(
    context: LayerContext, effect: str, operands: Operands, at: _Elements, golden: Tensor
) -> Tensor:
    """Sums after an upset of the adder's result, of the running sum or of its validity."""
    taps = operands.tap_sums(at.row, at.kernel, at.pixel)
    order = torch.arange(taps.shape[1], device=taps.device)
    later = torch.where(order > at.tap[:, None], taps, torch.zeros_like(taps))
    if effect == "valid":
        return later.sum(1)
    path = _path(context)
    running = torch.where(order <= at.tap[:, None], taps, torch.zeros_like(taps)).sum(1)
    if taps.dtype != torch.int64:
        return golden + (flip(running, at.bit) - running)
    if effect == "sum":
        value = _saturate(flip_sum(running, at.bit, path.sum_bits), path.partial_bits)
    else:
        value = flip_sum(running, at.bit, path.partial_bits)
    return saturating_sum(value, later, path.partial_bits)


def saturating_sum(start: Tensor, terms: Tensor, width: int) -> Tensor:
    """Sums of terms added one after the other to ``width`` bits, saturated after each.

    Args:
        start: int64 ``(m,)``.
        terms: int64 ``(m, n)``.
        width: bits of the running sum.

    Example:
        >>> saturating_sum(torch.tensor([120]), torch.tensor([[20, -30]]), 8).item()
        97
    """
    course = start[:, None] + terms.cumsum(1)
    total = course[:, -1]
    (bound,) = torch.nonzero((course != _saturate(course, width)).any(1), as_tuple=True)
    if len(bound):
        value = start[bound]
        for term in terms[bound].unbind(1):
            value = _saturate(value + term, width)
        total[bound] = value
    return total


def _saturate(values: Tensor, width: int) -> Tensor:
    return values.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1)
