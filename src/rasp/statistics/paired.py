"""Two networks held against each other: ratios on the same images, differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rasp.errors import ConfigError
from rasp.statistics.rate import Difference, Rate, Ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def paired_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Ratio | None:
    r"""Ratio of two totals over the same clusters, with its interval on the log scale.

    With :math:`a_i` and :math:`b_i` the parts of cluster ``i``, such as an image's part of the
    failures of two networks, and :math:`A` and :math:`B` their sums, the linearised variance is

    .. math:: \operatorname{var}\log\frac{A}{B} = \frac{k}{k-1}
              \sum_i \Bigl(\frac{a_i}{A} - \frac{b_i}{B}\Bigr)^2,

    so what both have in common cancels. Its interval takes Student's quantile for ``k - 1``.

    Args:
        a: ``(k,)`` parts of the numerator, zero or more.
        b: ``(k,)`` those of the denominator in the same clusters.
        confidence: two-sided level.

    Returns:
        The ratio; ``None`` where a total is zero or there is one cluster, which have no variance.

    Raises:
        ConfigError: shapes that differ, or a part below zero.

    Source:
        W. G. Cochran, Sampling Techniques (1977), chapter 6, on the log scale.

    Example:
        >>> fragile = [0, 0, 4, 10] * 25
        >>> print(paired_ratio([value / 2 for value in fragile], fragile))
        0.50x [0.50, 0.50]
    """
    from scipy.special import stdtrit

    first, second = (np.asarray(parts, dtype=np.float64) for parts in (a, b))
    if first.shape != second.shape or first.ndim != 1:
        raise ConfigError(
            f"Paired totals need the same clusters, got shapes {first.shape} and {second.shape}."
        )
    if (first < 0).any() or (second < 0).any():
        raise ConfigError("The parts of a total must not be negative.")
    k, sums = len(first), (first.sum(), second.sum())
    if k < 2 or not all(sums):
        return None
    residuals = first / sums[0] - second / sums[1]
    error = math.sqrt(k / (k - 1) * float(residuals @ residuals))
    factor = math.exp(float(stdtrit(k - 1, (1 + confidence) / 2)) * error)
    estimate = float(sums[0] / sums[1])
    return Ratio(estimate, estimate / factor, estimate * factor, confidence)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    r"""Mean of ``a - b`` over the same clusters, such as two networks' right answers by image.

    For the interval two clusters are added, one won and one lost, so that networks that never
    differ have one too; it takes the normal quantile.

    Args:
        a: ``(k,)`` values from 0 to 1: 1 for a right answer, or their mean over seeds.
        b: those of the other network for the same clusters.
        confidence: two-sided level.

    Raises:
        ConfigError: shapes that differ, no cluster, or a value outside 0 to 1.

    Source:
        A. Agresti, Y. Min, Stat. Med. 24 (2005): the adjusted Wald interval of matched pairs.

    Example:
        >>> print(paired_difference([1, 1, 0, 1] * 50, [1, 0, 0, 1] * 50))
        +25.00 [+18.64, +30.86] points
    """
    from scipy.special import ndtri

    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ConfigError(
            f"Paired values need the same clusters, got shapes {first.shape} and {second.shape}."
        )
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) > 1:
        raise ConfigError("Paired values must lie from 0 to 1.")
    change = np.append(first - second, [1.0, -1.0])
    error = float(ndtri((1 + confidence) / 2)) * float(change.std()) / math.sqrt(len(change))
    middle = float(change.mean())
    return Difference(float((first - second).mean()), middle - error, middle + error, confidence)


def difference(a: Rate, b: Rate) -> Difference:
    r"""``a - b`` of two rates, with Newcombe's interval for independent ones.

    Two networks that run on the same images err on the same ones, so the interval is then wider
    than it need be.

    Raises:
        ConfigError: the two rates have different confidence levels.

    Source:
        R. G. Newcombe, Stat. Med. 17 (1998), method 10.

    Example:
        >>> from rasp.statistics import wilson
        >>> print(difference(wilson(9170, 10_000), wilson(9200, 10_000)))
        -0.30 [-1.06, +0.46] points
    """
    if a.confidence != b.confidence:
        raise ConfigError(
            f"A difference needs two rates at one confidence level, got {a.confidence} and "
            f"{b.confidence}."
        )
    estimate = a.estimate - b.estimate
    below = math.hypot(a.estimate - a.low, b.high - b.estimate)
    above = math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Difference(estimate, estimate - below, estimate + above, a.confidence)
