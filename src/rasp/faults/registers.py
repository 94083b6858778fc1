"""Fault models of NVDLA's registers: an upset of a random flip-flop in a random cycle.

Each model is a group of registers by what one upset does (:data:`rasp.nvdla.layout.GROUPS`). A
draw is uniform over flip-flops and over the cycles of the layer's window; most draws of some
models hit a register that is idle or holds nothing, and change nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rasp import rng
from rasp.faults.context import FIRST_FREE_WORD, FaultModel, LayerContext
from rasp.faults.effects import Upsets, change_outputs
from rasp.faults.sites import Integers, Sites, SparseChange
from rasp.nvdla.cycles import LEAD_IN, layer_window
from rasp.nvdla.layout import GROUPS, Field, Share, flip_flops, shares
from rasp.nvdla.timeline import Timeline

if TYPE_CHECKING:
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

    def draw(self, context: LayerContext, words: Words) -> Sites:
        """Flip-flop of the group and cycle of the layer's window, both uniform."""
        number = context.arithmetic.format
        chosen = self._shares(context)
        weights = np.array([share.flip_flops for share in chosen])
        if not weights.any():
            weights = np.array([float(share.field.bits) for share in chosen])
        which = rng.choice(words[:, FIRST_FREE_WORD], weights)
        window = layer_window(context.conv.conv, context.accelerator, number)
        cycle = rng.integers(words[:, FIRST_FREE_WORD + 2], window)
        sizes = np.array([share.field.bits for share in chosen], dtype=np.int64)
        position = rng.integers(words[:, FIRST_FREE_WORD + 1], sizes[which])
        return self.sites(context, which, position, cycle)

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
        timeline = Timeline(context.mapping)
        columns = np.full((6, len(which)), -1, dtype=np.int64)
        for number, (field, _) in enumerate(self._shares(context)):
            (mine,) = np.nonzero(which == number)
            copies = (field.words, len(field.kernels), field.lanes, field.width)
            _, copy, lane, columns[5, mine] = np.unravel_index(position[mine], copies)
            if field.signal.effect != "none":
                kernel = np.array(field.kernels, dtype=np.int64)[copy]
                columns[:5, mine] = _place(
                    context, timeline, field, cycle[mine] - LEAD_IN, kernel, lane
                )
        kernel, channel, r, s, pixel, bit = columns
        return Sites.of(
            len(which), kernel=kernel, channel=channel, r=r, s=s, pixel=pixel, bit=bit, value=which
        )

    def change(
        self, context: LayerContext, sites: Sites, x: Tensor, sums: Tensor, y: Tensor
    ) -> SparseChange:
        """The outputs in reach of what each register held."""
        upsets = self._upsets(context, sites)
        return joined([change_outputs(context, kind, x, sums) for kind in upsets], y)

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
        layout = [share.field for share in self._shares(context)]
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

    def _shares(self, context: LayerContext) -> list[Share]:
        found = shares(context.accelerator, context.arithmetic.format)
        return [share for share in found if share.field.group == self.name]


def joined(parts: list[SparseChange], y: Tensor) -> SparseChange:
    """Changes of different rows as one; none of any row if there is no part."""
    none = torch.empty(0, dtype=torch.int64, device=y.device)
    parts = [SparseChange(none, none, y[:0, 0, 0]), *parts]
    columns = ([getattr(part, name) for part in parts] for name in ("row", "element", "value"))
    return SparseChange(*(torch.cat(column) for column in columns))


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
    timeline: Timeline,
    field: Field,
    cycle: Integers,
    kernel: Integers,
    lane: Integers,
) -> Integers:
    """Kernel, channel, r, s and pixel ``(5, n)`` of what a register holds, -1 where nothing."""
    mapping = context.mapping
    shape, atoms = mapping.shape, mapping.atoms
    stage = np.full_like(cycle, field.signal.stage)
    held = timeline.resident(field.signal, cycle, stage, kernel, lane + field.first_lane)
    at = mapping.atom(np.maximum(held.atom, 0))
    within = at.cblock * atoms.channels + held.lane
    reach = mapping.reach(field.signal.reach, np.maximum(held.atom, 0), held.kernel)
    live = (held.atom >= 0) & (within < shape.C // shape.groups) & (reach.kernels > 0)
    first = at.group * (shape.K // shape.groups) + at.kgroup * atoms.kernels + held.kernel
    channel = at.group * (shape.C // shape.groups) + within
    return np.where(live, np.stack([first, channel, at.r, at.s, at.pixel]), -1)
