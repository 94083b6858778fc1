"""Each fault model's sparse change against really flipping the value and summing again.

The reference is a loop over products in NumPy (int64 or float64) that shares no code with the
package but the SDP, which has a reference test of its own.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rasp.faults.bits import flip, pattern
from rasp.faults.models import FAULT_MODELS, FIDELITY_MODELS, LayerContext
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv, Input, Network
from rasp.network.int8_ops import Int8Arithmetic
from rasp.nvdla.config import load
from rasp.nvdla.shapes import ConvShape
from rasp.rng import words

TRIALS = 8
FORMATS = ["fp32", "fp16", "int8"]


@st.composite
def layers(draw):
    groups = draw(st.sampled_from([1, 1, 2]))
    R, S = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    shape = ConvShape(
        "layer",
        C=groups * draw(st.integers(1, 4)),
        H=draw(st.integers(5, 6)),
        W=draw(st.integers(5, 7)),
        K=groups * draw(st.integers(1, 11)),
        R=R,
        S=S,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=dilation,
        groups=groups,
    )
    clip = draw(st.sampled_from([None, (0.0, float("inf")), (-1.0, 2.0)]))
    return shape, clip, draw(st.integers(0, 2**31))


def build(shape, clip, seed, number_format):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.K, shape.C // shape.groups, shape.R, shape.S, generator=generator)
    conv = Conv(
        "layer",
        ("input",),
        (shape.K, shape.Ho, shape.Wo),
        weight,
        torch.randn(shape.K, generator=generator),
        shape,
        clip,
    )
    nodes = (Input("input", (), (shape.C, shape.H, shape.W)), conv)
    network = Network(nodes, "layer", FloatArithmetic("fp32"))
    if number_format == "int8":
        scales = {"input": 3 / 127, "layer": 9 / 127}
        network = network.with_arithmetic(Int8Arithmetic.build(network, scales))
    else:
        network = network.with_arithmetic(FloatArithmetic(number_format))
    images = torch.randn(TRIALS, shape.C, shape.H, shape.W, generator=generator)
    images[images.abs() < 0.3] = 0.0
    return network, conv, images


class Naive:
    """Products of one layer, summed one by one."""

    def __init__(self, shape, x, weight):
        self.shape = shape
        wide = np.int64 if x.dtype == torch.int8 else np.float64
        with np.errstate(all="ignore"):
            self.x, self.w = x.numpy().astype(wide), weight.numpy().astype(wide)

    def product(self, k, pixel, c, r, s):
        """Indices of the input operand, ``None`` in the padding."""
        shape = self.shape
        y = pixel // shape.Wo * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        x = pixel % shape.Wo * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        channel = k // (shape.K // shape.groups) * (shape.C // shape.groups) + c
        return (channel, y, x) if 0 <= y < shape.H and 0 <= x < shape.W else None

    def sum(self, k, pixel, *, weight=None, operand=None):
        """The sum with the weight or the operand of one tap ``(c, r, s)`` replaced."""
        total = self.w.dtype.type(0)
        with np.errstate(all="ignore"):
            for c, r, s in np.ndindex(self.w.shape[1:]):
                at = self.product(k, pixel, c, r, s)
                a = self.x[at] if at else self.x.dtype.type(0)
                w = self.w[k, c, r, s]
                if operand and operand[0] == (c, r, s):
                    a = operand[1]
                if weight and weight[0] == (c, r, s):
                    w = weight[1]
                total = total + a * w
        return total


def scalar(value):
    return value.item()


def expected_output(name, context, site, x, golden):
    """Whole faulty output ``(K, pixels)`` by brute force."""
    conv, arithmetic = context.conv, context.arithmetic
    shape = conv.conv
    weight = arithmetic.operands(conv)
    result = golden.clone()
    bit = torch.tensor(site["bit"])
    naive = Naive(shape, x, weight)
    tap = (site["channel"], site["r"], site["s"])

    def finish(k, total):
        dtype = torch.int64 if arithmetic.format == "int8" else torch.float64
        return arithmetic.finish(conv, torch.tensor([total], dtype=dtype), torch.tensor([k]))[0]

    if name in {"RD_BFLIP", "RD"}:
        k, p = site["kernel"], site["pixel"]
        bits = torch.tensor([site["value"]])
        result[k, p] = flip(golden[k, p], bit) if name == "RD_BFLIP" else pattern(bits, golden)[0]
    elif name == "INPUT":
        changed = x.clone()
        at = (site["channel"], site["pixel"] // shape.W, site["pixel"] % shape.W)
        changed[at] = flip(x[at], bit)
        naive = Naive(shape, changed, weight)
        for k, p in np.ndindex(shape.K, shape.pixels):
            result[k, p] = finish(k, naive.sum(k, p))
    elif name == "WEIGHT":
        k = site["kernel"]
        value = scalar(flip(weight[(k, *tap)], bit))
        for p in range(shape.pixels):
            result[k, p] = finish(k, naive.sum(k, p, weight=(tap, value)))
    elif name == "INPUT16":
        per_group = shape.K // shape.groups
        first = site["kernel"]
        last = min(first + context.mapping.atoms.kernels, (first // per_group + 1) * per_group)
        at = naive.product(first, site["pixel"], *tap)
        stored = x[at] if at else torch.zeros((), dtype=x.dtype)
        value = scalar(flip(stored, bit))
        for k in range(first, last):
            total = naive.sum(k, site["pixel"], operand=(tap, value))
            result[k, site["pixel"]] = finish(k, total)
    elif name == "WEIGHT16":
        k = site["kernel"]
        value = scalar(flip(weight[(k, *tap)], bit))
        (stripe,) = [s for s in context.mapping.stripes if s.start == site["pixel"]]
        for p in range(stripe.start, stripe.start + stripe.length):
            result[k, p] = finish(k, naive.sum(k, p, weight=(tap, value)))
    return result


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", FIDELITY_MODELS)
@given(layer=layers())
@settings(max_examples=8, deadline=None)
def test_sparse_change_is_what_flipping_and_summing_again_gives(name, number_format, layer):
    shape, clip, seed = layer
    network, conv, images = build(shape, clip, seed, number_format)
    context = LayerContext(conv, network.arithmetic, load("nv_small"))
    values = network.trace(images)
    x, y = values["input"], values["layer"].reshape(TRIALS, shape.K, shape.pixels)
    model = FAULT_MODELS[name]
    sites = model.draw(context, words(seed % 1000, "test", 0, TRIALS, 8))

    change = model.change(sites, LayerValues.of(context, x))

    got = y.clone(memory_format=torch.contiguous_format)
    got.reshape(TRIALS, -1)[change.row, change.element] = change.value
    fields = ("kernel", "channel", "r", "s", "pixel", "bit", "value")
    for i in range(TRIALS):
        site = {field: int(getattr(sites, field)[i]) for field in fields}
        expected = expected_output(name, context, site, x[i], y[i])
        if number_format == "int8":
            assert torch.equal(got[i], expected), site
        else:
            close(got[i], expected, number_format)


def close(got, expected, number_format):
    """Equal up to the rounding of sums: fp32 sums in another order, one unit in the last place."""
    rtol = 2e-5 if number_format == "fp32" else 2e-3
    got, expected = got.double(), expected.double()
    overflow = torch.finfo(torch.float32 if number_format == "fp32" else torch.float16).max
    edge = expected.abs() > overflow * (1 - rtol)
    same = torch.isclose(got, expected, rtol=rtol, atol=5e-4 if rtol < 1e-3 else 5e-3)
    both_nan = got.isnan() & expected.isnan()
    at_edge = edge & (got.abs() > overflow * (1 - rtol))
    assert bool((same | both_nan | at_edge).all()), (got, expected)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", FAULT_MODELS)
def test_elements_in_reach_appear_once(name, number_format):
    shape = ConvShape("layer", C=4, H=6, W=7, K=10, R=3, S=3, padding=(1, 1))
    network, conv, images = build(shape, None, 1, number_format)
    context = LayerContext(conv, network.arithmetic, load("nv_small"))
    values = LayerValues.of(context, network.trace(images)["input"])
    sites = FAULT_MODELS[name].draw(context, words(5, "test", 0, TRIALS, 8))

    change = FAULT_MODELS[name].change(sites, values)

    pairs = torch.stack([change.row, change.element], dim=1)
    assert len(pairs) == len(pairs.unique(dim=0))
    assert bool((change.element < shape.K * shape.pixels).all())


def test_reach_of_16_is_the_kernel_group_and_the_stripe():
    """Where no operand is 0 every product in reach changes."""
    shape = ConvShape("layer", C=4, H=8, W=9, K=10, R=3, S=3)
    network, conv, images = build(shape, None, 1, "fp32")
    context = LayerContext(conv, network.arithmetic, load("nv_small"))
    values = LayerValues.of(context, torch.where(images == 0, 1.0, images))

    reach = {}
    for name in ("INPUT16", "WEIGHT16"):
        sites = FAULT_MODELS[name].draw(context, words(5, "test", 0, TRIALS, 8))
        change = FAULT_MODELS[name].change(sites, values)
        reach[name] = set(torch.bincount(change.row, minlength=TRIALS).tolist())

    assert reach == {"INPUT16": {8, 2}, "WEIGHT16": {16, 8, 10}}
