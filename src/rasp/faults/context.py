"""What every fault model is given and has to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rasp.network.windows import exact
from rasp.nvdla.cycles import layer_window
from rasp.nvdla.layout import GROUPS, Share, shares
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.timeline import Timeline

if TYPE_CHECKING:
    from rasp.faults.sites import Integers, Sites, SparseChange
    from rasp.faults.values import LayerValues
    from rasp.network.graph import Arithmetic, Conv
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.rng import Words

FIRST_FREE_WORD = 2
"""Sampling takes the words before it."""


_EDGES = {
    "int8": (0, 4, 5, 6, 7, *range(8, 53, 4)),
    "fp16": (0, 5, 8, 10, 11, 12, 13, 14, 15, 16, 18, *range(23, 33)),  # sums are fp32
    "fp32": (0, 12, 18, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32),
}


class BitGroup(NamedTuple):
    """Faults of one model whose bits lie next to each other.

    Attributes:
        bits: bits of the register.
        share: probability that a draw is of this group.
        idle: whether the registers hold nothing that matters, so that no fault changes anything.
    """

    bits: range
    share: float
    idle: bool = False


def bit_ranges(format: str) -> tuple[range, ...]:  # noqa: A002
    """Bits of a format whose upsets are alike: high bits one by one, low ones together.

    Example:
        >>> [len(bits) for bits in bit_ranges("fp16") if bits.stop <= 16]
        [5, 3, 2, 1, 1, 1, 1, 1, 1]
    """
    edges = _EDGES[format]
    return tuple(range(*pair) for pair in pairwise(edges))


@dataclass(frozen=True, eq=False)
class LayerContext:
    """One layer in one arithmetic on one accelerator."""

    conv: Conv
    arithmetic: Arithmetic
    accelerator: AcceleratorConfig

    @cached_property
    def mapping(self) -> Mapping:
        """Order of the layer's work on the accelerator."""
        return Mapping(self.conv.conv, self.accelerator, self.arithmetic.format)

    @cached_property
    def timeline(self) -> Timeline:
        """Cycles of the layer's packages."""
        return Timeline(self.mapping)

    @cached_property
    def window(self) -> int:
        """Cycles in which the layer occupies the accelerator."""
        return layer_window(self.conv.conv, self.accelerator, self.arithmetic.format)

    @cached_property
    def exact_pixels(self) -> bool:
        """Whether sums of single pixels have the bits of the whole map's."""
        return exact(self.arithmetic, self.conv, 1, 1)

    @cached_property
    def registers(self) -> dict[str, tuple[Share, ...]]:
        """Registers of each group of :data:`rasp.nvdla.layout.GROUPS`."""
        found = shares(self.accelerator, self.arithmetic.format)
        return {name: tuple(s for s in found if s.field.group == name) for name in GROUPS}


class FaultModel(ABC):
    """How upsets of one kind of register are drawn and what they change.

    Attributes:
        name: name in reports and stores.
    """

    name: str

    @property
    def summary(self) -> str:
        """What the model is, in a few words."""
        return (self.__doc__ or "").strip().split("\n")[0].rstrip(".")

    def bit_groups(self, context: LayerContext) -> tuple[BitGroup, ...]:
        """Groups that a draw can be restricted to; their shares sum to 1."""
        del context
        return (BitGroup(range(-1, 0), 1.0),)

    @abstractmethod
    def draw(self, context: LayerContext, words: Words, group: Integers | None = None) -> Sites:
        """Sites of ``n`` faults.

        Args:
            context: the layer.
            words: ``(n, 8)`` uniform words; the first two belong to the sampling.
            group: ``(n,)`` number of the :meth:`bit_groups` entry each is of; any if ``None``.
        """

    @abstractmethod
    def change(self, sites: Sites, values: LayerValues) -> SparseChange:
        """What ``n`` faults change, fault ``i`` in row ``i``.

        Args:
            sites: ``n`` sites.
            values: golden values of the layer for ``n`` trials.
        """
