"""Observers: from the distribution of a tensor to the largest magnitude INT8 shall hold.

A bit flip moves a value by up to that magnitude, whatever the value was. An observer that expects
upsets therefore clips more than rounding alone would pay for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

BINS = 2048
_LEVELS = 127
_JUMP = sum(4**bit for bit in range(8)) / 8 / _LEVELS**2  # mean square of a flip, of threshold**2
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


def minmax(histogram: Histogram, upset_rate: float = 0.0) -> float:
    """The largest magnitude seen: nothing is clipped."""
    _expects_none("minmax", upset_rate)
    return histogram.peak


def clipping(histogram: Histogram, upset_rate: float) -> float:
    """The bound with the least mean squared error of clipping and upsets in floating point.

    Args:
        histogram: of the tensor.
        upset_rate: probability that an upset throws a value onto the bound.
    """
    return _least_error(histogram, upset_rate, rounding=0.0)


def percentile(histogram: Histogram, upset_rate: float = 0.0) -> float:
    """The magnitude that 99.99 % of the values that are not zero do not exceed."""
    _expects_none("percentile", upset_rate)
    if not float(histogram.counts.sum()):
        return histogram.peak
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    index = int(torch.searchsorted(share, torch.tensor(_PERCENTILE / 100, dtype=share.dtype)))
    return histogram.peak * (min(index, BINS - 1) + 1) / BINS


def mse(histogram: Histogram, upset_rate: float = 0.0) -> float:
    """The threshold with the least mean squared error of rounding, clipping and upsets.

    Args:
        histogram: of the tensor.
        upset_rate: probability that one random bit of a value is flipped; what it adds to the
            error grows with the square of the threshold.
    """
    return _least_error(histogram, upset_rate * _JUMP, rounding=1 / 12 / _LEVELS**2)


def _least_error(histogram: Histogram, jumps: float, rounding: float) -> float:
    """The threshold with the least error; ``jumps`` and ``rounding`` are parts of its square."""
    n = float(histogram.counts.sum())
    width = histogram.peak / BINS
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
    best, threshold = float("inf"), histogram.peak
    for step in range(_CANDIDATES, 0, -1):
        candidate = histogram.peak * step / _CANDIDATES
        inside = torch.full_like(centres, rounding * candidate**2)
        error = torch.where(centres <= candidate, inside, (centres - candidate) ** 2)
        cost = float((error * histogram.counts).sum()) + n * jumps * candidate**2
        if cost < best:
            best, threshold = cost, candidate
    return threshold


def _expects_none(name: str, upset_rate: float) -> None:
    if upset_rate:
        raise ConfigError(f"Observer '{name}' knows of no upsets; 'mse' weighs them.")


OBSERVERS: dict[str, Callable[[Histogram, float], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}


def observer(name: str) -> Callable[[Histogram, float], float]:
    """Look an observer up by name.

    Raises:
        ConfigError: no observer has that name.
    """
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return OBSERVERS[name]
