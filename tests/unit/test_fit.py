"""FIT: the arithmetic from raw rate to failures, and parts that stay apart."""

import pytest

from rasp.analysis.fit import Part, control, duty
from rasp.errors import ConfigError
from rasp.faults.registers import nvdla_mix
from rasp.nvdla.config import CONFIGS, load
from rasp.nvdla.layout import steering
from rasp.nvdla.registers import registers
from rasp.statistics import wilson


def test_fit_is_raw_rate_times_bits_times_failures_per_upset():
    rate = wilson(200, 10_000)
    part = Part("datapath", 2_000_000, 0.5, rate, "sdc1")

    found = part.fit(600)

    assert found.estimate == pytest.approx(600 * 2 * 0.02)
    assert (found.low, found.high) == pytest.approx((1200 * rate.low, 1200 * rate.high))


def test_fidelitys_example_for_resnet50():
    """Its own CSV: sizes in Mbit, activeness and 1 - masking give 1.29 FIT of datapath."""
    size = [0.018, 0.035, 0.117, 0.156, 0.272]
    active = [0.31, 0.42, 0.27, 0.27, 0.27]
    failing = [0.0039, 0.0057, 0.0026, 0.0114, 0.0201]

    parts = [
        Part("datapath", mbit * 1e6, a, wilson(round(f * a * 10**6), 10**6), "sdc1")
        for mbit, a, f in zip(size, active, failing, strict=True)
    ]

    assert sum(part.fit(600).estimate for part in parts) == pytest.approx(1.29, abs=0.01)


def test_duty_is_the_share_of_busy_cycles():
    assert duty(10_000_000, clock_mhz=500, frames_per_second=25) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="need 200% of a 100 MHz clock"):
        duty(20_000_000, clock_mhz=100, frames_per_second=10)
    with pytest.raises(ConfigError, match="clock must be positive"):
        duty(1, clock_mhz=0, frames_per_second=10)


@pytest.mark.parametrize("raw", [0, -1, float("nan")])
def test_raw_rates_are_positive(raw):
    with pytest.raises(ConfigError, match="raw rate must be positive"):
        Part("datapath", 1.0, 1.0, wilson(1, 2), "sdc1").fit(raw)


def test_control_is_the_flip_flop_weighted_mean_of_the_measured_shares():
    classes, bits = registers(load("nv_small")), steering(load("nv_small"))

    silent, hang = control(classes, bits)

    total = sum(bits.values())
    for part, field in ((silent, "sdc"), (hang, "hang")):
        mean = sum(getattr(e.measured, field) * bits.get(e.name, 0) for e in classes) / total
        assert part.bits == total
        assert part.rate.estimate == pytest.approx(mean, abs=1e-3)
        assert part.rate.low < mean < part.rate.high
    assert (silent.failure, hang.failure) == ("output", "hang")
    assert not silent.estimated


@pytest.mark.parametrize("name", CONFIGS)
def test_every_flip_flop_is_in_one_part(name):
    config = load(name)
    counted = sum(entry.flip_flops for entry in registers(config))
    drawn, rest = nvdla_mix(config), steering(config)
    assert sum(drawn.values()) + sum(rest.values()) == pytest.approx(counted)
    assert set(rest) >= {e.name for e in registers(config) if e.kind == "control" and e.flip_flops}


def test_scaled_counts_are_marked_as_estimated():
    silent, _ = control(registers(load("nv_large")), steering(load("nv_large")))

    assert silent.estimated
