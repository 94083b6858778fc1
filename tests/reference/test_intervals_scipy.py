"""Interval formulas against scipy.stats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rasp.statistics import clopper_pearson, clustered_rate, ratio, wilson


@st.composite
def counts(draw):
    n = draw(st.integers(1, 10**6))
    return draw(st.integers(0, n)), n


@settings(max_examples=200)
@given(counts(), st.floats(0.5, 0.9999))
@pytest.mark.parametrize(("ours", "method"), [(wilson, "wilson"), (clopper_pearson, "exact")])
def test_binomial_intervals_equal_scipy(ours, method, count, confidence):
    events, n = count
    """To 1e-11: scipy finds the exact interval's ends by bisection to that absolute error."""
    expected = stats.binomtest(events, n).proportion_ci(confidence, method=method)
    rate = ours(events, n, confidence)
    assert rate.low == pytest.approx(expected.low, rel=1e-8, abs=1e-11)
    assert rate.high == pytest.approx(expected.high, rel=1e-8, abs=1e-11)
    assert rate.low <= rate.estimate <= rate.high


@given(st.integers(1, 10**7), st.floats(0.5, 0.9999))
def test_the_bound_without_events_equals_its_closed_form(n, confidence):
    expected = -np.expm1(np.log((1 - confidence) / 2) / n)
    assert clopper_pearson(0, n, confidence).high == pytest.approx(expected, rel=1e-11)
    assert clopper_pearson(n, n, confidence).low == pytest.approx(1 - expected, rel=1e-11)


def test_the_effective_sample_size_is_the_textbook_ratio_estimator():
    generator = np.random.default_rng(0)
    trials = generator.integers(1, 40, size=60)
    events = generator.binomial(trials, generator.beta(0.5, 2, size=60))
    rate = clustered_rate(events, trials, 0.9)

    p = events.sum() / trials.sum()
    scores = (events - p * trials) / trials.mean()
    variance = np.var(scores, ddof=1) / 60
    t, z = stats.t.ppf(0.95, df=59), stats.norm.ppf(0.95)
    effective = p * (1 - p) / variance * (z / t) ** 2
    assert rate.n_effective == pytest.approx(effective, rel=1e-9)

    half = (
        stats.norm.ppf(0.95)
        * np.sqrt(p * (1 - p) / effective + z**2 / (4 * effective**2))
        / (1 + z**2 / effective)
    )
    assert rate.half_width == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [((30, 1000), (80, 2000)), ((1, 50), (2, 70))])
def test_a_ratio_equals_scipys_relative_risk(a, b):
    expected = stats.contingency.relative_risk(*a, *b)
    low, high = expected.confidence_interval(0.95)
    ours = ratio(wilson(*a), wilson(*b))
    assert ours.estimate == pytest.approx(expected.relative_risk)
    assert (ours.low, ours.high) == pytest.approx((low, high))
