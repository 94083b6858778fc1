"""Rates of trials that share images or were drawn with unequal probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp.errors import ConfigError
from rasp.statistics.intervals import check, exact_interval, quantile, score_interval
from rasp.statistics.rate import Rate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
    used = _Weighted.of(hit, trials, weight, square, confidence)
    total = used.mass.sum()
    if used.certain:
        return used.exact(float(total), confidence)
    p = float(used.mass[used.event].sum() / total)
    variance = float((used.squares * np.where(used.event, 1 - p, p) ** 2).sum())
    method, penalty = "wilson", 1.0
    if cluster is not None:
        of = np.asarray(cluster, dtype=np.int64)
        sizes = np.bincount(of, weights=used.mass)
        residuals = np.bincount(of, weights=used.mass * used.event) - p * sizes
        k = int((sizes > 0).sum())
        method, penalty = "wilson, clustered", _few_clusters(k, confidence)
        variance = max(variance, k / max(1, k - 1) * float(residuals @ residuals))
    n_effective = max(1.0, p * (1 - p) * total**2 / variance * penalty)
    low, high = score_interval(p, n_effective, confidence)
    return Rate(p, low, high, used.n, n_effective, used.events, confidence, method)


def horvitz_thompson(
    cluster: ArrayLike | None,
    hit: ArrayLike,
    trials: ArrayLike,
    weight: ArrayLike,
    square: ArrayLike,
    *,
    expected: float,
    clusters: int = 1,
    confidence: float = 0.95,
) -> Rate:
    r"""Rate and interval of weighted trials of a whole population, whose total weight is known.

    With :math:`W` the total that the weights have on average, the estimate

    .. math:: \hat p = \sum_i w_i y_i / W

    has no bias; it is taken of the rarer of event and complement, where it scatters less than the
    quotient of :func:`weighted_rate`. The variance is that of the cluster totals, clusters without
    trials among them, but never below that of independent trials with these weights. Interval, and
    trials that all came out the same, as in :func:`weighted_rate`.

    Args:
        cluster: ``(m,)`` cluster of each entry; ``None`` if trials are independent.
        hit: ``(m,)`` whether the entry's trials are events.
        trials: ``(m,)`` number of trials.
        weight: ``(m,)`` sum of their weights.
        square: ``(m,)`` sum of the squares of their weights.
        expected: total weight that these trials have on average.
        clusters: number of clusters, equally likely to be drawn from.
        confidence: two-sided level.

    Raises:
        ConfigError: no trials, or a weight or total that is not positive.

    Source:
        D. G. Horvitz, D. J. Thompson, JASA 47 (1952).

    Example:
        >>> print(horvitz_thompson(None, [True, False], [200, 800], [20, 950], [2, 1200],
        ...                        expected=1000))
        2.00 % [1.77, 2.26] n=1 000
    """
    if not 0 < expected < math.inf:
        raise ConfigError(f"The expected total weight must be positive, got {expected}.")
    event = np.asarray(hit, dtype=bool)
    mass = np.asarray(weight, dtype=np.float64)
    if mass[event].sum() > mass[~event].sum():
        return horvitz_thompson(
            cluster, ~event, trials, weight, square,
            expected=expected, clusters=clusters, confidence=confidence,
        ).complement  # fmt: skip
    used = _Weighted.of(event, trials, weight, square, confidence)
    if used.certain:
        return used.exact(expected, confidence)
    p = min(1.0, float(mass[event].sum()) / expected)
    variance = float(used.squares[event].sum()) - (p * expected) ** 2 / used.n
    method, penalty = "wilson", 1.0
    if cluster is not None:
        sums = np.bincount(np.asarray(cluster)[event], mass[event], minlength=clusters)
        method, penalty = "wilson, clustered", _few_clusters(clusters, confidence)
        spread = clusters * float(sums.var())
        variance = max(variance, clusters / max(1, clusters - 1) * spread)
    n_effective = max(1.0, p * (1 - p) * expected**2 / variance * penalty)
    low, high = score_interval(p, n_effective, confidence)
    return Rate(p, low, high, used.n, n_effective, used.events, confidence, method)


class _Weighted(NamedTuple):
    """Entries of weighted trials, checked."""

    event: NDArray[np.bool_]
    mass: NDArray[np.float64]
    squares: NDArray[np.float64]
    heaviest: float
    events: int
    n: int

    @classmethod
    def of(
        cls,
        hit: ArrayLike,
        trials: ArrayLike,
        weight: ArrayLike | None,
        square: ArrayLike | None,
        confidence: float,
    ) -> _Weighted:
        count = np.asarray(trials, dtype=np.int64)
        event = np.asarray(hit, dtype=bool)
        mass, squares = (
            np.asarray(count if column is None else column, dtype=np.float64)
            for column in (weight, square)
        )
        events, n = int(count[event].sum()), int(count.sum())
        check(events, n, confidence)
        used = count > 0
        if (mass[used] <= 0).any():
            raise ConfigError("The weights of trials must be positive.")
        heaviest = float((squares[used] / mass[used]).max())
        return cls(event, mass, squares, heaviest, events, n)

    @property
    def certain(self) -> bool:
        """Whether every trial came out the same."""
        return self.events in (0, self.n)

    def exact(self, total: float, confidence: float) -> Rate:
        """Rate of trials that all came out the same, worth their total over the largest weight."""
        p, worth = float(self.events > 0), total / self.heaviest
        low, high = exact_interval(worth * p, worth, confidence)
        return Rate(p, low, high, self.n, worth, self.events, confidence, "clopper-pearson")


def _few_clusters(k: int, confidence: float) -> float:
    """What an effective sample size is worth with the variance of k clusters estimated."""
    from scipy.special import stdtrit

    if k == 1:
        return 0.0
    return float((quantile(confidence) / stdtrit(k - 1, (1 + confidence) / 2)) ** 2)
