"""Which atom, and whose weights, sit in a pipeline stage in a given cycle.

Stage 0 is the output of the sequence controller (``sc2mac_dat_*``); an atom is in stage ``i`` at
its cycle plus ``i``. Weights travel one package ahead: those of package ``p`` leave the controller
kernel by kernel while package ``p - 1`` starts, wait in the shadow registers of the MAC cells from
stage 4 on and become active with the first atom of their own package. Measured on nv_small.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from rasp.nvdla.cycles import LEAST_WEIGHT_CYCLES
from rasp.nvdla.drain import DRAINED, Drain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rasp.nvdla.mapping import Indices, Mapping
    from rasp.nvdla.signals import Signal

MAC_STAGE = 4
"""Stage of the operand registers in the MAC cells."""


class Load(NamedTuple):
    """Weights on their way: package and first kernel lane, -1 where there are none."""

    package: Indices
    kernel: Indices


class Use(NamedTuple):
    """Weights in use: package and position in its stripe, -1 where there are none."""

    package: Indices
    position: Indices


class Weight(NamedTuple):
    """Weight bytes: package, kernel lane and channel lane, -1 where there are none."""

    package: Indices
    kernel: Indices
    lane: Indices


class Resident(NamedTuple):
    """What registers hold: atom, -1 where none, kernel lane and channel lane."""

    atom: Indices
    kernel: Indices
    lane: Indices


class Packages(NamedTuple):
    """Packages of a layer in their order: first atom, number of atoms and of kernels."""

    first: Indices
    length: Indices
    kernels: Indices


def packages(mapping: Mapping) -> Packages:
    """The packages of a layer, arrays of one length."""
    shape = mapping.shape
    groups = np.array([group.size for group in mapping.kernel_groups], dtype=np.int64)
    stripes = np.array([stripe.length for stripe in mapping.stripes], dtype=np.int64)
    passes = shape.groups * len(groups)
    length = np.tile(np.repeat(stripes, mapping.taps), passes)
    kernels = np.repeat(np.tile(groups, shape.groups), stripes.size * mapping.taps)
    return Packages(np.cumsum(length) - length, length, kernels)


class Timeline:
    """Cycles of the packages of one layer.

    Args:
        mapping: the layer on its accelerator.
        starts: cycle in which the first atom of each package is in stage 0; by default the first
            starts in cycle 0 and there is no stall where the MAC array is the limit.

    Attributes:
        first: number of each package's first atom.
        length: atoms of each package.
        kernels: kernels of each package.
        starts: cycle of each package's first atom in stage 0.
        loads: cycle of each package's first kernel in stage 0.

    Example:
        >>> from rasp.nvdla.config import load
        >>> from rasp.nvdla.mapping import Mapping
        >>> from rasp.nvdla.shapes import ConvShape
        >>> fc = ConvShape("fc", C=64, H=1, W=1, K=24, R=1, S=1)
        >>> timeline = Timeline(Mapping(fc, load("nv_small")))
        >>> timeline.atom([0, 1, 8]).tolist()
        [0, -1, 1]
    """

    def __init__(self, mapping: Mapping, starts: ArrayLike | None = None) -> None:
        self._mapping = mapping
        self.first, self.length, self.kernels = packages(mapping)
        config = mapping.config
        self._rate = config.datapath(mapping.format).kernels_per_cycle
        self._loading = -(-self.kernels // self._rate)
        least = max(config.minimum_package, LEAST_WEIGHT_CYCLES)
        self._steps = np.maximum(np.maximum(self.length, self._loading), least)
        free = np.cumsum(self._steps) - self._steps
        if starts is None:
            starts = free + self._stalls()
        self.starts = np.asarray(starts, dtype=np.int64)
        lead = max(int(self._loading[0]), LEAST_WEIGHT_CYCLES)
        self.loads = np.concatenate([[self.starts[0] - lead], self.starts[:-1]])

    def _stalls(self) -> Indices:
        """Cycles every package has waited for the SDP.

        Only the last package of a stripe needs room for results (credits, CSC_sg.v); it is held
        back until the SDP keeps pace, so a stripe takes the time of its packages or of its results
        through the SDP, whichever is longer.
        """
        mapping = self._mapping
        lanes = -(-mapping.atoms.kernels // mapping.config.sdp_throughput)
        taps = mapping.taps
        extra = np.maximum(lanes * self.length - taps * self._steps, 0)[::taps]
        waited = np.zeros_like(self.first)
        waited[taps - 1 :: taps] = extra
        waited[0] = 0
        return np.cumsum(waited)

    @classmethod
    def fitted(cls, mapping: Mapping, cycles: ArrayLike, atoms: ArrayLike) -> Self:
        """Timeline through observed atoms.

        Packages nobody observed follow the observed one before them as in the default timeline, or
        precede the first, but never run into the next observed one.

        Args:
            mapping: the layer on its accelerator.
            cycles: cycles in which the atoms were in stage 0.
            atoms: their numbers, at least one.

        Raises:
            ValueError: no atom is given, or two observations contradict each other.
        """
        free = cls(mapping)
        n = np.asarray(atoms, dtype=np.int64)
        if not n.size:
            raise ValueError("a timeline needs at least one observed atom")
        package = np.searchsorted(free.first, n, side="right") - 1
        begin = np.asarray(cycles, dtype=np.int64) - (n - free.first[package])
        slack = np.full(free.first.size, -1, dtype=np.int64)
        slack[package] = delay = begin - free.starts[package]
        if not np.array_equal(slack[package], delay):
            raise ValueError("two observations place one package in different cycles")
        known = np.unique(package)
        nearest = np.maximum(np.searchsorted(known, np.arange(slack.size), side="right") - 1, 0)
        least = np.cumsum(free._steps) - free._steps
        spare = free.starts + slack[known[nearest]] - least
        latest = np.minimum.accumulate(spare[::-1])[::-1]
        if not np.array_equal(latest[known], spare[known]):
            raise ValueError("observed packages overlap")
        return cls(mapping, least + latest)

    def atom(self, cycle: ArrayLike) -> Indices:
        """Number of the atom in stage 0 in each cycle, -1 where there is none."""
        at = np.asarray(cycle, dtype=np.int64)
        package, offset = self._since(self.starts, at)
        live = (package >= 0) & (offset < self.length[package])
        return np.where(live, self.first[package] + offset, -1)

    def loading(self, cycle: ArrayLike) -> Load:
        """Package and first kernel whose weights are in stage 0 in each cycle."""
        at = np.asarray(cycle, dtype=np.int64)
        package, offset = self._since(self.loads, at)
        live = (package >= 0) & (offset < self._loading[package])
        return Load(np.where(live, package, -1), np.where(live, offset * self._rate, -1))

    def shadow(self, cycle: ArrayLike, kernel: ArrayLike) -> Indices:
        """Package whose weights wait in the shadow register of a cell, -1 where none do."""
        at, lane = np.broadcast_arrays(np.asarray(cycle, dtype=np.int64), np.asarray(kernel))
        package, _ = self._since(self.loads, at - lane // self._rate - MAC_STAGE)
        live = (package >= 0) & (lane < self.kernels[package])
        return np.where(live & (at < self.starts[package] + MAC_STAGE), package, -1)

    def active(self, cycle: ArrayLike, kernel: ArrayLike) -> Use:
        """Package and stripe position that a cell's active weights multiply in each cycle."""
        at, lane = np.broadcast_arrays(np.asarray(cycle, dtype=np.int64), np.asarray(kernel))
        package, offset = self._since(self.starts, at - MAC_STAGE)
        live = (package >= 0) & (lane < self.kernels[package]) & (offset < self.length[package])
        return Use(np.where(live, package, -1), np.where(live, offset, -1))

    def word(self, package: ArrayLike, kernel: ArrayLike, lane: ArrayLike) -> Weight:
        """Weight in byte ``lane`` of the buffer word that is read when a kernel is loaded.

        Weights lie without gaps in the order of their use, so a kernel with fewer than
        ``atomic_c`` channels in the package may find its bytes left over from the word before;
        then no word is read.
        """
        p, k, byte = np.broadcast_arrays(
            *(np.asarray(v, np.int64) for v in (package, kernel, lane))
        )
        mapping = self._mapping
        blocks = np.array([block.size for block in mapping.channel_blocks], dtype=np.int64)
        sizes = np.repeat(blocks, mapping.shape.R * mapping.shape.S)
        ends = np.cumsum(sizes)
        tap = np.where(p >= 0, p % mapping.taps, 0)
        kernels = self.kernels[p]
        used = ends[tap] * kernels - sizes[tap] * (kernels - k)
        width = mapping.atoms.channels
        read = -(-used // width) * width
        offset = read + byte
        live = (p >= 0) & (read < used + sizes[tap]) & (offset < ends[-1] * kernels)
        holder = np.minimum(np.searchsorted(ends, offset // kernels, side="right"), sizes.size - 1)
        within = offset - (ends - sizes)[holder] * kernels
        found, channel = np.divmod(within, sizes[holder])
        holder += p - tap
        return Weight(*(np.where(live, value, -1) for value in (holder, found, channel)))

    def resident(
        self, signal: Signal, cycle: ArrayLike, stage: ArrayLike, kernel: ArrayLike, lane: ArrayLike
    ) -> Resident:
        """What registers that hold the same kind of value hold in given cycles.

        Args:
            signal: effect and kind of residence; its other fields are not read.
            cycle: cycles of the upsets.
            stage: pipeline stage of each register.
            kernel: kernel lane of each register, as :class:`~rasp.nvdla.signals.Signal` has it.
            lane: channel lane, the byte of the word on the weight bus, the queue to memory.

        Returns:
            For weights the first atom they are multiplied in from that cycle on.
        """
        at, stages, cell, channel = np.broadcast_arrays(
            *(np.asarray(value, dtype=np.int64) for value in (cycle, stage, kernel, lane))
        )
        if signal.held == "atom":
            return Resident(self.atom(at - stages), cell, channel)
        if signal.held in DRAINED:
            return self._result(signal, at - stages, cell, channel)
        if signal.held == "active":
            package, position = self.active(at, cell)
            return Resident(
                np.where(package >= 0, self.first[package] + position, -1), cell, channel
            )
        if signal.held == "shadow":
            package = self.shadow(at, cell)
        else:
            package, first = self.loading(at - stages)
            half = self._mapping.atoms.kernels // 2
            loaded = first + cell % self._rate
            mine = (stages < 0) | (loaded // half == cell // half)
            package = np.where(mine & (loaded < self.kernels[package]), package, -1)
            cell = loaded
        if signal.effect == "weight_bus":
            package, cell, channel = self.word(package, cell, channel)
        return Resident(np.where(package >= 0, self.first[package], -1), cell, channel)

    @cached_property
    def _finals(self) -> Indices:
        """Number of the last atom of every pixel in the order they are finished."""
        mapping = self._mapping
        shape, groups = mapping.shape, len(mapping.kernel_groups)
        last = (len(mapping.channel_blocks) - 1, shape.R - 1, shape.S - 1)
        passes, pixel = np.divmod(np.arange(shape.groups * groups * shape.pixels), shape.pixels)
        group, kgroup = np.divmod(passes, groups)
        return mapping.index(kgroup, *last, pixel, group=group)

    @cached_property
    def _drain(self) -> Drain:
        package = np.searchsorted(self.first, self._finals, side="right") - 1
        return Drain(self._mapping, self.starts[package] + self._finals - self.first[package])

    def _result(self, signal: Signal, cycle: Indices, kernel: Indices, queue: Indices) -> Resident:
        pixel, lane = self._drain.resident(signal.held, cycle, kernel, queue)
        atom = np.where(pixel >= 0, self._finals[np.maximum(pixel, 0)], -1)
        return Resident(atom, lane, np.zeros_like(lane))

    @staticmethod
    def _since(starts: Indices, cycle: Indices) -> tuple[Indices, Indices]:
        package = np.searchsorted(starts, cycle, side="right") - 1
        return package, cycle - starts[package]
