from types import SimpleNamespace

import pytest

from rasp.analysis.exposure import Exposure, exposure, relative
from rasp.errors import ConfigError
from rasp.statistics import clopper_pearson, ratio, wilson


def campaign(**shares):
    return SimpleNamespace(layer_shares=shares, overall={"sdc1": wilson(30, 1000)})


def test_failures_are_bits_times_cycles_times_rate():
    found = exposure(
        campaign(conv1=0.75, fc=0.25), cycles={"conv1": 300, "fc": 100}, register_bits=50
    )
    assert found.bit_cycles == 50 * 400
    assert found.failures == pytest.approx(50 * 400 * 0.03)
    low, high = found.interval
    assert (low, high) == (20_000 * found.rate.low, 20_000 * found.rate.high)


def test_the_overall_rate_is_the_cycle_weighted_mean_of_the_layers_failures():
    """Adding layers up one by one gives what the campaign's overall rate gives."""
    cycles, rates = {"a": 900, "b": 100}, {"a": 0.01, "b": 0.21}
    events = sum(round(10_000 * cycles[x] / 1000 * rates[x]) for x in cycles)
    whole = Exposure(register_bits=7, cycles=1000, rate=wilson(events, 10_000))
    assert whole.failures == pytest.approx(sum(7 * cycles[x] * rates[x] for x in cycles))


def test_layers_outside_the_campaign_do_not_count():
    found = exposure(campaign(fc=1.0), cycles={"conv1": 300, "fc": 100}, register_bits=1)
    assert found.cycles == 100


@pytest.mark.parametrize(
    ("shares", "cycles", "message"),
    [
        ({"conv1": 0.5, "fc": 0.5}, {"conv1": 300, "fc": 100}, "drawn by the layers' cycles"),
        ({"conv1": 0.5, "fc": 0.5}, {"conv1": 300}, "layer 'fc'"),
    ],
)
def test_a_campaign_that_did_not_draw_by_cycles_is_refused(shares, cycles, message):
    with pytest.raises(ConfigError, match=message):
        exposure(campaign(**shares), cycles=cycles, register_bits=1)


@pytest.mark.parametrize(("bits", "cycles"), [(0, 1), (1, 0), (float("nan"), 1)])
def test_an_empty_exposure_is_refused(bits, cycles):
    with pytest.raises(ConfigError, match="above zero"):
        Exposure(register_bits=bits, cycles=cycles, rate=wilson(1, 2))


def test_worse_per_fault_can_be_better_per_inference():
    dense = Exposure(register_bits=100, cycles=1000, rate=wilson(100, 10_000))
    pruned = Exposure(register_bits=100, cycles=400, rate=wilson(150, 10_000))
    found, per_fault = relative(pruned, dense), ratio(pruned.rate, dense.rate)
    assert per_fault.low > 1
    assert found.high < 1
    assert found.estimate == pytest.approx(0.6)
    assert found.low == pytest.approx(0.4 * per_fault.low)


def test_a_network_that_never_failed_is_bounded_from_above():
    dense = Exposure(register_bits=1, cycles=1000, rate=wilson(100, 10_000))
    silent = Exposure(register_bits=1, cycles=500, rate=clopper_pearson(0, 10_000))
    found = relative(silent, dense)
    assert found.low == 0
    assert 0 < found.high < 0.05
    assert relative(dense, silent).high is None
