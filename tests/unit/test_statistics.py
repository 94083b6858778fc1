import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasp.errors import ConfigError
from rasp.statistics import (
    Rate,
    Ratio,
    clopper_pearson,
    clustered_rate,
    difference,
    horvitz_thompson,
    paired_ratio,
    ratio,
    sample_size,
    weighted_rate,
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


def weighted_sample(seed, m=300, clusters=20):
    """Cluster, event and weight of single trials."""
    generator = np.random.default_rng(seed)
    weight = generator.uniform(0.1, 10, m)
    cluster = generator.integers(clusters, size=m)
    return cluster, generator.random(m) < 0.1 + 0.3 * (cluster % 2), weight


def of_trials(cluster, hit, weight, **options):
    return weighted_rate(cluster, hit, np.ones(len(hit), int), weight, weight**2, **options)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=20))
def test_trials_of_weight_one_are_those_of_the_clustered_rate(counts):
    events, rest = np.array(counts).T
    if not (events + rest).any():
        rest[0] = 1
    cluster = np.tile(np.arange(len(events)), 2)
    hit = np.repeat([True, False], len(events))
    trials = np.concatenate([events, rest])

    plain = clustered_rate(events, events + rest)

    assert weighted_rate(cluster, hit, trials) == plain
    ones = trials.astype(float)
    assert weighted_rate(cluster, hit, trials, ones, ones) == plain


@pytest.mark.parametrize(("events", "n"), [(3, 40), (120, 1000), (999, 1000), (0, 50), (50, 50)])
def test_independent_trials_of_weight_one_have_the_plain_interval(events, n):
    found = weighted_rate(None, [True, False], [events, n - events])

    plain = wilson(events, n) if 0 < events < n else clopper_pearson(events, n)
    for name in ("estimate", "low", "high", "n", "events", "n_effective", "method"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name)), name


@given(st.floats(1e-6, 1e6), st.integers(0, 100), st.booleans(), st.sampled_from([0, 0.5, 1]))
def test_the_scale_of_all_weights_does_not_matter(scale, seed, clustered, share):
    cluster, hit, weight = weighted_sample(seed)
    cluster = cluster if clustered else None
    hit = hit if share == 0.5 else np.full(len(hit), bool(share))

    one, other = of_trials(cluster, hit, weight), of_trials(cluster, hit, weight * scale)

    assert (one.n, one.events, one.method) == (other.n, other.events, other.method)
    for name in ("estimate", "low", "high", "n_effective"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("event", [True, False])
def test_without_variance_a_trial_is_worth_its_weight_over_the_largest(event, clustered):
    cluster, _, weight = weighted_sample(1)

    found = of_trials(cluster if clustered else None, np.full(len(weight), event), weight)

    worth = weight.sum() / weight.max()
    bound = 0.025 ** (1 / worth)
    assert (found.estimate, found.method) == (float(event), "clopper-pearson")
    assert found.n_effective == pytest.approx(worth)
    assert (found.low if event else 1 - found.high) == pytest.approx(bound)


@pytest.mark.parametrize("seed", range(5))
def test_the_variance_is_that_of_the_linearised_quotient(seed):
    """Wilson's interval at p (1 - p) / variance trials, the variance summed trial by trial."""
    cluster, hit, weight = weighted_sample(seed)
    p = np.average(hit, weights=weight)
    parts = weight * (hit - p) / weight.sum()
    totals = np.array([parts[cluster == c].sum() for c in np.unique(cluster)])
    k = len(totals)
    quantile = {"z": 1.959963985, "t": {20: 2.093024054}[k]}

    independent = of_trials(None, hit, weight)
    clustered = of_trials(cluster, hit, weight)

    assert independent.estimate == clustered.estimate == pytest.approx(p)
    assert independent.n_effective == pytest.approx(p * (1 - p) / (parts**2).sum())
    variance = max((parts**2).sum(), k / (k - 1) * (totals**2).sum())
    penalty = (quantile["z"] / quantile["t"]) ** 2
    assert clustered.n_effective == pytest.approx(p * (1 - p) / variance * penalty)
    z, n = quantile["z"], independent.n_effective
    centre, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert independent.low == pytest.approx((centre - half) / (1 + z * z / n))
    assert independent.high == pytest.approx((centre + half) / (1 + z * z / n))


def test_the_same_trials_summed_up_give_the_same_rate():
    cluster, hit, weight = weighted_sample(3)
    keys = cluster * 2 + hit
    found = np.unique(keys)
    sums = [np.bincount(keys, weights=w)[found] for w in (np.ones(300), weight, weight**2)]

    one, other = of_trials(cluster, hit, weight), weighted_rate(found // 2, found % 2, *sums)

    for name in ("estimate", "low", "high", "n", "n_effective", "events"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


def total(cluster, hit, weight, *, expected, clusters=20):
    ones = np.ones(len(hit), int)
    return horvitz_thompson(
        cluster, hit, ones, weight, weight**2, expected=expected, clusters=clusters
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_variance_of_a_known_population_is_that_of_the_cluster_totals(seed):
    """Ten of thirty clusters have no trial and count."""
    cluster, hit, weight = weighted_sample(seed)
    expected, clusters = 1.1 * weight.sum(), 30
    p = weight[hit].sum() / expected
    totals = np.array([weight[hit & (cluster == c)].sum() for c in range(clusters)])
    t = 2.045229642  # of 29 degrees of freedom

    independent = total(None, hit, weight, expected=expected)
    clustered = total(cluster, hit, weight, expected=expected, clusters=clusters)

    assert independent.estimate == clustered.estimate == pytest.approx(p)
    alone = (weight[hit] ** 2).sum() - (p * expected) ** 2 / len(hit)
    assert independent.n_effective == pytest.approx(p * (1 - p) * expected**2 / alone)
    shared = max(alone, clusters * totals.var(ddof=1))
    worth = p * (1 - p) * expected**2 / shared * (1.959963985 / t) ** 2
    assert clustered.n_effective == pytest.approx(worth)
    assert clustered.method == "wilson, clustered"


@pytest.mark.parametrize(("events", "n"), [(3, 40), (120, 1000), (999, 1000), (0, 50), (50, 50)])
def test_a_known_population_of_independent_trials_of_weight_one_is_the_plain_one(events, n):
    found = horvitz_thompson(
        None, [True, False], [events, n - events], *[[events, n - events]] * 2, expected=n
    )

    plain = wilson(events, n) if 0 < events < n else clopper_pearson(events, n)
    for name in ("estimate", "low", "high", "n", "events", "n_effective", "method"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name)), name


def test_the_rarer_of_event_and_complement_is_estimated():
    cluster, hit, weight = weighted_sample(2)
    expected = 0.9 * weight.sum()

    rare, common = (total(cluster, event, weight, expected=expected) for event in (hit, ~hit))

    assert rare.estimate == pytest.approx(weight[hit].sum() / expected)
    assert common == rare.complement


@pytest.mark.parametrize("expected", [0.0, -1.0, math.inf, math.nan])
def test_a_population_without_a_positive_total_is_refused(expected):
    with pytest.raises(ConfigError, match="expected total weight must be positive"):
        total(None, np.array([True, False]), np.ones(2), expected=expected)


@pytest.mark.parametrize("weight", [[1.0, 0.0], [1.0, -1.0]])
def test_trials_without_a_positive_weight_are_refused(weight):
    with pytest.raises(ConfigError, match="must be positive"):
        weighted_rate([0, 1], [True, False], [1, 1], weight, [1.0, 1.0])


def test_a_weighted_rate_of_no_trials_is_refused():
    with pytest.raises(ConfigError, match="at least one finished trial"):
        weighted_rate([], [], [], [], [])


def test_an_entry_without_trials_needs_no_weight():
    one = weighted_rate([0, 1], [True, False], [3, 4], [1.5, 2.0], [1.0, 1.0])
    other = weighted_rate([0, 1, 1], [True, False, True], [3, 4, 0], [1.5, 2, 0], [1, 1, 0])
    assert one == other


def test_a_paired_ratio_by_the_jackknife():
    """The linearised variance is that of leaving out one image at a time, for many images."""
    generator = np.random.default_rng(0)
    a, b = generator.gamma(2, size=(2, 2000))
    found = paired_ratio(a, b)

    logs = np.log((a.sum() - a) / (b.sum() - b))
    error = math.sqrt((len(a) - 1) / len(a) * ((logs - logs.mean()) ** 2).sum())
    assert found.estimate == pytest.approx(a.sum() / b.sum())
    assert math.log(found.high / found.low) / 2 == pytest.approx(1.961 * error, rel=2e-3)


@pytest.mark.parametrize(("a", "b"), [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([1], [2])])
def test_totals_without_variance_have_no_paired_ratio(a, b):
    assert paired_ratio(a, b) is None


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1]), ([[1]], [[1]]), ([-1, 2], [1, 1])])
def test_totals_that_cannot_be_paired_are_refused(a, b):
    with pytest.raises(ConfigError):
        paired_ratio(a, b)


def test_a_difference_is_newcombes():
    """Worked example of Newcombe (1998), table II: 56 of 70 less 48 of 80."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_difference_of_two_levels_is_refused():
    with pytest.raises(ConfigError, match="one confidence level"):
        difference(wilson(1, 2), wilson(1, 2, 0.9))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Ratio(0.036, 0.0211, 0.0619, 0.95), "0.036x [0.021, 0.062]"),
        (Ratio(0.62, 0.51, 0.75, 0.95), "0.62x [0.51, 0.75]"),
        (Ratio(33.876, 20.61, 55.67, 0.95), "33.88x [20.61, 55.67]"),
        (Ratio(0.0, 0.0, 0.0214, 0.95), "<= 0.021x"),
        (Ratio(None, 46.83, None, 0.95), ">= 46.83x"),
        (Ratio(None, 0.0, None, 0.95), "unknown"),
    ],
)
def test_ratios_are_printed_with_two_digits_or_decimals(found, text):
    assert str(found) == text
