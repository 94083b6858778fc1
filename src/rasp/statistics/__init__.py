"""Rates with their intervals, and how many trials an interval costs.

Everything here is arithmetic on counts. Two quantities are kept apart on purpose: ``n``, the trials
that were run, and ``n_effective``, the independent trials they are worth.
"""

from rasp.statistics.intervals import clopper_pearson, ratio, sample_size, stratified, wilson
from rasp.statistics.paired import difference, paired_difference, paired_ratio
from rasp.statistics.rate import Difference, Rate, Ratio, spaced
from rasp.statistics.weighted import clustered_rate, horvitz_thompson, weighted_rate

__all__ = [
    "Difference",
    "Rate",
    "Ratio",
    "clopper_pearson",
    "clustered_rate",
    "difference",
    "horvitz_thompson",
    "paired_difference",
    "paired_ratio",
    "ratio",
    "sample_size",
    "spaced",
    "stratified",
    "weighted_rate",
    "wilson",
]
