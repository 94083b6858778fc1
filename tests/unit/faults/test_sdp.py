"""Upsets on the way through the SDP: the chain without one, every register, and when it is live."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rasp.faults.bits import flip
from rasp.faults.context import LayerContext
from rasp.faults.sdp import EFFECTS, convert_hit
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv, Input, Network
from rasp.network.int8_ops import Int8Arithmetic
from rasp.nvdla.config import load
from rasp.nvdla.drain import DRAINED, Drain
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.shapes import ConvShape

SHAPE = ConvShape("layer", 11, 4, 5, 10, 2, 2, padding=(1, 0))
FORMATS = ["int8", "fp16", "fp32"]

WIDTHS = {"bias": 16, "biased": 33, "offset": 33, "scaled": 49, "shifted": 17, "output": 8}


def context(number_format="int8"):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(SHAPE.K, SHAPE.C, SHAPE.R, SHAPE.S, generator=generator)
    bias = torch.randn(SHAPE.K, generator=generator)
    shape = (SHAPE.K, SHAPE.Ho, SHAPE.Wo)
    conv = Conv("layer", ("input",), shape, weight, bias, SHAPE, (0.0, float("inf")))
    network = Network((Input("input", (), (11, 4, 5)), conv), "layer", FloatArithmetic("fp32"))
    arithmetic = FloatArithmetic("fp16" if number_format == "fp16" else "fp32")
    if number_format == "int8":
        arithmetic = Int8Arithmetic.build(network, {"input": 3 / 127, "layer": 9 / 127})
    return LayerContext(conv, arithmetic, load("nv_small"))


def results(layer, n=4000):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randint(0, SHAPE.K, (n,), generator=generator)
    values = torch.randn(n, generator=generator) * 3
    if layer.arithmetic.format == "int8":
        values = (values * 20_000).long()
    return values, kernel


@pytest.mark.parametrize("number_format", FORMATS)
def test_without_an_upset_the_chain_is_the_conversion(number_format):
    layer = context(number_format)
    values, kernel = results(layer)
    bit = torch.zeros_like(kernel)
    assert torch.equal(
        convert_hit(layer, "none", values, kernel, bit),
        layer.arithmetic.convert(layer.conv, values, kernel),
    )


def test_integer_extremes_saturate_as_in_the_conversion():
    layer = context()
    values = torch.tensor([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1]).repeat(SHAPE.K)
    kernel = torch.arange(SHAPE.K).repeat_interleave(6)
    assert torch.equal(
        convert_hit(layer, "none", values, kernel, kernel),
        layer.arithmetic.convert(layer.conv, values, kernel),
    )


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("effect", sorted(EFFECTS))
def test_an_upset_of_any_register_can_be_seen(effect, number_format):
    layer = context(number_format)
    values, kernel = results(layer)
    width = WIDTHS.get(effect, 32) if number_format == "int8" else layer.arithmetic.bits
    bit = torch.arange(len(values)) % width
    golden = layer.arithmetic.convert(layer.conv, values, kernel)
    hit = convert_hit(layer, effect, values, kernel, bit)
    different = golden.view(torch.uint8).view(len(values), -1) != hit.view(torch.uint8).view(
        len(values), -1
    )
    assert 0.05 < different.any(1).float().mean() <= 1
    if effect == "output":
        assert torch.equal(hit.view(torch.uint8), flip(golden, bit).view(torch.uint8))


def test_a_negative_value_behind_relu_is_stored():
    layer = context()
    values, kernel = torch.tensor([10_000]), torch.tensor([0])
    behind = convert_hit(layer, "rectified", values, kernel, torch.tensor([31]))
    before = convert_hit(layer, "saturated", values, kernel, torch.tensor([31]))
    assert behind.item() == -128
    assert before.item() == 0


def test_a_bit_of_the_stored_bias_moves_the_sum_by_its_unit():
    layer = context()
    values, kernel = results(layer)
    bias = layer.arithmetic.layers["layer"].bias
    bit = torch.full_like(kernel, 3)
    up = (bias >> 3 & 1 == 0)[kernel]
    step = torch.where(up, 8, -8)
    assert torch.equal(
        convert_hit(layer, "bias", values, kernel, bit),
        layer.arithmetic.convert(layer.conv, values + step, kernel),
    )


@pytest.mark.parametrize("accelerator", ["nv_small", "nv_medium_512", "nv_full"])
@pytest.mark.parametrize("held", DRAINED)
def test_every_result_is_in_every_kind_of_register_once(held, accelerator):
    """Every pixel and lane turns up, in as many cycles as it is held, and no two at a time."""
    config = load(accelerator)
    mapping = Mapping(SHAPE, config)
    finished = np.cumsum(np.full(len(mapping.kernel_groups) * SHAPE.pixels, 2))
    drain = Drain(mapping, finished)
    lanes = mapping.atoms.kernels
    registers = config.sdp_throughput if held == "result" else lanes
    cycle = np.arange(-5, drain.leaves[-1] + 3 * lanes)
    seen = np.zeros((len(finished), lanes), dtype=int)
    for register in range(registers):
        for queue in range(4 if held == "queued" else 1):
            pixel, lane = drain.resident(held, cycle, register, queue)
            live = pixel >= 0
            np.add.at(seen, (pixel[live], lane[live]), 1)
    if held in ("result", "word", "queued"):
        assert np.array_equal(seen, np.ones_like(seen))
    assert seen.min() >= 1
