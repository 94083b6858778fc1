"""Intervals of independent trials, and how many trials an interval costs."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from rasp.errors import ConfigError
from rasp.statistics.rate import Rate, Ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def wilson(events: int, n: int, confidence: float = 0.95) -> Rate:
    r"""Wilson score interval of ``events`` in ``n`` independent trials.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Raises:
        ConfigError: ``n < 1``, ``events`` outside [0, n], or ``confidence`` outside (0, 1).

    Source:
        E. B. Wilson, JASA 22 (1927); recommended by Brown, Cai, DasGupta, Stat. Sci. 16 (2001).

    Example:
        >>> print(wilson(161, 38415))
        0.42 % [0.36, 0.49] n=38 415
    """
    check(events, n, confidence)
    low, high = score_interval(events / n, n, confidence)
    return Rate(events / n, low, high, n, n, events, confidence, "wilson")


def clopper_pearson(events: int, n: int, confidence: float = 0.95) -> Rate:
    """Exact (conservative) interval of ``events`` in ``n`` independent trials.

    Raises:
        ConfigError: ``n < 1``, ``events`` outside [0, n], or ``confidence`` outside (0, 1).

    Source:
        C. J. Clopper, E. S. Pearson, Biometrika 26 (1934).

    Example:
        >>> print(clopper_pearson(0, 38415))
        <= 0.0097 % (0/38 415)
    """
    check(events, n, confidence)
    low, high = exact_interval(events, n, confidence)
    return Rate(events / n, low, high, n, n, events, confidence, "clopper-pearson")


def stratified(
    weights: ArrayLike, events: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> Rate:
    r"""Rate of a population cut into strata of known weight, with independent trials in each.

    The estimate is :math:`\hat p = \sum_h W_h e_h / n_h`, its variance
    :math:`\sum_h W_h^2 \tilde p_h (1 - \tilde p_h) / n_h` with Jeffreys' :math:`\tilde p_h = (e_h +
    1/2) / (n_h + 1)`, so that a stratum without events still counts; the interval is Wilson's at
    the sample size that has this variance.

    Args:
        weights: ``(k,)`` sizes of the strata on any scale.
        events: ``(k,)`` events.
        trials: ``(k,)`` trials, at least one in each stratum of positive weight.
        confidence: two-sided level.

    Raises:
        ConfigError: shapes that differ, a negative weight, no weight at all, a stratum with weight
            and no trials, or a count outside its range.

    Source:
        W. G. Cochran, Sampling Techniques (1977), chapter 5.

    Example:
        >>> print(stratified([3, 1], [10, 200], [1000, 1000]))
        5.8 % [5.0, 6.6] n=2 000
    """
    sizes, hits, runs = (
        np.asarray(column, dtype=np.float64) for column in (weights, events, trials)
    )
    if sizes.ndim != 1 or not sizes.shape == hits.shape == runs.shape:
        raise ConfigError("Weights, events and trials of strata must be vectors of one length.")
    if (sizes < 0).any() or not sizes.sum() > 0 or ((sizes > 0) & (runs < 1)).any():
        raise ConfigError(
            "Strata need weights of zero or more that are not all zero, and a trial where the "
            "weight is positive."
        )
    if ((hits < 0) | (hits > runs)).any():
        raise ConfigError("Events of a stratum must lie between 0 and its trials.")
    used = sizes > 0
    share, hits, runs = sizes[used] / sizes.sum(), hits[used], runs[used]
    n = int(runs.sum())
    p = float((share * hits / runs).sum())
    smooth = (hits + 0.5) / (runs + 1)
    variance = float((share**2 * smooth * (1 - smooth) / runs).sum())
    inner = min(max(p, 0.5 / n), 1 - 0.5 / n)
    n_effective = max(1.0, inner * (1 - inner) / variance)
    low, high = score_interval(p, n_effective, confidence)
    return Rate(p, low, high, n, n_effective, int(hits.sum()), confidence, "wilson, stratified")


def ratio(a: Rate, b: Rate) -> Ratio:
    """``a / b`` of two independent rates, with the delta-method interval on the log scale.

    Where a rate has no events the log scale has no variance: the ends are then the quotients of
    the rates' ends, which is conservative.

    Raises:
        ConfigError: the two rates have different confidence levels.

    Source:
        D. Katz et al., Biometrics 34 (1978), with effective sample sizes.

    Example:
        >>> print(ratio(wilson(50, 10_000), wilson(100, 10_000)))
        0.50x [0.36, 0.70]
    """
    if a.confidence != b.confidence:
        raise ConfigError(
            f"A ratio needs two rates at one confidence level, got {a.confidence} and "
            f"{b.confidence}. Read both campaigns at the same level."
        )
    if not a.events or not b.events:
        return Ratio(
            estimate=a.estimate / b.estimate if b.events else None,
            low=a.low / b.high,
            high=a.high / b.low if b.low else None,
            confidence=a.confidence,
        )
    quotient = a.estimate / b.estimate
    error = math.sqrt(sum((1 - x.estimate) / (x.n_effective * x.estimate) for x in (a, b)))
    factor = math.exp(quantile(a.confidence) * error)
    return Ratio(quotient, quotient / factor, quotient * factor, a.confidence)


def sample_size(
    margin: float, confidence: float = 0.95, *, p: float = 0.5, population: int | None = None
) -> int:
    """Independent trials after which a rate near ``p`` is known to ``+- margin``.

    Args:
        margin: half-width wanted, in (0, 1).
        confidence: two-sided level.
        p: expected rate; 0.5 is the worst case.
        population: number of possible faults, for the finite-population correction.

    Source:
        R. Leveugle et al., "Statistical fault injection", DATE 2009.

    Example:
        >>> sample_size(0.01), sample_size(0.01, population=10_000)
        (9604, 4900)
    """
    if not 0 < margin < 1:
        raise ConfigError(f"The margin must lie between 0 and 1, got {margin}.")
    if not 0 < p < 1:
        raise ConfigError(f"The expected rate must lie between 0 and 1, got {p}.")
    if population is not None and population < 1:
        raise ConfigError(f"The population must hold at least one fault, got {population}.")
    n = quantile(confidence) ** 2 * p * (1 - p) / margin**2
    if population is not None:
        n = population / (1 + (population - 1) / n)
    return math.ceil(n)


def exact_interval(events: float, n: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of ``events`` in ``n`` trials, not always whole numbers."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(events, n - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, n - events, 1 - tail)) if events < n else 1.0
    return low, high


def score_interval(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a proportion ``p`` of ``n`` independent trials, not always whole."""
    z = quantile(confidence)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return low, high


def quantile(confidence: float) -> float:
    """Standard normal deviations on either side of the mean that hold this probability."""
    if not 0 < confidence < 1:
        raise ConfigError(
            f"The confidence must lie between 0 and 1, got {confidence}. 0.95 is usual."
        )
    return NormalDist().inv_cdf((1 + confidence) / 2)


def check(events: int, n: int, confidence: float) -> None:
    """Refuse counts and levels that no rate can be made of."""
    quantile(confidence)
    if n < 1:
        raise ConfigError("A rate needs at least one finished trial, got none.")
    if not 0 <= events <= n:
        raise ConfigError(f"Events must lie between 0 and n = {n}, got {events}.")
