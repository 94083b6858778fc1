"""The two patterns of control upsets, against a walk of the result stream."""

import pytest
import torch

from rasp.faults.context import LayerContext
from rasp.faults.models import CONTROL_MODELS, FIDELITY_MIX, nvdla_mix
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv
from rasp.network.maps import Maps
from rasp.nvdla.config import load
from rasp.nvdla.shapes import ConvShape
from rasp.rng import words

SHAPE = ConvShape("layer", C=4, H=6, W=7, K=20, R=3, S=3, padding=(1, 1), groups=2)
N = 40


@pytest.fixture
def context():
    weight, bias = torch.zeros(20, 2, 3, 3), torch.zeros(20)
    conv = Conv("layer", ("input",), (20, 6, 7), weight, bias, SHAPE)
    return LayerContext(conv, FloatArithmetic("fp32"), load("nv_small"))


def faulty(context, name, sites, y):
    unread = Maps.of(torch.empty(N, 4, 6, 7))
    values = LayerValues(context, unread, Maps.of(y.view(N, 20, 6, 7)), torch.arange(N))
    change = CONTROL_MODELS[name].change(sites, values)
    got = y.clone().flatten(1)
    got[change.row, change.element] = change.value
    return got.view_as(y)


def test_a_shifted_stream_is_one_place_late_to_its_end(context):
    y = torch.arange(N * 20 * 42, dtype=torch.float32).view(N, 20, 42)
    sites = CONTROL_MODELS["STREAM_SHIFT"].draw(context, words(0, "t", 0, N, 8))

    got = faulty(context, "STREAM_SHIFT", sites, y)

    order = [
        (group * 10 + first + lane, pixel)
        for group in range(2)
        for first, lanes in ((0, 8), (8, 2))
        for pixel in range(42)
        for lane in range(lanes)
    ]
    for row in range(N):
        start = order.index((int(sites.kernel[row]), int(sites.pixel[row])))
        assert start > 0
        for place, (kernel, pixel) in enumerate(order):
            source = order[place - 1] if place >= start else (kernel, pixel)
            assert got[row, kernel, pixel] == y[row][source]


def test_a_random_stripe_is_the_kernel_group_times_the_stripe(context):
    y = torch.zeros(N, 20, 42)
    sites = CONTROL_MODELS["STRIPE_RANDOM"].draw(context, words(0, "t", 0, N, 8))

    got, again = (faulty(context, "STRIPE_RANDOM", sites, y) for _ in range(2))

    assert torch.equal(got.view(torch.int32), again.view(torch.int32))
    for row in range(N):
        kernel, start = int(sites.kernel[row]), int(sites.pixel[row])
        assert kernel in (0, 8, 10, 18)
        length = {0: 16, 16: 8, 24: 8, 32: 10}[start]
        expected = torch.zeros(20, 42, dtype=torch.bool)
        expected[kernel : kernel + (8 if kernel in (0, 10) else 2), start : start + length] = True
        assert torch.equal(got[row].view(torch.int32) != 0, expected)
    assert len(got.view(torch.int32).unique()) > 2000


def test_control_patterns_are_in_no_datapath_mix():
    assert not set(CONTROL_MODELS) & (set(FIDELITY_MIX) | set(nvdla_mix(load("nv_small"))))
