"""Adaptive campaigns against a population that is known, because every fault of it was injected.

A small network's every output bit is flipped once on every image. A campaign is then repeated many
times with its outcomes looked up, so that nothing but the sampling is at work.

The estimates' mean is held to ``SIGMAS`` standard errors, which a right implementation misses with
probability 6e-5 a check. An interval that covers in 95 % of the cases misses the band [93 %, 97 %]
of 1,000 repeats with probability 4e-3; seeds are fixed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from rasp.campaign.spec import CampaignSpec
from rasp.faults.models import LayerContext, fault_model
from rasp.faults.neyman import allocate, proportional
from rasp.faults.population import by_bits, strata
from rasp.faults.sampling import Trials, draw, margin_bins
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.quantization.calibrate import quantize
from rasp.replay.engine import Replay
from rasp.statistics import horvitz_thompson, weighted_rate

REPEATS = 1000
SIGMAS = 4.0
THESE, OTHER = False, True  # images that intervals are about
MODEL = "RD_BFLIP"
IMAGES = {"fp32": 40, "int8": 160}
ROUNDS = (range(768), range(768, 1536), range(1536, 3072))


class World(NamedTuple):
    """Every fault of a campaign and whether it changes the answer.

    Attributes:
        population: strata of one fault model.
        contexts: of each layer.
        flips: of each layer, ``(images, elements, bits)``.
        margin: ``(images,)`` of the golden answers.
    """

    population: tuple
    contexts: dict
    flips: dict
    margin: np.ndarray

    def rates(self):
        """``(strata, images)``."""
        parts = [(s, self.contexts[s.layer]) for s in self.population]
        groups = [fault_model(MODEL).bit_groups(context)[s.group] for s, context in parts]
        return np.array(
            [
                self.flips[s.layer][:, :, group.bits].mean((1, 2))
                for s, group in zip(self.population, groups, strict=True)
            ]
        )

    def truth(self):
        """Rate of each image."""
        return np.array([s.weight for s in self.population]) @ self.rates()


@cache
def world(number_format):
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    images = torch.randn(IMAGES[number_format], 1, 6, 6)
    network = lower(model, images)
    if number_format == "int8":
        network, _ = quantize(network, images)
    accelerator = load("nv_small")
    population = strata(network, accelerator, models={MODEL: 1.0})
    labels = torch.zeros(len(images), dtype=torch.int64)
    replay = Replay(network, accelerator, images, labels)
    contexts = {c.name: LayerContext(c, network.arithmetic, accelerator) for c in network.layers}
    flips = {}
    for index, stratum in enumerate(population):
        conv = contexts[stratum.layer].conv.conv
        shape = (len(images), conv.K * conv.pixels, network.arithmetic.bits)
        image, element, bit = (at.ravel() for at in np.indices(shape))
        words = np.zeros((len(image), 8), dtype=np.uint64)
        for column, at, bound in ((2, element, shape[1]), (3, bit, shape[2])):
            words[:, column] = ((at + 0.5) / bound * 2.0**64).astype(np.uint64)
        each = np.arange(len(image))
        trials = Trials(each, np.full_like(each, index), image, words, np.ones(len(each)))
        sites, outcomes = replay.run(population, trials)
        assert np.array_equal(sites.kernel * conv.pixels + sites.pixel, element)
        assert np.array_equal(sites.bit, bit)
        flips[stratum.layer] = (outcomes.sdc1 == 1).reshape(shape)
    return World(by_bits(population, network, accelerator), contexts, flips, replay.golden.margin)


SPEC = CampaignSpec(
    network_digest="n", model="tiny", data="random", images=1, format="int8",
    accelerator="nv_small", accelerator_digest="a", fault_models={MODEL: 1.0},
    trials=3072, sampling="adaptive",
)  # fmt: skip


def looked_up(of, trials, images):
    """Whether the answer changes in each trial."""
    hit = np.zeros(len(trials), dtype=bool)
    layers = np.array([s.layer for s in of.population])[trials.stratum]
    groups = np.array([s.group for s in of.population])[trials.stratum]
    for layer, context in of.contexts.items():
        (rows,) = np.nonzero(layers == layer)
        sites = fault_model(MODEL).draw(context, trials.words[rows], groups[rows])
        element = sites.kernel * context.conv.conv.pixels + sites.pixel
        hit[rows] = of.flips[layer][images[trials.image[rows]], element, sites.bit]
    return hit


def campaign(of, images, *, seed, adaptive=True, rounds=ROUNDS):
    """Image, event and weight of the trials of a campaign on some images of the world."""
    bins = margin_bins(of.margin[images])
    shape = (len(of.population), int(bins.max()) + 1)
    tried, events = np.zeros(shape), np.zeros(shape)
    parts = []
    for number, span in enumerate(rounds):
        plan = None
        if adaptive:
            emphasis = SPEC.emphasis(number)
            plan = (
                allocate(of.population, bins, tried, events, emphasis=emphasis)
                if number
                else proportional(of.population, bins, emphasis=emphasis)
            )
        trials = draw(of.population, images=len(images), seed=seed, trials=span, plan=plan)
        hit = looked_up(of, trials, images)
        cell = (trials.stratum, bins[trials.image])
        np.add.at(tried, cell, 1)
        np.add.at(events, cell, hit)
        parts.append((trials.image, hit, trials.weight))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def rate(image, hit, weight, *, adaptive=True, rounds=ROUNDS, images=1):
    """As a campaign reports it."""
    columns = (image, hit, np.ones(len(hit), dtype=np.int64), weight, weight**2)
    if not adaptive:
        return weighted_rate(*columns)
    expected = sum(SPEC.emphasis(number) * len(span) for number, span in enumerate(rounds))
    return horvitz_thompson(*columns, expected=expected, clusters=images)


@cache
def repeats(number_format, adaptive, sampled):
    """Rates of campaigns on all images, or each on a sample of its own of them."""
    of = world(number_format)
    everything = np.arange(len(of.margin))
    generator = np.random.default_rng(11)
    found = []
    for seed in range(REPEATS):
        images = generator.choice(everything, len(everything)) if sampled else everything
        image, hit, weight = campaign(of, images, seed=seed, adaptive=adaptive)
        cluster = image if sampled else None
        found.append(rate(cluster, hit, weight, adaptive=adaptive, images=len(images)))
    return found


FORMATS = pytest.mark.parametrize("number_format", ["int8", "fp32"])


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "uniform"])
@pytest.mark.parametrize(
    ("number_format", "sampled"),
    [("int8", THESE), ("fp32", THESE), ("int8", OTHER)],
    ids=["int8", "fp32", "int8, images sampled"],
)
def test_estimates_are_unbiased_and_intervals_cover(number_format, adaptive, sampled):
    truth = world(number_format).truth().mean()

    found = repeats(number_format, adaptive, sampled)

    estimates = np.array([rate.estimate for rate in found])
    error = estimates.std(ddof=1) / REPEATS**0.5
    assert abs(estimates.mean() - truth) < SIGMAS * error
    assert 50 <= np.mean([rate.events for rate in found]) <= 1000
    assert 0.93 <= np.mean([rate.low <= truth <= rate.high for rate in found]) <= 0.97


@FORMATS
def test_adaptive_trials_are_worth_more_than_uniform_ones(number_format):
    """On the same images; the quotient of the variances has a standard error of about 6 %."""
    variances = [
        np.var([rate.estimate for rate in repeats(number_format, adaptive, False)])
        for adaptive in (False, True)
    ]
    assert variances[0] / variances[1] > 1.5


@FORMATS
def test_an_interval_is_as_wide_as_the_estimates_scatter(number_format):
    """Halves of the intervals are 1.96 standard deviations, within 10 %: four standard errors."""
    found = repeats(number_format, True, THESE)

    scatter = np.std([rate.estimate for rate in found])
    assert np.mean([rate.half_width for rate in found]) == pytest.approx(1.96 * scatter, rel=0.1)


def test_the_enumerated_rates_are_those_of_the_drawn_population():
    """A large uniform sample, looked up, against the truth of each stratum, at 4 sigma."""
    of = world("int8")
    images = np.arange(len(of.margin))
    trials = draw(of.population, images=len(images), seed=5, trials=range(200_000))
    hit = looked_up(of, trials, images)
    for index, true in enumerate(of.rates().mean(1)):
        chosen = trials.stratum == index
        deviation = (true * (1 - true) / chosen.sum()) ** 0.5
        assert abs(hit[chosen].mean() - true) < SIGMAS * deviation


def test_rare_events_in_few_images_are_covered_nearly_as_often():
    """One fault in 1,200, all in five of 160 images: 92 to 94 % in place of 95 %.

    Where events are seen in a few cells only, a campaign may miss those of another, and with them
    their part of the variance. Below 89 % of 400 repeats has probability 2 % at 92 %.
    """
    of = world("int8")
    [rare] = [s for s in of.population if (s.layer, s.bits) == ("0", "0-3")]
    of = of._replace(population=(rare._replace(weight=1.0),))
    truth, images = of.truth().mean(), np.arange(len(of.margin))
    spans = SPEC.model_copy(update={"trials": 8192}).rounds()

    seen = [campaign(of, images, seed=s, rounds=spans)[1:] for s in range(400)]
    found = [rate(None, *columns, rounds=spans) for columns in seen]

    estimates = np.array([each.estimate for each in found])
    assert abs(estimates.mean() - truth) < SIGMAS * estimates.std(ddof=1) / 20
    assert np.mean([each.low <= truth <= each.high for each in found]) > 0.89
    assert truth / 8192 / estimates.var() > 4
