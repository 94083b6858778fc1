"""Register models: what a draw holds, how often it is live, and that they run as any model does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from rasp.faults.context import LayerContext
from rasp.faults.models import FAULT_MODELS, REGISTER_MODELS, nvdla_mix
from rasp.faults.population import Stratum
from rasp.faults.sampling import draw
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv, Flatten, Input, Network
from rasp.network.int8_ops import Int8Arithmetic
from rasp.nvdla.config import CONFIGS, load
from rasp.nvdla.cycles import layer_window
from rasp.nvdla.layout import GROUPS, fields, flip_flops, shares
from rasp.nvdla.shapes import ConvShape
from rasp.replay.engine import Replay
from rasp.rng import words

SHAPE = ConvShape("layer", 11, 4, 5, 10, 2, 2, padding=(1, 0))
FORMATS = ["int8", "fp16", "fp32"]


def build(number_format, shape=SHAPE):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape.K, shape.C // shape.groups, shape.R, shape.S, generator=generator)
    bias = torch.randn(shape.K, generator=generator)
    conv = Conv(
        "layer", ("input",), (shape.K, shape.Ho, shape.Wo), weight, bias, shape, (0.0, float("inf"))
    )
    image = Input("input", (), (shape.C, shape.H, shape.W))
    flat = Flatten("flat", ("layer",), (shape.K * shape.pixels,))
    network = Network((image, conv, flat), "flat", FloatArithmetic("fp32"))
    if number_format == "int8":
        scales = {"input": 3 / 127, "layer": 9 / 127, "flat": 9 / 127}
        return network.with_arithmetic(Int8Arithmetic.build(network, scales))
    return network.with_arithmetic(FloatArithmetic(number_format))


def context(number_format="int8", accelerator="nv_small", shape=SHAPE):
    network = build(number_format, shape)
    return LayerContext(network.layers[0], network.arithmetic, load(accelerator))


def hits(sites):
    return (sites.kernel >= 0) | (sites.pixel >= 0)


def test_the_layout_counts_the_flip_flops_of_nv_small():
    small = load("nv_small")
    bits: dict[str, int] = {}
    for field in fields(small):
        bits[field.cls] = bits.get(field.cls, 0) + field.bits
    control = {
        "csc_dl_mask": 8,
        "cmac_ctl_active": 14,
        "cmac_ctl_out": 94,
        "sdp_data": 3,
        "sdp_wdma_data": 2,
    }
    for name, count in bits.items():
        assert count + control.get(name, 0) == small.flip_flops[name], name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mix_is_the_flip_flops_of_the_accelerator(name):
    mix = nvdla_mix(load(name))
    assert set(mix) <= set(GROUPS) <= set(FAULT_MODELS)
    assert mix == {key: count for key, count in flip_flops(load(name)).items() if count}
    assert mix["ACTIVATION_CELL"] == load(name).flip_flops.get(
        "cmac_dat_actv", mix["ACTIVATION_CELL"]
    )


def test_cells_with_two_int8_kernels_get_two_copies_of_an_activation():
    reaches = {field.signal.reach for field in fields(load("nv_full"), "int8")}
    assert {"interleaved", "interleaved_half"} <= reaches
    assert not {"interleaved", "interleaved_half"} & {
        field.signal.reach for field in fields(load("nv_full"), "fp16")
    }


@pytest.mark.parametrize("name", GROUPS)
def test_live_draws_are_as_frequent_as_live_flip_flops_and_cycles(name):
    """Chi-square of the live draws of every register against all its (bit, cycle) pairs."""
    layer, model = context(), REGISTER_MODELS[name]
    window = layer_window(SHAPE, layer.accelerator)
    live = []
    layout = [share for share in shares(layer.accelerator) if share.field.group == name]
    for number, (field, flops) in enumerate(layout):
        if field.signal.effect == "none":
            live.append(0.0)
            continue
        copy = field.bits // field.words
        position, cycle = (grid.ravel() for grid in np.mgrid[:copy, :window])
        sites = model.sites(layer, np.full(position.size, number), position, cycle)
        live.append(flops * float(hits(sites).mean()))
    total = sum(flops for _, flops in layout)
    expected = np.array([*live, total - sum(live)]) / total

    draws = 20_000
    sites = model.draw(layer, words(1, name, 0, draws, 8))

    found = np.bincount(np.where(hits(sites), sites.value, len(layout)), minlength=len(layout) + 1)
    assert not found[expected == 0].any()
    kept = expected > 0
    assert 0 < expected[-1] < 1
    assert stats.chisquare(found[kept], expected[kept] * draws).pvalue > 1e-4


@pytest.mark.parametrize("accelerator", ["nv_small", "nv_full"])
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", GROUPS)
def test_every_model_replays_in_every_format(name, number_format, accelerator):
    network = build(number_format)
    images = torch.randn(6, *network.input_shape, generator=torch.Generator().manual_seed(1))
    head = Replay(network, load(accelerator), images, torch.zeros(6, dtype=torch.int64))
    population = [Stratum("layer", name, 1.0)]

    sites, outcomes = head.run(population, draw(population, images=6, seed=2, trials=range(256)))
    _, again = head.run(population, draw(population, images=6, seed=2, trials=range(200, 256)))

    assert not outcomes.changed[~hits(sites)].any()
    assert np.array_equal(outcomes.changed[200:], again.changed)
    if name in ("MAC_SUM", "ACTIVATION_CELL", "ACCUMULATOR_SUM", "WEIGHT_ACTIVE"):
        assert outcomes.changed.any()
    assert outcomes.changed.max(initial=0) <= 32 * SHAPE.pixels


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "kernels", "pixels"),
    [
        ("BUFFER_WRITE", 10, 20),
        ("ACTIVATION_SHARED", 8, 1),
        ("ACTIVATION_HALF", 4, 1),
        ("ACTIVATION_CELL", 1, 1),
        ("WEIGHT_LOAD", 1, 12),
        ("WEIGHT_SHADOW", 1, 12),
        ("WEIGHT_ACTIVE", 1, 12),
        ("MAC_SUM", 1, 1),
        ("ACCUMULATOR_SUM", 1, 1),
        ("ACCUMULATOR_PARTIAL", 1, 1),
        ("ACCUMULATOR_FINAL", 1, 1),
        ("SDP_OUTPUT", 1, 1),
        ("ZERO_MASK", 8, 12),
        ("LANE_VALID", 4, 12),
    ],
)
def test_reach_is_the_same_in_every_format(name, number_format, kernels, pixels):
    layer = context(number_format)
    shape = layer.conv.conv
    network = build(number_format)
    images = torch.randn(1, *network.input_shape, generator=torch.Generator().manual_seed(1))
    one = LayerValues.of(layer, network.trace(images)["input"])
    n = 2000
    values = replace(one, image=one.image.expand(n))
    model = REGISTER_MODELS[name]

    change = model.change(model.draw(layer, words(4, name, 0, n, 8)), values)

    kernel, pixel = change.element // shape.pixels, change.element % shape.pixels
    widths = np.zeros(2, dtype=int)
    for row in change.row.unique():
        mine = change.row == row
        widths = np.maximum(widths, [len(kernel[mine].unique()), len(pixel[mine].unique())])
    assert widths[0] <= kernels
    assert widths[1] <= pixels
    assert widths[0] >= min(kernels, 3)


@pytest.mark.parametrize("number_format", ["fp16", "fp32"])
def test_operands_flip_in_the_bits_of_the_format(number_format):
    layer = context(number_format)
    sites = REGISTER_MODELS["ACTIVATION_CELL"].draw(layer, words(1, "bits", 0, 4000, 8))
    width = {"fp16": 16, "fp32": 32}[number_format]
    assert set(sites.bit.tolist()) == set(range(width))


def test_a_grouped_layer_keeps_upsets_in_their_channel_group():
    shape = ConvShape("layer", 6, 5, 5, 12, 3, 3, padding=(1, 1), groups=3)
    layer = context("int8", shape=shape)
    for name in ("ACTIVATION_SHARED", "WEIGHT_LOAD", "MAC_SUM", "ZERO_MASK"):
        sites = REGISTER_MODELS[name].draw(layer, words(1, name, 0, 3000, 8))
        live = sites.kernel >= 0
        assert live.any()
        assert np.array_equal(sites.kernel[live] // 4, sites.channel[live] // 2)
