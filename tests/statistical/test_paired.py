"""Ratios of two networks on the same images: unbiased on the log scale and covered.

An interval that covers in 95 % of the cases misses [93 %, 97 %] of 1,000 repeats with probability
4e-3; seeds are fixed.
"""

import numpy as np
import pytest

from rasp.errors import ConfigError
from rasp.statistics import (
    difference,
    paired_difference,
    paired_ratio,
    ratio,
    weighted_rate,
    wilson,
)

REPEATS, IMAGES, FAULTS = 1000, 400, 40


def campaigns(generator, *, shared):
    """Events an image of two networks, of which the second fails 1.5 times as often.

    Images are fragile by a gamma law of shape 1; ``shared`` is how much of it is common to both.
    """
    common, own, other = generator.gamma([shared, 1 - shared, 1 - shared], size=(IMAGES, 3)).T
    rates = 0.04 * (common + own), 0.06 * (common + other)
    return [generator.binomial(FAULTS, np.minimum(rate, 1)) for rate in rates]


@pytest.mark.parametrize("shared", [0.01, 0.5, 0.99])
def test_intervals_of_paired_ratios_cover(shared):
    generator = np.random.default_rng(5)
    found = [paired_ratio(*campaigns(generator, shared=shared)) for _ in range(REPEATS)]

    logs = np.log([one.estimate for one in found])
    assert abs(logs.mean() - np.log(2 / 3)) < 4 * logs.std() / REPEATS**0.5 + 0.005
    covered = np.mean([one.low <= 2 / 3 <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


def test_pairing_narrows_the_interval_by_what_is_shared():
    """The unpaired one takes two independent samples of images."""
    generator = np.random.default_rng(6)
    widths = []
    for _ in range(50):
        events = campaigns(generator, shared=0.99)
        paired = paired_ratio(*events)
        image = np.tile(np.arange(IMAGES), 2)
        hit = np.repeat([True, False], IMAGES)
        rates = [weighted_rate(image, hit, np.concatenate([e, FAULTS - e])) for e in events]
        alone = ratio(*rates)
        widths.append(np.log(paired.high / paired.low) / np.log(alone.high / alone.low))
    assert np.mean(widths) < 0.75


@pytest.mark.parametrize("rates", [(0.91, 0.92), (0.5, 0.1), (0.999, 0.99)])
def test_intervals_of_differences_cover(rates):
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(REPEATS):
        a, b = (wilson(int(generator.binomial(2000, rate)), 2000) for rate in rates)
        found = difference(a, b)
        covered += found.low <= rates[0] - rates[1] <= found.high
    assert 0.93 <= covered / REPEATS <= 0.97


@pytest.mark.parametrize(("better", "worse"), [(0.05, 0.03), (0.01, 0.01), (0.2, 0.01)])
def test_intervals_of_paired_differences_cover(better, worse):
    """Two networks that answer most images alike; each wins a few that the other loses."""
    generator = np.random.default_rng(8)
    covered = 0
    for _ in range(REPEATS):
        draw = generator.random(1000)
        a = np.where(draw < better, 1, np.where(draw < better + worse, 0, draw > 0.3))
        b = np.where(draw < better, 0, np.where(draw < better + worse, 1, draw > 0.3))
        found = paired_difference(a, b)
        covered += found.low <= better - worse <= found.high
    assert 0.93 <= covered / REPEATS <= 0.97


def test_networks_that_never_differ_have_an_interval():
    found = paired_difference(np.ones(100), np.ones(100))
    assert found.estimate == 0
    assert 0.005 < found.high == -found.low < 0.03


def test_paired_values_that_cannot_be():
    with pytest.raises(ConfigError, match="same clusters"):
        paired_difference([1, 0], [1])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        paired_difference([1, 2], [1, 0])
