"""Bounds hold what faults change, let everything else through bit for bit, and fit one network."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rasp import zoo
from rasp.errors import ConfigError
from rasp.faults.context import LayerContext
from rasp.faults.models import FIDELITY_MIX, fault_model
from rasp.faults.population import strata
from rasp.faults.sampling import draw
from rasp.faults.values import LayerValues
from rasp.network.digest import digest
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Bound
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.pruning.hardening import HardeningRecord, harden, measure
from rasp.quantization.calibrate import quantize
from rasp.quantization.observers import BINS, Histogram, clipping
from rasp.replay.engine import Replay

KINDS = [(mode, scope) for mode in ("clip", "zero") for scope in ("layer", "channel")]
EVERY_KIND = pytest.mark.parametrize(("mode", "scope"), KINDS)


@pytest.fixture(scope="module")
def images():
    return torch.randn(130, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def network(images):
    torch.manual_seed(5)
    spec = zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32))
    model = zoo.build(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return lower(model.eval(), images[:1])


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bound_is_numpys(zero, dtype):
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, :, 0] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0], dtype=dtype)
    low, high = torch.tensor([-1.0, 0.0, -0.5]), torch.tensor([0.5, 2.0, 0.0])

    found = Bound(low, high, zero=zero)(values.float()).numpy()

    v = values.float().numpy()
    a, b = (end.numpy().reshape(3, 1, 1) for end in (low, high))
    inside = (v >= a) & (v <= b)
    outside = np.zeros_like(v) if zero else np.where(np.isnan(v), 0, np.where(v < a, a, b))
    assert np.array_equal(found, np.where(inside, v, outside))
    assert np.array_equal(np.signbit(found)[inside], np.signbit(v)[inside])


def test_a_channel_of_each_value_picks_its_bound():
    bound = Bound(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    values = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    assert bound(values, torch.tensor([[0], [1]])).tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert bound(values).tolist() == [[2.0, 3.0], [0.0, 1.0]]


@EVERY_KIND
def test_bounds_are_the_span_of_the_trace(network, images, mode, scope):
    record = measure(network, images, mode=mode, scope=scope)

    trace = network.trace(images)
    relu = {node.name: getattr(node, "clip", None) is not None for node in network.nodes}
    assert sum(relu.values()) >= 19
    assert set(record.high) == {
        node.name
        for node in network.nodes
        if type(node).__name__ in ("Conv", "Add") and node.name != network.output
    }
    for name, high in record.high.items():
        values = trace[name].movedim(1, 0).flatten(1)
        values = values if scope == "channel" else values.reshape(1, -1)
        most, least = values.amax(1), values.amin(1)
        slack = (most - least) / 64
        torch.testing.assert_close(torch.tensor(high), most + slack * (most != 0))
        torch.testing.assert_close(torch.tensor(record.low[name]), least - slack * (least != 0))
        assert not relu[name] or record.low[name] == [0.0] * len(high)


@EVERY_KIND
@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_images_the_bounds_know_are_run_bit_for_bit(network, images, mode, scope, number_format):
    hardened = harden(network, measure(network, images, mode=mode, scope=scope))

    plain, bounded = (
        net.with_arithmetic(FloatArithmetic(number_format)).trace(images[:16])
        for net in (network, hardened)
    )

    for name, values in plain.items():
        assert torch.equal(bounded[name], values)
    assert digest(hardened) != digest(network)


@EVERY_KIND
@pytest.mark.parametrize("model", sorted(FIDELITY_MIX))
def test_no_fault_leaves_the_bounds(network, images, mode, scope, model):
    record = measure(network, images, mode=mode, scope=scope)
    hardened = harden(network, record)
    trace = hardened.trace(images[:8])
    for layer in hardened.layers[1:4]:
        context = LayerContext(layer, hardened.arithmetic, load("nv_small"))
        words = np.random.default_rng(2).integers(2**64, size=(200, 8), dtype=np.uint64)
        x = trace[layer.inputs[0]]
        x = x[torch.arange(200) % 8]

        change = fault_model(model).change(
            fault_model(model).draw(context, words), LayerValues.of(context, x)
        )

        kernel = change.element // layer.conv.pixels
        low, high = (
            torch.tensor(ends[layer.name])[kernel if scope == "channel" else 0]
            for ends in (record.low, record.high)
        )
        inside = (change.value >= low) & (change.value <= high)
        assert bool((inside | (change.value == 0)).all())
        assert len(change.value) >= 100


@EVERY_KIND
def test_a_hardened_network_fails_less(network, images, mode, scope):
    """6 % of 4,000 flips against 0.5 % and less; half of the first is 30 sigma away."""
    hardened = harden(network, measure(network, images, mode=mode, scope=scope))
    labels = torch.zeros(len(images), dtype=torch.int64)
    lost = []
    for net in (network, hardened):
        population = strata(net, load("nv_small"), models={"RD_BFLIP": 1.0})
        trials = draw(population, images=32, seed=1, trials=range(4000))
        _, outcomes = Replay(net, load("nv_small"), images[:32], labels[:32]).run(
            population, trials
        )
        lost.append((outcomes.sdc1 | outcomes.due).mean())
    assert lost[1] < lost[0] / 2


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_replay_of_a_hardened_network_is_its_full_execution(network, images, scope, whole_run):
    hardened = harden(network, measure(network, images[:32], mode="clip", scope=scope))
    labels = torch.zeros(16, dtype=torch.int64)
    layer = hardened.layers[3]
    context = LayerContext(layer, hardened.arithmetic, load("nv_small"))
    population = strata(hardened, load("nv_small"), models={"RD": 1.0}, layers=[layer.name])
    trials = draw(population, images=16, seed=1, trials=range(64))

    _, outcomes = Replay(hardened, load("nv_small"), images[:16], labels).run(population, trials)

    golden = hardened.trace(images[:16])
    image = torch.from_numpy(trials.image)
    model = fault_model("RD")
    values = LayerValues.of(context, golden[layer.inputs[0]][image])
    change = model.change(model.draw(context, trials.words), values)
    faulty = golden[layer.name][image].reshape(64, -1).clone()
    faulty[change.row, change.element] = change.value
    logits = whole_run(hardened, images[image], layer.name, faulty.view(64, *layer.shape))
    clean = golden[hardened.output][image]
    assert np.array_equal(outcomes.sdc1, (logits.argmax(1) != clean.argmax(1)).numpy())


def test_int8_converters_saturate_at_the_bounds(network, images):
    record = measure(network, images[:32])
    half = record.model_copy(
        update={"high": {name: [high[0] / 2] for name, high in record.high.items()}}
    )
    bounded, _ = quantize(harden(network, half), images[:32], observer="minmax")

    trace, reached = bounded.trace(images[:32]), 0
    for name, high in half.high.items():
        step = bounded.arithmetic.scales[name]
        most = float(trace[name].max()) * step
        assert most <= high[0] + step / 2
        reached += most >= high[0] - step / 2
    assert reached >= 10


def test_a_record_survives_its_file(network, images):
    record = measure(network, images[:8], scope="channel")
    assert HardeningRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "ranger"},
        {"scope": "kernel"},
        {"images": 0},
        {"low": {"a": [0.0]}},
        {"low": {"a": [1.0], "b": [0.0]}},
        {"low": {"a": [], "b": [0.0]}},
        {"low": {"a": [float("nan")], "b": [0.0]}},
        {"extra": 1},
    ],
)
def test_a_strangers_record_is_refused(change):
    good = {
        "mode": "clip", "scope": "layer", "images": 3,
        "low": {"a": [0.0], "b": [0.0]}, "high": {"a": [0.5], "b": [1.0]},
    }  # fmt: skip
    HardeningRecord.model_validate_json(json.dumps(good))

    with pytest.raises(ValidationError):
        HardeningRecord.model_validate_json(json.dumps(good | change))


def test_bounds_of_another_network_are_refused(network, images):
    record = measure(network, images[:8], scope="channel")
    name = next(iter(record.high))
    fewer = {"low": dict(record.low), "high": dict(record.high)}
    for ends in fewer.values():
        ends[name] = ends[name][:-1]
    missing = {"low": dict(record.low), "high": dict(record.high)}
    for ends in missing.values():
        del ends[name]
    more = {
        "low": record.low | {"elsewhere": [0.0]},
        "high": record.high | {"elsewhere": [0.0]},
    }
    for change, words in ((fewer, name), (missing, name), (more, "elsewhere")):
        with pytest.raises(ConfigError, match=f"'{words}'"):
            harden(network, record.model_copy(update=change))


def test_what_cannot_be_measured_is_refused(network, images):
    integer, _ = quantize(network, images[:8])
    record = measure(network, images[:8])
    broken = images[:2].clone()
    broken[0, 0, 0, 0] = math.nan
    for call, words in (
        (lambda: measure(network, images[:0]), "at least one"),
        (lambda: measure(network, broken), "NaN"),
        (lambda: measure(integer, images[:2]), "fp32"),
        (lambda: measure(network, images[:2], mode="clamp"), "hardening mode"),
        (lambda: measure(network, images[:2], scope="kernel"), "hardening scope"),
        (lambda: harden(integer, record), "before it is quantised"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def test_bounds_that_allow_for_upsets_have_the_least_error_with_them(network, images):
    """Against values clipped at every bound, of which a share ends on the bound."""
    span = measure(network, images)
    tight = measure(network, images, upset_rate=0.001)

    assert tight.upset_rate == 0.001
    name = max(span.high, key=lambda name: span.high[name][0] - tight.high[name][0])
    values = network.trace(images)[name].abs().flatten().double()
    values = values[values > 0]

    def error(bound):
        return float((values - values.clamp(max=bound)).square().mean()) + 0.001 * bound**2

    [found] = tight.high[name]
    assert found < 0.95 * span.high[name][0]
    bounds = torch.linspace(0.1, 1, 91) * span.high[name][0]
    assert error(found) < 1.02 * min(error(bound) for bound in bounds.tolist())


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_bounds_that_allow_for_upsets_lie_within_the_span(network, images, scope):
    span = measure(network, images, scope=scope)
    tight = measure(network, images, scope=scope, upset_rate=0.01)
    tighter = 0
    for name in span.high:
        ends = (span.low[name], tight.low[name], tight.high[name], span.high[name])
        for row in zip(*ends, strict=True):
            assert list(row) == sorted(row)
            tighter += row[2] < row[3]
    assert tighter > sum(map(len, span.high.values())) / 2


def test_each_channel_is_bounded_as_if_it_were_alone(network, images):
    together = measure(network, images, scope="channel", upset_rate=0.001)
    name = next(iter(together.high))
    values = network.trace(images)[name][:, 1].abs().flatten()
    peak = float(measure(network, images, scope="channel").high[name][1])
    alone = clipping(
        Histogram(torch.histc(values[values > 0], BINS, 0, peak).double(), peak), 0.001
    )
    assert together.high[name][1] == pytest.approx(alone)


@pytest.mark.parametrize(
    ("kind", "rate", "words"),
    [
        (("clip", "layer"), 1.5, "from 0 to 1"),
        (("zero", "layer"), 0.1, "got 'zero'"),
    ],
)
def test_upset_rates_that_no_bound_allows_for_are_refused(network, images, kind, rate, words):
    with pytest.raises(ConfigError, match=words):
        measure(network, images, mode=kind[0], scope=kind[1], upset_rate=rate)
