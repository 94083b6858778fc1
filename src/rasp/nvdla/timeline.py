"""Which atom, and whose weights, sit in a pipeline stage in a given cycle.

Stage 0 is the output of the sequence controller (``sc2mac_dat_*``); an atom is in stage ``i`` at
its cycle plus ``i``. Weights travel one package ahead: those of package ``p`` leave the controller
kernel by kernel while package ``p - 1`` starts, wait in the shadow registers of the MAC cells from
stage 4 on and become active with the first atom of their own package. Measured on nv_small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from rasp.nvdla.cycles import LEAST_WEIGHT_CYCLES, package_cycles

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rasp.nvdla.mapping import Indices, Mapping

MAC_STAGE = 4
"""Stage of the operand registers in the MAC cells."""


class Load(NamedTuple):
    """Weights on their way: package and kernel lane, -1 where there are none."""

    package: Indices
    kernel: Indices


class Use(NamedTuple):
    """Weights in use: package and position in its stripe, -1 where there are none."""

    package: Indices
    position: Indices


class Weight(NamedTuple):
    """One weight byte: package, kernel lane and channel lane."""

    package: int
    kernel: int
    lane: int


class Timeline:
    """Cycles of the packages of one layer.

    Args:
        mapping: the layer on its accelerator.
        starts: cycle in which the first atom of each package is in stage 0; by default packages
            follow each other without a stall and the first starts in cycle 0.

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
        atoms = mapping.atom(np.arange(mapping.count))
        self._mapping = mapping
        self.first = np.flatnonzero(atoms.position == 0)
        self.length = atoms.length[self.first]
        lanes = mapping.atoms.kernels
        per_group = mapping.shape.K // mapping.shape.groups
        self.kernels = np.minimum(lanes, per_group - atoms.kgroup[self.first] * lanes)
        self._steps = np.array(
            [
                package_cycles(int(length), int(kernels), mapping.config)
                for length, kernels in zip(self.length, self.kernels, strict=True)
            ]
        )
        free = np.concatenate([[0], np.cumsum(self._steps)[:-1]])
        self.starts = free if starts is None else np.asarray(starts, dtype=np.int64)
        lead = max(int(self.kernels[0]), LEAST_WEIGHT_CYCLES)
        self.loads = np.concatenate([[self.starts[0] - lead], self.starts[:-1]])

    @classmethod
    def fitted(cls, mapping: Mapping, cycles: ArrayLike, atoms: ArrayLike) -> Self:
        """Timeline through observed atoms.

        Packages nobody observed follow the one before without a stall, or, before the first
        observed one, precede it so.

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
        starts = free.starts + slack[known[nearest]]
        if np.any(np.diff(starts) < free._steps[:-1]):
            raise ValueError("observed packages overlap")
        return cls(mapping, starts)

    def atom(self, cycle: ArrayLike) -> Indices:
        """Number of the atom in stage 0 in each cycle, -1 where there is none."""
        at = np.asarray(cycle, dtype=np.int64)
        package, offset = self._since(self.starts, at)
        live = (package >= 0) & (offset < self.length[package])
        return np.where(live, self.first[package] + offset, -1)

    def loading(self, cycle: ArrayLike) -> Load:
        """Package and kernel whose weights are in stage 0 in each cycle."""
        at = np.asarray(cycle, dtype=np.int64)
        package, offset = self._since(self.loads, at)
        live = (package >= 0) & (offset < self.kernels[package])
        return Load(np.where(live, package, -1), np.where(live, offset, -1))

    def shadow(self, cycle: ArrayLike, kernel: ArrayLike) -> Indices:
        """Package whose weights wait in the shadow register of a cell, -1 where none do."""
        at, lane = np.broadcast_arrays(np.asarray(cycle, dtype=np.int64), np.asarray(kernel))
        package, _ = self._since(self.loads, at - lane - MAC_STAGE)
        live = (package >= 0) & (lane < self.kernels[package])
        return np.where(live & (at < self.starts[package] + MAC_STAGE), package, -1)

    def active(self, cycle: ArrayLike, kernel: ArrayLike) -> Use:
        """Package and stripe position that a cell's active weights multiply in each cycle."""
        at, lane = np.broadcast_arrays(np.asarray(cycle, dtype=np.int64), np.asarray(kernel))
        package, offset = self._since(self.starts, at - MAC_STAGE)
        live = (package >= 0) & (lane < self.kernels[package]) & (offset < self.length[package])
        return Use(np.where(live, package, -1), np.where(live, offset, -1))

    def word(self, package: int, kernel: int) -> tuple[Weight, ...]:
        """Weights in the buffer word that is read when a kernel is loaded.

        Weights lie without gaps in the order of their use, so a kernel with fewer than
        ``atomic_c`` channels in the package may find its bytes left over from the word before;
        then no word is read and the result is empty.
        """
        taps = self._mapping.taps
        start = package // taps * taps
        per_block = self._mapping.shape.R * self._mapping.shape.S
        blocks = np.array([block.size for block in self._mapping.channel_blocks])
        sizes = np.repeat(blocks, per_block)
        kernels = int(self.kernels[package])
        ends = np.cumsum(sizes) * kernels
        width = self._mapping.atoms.channels

        def used(at: int, lanes: int) -> int:
            return int(ends[at] - sizes[at] * (kernels - lanes))

        at = package - start
        read = -(-used(at, kernel) // width) * width
        if read >= used(at, kernel + 1):
            return ()
        offsets = np.arange(read, min(read + width, int(ends[-1])))
        packages = np.searchsorted(ends, offsets, side="right")
        within = offsets - (ends - sizes * kernels)[packages]
        lanes, channels = np.divmod(within, sizes[packages])
        return tuple(
            Weight(int(start + p), int(k), int(c))
            for p, k, c in zip(packages, lanes, channels, strict=True)
        )

    @staticmethod
    def _since(starts: Indices, cycle: Indices) -> tuple[Indices, Indices]:
        package = np.searchsorted(starts, cycle, side="right") - 1
        return package, cycle - starts[package]
