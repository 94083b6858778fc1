import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasp.errors import ConfigError
from rasp.nvdla.config import load
from rasp.nvdla.cycles import network_cycles
from rasp.nvdla.shapes import ConvShape
from rasp.pruning.allocation import Budget, Widths, greedy, ranked, round_widths, uniform
from rasp.pruning.groups import Group, Member, Segment


def whole(module, side, count, each=1):
    return Member(module, side, np.arange(count * each), np.repeat(np.arange(count), each))


def chain():
    """conv a (3 to 16), conv b (16 to 24), linear c reading b at 4 pixels."""
    shapes = (
        ConvShape("a", 3, 8, 8, 16, 3, 3, padding=(1, 1)),
        ConvShape("b", 16, 8, 8, 24, 3, 3, padding=(1, 1)),
        ConvShape("c", 96, 1, 1, 10, 1, 1),
    )
    groups = (
        Group("a", 16, (whole("a", "out", 16), whole("b", "in", 16))),
        Group("b", 24, (whole("b", "out", 24), whole("c", "in", 24, 4))),
    )
    return shapes, Widths.of(shapes, [s for group in groups for s in group.segments])


def test_shapes_follow_the_widths_of_the_groups():
    _, widths = chain()
    a, b, c = widths.keeping(np.array([5, 7]))
    assert (a.C, a.K, b.C, b.K, c.C, c.K) == (3, 5, 5, 7, 28, 10)


def test_a_depthwise_convolution_shrinks_with_its_group():
    shapes = (ConvShape("d", 8, 4, 4, 8, 3, 3, groups=8),)
    group = Group("d", 8, (whole("d", "out", 8),))
    (narrow,) = Widths.of(shapes, group.segments).keeping(np.array([3]))
    assert (narrow.C, narrow.K, narrow.groups) == (3, 3, 3)


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.4, 0.3])
@pytest.mark.parametrize("kind", ["macs", "cycles"])
def test_uniform_takes_the_ratio_nearest_the_budget(kind, kept):
    shapes, widths = chain()
    budget = Budget(kind, kept, load("nv_small") if kind == "cycles" else None)
    dense = budget.cost(shapes)
    cost = budget.cost(widths.keeping(uniform(widths, budget, dense=dense)))
    ratios = np.linspace(0, 1, 2001)
    costs = [
        budget.cost(widths.keeping(round_widths(widths.full * r, widths.segments, 1)))
        for r in ratios
    ]
    assert abs(cost - kept * dense) == min(abs(c - kept * dense) for c in costs)


def test_channels_that_cost_no_cycle_stay():
    shapes, widths = chain()
    budget = Budget("cycles", 0.6, load("nv_small_256"))
    dense = budget.cost(shapes)
    kept = uniform(widths, budget, dense=dense)
    cost = budget.cost(widths.keeping(kept))
    wider = [r for r in np.linspace(0, 1, 400) if (widths.full * r > kept + 1).all()]
    for ratio in wider:
        grown = round_widths(widths.full * ratio, widths.segments, 1)
        assert budget.cost(widths.keeping(grown)) > cost or (grown == kept).all()


def test_cycles_are_those_of_the_accelerator():
    shapes, _ = chain()
    config = load("nv_large")
    assert Budget("cycles", 0.5, config).cost(shapes) == network_cycles(shapes, config, "int8")


def test_a_budget_below_the_narrowest_network_is_refused_with_the_least_share():
    shapes, widths = chain()
    budget = Budget("macs", 0.001)
    with pytest.raises(ConfigError, match=r"0\.1% of the macs cannot be reached.*[0-9.]+% stay"):
        uniform(widths, budget, dense=budget.cost(shapes))


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.floats(0, 1),
    st.sampled_from([1, 4, 8, 16, 32]),
)
def test_single_segments_get_the_nearest_multiple_and_at_least_one_atom(sizes, ratio, atom):
    segments = [Segment(str(i), np.arange(n), frozenset()) for i, n in enumerate(sizes)]
    kept = round_widths(np.array(sizes) * ratio, segments, atom)
    for size, width in zip(sizes, kept.tolist(), strict=True):
        assert 1 <= width <= size
        step = atom if size > atom else 1
        assert width == size or width % step == 0
        best = min(range(step, size + 1, step), key=lambda w: abs(w - size * ratio))
        assert abs(width - size * ratio) <= abs(best - size * ratio) + 1e-9


@given(st.floats(0, 1), st.sampled_from([1, 8, 16]))
def test_layers_of_nested_segments_get_widths_that_are_multiples(ratio, atom):
    sizes, depth = [64, 128, 256], [3, 2, 1]
    segments = [
        Segment("s", np.arange(n), frozenset((f"l{i}", "out", 1) for i in range(d)))
        for n, d in zip(sizes, depth, strict=True)
    ]
    kept = round_widths(np.array(sizes) * ratio, segments, atom)
    assert all(total % atom == 0 or total < 3 * atom for total in np.cumsum(kept).tolist())
    assert (kept >= 1).all()


def test_global_ranking_takes_the_lowest_scores_of_all_groups():
    shapes, widths = chain()
    scores = {"a": np.ones(16), "b": np.concatenate([np.full(12, 1e-6), np.full(12, 2.0)])}
    budget = Budget("channels", 28 / 40)
    assert ranked(widths, budget, scores, dense=40).tolist() == [16, 12]
    macs = Budget("macs", 0.5)
    kept = ranked(widths, macs, scores, dense=macs.cost(shapes))
    assert abs(macs.cost(widths.keeping(kept)) / macs.cost(shapes) - 0.5) < 0.05


@pytest.mark.parametrize("kept", [0, 1, -0.5, 1.5, float("nan")])
def test_a_kept_share_outside_0_and_1_is_refused(kept):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Budget("macs", kept)


def test_budgets_name_what_is_wrong():
    with pytest.raises(ConfigError, match="Did you mean 'macs'"):
        Budget("mac", 0.5)
    with pytest.raises(ConfigError, match="needs an accelerator"):
        Budget("cycles", 0.5)


def test_channels_of_a_group_fall_into_segments_by_footprint():
    group = Group(
        "wide",
        6,
        (
            whole("wide", "out", 6),
            Member("narrow", "out", np.arange(2), np.array([2, 3])),
            whole("reader", "in", 6),
        ),
    )
    outer, inner = group.segments
    assert outer.channels.tolist() == [0, 1, 4, 5]
    assert inner.channels.tolist() == [2, 3]
    assert inner.footprint - outer.footprint == {("narrow", "out", 1)}


def scored(widths, seed=0):
    generator = np.random.default_rng(seed)
    return {s.root: generator.random(len(s.channels)) for s in widths.segments}


def failing(**rates):
    """Failures per inference: cycles of each layer times its rate."""
    config = load("nv_small")
    return lambda shapes: sum(rates[s.name] * network_cycles([s], config) for s in shapes)


@pytest.mark.parametrize("round_to", [1, 8])
def test_without_a_weight_failures_change_nothing(round_to):
    shapes, widths = chain()
    budget = Budget("cycles", 0.5, load("nv_small"))
    dense, scores = budget.cost(shapes), scored(widths)
    plain = ranked(widths, budget, scores, dense=dense, round_to=round_to)
    traded = greedy(
        widths, budget, scores, scores, failing(a=1, b=1, c=1),
        lam=0.0, dense=dense, round_to=round_to,
    )  # fmt: skip
    assert traded.tolist() == plain.tolist()


@pytest.mark.parametrize("frail", ["a", "c"])
def test_the_group_whose_layers_fail_more_is_narrowed_more(frail):
    shapes, widths = chain()
    budget = Budget("macs", 0.6)
    even = {s.root: np.ones(len(s.channels)) for s in widths.segments}
    rates = {"a": 1e-3, "b": 1e-3, "c": 1e-3, frail: 1.0}
    kept = (
        greedy(widths, budget, even, even, failing(**rates), lam=1.0, dense=budget.cost(shapes))
        / widths.full
    )
    assert (kept[0] < kept[1]) == (frail == "a")  # c reads only the second group
    assert budget.cost(widths.keeping((kept * widths.full).astype(int))) <= 0.6 * budget.cost(
        shapes
    )


def test_a_step_is_an_atom_where_single_channels_save_no_cycle():
    shapes, widths = chain()
    budget = Budget("cycles", 0.7, load("nv_small"))
    kept = greedy(
        widths, budget, scored(widths), scored(widths), failing(a=1, b=1, c=1),
        lam=1.0, dense=budget.cost(shapes),
    )  # fmt: skip
    assert (kept % 8 == 0).all()


def test_greedy_is_as_good_as_the_best_widths_for_its_price():
    """Against all pairs of widths: no other loses less and fails less at the budget."""
    shapes, widths = chain()
    budget, failures = Budget("cycles", 0.6, load("nv_small")), failing(a=3, b=1, c=2)
    dense, scores = budget.cost(shapes), scored(widths, 3)
    kept = greedy(
        widths, budget, scores, scores, failures, lam=1.0, dense=dense, round_to=8
    )  # fmt: skip

    def worth(width):
        lost = sum(
            np.sort(scores[s.root] / scores[s.root].mean())[: len(s.channels) - k].sum()
            for s, k in zip(widths.segments, width, strict=True)
        )
        return lost, failures(widths.keeping(np.array(width)))

    others = [(a, b) for a in (8, 16) for b in (8, 16, 24)]
    allowed = [o for o in others if budget.cost(widths.keeping(np.array(o))) <= 0.6 * dense]
    mine = worth(kept)
    assert tuple(kept) in allowed
    assert not any(all(x < y for x, y in zip(worth(o), mine, strict=True)) for o in allowed)


def test_failures_below_an_atom_per_layer_are_refused():
    shapes, widths = chain()
    budget = Budget("cycles", 0.05, load("nv_small"))
    with pytest.raises(ConfigError, match=r"cannot be reached: .* at its narrowest"):
        greedy(
            widths, budget, scored(widths), scored(widths), failing(a=1, b=1, c=1),
            lam=1.0, dense=budget.cost(shapes), round_to=8,
        )  # fmt: skip


def test_failures_are_not_traded_against_channels():
    _, widths = chain()
    with pytest.raises(ConfigError, match="give --macs or --cycles"):
        greedy(
            widths, Budget("channels", 0.5), scored(widths), scored(widths),
            failing(a=1, b=1, c=1), lam=1.0, dense=40,
        )  # fmt: skip


def test_where_no_failure_is_saved_cost_is():
    """Below one atom a layer cycles fall no more, multiply-accumulates do."""
    shapes, widths = chain()
    budget, scores = Budget("macs", 0.05), scored(widths)
    dense = budget.cost(shapes)
    kept = greedy(
        widths, budget, scores, scores, failing(a=1, b=1, c=1), lam=1.0, dense=dense
    )  # fmt: skip
    assert (kept < 8).all()
    assert 0.02 * dense < budget.cost(widths.keeping(kept)) <= 0.05 * dense
