"""Golden tensors: the fault-free values that replay starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rasp.network.graph import Network

MEMORY = 2 << 30
"""Bytes of golden tensors that are kept; beyond it they are computed again for every batch."""


_BLOCK = 16


def filled(rows: Tensor, network: Network) -> Tensor:
    """Rows repeated up to a multiple of 16 where the arithmetic is floating point.

    Libraries choose another order of summation for small or odd batches: measured with oneDNN on
    x86, linear layers round differently in batches of 2, 3 or 5, convolutions in a batch of 1, and
    neither in multiples of 16. Integers have no such difference.

    Args:
        rows: ``(n,)`` row numbers, n >= 1.
        network: what they will run through.
    """
    missing = -len(rows) % _BLOCK
    if network.format == "int8" or not missing:
        return rows
    return torch.cat([rows, rows[:1].expand(missing)])


@dataclass(frozen=True, slots=True, eq=False)
class GoldenRun:
    """Fault-free answers.

    Attributes:
        top1: ``(N,)`` int64 top-1 class.
        confidence: ``(N,)`` softmax value of the top-1 class.
        margin: ``(N,)`` its logit minus the runner-up's.
        correct: ``(N,)`` whether it is the label.
    """

    top1: NDArray[np.int64]
    confidence: NDArray[np.float64]
    margin: NDArray[np.float64]
    correct: NDArray[np.bool_]


class GoldenTensors:
    """Stored output of every node for every image, kept if they fit the memory budget.

    Floating-point batches are filled up to whole blocks (:func:`filled`), so a row's bits do not
    depend on which rows it runs with.

    Args:
        network: what runs.
        images: ``(N, C, H, W)`` normalised.
        batch: images that run at once.
        memory: budget in bytes.
    """

    def __init__(
        self, network: Network, images: Tensor, *, batch: int, memory: int = MEMORY
    ) -> None:
        self._network = network
        self._images = images
        self._kept: dict[str, Tensor] = {}
        logits = []
        size = 0
        for start in range(0, len(images), batch):
            rows = torch.arange(start, min(start + batch, len(images)))
            values = self._compute(rows)
            logits.append(network.arithmetic.decode(network.output, values[network.output]))
            if start == 0:
                size = sum(v[0].numel() * v.element_size() for v in values.values()) * len(images)
                if size <= memory:
                    self._kept = {
                        name: value.new_empty((len(images), *value.shape[1:]))
                        for name, value in values.items()
                    }
            for name, kept in self._kept.items():
                kept[rows] = values[name]
        self.logits = torch.cat(logits)

    def rows(self, index: Tensor) -> Mapping[str, Tensor]:
        """Values of the images ``index`` ``(n,)``, each ``(n, *shape)``."""
        if self._kept:
            return _Rows(self._kept, index)
        unique, inverse = torch.unique(index, return_inverse=True)
        return _Rows(self._compute(unique), inverse)

    def run(self, labels: Tensor) -> GoldenRun:
        """The answers."""
        top = self.logits.topk(2, dim=1)
        confidence = self.logits.softmax(dim=1).amax(dim=1)
        top1 = self.logits.argmax(dim=1)
        return GoldenRun(
            top1=top1.cpu().numpy(),
            confidence=confidence.double().cpu().numpy(),
            margin=(top.values[:, 0] - top.values[:, 1]).double().cpu().numpy(),
            correct=(top1 == labels).cpu().numpy(),
        )

    def _compute(self, rows: Tensor) -> dict[str, Tensor]:
        values = self._network.trace(self._images[filled(rows, self._network)])
        return {name: value[: len(rows)] for name, value in values.items()}


class _Rows(Mapping[str, Tensor]):
    """Chosen rows of tensors, gathered when a tensor is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], index: Tensor) -> None:
        self._tensors, self._index = tensors, index

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name][self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
