"""Fault models of NVDLA's registers: an upset of a random flip-flop in a random cycle.

Each model is a group of registers by what one upset does (:data:`rasp.nvdla.layout.GROUPS`). A
draw is uniform over flip-flops and over the cycles of the layer's window; most draws of some
models hit a register that is idle or holds nothing, and change nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp import rng
from rasp.faults.context import FIRST_FREE_WORD, BitGroup, FaultModel, LayerContext, bit_ranges
from rasp.faults.effects import Upsets, change_outputs
from rasp.faults.sites import Integers, Sites, SparseChange
from rasp.nvdla.cycles import LEAD_IN
from rasp.nvdla.layout import GROUPS, Field, flip_flops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rasp.faults.values import LayerValues
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.signals import Signal
    from rasp.rng import Words


class RegisterModel(FaultModel):
    """Upsets of one group of registers.

    :attr:`~rasp.faults.sites.Sites.value` is the register's number in the group's layout; where
    nothing can change, every other coordinate but the bit is -1.

    Args:
        name: one of :data:`rasp.nvdla.layout.GROUPS`.

    Example:
        >>> RegisterModel("MAC_SUM").summary
        'sum of a MAC cell'
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def summary(self) -> str:
        """What the registers hold and what one upset reaches."""
        return GROUPS[self.name]

    def bit_groups(self, context: LayerContext) -> tuple[BitGroup, ...]:
        """Bits of the registers that hold something, and the idle registers."""
        table = _bits(context, self.name)
        ranges = bit_ranges(context.arithmetic.format)
        shares = np.bincount(table.group, weights=table.weight, minlength=len(ranges) + 1)
        idle = BitGroup(range(-1, 0), float(shares[0]), idle=True)
        live = zip(ranges, shares[1:].tolist(), strict=True)
        return (idle, *(BitGroup(bits, share) for bits, share in live))

    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Flip-flop of the group and cycle of the layer's window, both uniform."""
        table = _bits(context, self.name)
        edges = np.cumsum(table.weight)
        low, high = np.zeros(len(words)), np.full(len(words), edges[-1])
        if group is not None:
            ends = np.searchsorted(table.group, np.arange(table.group[-1] + 1), side="right")
            stops = np.concatenate([[0.0], edges])[ends]
            low, high = np.concatenate([[0.0], stops])[group], stops[group]
        at = low + (high - low) * rng.uniform(words[:, FIRST_FREE_WORD])
        entry = np.minimum(np.searchsorted(edges, at, side="right"), len(edges) - 1)
        which, bit = table.register[entry], table.bit[entry]
        fields = [share.field for share in context.registers[self.name]]
        width = np.array([field.width for field in fields], dtype=np.int64)[which]
        copies = np.array([field.bits // field.width for field in fields], dtype=np.int64)[which]
        copy = rng.integers(words[:, FIRST_FREE_WORD + 1], copies)
        cycle = rng.integers(words[:, FIRST_FREE_WORD + 2], context.window)
        return self.sites(context, which, copy * width + bit, cycle)

    def sites(
        self, context: LayerContext, which: Integers, position: Integers, cycle: Integers
    ) -> Sites:
        """Sites of given flip-flops in given cycles.

        Args:
            context: the layer.
            which: ``(n,)`` number of the register in the group's layout.
            position: ``(n,)`` flip-flop of it, below its number of bits.
            cycle: ``(n,)`` cycle of the layer's window.
        """
        columns = np.full((6, len(which)), -1, dtype=np.int64)
        for number, (field, _) in enumerate(context.registers[self.name]):
            (mine,) = np.nonzero(which == number)
            copies = (field.words, len(field.kernels), field.lanes, field.width)
            _, copy, lane, columns[5, mine] = np.unravel_index(position[mine], copies)
            if field.signal.effect != "none":
                kernel = np.array(field.kernels, dtype=np.int64)[copy]
                columns[:5, mine] = _place(context, field, cycle[mine] - LEAD_IN, kernel, lane)
        kernel, channel, r, s, pixel, bit = columns
        return Sites.of(
            len(which), kernel=kernel, channel=channel, r=r, s=s, pixel=pixel, bit=bit, value=which
        )

    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """The outputs in reach of what each register held."""
        upsets = self._upsets(values.context, sites)
        return SparseChange.of([change_outputs(part, values) for part in upsets], values.y.pixels)

    def _upsets(self, context: LayerContext, sites: Sites) -> list[Upsets]:
        """The sites by kind of value; each covers all rows, -1 where a row is of another kind."""
        mapping = context.mapping
        shape, atoms = mapping.shape, mapping.atoms
        live = sites.kernel >= 0
        group, kernel = np.divmod(np.where(live, sites.kernel, 0), shape.K // shape.groups)
        kgroup, kernel = np.divmod(kernel, atoms.kernels)
        within = np.where(live, sites.channel, 0) % (shape.C // shape.groups)
        block, lane = np.divmod(within, atoms.channels)
        at = (np.where(live, column, 0) for column in (sites.r, sites.s, sites.pixel))
        atom = mapping.index(kgroup, block, *at, group=group)
        kinds: dict[Signal, list[int]] = {}
        layout = [share.field for share in context.registers[self.name]]
        for number in np.unique(sites.value[live]).tolist():
            kind = layout[number].signal._replace(stage=0)
            kinds.setdefault(kind, []).append(number)
        edges = np.array([field.edge for field in layout], dtype=np.int64)[sites.value]
        base = Upsets(next(iter(kinds), layout[0].signal), atom, kernel, lane, sites.bit, edges)
        return [
            replace(
                base, signal=kind, atom=np.where(live & np.isin(sites.value, numbers), atom, -1)
            )
            for kind, numbers in kinds.items()
        ]


class _Bits(NamedTuple):
    """Bits of the registers of a model, one array entry each, group by group.

    Attributes:
        register: number of the register in the group's layout.
        bit: bit of it.
        group: number of the :class:`BitGroup`.
        weight: its share of the model's flip-flops.
    """

    register: Integers
    bit: Integers
    group: Integers
    weight: NDArray[np.float64]


def _bits(context: LayerContext, name: str) -> _Bits:
    chosen = context.registers[name]
    widths = [share.field.width for share in chosen]
    register = np.repeat(np.arange(len(chosen)), widths)
    bit = np.concatenate([np.arange(width) for width in widths])
    flip_flops = np.array([share.flip_flops for share in chosen])
    if not flip_flops.any():
        flip_flops = np.array([float(share.field.bits) for share in chosen])
    live = np.array([share.field.signal.effect != "none" for share in chosen])
    stops = [bits.stop for bits in bit_ranges(context.arithmetic.format)]
    group = np.where(live[register], 1 + np.searchsorted(stops, bit, side="right"), 0)
    weight = (flip_flops / widths)[register] / flip_flops.sum()
    order = np.argsort(group, kind="stable")
    return _Bits(register[order], bit[order], group[order], weight[order])


def nvdla_mix(accelerator: AcceleratorConfig) -> dict[str, float]:
    """Weight of each register model on an accelerator: its flip-flops.

    Control registers, which steer the sequence, are no part of it.

    Example:
        >>> from rasp.nvdla.config import load
        >>> nvdla_mix(load("nv_small"))["MAC_SUM"]
        760.0
    """
    return {name: count for name, count in flip_flops(accelerator).items() if count}


def _place(
    context: LayerContext,
    field: Field,
    cycle: Integers,
    kernel: Integers,
    lane: Integers,
) -> Integers:
    """Kernel, channel, r, s and pixel ``(5, n)`` of what a register holds, -1 where nothing."""
    mapping = context.mapping
    shape, atoms = mapping.shape, mapping.atoms
    stage = np.full_like(cycle, field.signal.stage)
    held = context.timeline.resident(field.signal, cycle, stage, kernel, lane + field.first_lane)
    at = mapping.atom(np.maximum(held.atom, 0))
    within = at.cblock * atoms.channels + held.lane
    reach = mapping.reach(field.signal.reach, np.maximum(held.atom, 0), held.kernel)
    live = (held.atom >= 0) & (within < shape.C // shape.groups) & (reach.kernels > 0)
    first = at.group * (shape.K // shape.groups) + at.kgroup * atoms.kernels + held.kernel
    channel = at.group * (shape.C // shape.groups) + within
    return np.where(live, np.stack([first, channel, at.r, at.s, at.pixel]), -1)
