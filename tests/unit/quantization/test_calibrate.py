"""Post-training quantisation: scales, replay of a record, refusals."""

import pytest
import torch
from torch import nn

from rasp.errors import ConfigError
from rasp.network.float_ops import FloatArithmetic
from rasp.network.lower import lower
from rasp.quantization.calibrate import QuantizationRecord, apply, quantize
from rasp.quantization.observers import BINS, Histogram, minmax, mse, percentile


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    images = torch.randn(32, 1, 8, 8)
    return lower(model, images), images


def test_a_record_rebuilds_the_network_bit_for_bit():
    network, images = small()
    quantised, record = quantize(network, images)

    again = apply(network, QuantizationRecord.model_validate_json(record.model_dump_json()))

    first, second = quantised.trace(images), again.trace(images)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pooling_keeps_the_scale_and_logits_are_not_clipped():
    network, images = small()

    _, record = quantize(network, images, observer="mse")

    names = [node.name for node in network.nodes]
    assert record.scales[names[1]] == record.scales[names[2]] == record.scales[names[3]]
    peak = float(network(images).abs().max())
    assert record.scales[network.output] == pytest.approx(peak / 127, rel=1e-5)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_int8_follows_fp32_within_a_few_steps(observer):
    network, images = small()

    quantised, record = quantize(network, images, observer=observer)

    error = (quantised(images) - network(images)).abs().max()
    assert float(error) < 6 * record.scales[network.output]


def test_observers_on_known_distributions():
    heavy = torch.zeros(BINS)
    heavy[: BINS // 10] = 1e6
    heavy[-1] = 1.0
    outlier = Histogram(heavy.double(), 10.0)
    flat = Histogram(torch.ones(BINS).double(), 10.0)

    assert minmax(outlier) == 10.0
    assert percentile(outlier) == pytest.approx(1.0, abs=0.01)
    assert 1.0 <= mse(outlier) < 6.0
    assert mse(flat) > 9.5


def test_a_threshold_that_expects_upsets_has_the_least_error_with_them():
    """Against values drawn, quantised and hit by random flips at every threshold."""
    torch.manual_seed(3)
    values = torch.randn(200_000).abs() * 2
    histogram = Histogram(
        torch.histc(values, BINS, 0, float(values.max())).double(), float(values.max())
    )
    bit, hit = torch.randint(8, values.shape), torch.rand(values.shape) < 0.002

    def error(threshold):
        step = threshold / 127
        stored = (values / step).round().clamp(max=127)
        struck = stored + torch.where(hit, 2.0**bit, 0.0)
        return float((struck * step - values).square().mean())

    found = mse(histogram, 0.002)
    assert found < 0.95 * mse(histogram)
    best = min(error(threshold) for threshold in torch.linspace(1.0, 9.0, 81).tolist())
    assert error(found) < 1.02 * best


def test_the_rate_of_upsets_is_kept_and_shrinks_the_scales():
    network, images = small()

    _, plain = quantize(network, images)
    _, wary = quantize(network, images, upset_rate=0.01)

    assert (plain.upset_rate, wary.upset_rate) == (0.0, 0.01)
    assert all(wary.scales[name] <= plain.scales[name] for name in plain.scales)
    assert wary.scales[network.output] == plain.scales[network.output]
    assert min(wary.scales[name] / plain.scales[name] for name in plain.scales) < 0.9


@pytest.mark.parametrize(
    ("observer", "rate", "message"),
    [
        ("mse", 1.5, "from 0 to 1"),
        ("minmax", 0.1, "'mse' weighs"),
        ("percentile", 0.1, "'mse' weighs"),
    ],
)
def test_rates_of_upsets_that_cannot_be_weighed_are_refused(observer, rate, message):
    network, images = small()
    with pytest.raises(ConfigError, match=message):
        quantize(network, images, observer=observer, upset_rate=rate)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 1, 8, 8), "calibration set is empty"),
        (torch.full((2, 1, 8, 8), float("nan")), "NaN or infinite"),
    ],
)
def test_unusable_calibration_images_are_refused(images, message):
    network, _ = small()

    with pytest.raises(ConfigError, match=message):
        quantize(network, images)


def test_unknown_observer_and_foreign_record_are_refused():
    network, images = small()
    _, record = quantize(network, images)

    with pytest.raises(ConfigError, match="Did you mean 'minmax'"):
        quantize(network, images, observer="minmx")
    foreign = record.model_copy(update={"scales": {**record.scales, "other": 1.0}})
    with pytest.raises(ConfigError, match="node 'other'"):
        apply(network, foreign)
    with pytest.raises(ConfigError, match="Only an fp32 network"):
        quantize(network.with_arithmetic(FloatArithmetic("fp16")), images)


def test_zeros_do_not_pull_the_scale_down():
    """A ReLU's zeros are exact at any scale: adding them must not clip the other values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    images = torch.randn(16, 1, 8, 8).abs()
    padded = torch.cat([images, -torch.rand(500, 1, 8, 8)])
    network = lower(model, images)

    scales = [quantize(network, x, observer="mse")[1].scales["0"] for x in (images, padded)]

    assert scales[0] == pytest.approx(scales[1])


def test_a_layer_that_is_always_zero_still_quantises():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    images = torch.randn(4, 1, 2, 2)
    network = lower(model, images)

    quantised, _ = quantize(network, images)

    assert torch.allclose(quantised(images), network(images), atol=0.02)
