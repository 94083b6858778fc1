"""Drawing by a plan, and draws restricted to a group of bits."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from rasp.errors import ConfigError
from rasp.faults.context import bit_ranges
from rasp.faults.models import FAULT_MODELS, REGISTER_MODELS, LayerContext, fault_model
from rasp.faults.neyman import allocate, proportional
from rasp.faults.population import Stratum, by_bits, strata
from rasp.faults.sampling import Plan, draw, margin_bins
from rasp.network.float_ops import FloatArithmetic
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.quantization.calibrate import quantize

POPULATION = (Stratum("a", "RD", 0.5), Stratum("a", "INPUT", 0.3), Stratum("b", "RD", 0.2))
BINS = np.array([2, 0, 1, 2, 2, 1, 2])
SHARES = np.array([[s.weight * n / 7 for n in (1, 2, 4)] for s in POPULATION])
FORMATS = ("int8", "fp16", "fp32")


def uneven(emphasis=1.0):
    """Every cell, some ten times as often as others."""
    probability = np.array([[0.3, 0.1, 0.05], [0.02, 0.2, 0.03], [0.1, 0.1, 0.1]])
    return Plan(probability, BINS, emphasis)


def drawn(plan, trials=range(50_000)):
    return draw(POPULATION, images=len(BINS), seed=1, trials=trials, plan=plan)


@pytest.mark.parametrize("emphasis", [1.0, 0.1])
def test_a_weight_is_the_share_of_the_cell_over_its_probability(emphasis):
    """The mean weight is the emphasis within 4 standard errors: 6e-5 for another seed."""
    plan = uneven(emphasis)

    trials = drawn(plan)

    cell = (trials.stratum, BINS[trials.image])
    assert trials.weight == pytest.approx(emphasis * SHARES[cell] / plan.probability[cell])
    error = trials.weight.std() / len(trials) ** 0.5
    assert abs(trials.weight.mean() - emphasis) < 4 * error


def test_cells_follow_the_plan_and_images_are_uniform_within_their_bin():
    """Chi-square; a true sampler fails each with probability 1e-4."""
    trials = drawn(uneven())

    found = np.zeros(SHARES.shape)
    np.add.at(found, (trials.stratum, BINS[trials.image]), 1)
    expected = uneven().probability * len(trials)
    assert stats.chisquare(found.ravel(), expected.ravel()).pvalue > 1e-4
    for margin in (1, 2):
        (members,) = (margin == BINS).nonzero()
        of_bin = trials.image[BINS[trials.image] == margin]
        counts = np.bincount(of_bin, minlength=len(BINS))[members]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_weighted_trials_stand_for_the_population():
    """Weights of each stratum and image add up to its share, at 4 standard errors."""
    trials = drawn(uneven())

    for index, stratum in enumerate(POPULATION):
        for image in range(len(BINS)):
            mine = trials.weight * ((trials.stratum == index) & (trials.image == image))
            error = mine.std() / len(trials) ** 0.5
            assert abs(mine.mean() - stratum.weight / len(BINS)) < 4 * error


def test_a_cell_without_probability_is_never_drawn():
    probability = np.zeros(SHARES.shape)
    probability[1, 0] = probability[2, 2] = 0.5

    trials = drawn(Plan(probability, BINS))

    assert set(zip(trials.stratum.tolist(), BINS[trials.image].tolist(), strict=True)) == {
        (1, 0),
        (2, 2),
    }
    assert np.isfinite(trials.weight).all()


def test_a_proportional_plan_gives_every_trial_the_weight_one():
    assert drawn(proportional(POPULATION, BINS)).weight == pytest.approx(1.0)


@given(start=st.integers(0, 10**9), cut=st.integers(1, 49))
def test_a_planned_trial_does_not_depend_on_the_range_it_is_drawn_in(start, cut):
    plan = uneven(0.5)
    whole = drawn(plan, range(start, start + 50))
    parts = drawn(plan, range(start, start + cut)), drawn(plan, range(start + cut, start + 50))

    for name in ("index", "stratum", "image", "words", "weight"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(whole, name), joined)


@pytest.mark.parametrize(
    "plan", [Plan(SHARES[:2], BINS), Plan(SHARES, BINS[:6]), Plan(SHARES, np.append(BINS, 0))]
)
def test_a_plan_of_another_campaign_is_refused(plan):
    with pytest.raises(ConfigError, match=r"plan is for \d strata and \d images"):
        drawn(plan)


def test_the_record_of_a_plan_is_its_probabilities():
    plan = uneven()

    assert np.array_equal(np.frombuffer(plan.to_bytes()).reshape(3, 3), plan.probability)


@given(st.lists(st.floats(-5, 50), min_size=1, max_size=300))
def test_margin_bins_are_ranks_cut_at_fixed_shares(margins):
    margin = np.array(margins)

    bins = margin_bins(margin)

    in_order = bins[np.argsort(margin, kind="stable")]
    assert (np.diff(in_order) >= 0).all()
    assert set(bins.tolist()) == set(range(int(bins.max()) + 1))
    assert bins.max() <= 8


def test_margin_bins_are_narrow_where_margins_are_small():
    assert np.bincount(margin_bins(np.arange(1000.0))).tolist() == [
        5, 5, 10, 20, 40, 80, 160, 320, 360,
    ]  # fmt: skip
    assert margin_bins(np.array([3.0])).tolist() == [0]
    assert margin_bins(np.array([3.0, 1.0])).tolist() == [1, 0]


def test_the_next_plan_keeps_a_tenth_uniform_and_follows_the_events():
    trials, events = np.full(SHARES.shape, 500.0), np.zeros(SHARES.shape)
    events[0, 0] = 100.0

    plan = allocate(POPULATION, BINS, trials, events, emphasis=0.5)

    assert plan.probability.sum() == pytest.approx(1.0)
    assert (plan.probability >= 0.1 * SHARES - 1e-15).all()
    assert plan.emphasis == 0.5
    ratio = plan.probability / SHARES
    assert np.unravel_index(ratio.argmax(), ratio.shape) == (0, 0)


def test_known_rates_are_allocated_after_neyman():
    """With many trials a cell's probability is its share times the root of its rate."""
    rate = np.array([[0.4, 0.1, 0.02], [0.3, 0.05, 0.01], [0.2, 0.2, 0.1]])

    plan = allocate(POPULATION, BINS, np.full(rate.shape, 1e7), rate * 1e7)

    wanted = SHARES * np.sqrt(rate)
    expected = 0.1 * SHARES + 0.9 * wanted / wanted.sum()
    assert plan.probability == pytest.approx(expected, rel=1e-3)


def test_idle_registers_get_the_uniform_tenth_only():
    population = (POPULATION[0]._replace(bits="idle"), *POPULATION[1:])
    trials = np.full(SHARES.shape, 100.0)

    plan = allocate(population, BINS, trials, trials / 10)

    assert plan.probability[0] == pytest.approx(0.1 * SHARES[0])


def test_no_trials_at_all_and_nothing_but_idle_registers_still_give_a_plan():
    nothing = np.zeros(SHARES.shape)
    idle = [stratum._replace(bits="idle") for stratum in POPULATION]

    assert allocate(POPULATION, BINS, nothing, nothing).probability == pytest.approx(SHARES)
    assert allocate(idle, BINS, nothing, nothing).probability == pytest.approx(SHARES)


@cache
def network(number_format):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(360, 5)
    )
    lowered = lower(model, images)
    if number_format == "int8":
        return quantize(lowered, images)[0]
    return lowered.with_arithmetic(FloatArithmetic(number_format))


@cache
def context(number_format, accelerator="nv_small"):
    lowered = network(number_format)
    return LayerContext(lowered.layers[0], lowered.arithmetic, load(accelerator))


@pytest.mark.parametrize("accelerator", ["nv_small", "nv_full"])
@pytest.mark.parametrize("number_format", FORMATS)
def test_strata_cut_by_bits_are_the_same_population(number_format, accelerator):
    config = load(accelerator)
    whole = strata(network(number_format), config, models=dict.fromkeys(FAULT_MODELS, 1.0))

    parts = by_bits(whole, network(number_format), config)

    assert sum(part.weight for part in parts) == pytest.approx(1.0)
    assert all(part.weight > 0 for part in parts)
    for stratum in whole:
        mine = [p.weight for p in parts if (p.layer, p.model) == (stratum.layer, stratum.model)]
        assert sum(mine) == pytest.approx(stratum.weight)


@pytest.mark.parametrize("accelerator", ["nv_small", "nv_full"])
@pytest.mark.parametrize("number_format", FORMATS)
def test_groups_of_bits_cover_every_register(number_format, accelerator):
    ranges = bit_ranges(number_format)

    assert [bit for bits in ranges for bit in bits] == list(range(ranges[-1].stop))
    of_layer = context(number_format, accelerator)
    widths = {share.field.width for found in of_layer.registers.values() for share in found}
    assert max(widths) <= ranges[-1].stop
    assert number_format != "int8" or 49 in widths


def group_of(of_layer, model, sites):
    """Number of the group each site is of, from its coordinates alone."""
    groups = fault_model(model).bit_groups(of_layer)
    found = np.full(len(sites), -1)
    for number, group in enumerate(groups):
        found[np.isin(sites.bit, list(group.bits))] = number
    if model in REGISTER_MODELS:
        fields = [share.field for share in of_layer.registers[model]]
        idle = np.array([field.signal.effect == "none" for field in fields])[sites.value]
        found[idle] = 0
    return found


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("model", FAULT_MODELS)
def test_a_draw_within_a_group_is_a_draw_that_happens_to_be_of_it(model, number_format):
    """Shares and coordinates, by chi-square; a check fails by chance with probability 1e-6.

    About 6,000 checks: 0.6 % that another seed fails a right implementation.
    """
    of_layer = context(number_format)
    groups = fault_model(model).bit_groups(of_layer)
    one = [Stratum("0", model, 1.0)]
    words = draw(one, images=1, seed=2, trials=range(40_000)).words
    free = fault_model(model).draw(of_layer, words)
    if max(group.share for group in groups) == 1:
        (only,) = (number for number, group in enumerate(groups) if group.share)
        again = fault_model(model).draw(of_layer, words, np.full(len(words), only))
        assert np.array_equal(free.pixel, again.pixel)
        assert np.array_equal(free.value, again.value)
        return
    of_free = group_of(of_layer, model, free)
    shares = np.array([group.share for group in groups])
    counts = np.bincount(of_free, minlength=len(groups))
    assert shares.sum() == pytest.approx(1.0)
    assert not counts[shares == 0].any()
    assert stats.chisquare(counts[shares > 0], shares[shares > 0] * len(words)).pvalue > 1e-6

    for number in np.flatnonzero(shares > 0):
        words = draw(one, images=1, seed=3 + number, trials=range(3000)).words
        within = fault_model(model).draw(of_layer, words, np.full(len(words), number))
        assert (group_of(of_layer, model, within) == number).all()
        assert not (groups[number].idle and within.live.any())
        chosen = of_free == number
        for name in ("kernel", "channel", "r", "s", "pixel", "bit", "value"):
            assert alike(getattr(free, name)[chosen], getattr(within, name)) > 1e-6


def alike(a, b):
    """p-value of two samples of integers being of one distribution; rare values are joined."""
    values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    table = np.stack(
        [np.bincount(part, minlength=len(values)) for part in (codes[: len(a)], codes[len(a) :])]
    )
    scarce = table.sum(0) * min(len(a), len(b)) / (len(a) + len(b)) < 8
    table = np.column_stack([table[:, ~scarce], table[:, scarce].sum(1)])
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 or not len(a) else stats.chi2_contingency(table).pvalue
