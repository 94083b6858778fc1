"""The population's shares, and trials that depend on their number alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rasp import zoo
from rasp.errors import ConfigError, UnsupportedModelError
from rasp.faults.models import FIDELITY_MIX, FIDELITY_MODELS
from rasp.faults.population import Stratum, mix, occupancy, strata
from rasp.faults.sampling import draw
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.nvdla.cycles import layer_cycles, layer_window


@pytest.fixture(scope="module")
def lenet():
    model = zoo.build(zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28)))
    return lower(model, torch.zeros(1, 1, 28, 28))


def test_weights_are_cycles_times_share_and_sum_to_one(lenet):
    config = load("nv_small")

    population = strata(lenet, config, models=FIDELITY_MIX)

    assert sum(s.weight for s in population) == pytest.approx(1)
    cycles = {c.name: layer_cycles(c.conv, config).total for c in lenet.layers}
    for stratum in population:
        expected = cycles[stratum.layer] / sum(cycles.values())
        expected *= FIDELITY_MIX[stratum.model] / sum(FIDELITY_MIX.values())
        assert stratum.weight == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ("uniform", lambda _: 1),
        ("macs", lambda c: c.conv.macs),
        ("neurons", lambda c: c.conv.K * c.conv.pixels),
        ("window", lambda c: layer_window(c.conv, load("nv_small"))),
    ],
)
def test_other_layer_weights(lenet, weights, share):
    population = strata(lenet, load("nv_small"), models={"RD": 2.0}, layer_weights=weights)

    total = sum(share(layer) for layer in lenet.layers)
    expected = [share(layer) / total for layer in lenet.layers]
    assert [s.weight for s in population] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {"RD_BFLP": 1.0}}, "Unknown fault model 'RD_BFLP'. Did you mean 'RD_BFLIP'"),
        ({"models": {"RD": 0.0}}, "positive weight"),
        ({"models": {}}, "at least one fault model"),
        ({"models": {"RD": 1.0}, "layers": ["conv9"]}, "Unknown layer 'conv9'"),
        ({"models": {"RD": 1.0}, "layer_weights": "mac"}, "Did you mean 'macs'"),
    ],
)
def test_what_is_not_allowed_is_named(lenet, arguments, message):
    with pytest.raises(ConfigError, match=message):
        strata(lenet, load("nv_small"), **arguments)


def test_named_mixes():
    config = load("nv_small")

    assert mix("fidelity", config) == FIDELITY_MIX
    assert mix("nvdla", config)["MAC_SUM"] == 456 + 304
    assert mix("memory", config) == {"INPUT": 1.0, "WEIGHT": 1.0}
    with pytest.raises(ConfigError, match="Did you mean 'nvdla'"):
        mix("nvdl", config)


def test_storage_weighs_each_layers_own_inputs_and_weights_by_its_cycles(lenet):
    config = load("nv_small")

    population = strata(lenet, config, models=mix("memory", config), layer_weights="storage")

    inputs = [784, 864, 256, 120, 84]
    weights = [150, 2400, 30720, 10080, 840]
    cycles = [layer_cycles(layer.conv, config).total for layer in lenet.layers]
    sizes = [c * n for c, i, w in zip(cycles, inputs, weights, strict=True) for n in (i, w)]
    assert [s.weight for s in population] == pytest.approx([n / sum(sizes) for n in sizes])
    with pytest.raises(ConfigError, match="INPUT and WEIGHT, got RD"):
        strata(lenet, config, models={"RD": 1.0}, layer_weights="storage")


def test_products_on_the_host_are_refused_by_name_and_other_host_work_is_not():
    class Model(torch.nn.Module):
        def __init__(self, transposed):
            super().__init__()
            kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
            self.odd = kind(1, 2, 1)
            self.fc = torch.nn.Linear(32, 3)

        def forward(self, x):
            return self.fc(torch.sigmoid(self.odd(x)).flatten(1))

    images = torch.randn(2, 1, 4, 4)

    population = strata(lower(Model(False), images), load("nv_small"), models={"RD": 1.0})
    assert [s.layer for s in population] == ["odd", "fc"]
    with pytest.raises(UnsupportedModelError, match=r"Layer 'odd.* cannot run on nv_small"):
        strata(lower(Model(True), images), load("nv_small"), models={"RD": 1.0})


def test_occupancy_is_the_filled_share_of_the_buffer(lenet):
    config = load("nv_small")
    cycles = [layer_cycles(layer.conv, config).total for layer in lenet.layers]
    held = [784 + 150, 864 + 2400, 256 + 30720, 120 + 10080, 84 + 840]

    mean = sum(c * n for c, n in zip(cycles, held, strict=True)) / sum(cycles)
    assert occupancy(lenet, config) == pytest.approx(mean / (128 * 1024), rel=1e-9)


def test_a_network_without_layers_has_no_population():
    network = lower(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2))

    with pytest.raises((ConfigError, UnsupportedModelError), match="no convolution or linear"):
        strata(network, load("nv_small"), models={"RD": 1.0})


@given(
    seed=st.integers(0, 2**64 - 1),
    start=st.integers(0, 10**9),
    cut=st.integers(1, 49),
)
def test_any_cut_of_the_work_draws_the_same_trials(seed, start, cut):
    population = [Stratum("a", "RD", 0.3), Stratum("b", "RD", 0.7)]
    whole = draw(population, images=9, seed=seed, trials=range(start, start + 50))
    head = draw(population, images=9, seed=seed, trials=range(start, start + cut))
    tail = draw(population, images=9, seed=seed, trials=range(start + cut, start + 50))

    for name in ("index", "stratum", "image", "words"):
        joined = np.concatenate([getattr(head, name), getattr(tail, name)])
        assert np.array_equal(getattr(whole, name), joined)


def test_frequencies_follow_the_weights():
    """Chi-square on 200,000 draws of a fixed seed; a true sampler fails with probability 1e-4."""
    from scipy import stats

    population = [Stratum("a", "RD", 0.05), Stratum("b", "RD", 0.25), Stratum("c", "RD", 0.7)]
    trials = draw(population, images=7, seed=3, trials=range(200_000))

    found = np.bincount(trials.stratum)
    assert stats.chisquare(found, np.array([0.05, 0.25, 0.7]) * 200_000).pvalue > 1e-4
    joint = np.bincount(trials.stratum * 7 + trials.image, minlength=21).reshape(3, 7)
    assert stats.chi2_contingency(joint).pvalue > 1e-4


@pytest.mark.parametrize("name", FIDELITY_MODELS)
def test_sites_are_uniform_over_bits(lenet, name):
    """Chi-square over the 32 bits, or the top five bits of the random pattern of RD."""
    from scipy import stats

    from rasp.faults.models import LayerContext

    trials = draw([Stratum("conv2", name, 1.0)], images=5, seed=1, trials=range(64_000))
    layer = lenet.layers[1]
    context = LayerContext(layer, lenet.arithmetic, load("nv_small"))
    sites = FIDELITY_MODELS[name].draw(context, trials.words)

    values = sites.value >> 27 if name == "RD" else sites.bit
    assert stats.chisquare(np.bincount(values, minlength=32)).pvalue > 1e-4
