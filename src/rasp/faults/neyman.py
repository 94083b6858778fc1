"""Where the next round of trials tells most: allocation after Neyman.

The variance of a weighted estimate is least where a cell of the population is drawn in proportion
to its share times the root of its rate. Rates are not known before the campaign; they are estimated
from the rounds that are complete. A poor estimate costs trials, never a bias: every trial is
weighted with the probability it was drawn with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rasp.faults.sampling import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.faults.population import Stratum

_UNIFORM = 0.1  # share of the trials drawn with the population's shares, so no weight exceeds 10
_PRIOR = 10.0  # trials that the model of a cell's rate is worth
_EVENTS = 1.0  # events that the prior of a factor of that model is worth
_SWEEPS = 20


def proportional(
    population: Sequence[Stratum], bins: NDArray[np.int64], *, emphasis: float = 1.0
) -> Plan:
    """The plan of the first round: every cell by its share of the population."""
    return Plan(_shares(population, bins), bins, emphasis)


def allocate(
    population: Sequence[Stratum],
    bins: NDArray[np.int64],
    trials: NDArray[np.float64],
    events: NDArray[np.float64],
    *,
    emphasis: float = 1.0,
) -> Plan:
    """The plan of the next round.

    Args:
        population: the strata.
        bins: ``(images,)`` margin bin of each image.
        trials: ``(strata, bins)`` trials of the complete rounds.
        events: ``(strata, bins)`` those with the outcome the campaign is after.
        emphasis: of the round, see :class:`~rasp.faults.sampling.Plan`.

    Source:
        J. Neyman, J. R. Stat. Soc. 97 (1934); the mixture with uniform draws after T. Hesterberg,
        Technometrics 37 (1995).
    """
    shares = _shares(population, bins)
    model = _rates(population, trials, events)
    rate = (events + _PRIOR * model) / (trials + _PRIOR)
    idle = np.array([stratum.bits == "idle" for stratum in population])
    rate[idle] = 0.0
    wanted = shares * np.sqrt(rate)
    total = wanted.sum()
    if not total > 0:
        return proportional(population, bins, emphasis=emphasis)
    return Plan(_UNIFORM * shares + (1 - _UNIFORM) * wanted / total, bins, emphasis)


def _shares(population: Sequence[Stratum], bins: NDArray[np.int64]) -> NDArray[np.float64]:
    weight = np.array([stratum.weight for stratum in population])
    size = np.bincount(bins) / len(bins)
    shares = weight[:, None] * size
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def _rates(
    population: Sequence[Stratum], trials: NDArray[np.float64], events: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rate of each cell as a product of factors of its layer, its kind of fault and its margin.

    Poisson rates with a prior of mean 1 on every factor, fitted one group of factors after the
    other: a kind that never failed is held rarer the more trials it had, never impossible.
    """
    layers = [stratum.layer for stratum in population]
    kinds = [(stratum.model, stratum.bits) for stratum in population]
    codes = [np.unique(_numbered(names), return_inverse=True)[1] for names in (layers, kinds)]
    groups = [np.broadcast_to(code[:, None], trials.shape) for code in codes]
    groups.append(np.broadcast_to(np.arange(trials.shape[1]), trials.shape))
    overall = (events.sum() + 1.0) / (trials.sum() + 1.0)
    factors = [np.ones(int(group.max()) + 1) for group in groups]
    rate = np.full(trials.shape, overall)
    for _ in range(_SWEEPS):
        for number, group in enumerate(groups):
            rest = rate / factors[number][group]
            seen = np.bincount(group.ravel(), weights=events.ravel())
            expected = np.bincount(group.ravel(), weights=(trials * rest).ravel())
            factors[number] = (seen + _EVENTS) / (expected + _EVENTS)
            rate = rest * factors[number][group]
    return np.asarray(np.minimum(rate, 1.0), dtype=np.float64)


def _numbered(names: Sequence[object]) -> list[int]:
    numbers: dict[object, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
