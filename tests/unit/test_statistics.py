import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasp.errors import ConfigError
from rasp.statistics import (
    Rate,
    Ratio,
    clopper_pearson,
    clustered_rate,
    ratio,
    sample_size,
    wilson,
)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (wilson(161, 38415), "0.42 % [0.36, 0.49] n=38 415"),
        (wilson(9170, 10_000), "91.7 % [91.1, 92.2] n=10 000"),
        (wilson(1, 2_000_000), "0.00005 % [0.00001, 0.00028] n=2 000 000"),
        (clopper_pearson(0, 38415), "<= 0.0097 % (0/38 415)"),
        (clopper_pearson(38415, 38415), ">= 99.9903 % (38 415/38 415)"),
        (clopper_pearson(0, 1), "<= 98 % (0/1)"),
    ],
)
def test_a_rate_prints_no_more_decimals_than_its_interval_supports(rate, text):
    assert str(rate) == text


@given(st.integers(1, 10**7), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_printed_bound_is_never_tighter_than_the_bound(n, confidence):
    none, every = clopper_pearson(0, n, confidence), clopper_pearson(n, n, confidence)
    assert float(str(none).split()[1]) >= 100 * none.high - 1e-9
    assert float(str(every).split()[1]) <= 100 * every.low + 1e-9


@pytest.mark.parametrize(("events", "n"), [(0, 0), (-1, 5), (6, 5)])
@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_impossible_counts_are_refused(interval, events, n):
    with pytest.raises(ConfigError):
        interval(events, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_outside_its_range_is_refused(confidence):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        wilson(1, 2, confidence)


def test_one_trial_per_cluster_is_wilson_up_to_the_t_quantile():
    k = 100_000
    clustered = clustered_rate([1] * 500 + [0] * (k - 500), [1] * k)
    plain = wilson(500, k)
    assert clustered.low == pytest.approx(plain.low, rel=1e-4)
    assert clustered.high == pytest.approx(plain.high, rel=1e-4)


def test_clusters_that_agree_within_are_worth_one_trial_each():
    events = [20, 0, 0, 0] * 100
    rate = clustered_rate(events, [20] * 400)
    assert rate.estimate == 0.25
    assert rate.n == 8000
    assert rate.n_effective == pytest.approx(400, rel=0.02)


def test_clusters_more_alike_than_chance_never_count_for_more_than_their_trials():
    rate = clustered_rate([5] * 200, [10] * 200)
    assert rate.n_effective <= rate.n
    assert rate.n_effective == pytest.approx(2000, rel=0.03)


def test_empty_clusters_change_nothing():
    assert clustered_rate([1, 2, 0], [9, 9, 0]) == clustered_rate([1, 2], [9, 9])


def test_a_single_cluster_is_worth_one_trial():
    assert clustered_rate([5], [10]).n_effective == 1.0


@pytest.mark.parametrize(("events", "bound"), [(0, "high"), (10, "low")])
def test_trials_that_all_came_out_alike_give_the_exact_bound(events, bound):
    rate = clustered_rate([events] * 30, [10] * 30)
    exact = clopper_pearson(30 * events, 300)
    assert getattr(rate, bound) == getattr(exact, bound)
    assert rate.method == "clopper-pearson"


@pytest.mark.parametrize(
    ("events", "trials"), [([1], [1, 2]), ([2], [1]), ([-1, 2], [1, 4]), ([], []), ([[1]], [[2]])]
)
def test_malformed_clusters_are_refused(events, trials):
    with pytest.raises(ConfigError):
        clustered_rate(events, trials)


def test_a_ratio_is_symmetric_under_exchange():
    a, b = wilson(30, 1000), wilson(80, 2000)
    there, back = ratio(a, b), ratio(b, a)
    assert there.estimate * back.estimate == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_a_ratio_of_rates_without_events_is_a_bound():
    none, some = clopper_pearson(0, 1000), wilson(50, 1000)
    below, above, unknown = ratio(none, some), ratio(some, none), ratio(none, none)
    assert (below.estimate, below.low) == (0.0, 0.0)
    assert below.high == none.high / some.low
    assert (above.estimate, above.high) == (None, None)
    assert above.low == some.low / none.high
    assert unknown == Ratio(None, 0.0, None, 0.95)
    assert str(below).startswith("<= 0.")
    assert str(above).startswith(">= ")
    assert str(unknown) == "unknown"


def test_a_ratio_of_rates_at_two_levels_is_refused():
    with pytest.raises(ConfigError, match="one confidence level"):
        ratio(wilson(1, 10, 0.9), wilson(1, 10, 0.95))


def test_a_scaled_ratio_keeps_what_is_missing_missing():
    assert Ratio(None, 2.0, None, 0.95).scaled(0.5) == Ratio(None, 1.0, None, 0.95)
    assert Ratio(1.0, 0.5, 2.0, 0.95).scaled(2.0) == Ratio(2.0, 1.0, 4.0, 0.95)


@given(st.floats(0.001, 0.2), st.floats(0.8, 0.999), st.floats(0.01, 0.99), st.integers(2, 10**9))
def test_a_finite_population_never_needs_more_trials_than_it_has_faults(
    margin, confidence, p, population
):
    n = sample_size(margin, confidence, p=p, population=population)
    assert 1 <= n <= population
    assert n <= sample_size(margin, confidence, p=p)


def test_the_planned_sample_size_reaches_the_margin():
    n = sample_size(0.01, 0.95, p=0.2)
    assert wilson(round(0.2 * n), n).half_width == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    "arguments",
    [{"margin": 0}, {"margin": 1}, {"margin": 0.1, "p": 0}, {"margin": 0.1, "population": 0}],
)
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(ConfigError):
        sample_size(**arguments)


def test_a_rate_is_a_value():
    assert wilson(1, 10) == Rate(**{n: getattr(wilson(1, 10), n) for n in Rate.__slots__})


@pytest.mark.parametrize(("events", "n"), [(0, 10), (3, 10), (10, 10)])
def test_the_complement_is_the_rate_of_the_other_trials(events, n):
    rate, other = wilson(events, n).complement, wilson(n - events, n)
    assert rate.events == other.events
    for name in ("estimate", "low", "high"):
        assert getattr(rate, name) == pytest.approx(getattr(other, name), abs=1e-12)
