"""Where a fault hits, and what it changes in the layer's output."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """Sites of ``n`` faults of one fault model in one layer; -1 where a coordinate has no meaning.

    Attributes:
        kernel: output channel; the first of the group where a whole kernel group is in reach.
        channel: input channel.
        r, s: kernel row and column.
        pixel: raster pixel (row * columns + column) of the output map, of the input map for
            ``INPUT``; the first of the stripe where a stripe is in reach.
        bit: bit of the register, 0 the least significant.
        value: the bits that replace the value, where the model replaces it.
    """

    kernel: Integers
    channel: Integers
    r: Integers
    s: Integers
    pixel: Integers
    bit: Integers
    value: Integers

    @classmethod
    def of(cls, n: int, **known: Integers) -> Sites:
        """Sites with the given coordinates and -1 in the others."""
        names = (field.name for field in fields(cls))
        return cls(**{name: known.get(name, np.full(n, -1, dtype=np.int64)) for name in names})

    def __len__(self) -> int:
        return len(self.bit)

    def __getitem__(self, index: slice | Integers | NDArray[np.bool_]) -> Sites:
        return Sites(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def live(self) -> NDArray[np.bool_]:
        """``(n,)`` whether a value is hit, not an idle register or a cycle without one."""
        return (self.kernel >= 0) | (self.pixel >= 0)

    def put(self, index: Integers, sites: Sites) -> None:
        """Overwrite the rows ``index``."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(sites, field.name)


@dataclass(frozen=True, slots=True, eq=False)
class SparseChange:
    """New values of a few elements of one layer's output.

    Attributes:
        row: ``(m,)`` int64 row of the batch.
        element: ``(m,)`` int64 index into the flattened output ``K * Ho * Wo``; a pair (row,
            element) appears once.
        value: ``(m,)`` stored values.
    """

    row: Tensor
    element: Tensor
    value: Tensor

    @classmethod
    def of(cls, parts: Sequence[SparseChange], like: Tensor) -> SparseChange:
        """All parts, or an empty change of values ``like`` a tensor."""
        if not parts:
            nothing = torch.empty(0, dtype=torch.int64, device=like.device)
            return cls(nothing, nothing, like.flatten()[:0])
        columns = zip(*((part.row, part.element, part.value) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def pick(self, chosen: Tensor) -> SparseChange:
        """Some of the elements."""
        return SparseChange(self.row[chosen], self.element[chosen], self.value[chosen])
