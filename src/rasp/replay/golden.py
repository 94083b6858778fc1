"""Golden tensors: the fault-free values that replay starts from."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.network.maps import Maps
from rasp.network.windows import filled

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from rasp.network.graph import Network

MEMORY = 1 << 30
"""Bytes of golden tensors that are held at once."""

_LEAST, _MOST = 16, 128  # images that run at once


def golden_bytes(network: Network) -> int:
    """Bytes of the golden tensors of one image."""
    values = sum(math.prod(node.shape) for node in network.nodes)
    return values * network.arithmetic.bits // 8


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


@dataclass(frozen=True, slots=True, eq=False)
class SharedGolden:
    """Golden tensors of all images as read-only arrays, which processes of a machine can share.

    Attributes:
        logits: fp32 ``(N, classes)``.
        maps: of every node the pixels and the shape of its :class:`~rasp.network.maps.Maps`.
    """

    logits: NDArray[np.float32]
    maps: Mapping[str, tuple[NDArray[np.generic], tuple[int, ...]]]


class GoldenTensors:
    """Stored output of every node, for as many images at a time as the memory budget holds.

    Floating-point batches are filled up to whole blocks (:func:`~rasp.network.windows.filled`), so
    a row's bits do not depend on which rows it runs with.

    Args:
        network: what runs.
        images: ``(N, C, H, W)`` normalised.
        memory: budget in bytes; at least 16 images are held.
        shared: what :meth:`share` gave for the same network and images; nothing is computed then.
    """

    def __init__(
        self,
        network: Network,
        images: Tensor,
        *,
        memory: int = MEMORY,
        shared: SharedGolden | None = None,
    ) -> None:
        self._network = network
        self._images = images
        each = golden_bytes(network)
        self.block = max(_LEAST, memory // each)
        self._batch = max(_LEAST, min(_MOST, memory // 8 // each))
        self._held: tuple[int, Mapping[str, Maps]] | None = None
        if shared is not None:
            self.block = len(images)
            self.logits = _tensor(shared.logits).to(images.device)
            self._held = (
                0,
                {
                    name: Maps(_tensor(pixels).to(images.device), shape)
                    for name, (pixels, shape) in shared.maps.items()
                },
            )
            return
        logits = []
        for start in range(0, len(images), self._batch):
            values = self._trace(range(start, min(start + self._batch, len(images))))
            logits.append(network.arithmetic.decode(network.output, values[network.output]))
        self.logits = torch.cat(logits)

    @property
    def held(self) -> int:
        """Number of the block that is held, -1 for none."""
        return -1 if self._held is None else self._held[0]

    def of_block(self, number: int) -> Mapping[str, Maps]:
        """Stored output of every node for the images ``number * block`` and on."""
        if self._held is None or self._held[0] != number:
            self._held = None
            self._held = (number, self._maps(number * self.block))
        return self._held[1]

    def share(self) -> SharedGolden | None:
        """All of it for other processes; ``None`` if it does not fit in memory at once."""
        if self.block < len(self._images):
            return None
        maps = {
            name: (maps.pixels.cpu().numpy(), maps.shape) for name, maps in self.of_block(0).items()
        }
        return SharedGolden(self.logits.cpu().numpy(), maps)

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

    def _maps(self, first: int) -> Mapping[str, Maps]:
        last = min(first + self.block, len(self._images))
        maps: dict[str, Maps] = {}
        for start in range(first, last, self._batch):
            stop = min(start + self._batch, last)
            for name, value in self._trace(range(start, stop)).items():
                if start == first:
                    maps[name] = Maps.empty(last - first, value)
                maps[name].store(slice(start - first, stop - first), value)
        return maps

    def _trace(self, rows: range) -> dict[str, Tensor]:
        chosen = filled(torch.arange(rows.start, rows.stop), self._network.arithmetic)
        values = self._network.trace(self._images[chosen.to(self._images.device)])
        return {name: value[: len(rows)] for name, value in values.items()}


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """The memory of an array, which nobody writes to, as a tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        return torch.from_numpy(array)
