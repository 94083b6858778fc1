"""What every fault model is given and has to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rasp.nvdla.mapping import Mapping

if TYPE_CHECKING:
    from torch import Tensor

    from rasp.faults.sites import Sites, SparseChange
    from rasp.network.graph import Arithmetic, Conv
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.rng import Words

FIRST_FREE_WORD = 2
"""Sampling takes the words before it."""


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


class FaultModel(ABC):
    """How upsets of one kind of register are drawn and what they change.

    Attributes:
        name: name in reports and stores.
        reads_sums: whether :meth:`change` needs the layer's sums.
    """

    name: str
    reads_sums: bool = True

    @property
    def summary(self) -> str:
        """What the model is, in a few words."""
        return (self.__doc__ or "").strip().split("\n")[0].rstrip(".")

    @abstractmethod
    def draw(self, context: LayerContext, words: Words) -> Sites:
        """Sites of ``n`` faults.

        Args:
            context: the layer.
            words: ``(n, 8)`` uniform words; the first two belong to the sampling.
        """

    @abstractmethod
    def change(
        self, context: LayerContext, sites: Sites, x: Tensor, sums: Tensor, y: Tensor
    ) -> SparseChange:
        """What ``n`` faults change, fault ``i`` in row ``i``.

        Args:
            context: the layer.
            sites: ``n`` sites.
            x: golden stored input ``(n, C, H, W)``.
            sums: golden sums ``(n, K, Ho * Wo)``; empty unless :attr:`reads_sums`.
            y: golden stored output ``(n, K, Ho * Wo)``.
        """
