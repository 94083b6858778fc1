"""Observers: from the distribution of a tensor to the largest magnitude INT8 shall hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

BINS = 2048
_LEVELS = 127
_CANDIDATES = 100
_PERCENTILE = 99.99


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of ``|x|`` in equal bins over ``[0, peak]``, zeros left out.

    Attributes:
        counts: ``(BINS,)`` float64.
        peak: the largest magnitude seen.
    """

    counts: Tensor
    peak: float


def minmax(histogram: Histogram) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return histogram.peak


def percentile(histogram: Histogram) -> float:
    """The magnitude that 99.99 % of the values that are not zero do not exceed."""
    if not float(histogram.counts.sum()):
        return histogram.peak
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    index = int(torch.searchsorted(share, torch.tensor(_PERCENTILE / 100, dtype=share.dtype)))
    return histogram.peak * (min(index, BINS - 1) + 1) / BINS


def mse(histogram: Histogram) -> float:
    """The threshold with the least mean squared error of rounding and clipping."""
    width = histogram.peak / BINS
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
    best, threshold = float("inf"), histogram.peak
    for step in range(_CANDIDATES, 0, -1):
        candidate = histogram.peak * step / _CANDIDATES
        scale = candidate / _LEVELS
        inside = torch.full_like(centres, scale**2 / 12)
        error = torch.where(centres <= candidate, inside, (centres - candidate) ** 2)
        cost = float((error * histogram.counts).sum())
        if cost < best:
            best, threshold = cost, candidate
    return threshold


OBSERVERS: dict[str, Callable[[Histogram], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}


def observer(name: str) -> Callable[[Histogram], float]:
    """Look an observer up by name.

    Raises:
        ConfigError: no observer has that name.
    """
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return OBSERVERS[name]
