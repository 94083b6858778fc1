"""Which result is in which register of the SDP in a given cycle.

A finished pixel waits in the delivery buffer until the pixel before it has gone; then its results
leave the accumulator, as many a cycle as the SDP takes, and pass one pipeline stage a cycle.
Measured on nv_small: every upset recorded in layers A, B and D found the bit this says was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rasp.nvdla.mapping import Indices, Mapping
    from rasp.nvdla.registers import Held

QUEUES = 4
"""Words on their way to memory go to one queue after the other along a line of the output."""

DRAINED: tuple[Held, ...] = ("result", "operand", "packed", "word", "queued")
"""Kinds of residence in the SDP."""

_GAP = 1  # cycles between two pixels that leave the delivery buffer one after the other


class Drain:
    """Results of one layer on their way out.

    Args:
        mapping: the layer on its accelerator.
        finished: cycle in which the last atom of each pixel is in stage 0, in the order of groups,
            kernel groups and pixels.

    Attributes:
        leaves: cycle in which each pixel's first result would be in stage 0.

    Example:
        >>> from rasp.nvdla.config import load
        >>> from rasp.nvdla.mapping import Mapping
        >>> from rasp.nvdla.shapes import ConvShape
        >>> fc = ConvShape("fc", C=64, H=1, W=2, K=8, R=1, S=1)
        >>> drain = Drain(Mapping(fc, load("nv_small")), np.array([56, 57]))
        >>> drain.leaves.tolist()
        [56, 65]
        >>> [found.tolist() for found in drain.resident("result", np.array([58, 64, 66]), 0, 0)]
        [[0, -1, 1], [2, 8, 1]]
    """

    def __init__(self, mapping: Mapping, finished: Indices) -> None:
        self._lanes, self._shape = mapping.atoms.kernels, mapping.shape
        self._width = mapping.config.sdp_throughput
        self._turns = -(-self._lanes // self._width)
        free = np.arange(len(finished)) * (self._turns + _GAP)
        self.leaves = np.maximum.accumulate(finished - free) + free

    def resident(
        self, held: Held, cycle: ArrayLike, lane: ArrayLike, queue: ArrayLike
    ) -> tuple[Indices, Indices]:
        """Number of the pixel in registers, -1 where there is none, and result lane.

        Args:
            held: ``"result"`` and the others of :data:`DRAINED`.
            cycle: cycle less the stage of each register.
            lane: result lane of each register, for ``"result"`` among those of one cycle.
            queue: queue the register belongs to, read for ``"queued"``.
        """
        at, cell = np.broadcast_arrays(np.asarray(cycle, np.int64), np.asarray(lane, np.int64))
        turn = cell // self._width
        match held:
            case "result":
                pixel = self._left(at)
                turn = at - self.leaves[pixel]
                cell = turn * self._width + cell
                live = (pixel >= 0) & (turn < self._turns)
            case "operand":
                pixel = np.searchsorted(self.leaves, at - turn)
                before = self.leaves[np.maximum(pixel - 1, 0)] + self._turns
                live = (pixel < len(self.leaves)) & ((pixel == 0) | (at >= before))
            case "packed":
                pixel = self._left(at - turn)
                live = (pixel >= 0) & (at < self.leaves[pixel] + self._turns)
            case _:
                pixel = self._left(at - self._turns)
                live = (pixel >= 0) & (self.leaves[pixel] == at - self._turns)
                if held == "queued":
                    live &= self._queue(pixel) == queue
        return np.where(live & (cell < self._lanes), pixel, -1), cell

    def _left(self, cycle: Indices) -> Indices:
        return np.searchsorted(self.leaves, cycle, side="right") - 1

    def _queue(self, pixel: Indices) -> Indices:
        """A 1 x 1 map is written as a line of its kernel groups."""
        place = pixel if self._shape.pixels == 1 else pixel % self._shape.pixels % self._shape.Wo
        return place % QUEUES
