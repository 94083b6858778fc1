"""Coverage of the clustered interval, by simulation with fixed seeds.

Images differ in how vulnerable they are (beta-distributed rates), each takes a Poisson number of
faults, as when every trial draws its image. An interval whose coverage is 95 % misses the band
[93 %, 97 %] of 2,000 repeats with probability 4e-5; that is the chance that another seed would fail
a right implementation.
"""

import numpy as np
import pytest

from rasp.statistics import clustered_rate, ratio, wilson

REPEATS = 2000


def campaign(generator, *, images, faults, rate, spread):
    """Events and trials per image; a small ``spread`` makes images alike."""
    vulnerability = generator.beta(rate / spread, (1 - rate) / spread, size=images)
    trials = generator.poisson(faults, size=images)
    return generator.binomial(trials, vulnerability), trials


SETTINGS = [
    {"images": 1000, "faults": 20, "rate": 0.02, "spread": 0.5},
    {"images": 300, "faults": 100, "rate": 0.05, "spread": 0.1},
    {"images": 60, "faults": 50, "rate": 0.3, "spread": 0.2},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_clustered_interval_covers_as_often_as_it_says(setting):
    generator = np.random.default_rng(1)
    clustered = naive = 0
    for _ in range(REPEATS):
        events, trials = campaign(generator, **setting)
        ours = clustered_rate(events, trials)
        plain = wilson(int(events.sum()), int(trials.sum()))
        clustered += ours.low <= setting["rate"] <= ours.high
        naive += plain.low <= setting["rate"] <= plain.high
    assert 0.93 <= clustered / REPEATS <= 0.97
    assert naive / REPEATS < 0.85


def test_independent_trials_are_not_punished_for_their_clusters():
    """Flooring the design effect makes the interval conservative, never short."""
    generator = np.random.default_rng(2)
    covered, widths = 0, []
    for _ in range(REPEATS):
        trials = generator.poisson(20, size=500)
        events = generator.binomial(trials, 0.03)
        ours = clustered_rate(events, trials)
        covered += ours.low <= 0.03 <= ours.high
        widths.append(ours.half_width / wilson(int(events.sum()), int(trials.sum())).half_width)
    assert 0.93 <= covered / REPEATS <= 0.98
    assert np.mean(widths) < 1.05


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    generator = np.random.default_rng(3)
    dense = {"images": 500, "faults": 40, "rate": 0.02, "spread": 0.1}
    pruned = {**dense, "rate": 0.03}
    covered = 0
    for _ in range(REPEATS):
        found = ratio(
            clustered_rate(*campaign(generator, **pruned)),
            clustered_rate(*campaign(generator, **dense)),
        )
        covered += found.low <= 1.5 <= found.high
    assert 0.93 <= covered / REPEATS <= 0.97
