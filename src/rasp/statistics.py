"""Rates with their intervals, and how many trials an interval costs.

Everything here is arithmetic on counts. Two quantities are kept apart on purpose: ``n``, the trials
that were run, and ``n_effective``, the independent trials they are worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from rasp.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


_ROUNDING = 1e-12
_LARGEST_WITH_TWO_DIGITS = 3.55
"""Leading digits up to which an uncertainty is printed with two (Particle Data Group's rule)."""


@dataclass(frozen=True, slots=True)
class Rate:
    """An estimated probability with its confidence interval.

    Attributes:
        estimate: ``events / n``.
        low, high: ends of the interval, within [0, 1].
        n: trials.
        n_effective: independent trials that would give an interval this wide.
        events: trials that counted.
        confidence: two-sided confidence level of ``[low, high]``.
        method: how the interval was computed.
    """

    estimate: float
    low: float
    high: float
    n: int
    n_effective: float
    events: int
    confidence: float
    method: str

    def __post_init__(self) -> None:
        """Refuse what is no rate, for files that strangers wrote."""
        inside = 0 <= self.low <= self.estimate + _ROUNDING <= self.high + 2 * _ROUNDING
        if not (
            0 <= self.events <= self.n
            and self.n >= 1
            and 0 < self.n_effective < math.inf
            and inside
            and 0 < self.high <= 1
            and self.low < 1
            and 0 < self.confidence < 1
        ):
            raise ConfigError(
                f"Not a rate: {self.events} events of n = {self.n}, estimate {self.estimate} "
                f"[{self.low}, {self.high}] at confidence {self.confidence}."
            )

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def complement(self) -> Rate:
        """Rate of the trials that did not count."""
        low, high = 1 - self.high, 1 - self.low
        left = self.n - self.events
        return replace(self, estimate=1 - self.estimate, low=low, high=high, events=left)

    def __str__(self) -> str:
        """Percent with as many decimals as the interval supports; a bound if nothing varied."""
        if self.events == 0:
            return f"<= {_bound(100 * self.high)} % (0/{spaced(self.n)})"
        if self.events == self.n:
            shortfall = _bound(100 * (1 - self.low))
            decimals = len(shortfall.partition(".")[2])
            return f">= {100 - float(shortfall):.{decimals}f} % ({spaced(self.n)}/{spaced(self.n)})"
        finest = min(self.half_width, self.estimate, 1 - self.estimate)
        decimals = max(1, -math.floor(math.log10(100 * finest / _LARGEST_WITH_TWO_DIGITS)))
        estimate, low, high = (
            f"{100 * value:.{decimals}f}" for value in (self.estimate, self.low, self.high)
        )
        return f"{estimate} % [{low}, {high}] n={spaced(self.n)}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Quotient of two rates with its confidence interval.

    Attributes:
        estimate: the quotient; ``None`` where the denominator had no events.
        low: lower end.
        high: upper end; ``None`` where it is unbounded.
        confidence: two-sided confidence level of ``[low, high]``.
    """

    estimate: float | None
    low: float
    high: float | None
    confidence: float

    def scaled(self, factor: float) -> Ratio:
        """The same ratio with every number multiplied by a known positive factor."""
        return replace(
            self,
            estimate=None if self.estimate is None else self.estimate * factor,
            low=self.low * factor,
            high=None if self.high is None else self.high * factor,
        )

    def __str__(self) -> str:
        """Two decimals, ``0.62x [0.51, 0.75]``; a bound where the estimate is missing or zero."""
        if self.high is None:
            return f">= {self.low:.2f}x" if self.low else "unknown"
        if not self.estimate:
            return f"<= {self.high:.2f}x"
        return f"{self.estimate:.2f}x [{self.low:.2f}, {self.high:.2f}]"


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
    _check(events, n, confidence)
    low, high = _score_interval(events / n, n, _z(confidence))
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
    _check(events, n, confidence)
    low, high = _exact_interval(events, n, confidence)
    return Rate(events / n, low, high, n, n, events, confidence, "clopper-pearson")


def clustered_rate(
    events_per_cluster: ArrayLike, trials_per_cluster: ArrayLike, confidence: float = 0.95
) -> Rate:
    r"""Rate and interval when trials come in clusters, such as the faults that share an image.

    The design effect compares the linearised variance of the ratio estimator over ``k`` clusters,

    .. math:: \frac{k}{k-1} \sum_i (e_i - \hat p\, n_i)^2 / n^2,

    with the binomial one. It is floored at 1, and the Wilson interval is taken at the effective
    sample size ``n / deff * (z / t_{k-1})**2`` (Korn and Graubard), so few clusters widen it. One
    cluster is worth one trial. Where every trial came out the same there is no variance to
    estimate: the interval is Clopper-Pearson's and treats the trials as independent.

    Args:
        events_per_cluster: ``(k,)`` events.
        trials_per_cluster: ``(k,)`` trials; empty clusters are left out.
        confidence: two-sided level.

    Raises:
        ConfigError: no trials, shapes that differ, a count outside its range.

    Source:
        E. L. Korn, B. I. Graubard, Survey Methodology 24 (1998); C. Dean, M. Pagano, J. Surv.
        Stat. Methodol. 3 (2015) for the Wilson form.

    Example:
        >>> print(clustered_rate([1] * 50, [20] * 50))
        5.0 % [3.8, 6.6] n=1 000
        >>> print(clustered_rate([10, 0] * 25, [20] * 50))
        25.0 % [18.6, 32.8] n=1 000
    """
    events = np.asarray(events_per_cluster, dtype=np.int64)
    trials = np.asarray(trials_per_cluster, dtype=np.int64)
    if events.shape != trials.shape or events.ndim != 1:
        raise ConfigError(
            f"Events and trials per cluster must be vectors of one length, "
            f"got shapes {events.shape} and {trials.shape}."
        )
    if ((events < 0) | (events > trials)).any():
        raise ConfigError("Events per cluster must lie between 0 and the cluster's trials.")
    clusters = np.arange(len(events))
    return weighted_rate(
        np.concatenate([clusters, clusters]),
        np.repeat([True, False], len(events)),
        np.concatenate([events, trials - events]),
        confidence=confidence,
    )


def weighted_rate(
    cluster: ArrayLike | None,
    hit: ArrayLike,
    trials: ArrayLike,
    weight: ArrayLike | None = None,
    square: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
) -> Rate:
    r"""Rate and interval of clustered trials that were drawn with unequal probabilities.

    A trial's weight is its share of the population over the probability it was drawn with. The
    estimate is the quotient of two Horvitz-Thompson totals (Hájek),

    .. math:: \hat p = \sum_i w_i y_i / \sum_i w_i,

    its variance that of the linearised cluster totals as in :func:`clustered_rate`, but never below
    that of independent trials with these weights; the interval is Wilson's at the sample size that
    has this variance. Where every trial came out the same, Clopper-Pearson's interval is taken at
    the total weight over the largest weight, which is conservative.

    Args:
        cluster: ``(m,)`` cluster of each entry; ``None`` if trials are independent.
        hit: ``(m,)`` whether the entry's trials are events.
        trials: ``(m,)`` number of trials.
        weight: ``(m,)`` sum of their weights; the number of trials if ``None``.
        square: ``(m,)`` sum of the squares of their weights; likewise.
        confidence: two-sided level.

    Raises:
        ConfigError: no trials, or a weight that is not positive.

    Source:
        J. Hájek in Godambe and Sprott, Foundations of Statistical Inference (1971); Korn and
        Graubard, Survey Methodology 24 (1998).

    Example:
        >>> image, hit = [*range(50), *range(50)], [True] * 50 + [False] * 50
        >>> print(weighted_rate(image, hit, [2] * 50 + [18] * 50))
        10.0 % [8.3, 12.1] n=1 000
        >>> halved, rest = [1.0] * 50, [19.0] * 50
        >>> print(weighted_rate(image, hit, [2] * 50 + [18] * 50, halved + rest, [0.5] * 50 + rest))
        5.0 % [4.1, 6.1] n=1 000
    """
    count = np.asarray(trials, dtype=np.int64)
    event = np.asarray(hit, dtype=bool)
    mass, squares = (
        np.asarray(count if column is None else column, dtype=np.float64)
        for column in (weight, square)
    )
    total, n = int(count[event].sum()), int(count.sum())
    _check(total, n, confidence)
    if ((mass <= 0) & (count > 0)).any():
        raise ConfigError("The weights of trials must be positive.")
    if total in (0, n):
        used = count > 0
        worth = float(mass.sum() / (squares[used] / mass[used]).max())
        low, high = _exact_interval(worth * (total > 0), worth, confidence)
        return Rate(float(total > 0), low, high, n, worth, total, confidence, "clopper-pearson")
    p = float(mass[event].sum() / mass.sum())
    variance = float((squares * np.where(event, 1 - p, p) ** 2).sum())
    method, penalty = "wilson", 1.0
    if cluster is not None:
        of = np.asarray(cluster, dtype=np.int64)
        sizes = np.bincount(of, weights=mass)
        residuals = np.bincount(of, weights=mass * event) - p * sizes
        k = int((sizes > 0).sum())
        method, penalty = "wilson, clustered", _few_clusters(k, confidence)
        variance = max(variance, k / max(1, k - 1) * float(residuals @ residuals))
    n_effective = max(1.0, p * (1 - p) * mass.sum() ** 2 / variance * penalty)
    low, high = _score_interval(p, n_effective, _z(confidence))
    return Rate(p, low, high, n, n_effective, total, confidence, method)


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
    low, high = _score_interval(p, n_effective, _z(confidence))
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
    factor = math.exp(_z(a.confidence) * error)
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
    n = _z(confidence) ** 2 * p * (1 - p) / margin**2
    if population is not None:
        n = population / (1 + (population - 1) / n)
    return math.ceil(n)


def _few_clusters(k: int, confidence: float) -> float:
    """What an effective sample size is worth with the variance of k clusters estimated."""
    from scipy.special import stdtrit

    if k == 1:
        return 0.0
    return float((_z(confidence) / stdtrit(k - 1, (1 + confidence) / 2)) ** 2)


def _exact_interval(events: float, n: float, confidence: float) -> tuple[float, float]:
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(events, n - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, n - events, 1 - tail)) if events < n else 1.0
    return low, high


def _score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return low, high


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"The confidence must lie between 0 and 1, got {confidence}. 0.95 is usual."
        )
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check(events: int, n: int, confidence: float) -> None:
    _z(confidence)
    if n < 1:
        raise ConfigError("A rate needs at least one finished trial, got none.")
    if not 0 <= events <= n:
        raise ConfigError(f"Events must lie between 0 and n = {n}, got {events}.")


def _bound(percent: float) -> str:
    """Two significant digits, rounded up so that a printed bound still holds."""
    decimals = max(0, 1 - math.floor(math.log10(percent)))
    step = 10.0**decimals
    return f"{math.ceil(percent * step - 1e-9) / step:.{decimals}f}"


def spaced(count: float) -> str:
    """A count as it is printed everywhere, rounded and in groups of three digits.

    Example:
        >>> spaced(38415)
        '38 415'
    """
    return f"{count:,.0f}".replace(",", " ")
