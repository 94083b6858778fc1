"""Coverage of the stratified interval by simulation, with fixed seeds."""

import numpy as np
import pytest

from rasp.errors import ConfigError
from rasp.statistics import stratified, wilson

REPEATS = 2000


@pytest.mark.parametrize(
    ("weights", "rates", "trials"),
    [
        ([1, 1, 1], [0.1, 0.3, 0.5], [100, 100, 100]),
        ([90, 9, 1], [0.002, 0.05, 0.6], [500, 500, 500]),
        ([5, 3, 2, 1], [0.0, 0.01, 0.2, 0.0], [500, 300, 200, 800]),
    ],
)
def test_the_95_percent_interval_covers_at_its_level(weights, rates, trials):
    """2,000 repeats have a standard error of 0.5 %; outside 93 to 99 % has probability below 1e-4.

    Intervals may be too wide where strata without events are counted, not too narrow.
    """
    generator = np.random.default_rng(7)
    truth = float(np.average(rates, weights=weights))

    found = [stratified(weights, generator.binomial(trials, rates), trials) for _ in range(REPEATS)]

    covered = np.mean([rate.low <= truth <= rate.high for rate in found])
    assert 0.93 < covered < 0.995
    assert np.mean([rate.estimate for rate in found]) == pytest.approx(truth, rel=0.02)


def test_one_stratum_is_nearly_wilson():
    one, other = stratified([4.0], [37], [1000]), wilson(37, 1000)

    assert one.estimate == other.estimate
    assert one.low == pytest.approx(other.low, rel=0.02)
    assert one.high == pytest.approx(other.high, rel=0.02)


@pytest.mark.parametrize(
    ("weights", "events", "trials"),
    [([1], [1, 2], [3, 3]), ([0, 0], [1, 1], [2, 2]), ([1], [3], [2]), ([1, 1], [0, 0], [0, 5])],
)
def test_strata_that_make_no_sense_are_refused(weights, events, trials):
    with pytest.raises(ConfigError):
        stratified(weights, events, trials)
