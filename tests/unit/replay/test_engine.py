"""Replay against running the whole network again, and what outcomes mean."""

import weakref
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from rasp import zoo
from rasp.errors import ConfigError
from rasp.faults.models import FAULT_MODELS, FIDELITY_MIX, LayerContext
from rasp.faults.population import Stratum, strata
from rasp.faults.sampling import draw
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv
from rasp.network.lower import lower
from rasp.network.maps import Maps
from rasp.nvdla.config import load
from rasp.quantization.calibrate import quantize
from rasp.replay.engine import Replay
from rasp.replay.golden import GoldenTensors
from rasp.replay.outcomes import OUTCOMES, classify

N = 16


def network_of(name, number_format):
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    torch.manual_seed(0)
    model = zoo.build(zoo.ModelSpec(model=name, num_classes=10, input_shape=shape))
    images = torch.randn(N, *shape)
    network = lower(model, images)
    if number_format == "int8":
        return quantize(network, images)[0], images
    return network.with_arithmetic(FloatArithmetic(number_format)), images


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_replay_equals_full_execution(name, number_format, whole_run):
    network, images = network_of(name, number_format)
    labels = torch.arange(N) % 10
    config = load("nv_small")
    population = strata(network, config, models=FIDELITY_MIX)
    replay = Replay(network, config, images, labels, batch=5)
    trials = draw(population, images=N, seed=4, trials=range(160))
    golden = network.trace(images)

    _, outcomes = replay.run(population, trials)

    for index in np.unique(trials.stratum):
        (chosen,) = np.nonzero(trials.stratum == index)
        stratum = population[index]
        image = trials.image[chosen]
        layer = network[stratum.layer]
        assert isinstance(layer, Conv)
        context = LayerContext(layer, network.arithmetic, config)
        x, y = golden[layer.inputs[0]], golden[layer.name]
        values = LayerValues(context, Maps.of(x), Maps.of(y), torch.from_numpy(image))
        model = FAULT_MODELS[stratum.model]
        change = model.change(model.draw(context, trials.words[chosen]), values)
        faulty = y[image].reshape(len(image), -1).clone()
        faulty[change.row, change.element] = change.value
        output = faulty.reshape(len(image), *layer.shape)
        logits = whole_run(network, images[image], layer.name, output)
        reference = golden[network.output][image]
        reference = network.arithmetic.decode(network.output, reference)
        count = torch.from_numpy(outcomes.changed[chosen])
        expected = classify(reference, logits, labels[image], count)
        for outcome in OUTCOMES:
            got = getattr(outcomes, outcome)[chosen]
            assert np.array_equal(got, getattr(expected, outcome)), (stratum, outcome)


@pytest.mark.parametrize("number_format", ["fp32", "int8"])
def test_rows_depend_on_neither_batch_nor_order_nor_memory(number_format):
    network, images = network_of("resnet20", number_format)
    labels = torch.arange(N) % 10
    config = load("nv_small")
    population = strata(network, config, models={"RD_BFLIP": 1.0}, layers=["layer1.0.conv1"])
    trials = draw(population, images=N, seed=0, trials=range(40))
    whole = Replay(network, config, images, labels, batch=16)
    cut = Replay(network, config, images, labels, batch=3, memory=0)
    order = np.random.default_rng(0).permutation(40)
    mixed = replace(trials, **{f.name: getattr(trials, f.name)[order] for f in fields(trials)})

    _, first = whole.run(population, trials)
    _, second = cut.run(population, mixed)

    assert first.masked.sum() < 40
    for outcome in ("changed", *OUTCOMES):
        assert np.array_equal(getattr(first, outcome)[order], getattr(second, outcome)), outcome


def test_a_fault_in_an_unread_channel_is_masked_and_one_in_the_logits_is_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight[:, 4:] = 0
    images = torch.randn(4, 1, 2, 2)
    network = lower(model, images)
    replay = Replay(network, load("nv_small"), images, torch.zeros(4, dtype=torch.int64))

    def injected(layer):
        population = strata(network, load("nv_small"), models={"RD_BFLIP": 1.0}, layers=[layer])
        return replay.run(population, draw(population, images=4, seed=0, trials=range(400)))

    sites, outcomes = injected("0")
    finite = ~outcomes.due & (sites.bit < 30)
    assert outcomes.masked[(sites.kernel == 1) & finite].all()
    assert not outcomes.masked[(sites.kernel == 0) & (sites.bit > 25)].any()
    _, direct = injected("2")
    assert not direct.masked.any()


def test_a_population_of_another_network_is_refused():
    network, images = network_of("lenet5", "fp32")
    replay = Replay(network, load("nv_small"), images, torch.arange(N) % 10)
    population = [Stratum("conv9", "RD", 1.0)]

    with pytest.raises(ConfigError, match="'conv9'"):
        replay.run(population, draw(population, images=N, seed=0, trials=range(3)))


def test_progress_hears_of_every_trial_once():
    network, images = network_of("lenet5", "int8")
    replay = Replay(network, load("nv_small"), images, torch.arange(N) % 10, memory=0)
    population = strata(network, load("nv_small"), models=FIDELITY_MIX)
    trials = draw(population, images=N, seed=0, trials=range(100))
    heard = []

    replay.run(population, trials, progress=lambda *event: heard.append(event))

    done = [event[1] for event in heard]
    assert done == sorted(set(done))
    assert done[-1] == 100
    assert len(heard) == N


def test_golden_tensors_of_one_block_are_held_at_a_time(monkeypatch):
    network, images = network_of("lenet5", "fp32")
    replay = Replay(network, load("nv_small"), images, torch.arange(N) % 10, memory=0)
    population = strata(network, load("nv_small"), models={"RD_BFLIP": 1.0})
    compute, made, held = GoldenTensors._maps, [], []

    def counted(self, first):
        held.append(sum(maps() is not None for maps in made))
        found = compute(self, first)
        made.extend(weakref.ref(maps.pixels) for maps in found.values())
        return found

    monkeypatch.setattr(GoldenTensors, "_maps", counted)
    replay.run(population, draw(population, images=N, seed=0, trials=range(100)))

    assert held == [0] * N


def test_outcomes_of_hand_made_logits():
    golden = torch.tensor([[4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).repeat(7, 1)
    faulty = golden.clone()
    faulty[1, 1] = 1.5  # confidence moves by less than 10 %
    faulty[2, 1] = 3.0  # by more than 20 %
    faulty[3, 1] = 5.0  # top-1 changes
    faulty[4, 1:6] = 9.0  # golden top-1 drops out of the top 5
    faulty[5, 3] = float("nan")
    faulty[6, 3] = float("inf")
    labels = torch.tensor([0, 0, 0, 0, 1, 0, 0])

    found = classify(golden, faulty, labels, torch.ones(7, dtype=torch.int64))

    rows = {name: np.nonzero(getattr(found, name))[0].tolist() for name in OUTCOMES}
    assert rows == {
        "masked": [0],
        "sdc1": [3, 4],
        "sdc5": [4],
        "sdc10": [2, 3, 4],
        "sdc20": [2, 3, 4],
        "critical": [3],
        "due": [5, 6],
    }


def test_images_without_labels_are_refused():
    network, images = network_of("lenet5", "fp32")

    with pytest.raises(ConfigError, match="16 images and 3 labels"):
        Replay(network, load("nv_small"), images, torch.zeros(3, dtype=torch.int64))
