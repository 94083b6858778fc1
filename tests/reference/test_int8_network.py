"""The INT8 graph against a convolution and an SDP written in int64 NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from rasp import zoo
from rasp.network.graph import Add, Concat, Conv, Flatten, PadChannels, Pool
from rasp.network.int8_conv import ExactConv, pad
from rasp.network.int8_converter import Converter, round_half_away
from rasp.network.int8_ops import Int8Arithmetic, Int8Layer, _operand
from rasp.network.lower import lower
from rasp.nvdla.shapes import ConvShape
from rasp.quantization.calibrate import quantize


def convolve(shape, x, w):
    """int64 sums ``(N, K, Ho, Wo)`` by the definition."""
    (pt, pl), (st_, sl), (dt, dl) = shape.padding, shape.stride, shape.dilation
    x = x.reshape(-1, shape.C, shape.H, shape.W).astype(np.int64)
    padded = np.pad(x, ((0, 0), (0, 0), (pt, pt), (pl, pl)))
    out = np.zeros((len(x), shape.K, shape.Ho, shape.Wo), np.int64)
    per_k, per_c = shape.K // shape.groups, shape.C // shape.groups
    for g in range(shape.groups):
        for r, s in np.ndindex(shape.R, shape.S):
            rows = slice(r * dt, r * dt + st_ * (shape.Ho - 1) + 1, st_)
            columns = slice(s * dl, s * dl + sl * (shape.Wo - 1) + 1, sl)
            window = padded[:, g * per_c : (g + 1) * per_c, rows, columns]
            kernels = slice(g * per_k, (g + 1) * per_k)
            out[:, kernels] += np.einsum(
                "kc,nchw->nkhw", w[kernels, :, r, s].astype(np.int64), window
            )
    return out


def shift_round(v, shift):
    """Half away from zero, in integers."""
    if shift == 0:
        return v
    return np.sign(v) * ((np.abs(v) + (1 << (shift - 1))) >> shift)


def run(node, inputs, arithmetic):
    x = inputs[0]
    match node:
        case Conv():
            layer = arithmetic.layers[node.name]
            sums = convolve(node.conv, x, layer.weight.numpy())
            v = np.clip(shift_round(sums, layer.truncate), -(2**31), 2**31 - 1)
            v = np.clip(v + layer.bias.numpy()[:, None, None], -(2**31), 2**31 - 1)
            v = v * layer.converter.multiplier.numpy()[:, None, None]
            v = shift_round(v, layer.converter.shift)
            v = np.clip(v, layer.converter.low, layer.converter.high)
            return v.reshape(-1, *node.shape)
        case Add():
            c = arithmetic.adds[node.name]
            a, b = c.multiplier.tolist()
            return np.clip(shift_round(x * a + inputs[1] * b, c.shift), c.low, c.high)
        case Pool():
            return pool(node, x)
        case Flatten():
            return x.reshape(len(x), -1)
        case Concat():
            return np.concatenate(inputs, axis=1)
        case PadChannels():
            return np.pad(x, ((0, 0), (node.before, node.after), (0, 0), (0, 0)))


def pool(node, x):
    (kh, kw), (sh, sw), (ph, pw) = node.kernel, node.stride, node.padding
    fill = -128 if node.kind == "max" else 0
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    N, C, Ho, Wo = (len(x), *node.shape)
    out = np.zeros((N, C, Ho, Wo), np.int64)
    for i, j in np.ndindex(Ho, Wo):
        window = x[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw]
        if node.kind == "max":
            out[:, :, i, j] = window.max((2, 3))
        else:
            v = shift_round(window.sum((2, 3)) * round(65536 / kw), 16)
            out[:, :, i, j] = np.clip(shift_round(v * round(65536 / kh), 16), -128, 127)
    return out


class Branches(nn.Module):
    """Every engine node at once, strides, groups and dilation included."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.right = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2)
        self.head = nn.Conv2d(16, 12, 1)
        self.fc = nn.Linear(12 * 2 * 2, 7)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 6))
        x = torch.relu(torch.cat([self.left(x), self.right(x)], dim=1) + short)
        x = nn.functional.max_pool2d(torch.relu(self.head(x)), 3, 2, 1)
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


def models():
    torch.manual_seed(0)
    branches = Branches()
    branches.norm.running_mean.normal_()
    branches.norm.running_var.uniform_(0.5, 2)
    yield "branches", branches, (3, 16, 16)
    for name, shape in (("lenet5", (1, 28, 28)), ("resnet20", (3, 32, 32))):
        spec = zoo.ModelSpec(model=name, num_classes=10, input_shape=shape)
        yield name, zoo.build(spec), shape


@pytest.mark.parametrize(("model", "shape"), [pytest.param(m, s, id=n) for n, m, s in models()])
@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_every_node_equals_int64_numpy(model, shape, observer):
    check_every_node(model, torch.randn(6, *shape), observer)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_node_of_the_wide_resnets_equals_int64_numpy(name):
    model = zoo.build(zoo.ModelSpec(model=name, num_classes=10, input_shape=(3, 32, 32)))
    check_every_node(model, torch.randn(1, 3, 32, 32), "mse")


def check_every_node(model, images, observer):
    network, _ = quantize(lower(model, images), images[:4], observer=observer)

    values = network.trace(images)

    for node in network.nodes[1:]:
        inputs = [values[name].numpy().astype(np.int64) for name in node.inputs]
        expected = run(node, inputs, network.arithmetic)
        assert values[node.name].dtype == torch.int8
        assert np.array_equal(values[node.name].numpy(), expected), node.name


def test_sums_beyond_two_to_the_24_are_exact():
    model = nn.Sequential(nn.Conv2d(600, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    images = torch.ones(2, 600, 4, 4)
    network, _ = quantize(lower(model, images), images, observer="minmax")
    conv = network.layers[0]
    x = network.trace(images)["input"]

    sums = network.arithmetic.accumulate(conv, x)

    expected = convolve(conv.conv, x.numpy(), network.arithmetic.operands(conv).numpy())
    assert int(np.abs(expected).max()) > 2**24
    assert np.array_equal(sums.numpy(), expected)


@given(st.integers(-(2**46), 2**46), st.integers(1, 40))
def test_rounding_is_half_away_from_zero(v, shift):
    scaled = torch.tensor(float(v), dtype=torch.float64) * 2.0**-shift

    assert int(round_half_away(scaled)) == int(shift_round(np.int64(v), shift))


@given(st.floats(1e-6, 3e4), st.floats(1e-3, 1.0))
@settings(max_examples=200)
def test_converter_fields_fit_and_are_as_close_as_15_bits_allow(factor, spread):
    factors = torch.tensor([factor, factor * spread], dtype=torch.float64)

    converter = Converter.fit(factors, scale=1.0, clip=None, layer="x")

    assert 0 <= converter.shift <= 63
    assert int(converter.multiplier.abs().max()) <= 32767
    error = (converter.multiplier.double() * 2.0**-converter.shift - factors).abs()
    assert bool((error <= factor * 2.0**-14).all())


@st.composite
def shapes(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    (H, W), (R, S), padding, dilation = pair(1, 12), pair(1, 3), pair(0, 2), pair(1, 2)
    H = max(H, dilation[0] * (R - 1) + 1 - 2 * padding[0])
    W = max(W, dilation[1] * (S - 1) + 1 - 2 * padding[1])
    C, K = groups * draw(st.integers(1, 40)), groups * draw(st.integers(1, 20))
    return ConvShape("x", C, H, W, K, R, S, pair(1, 2), padding, dilation, groups)


@given(shapes(), st.sampled_from([-128, 0]), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
@example(ConvShape("padding only", 37, 2, 1, 7, 3, 1, (1, 2), (1, 1), (1, 2)), 0, 0)
@example(ConvShape("padding only", 33, 10, 1, 13, 1, 2, (1, 2), (2, 1), (1, 2)), -128, 0)
def test_both_kernels_give_the_exact_sums(shape, least, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(
        -128, 128, (shape.K, shape.C // shape.groups, shape.R, shape.S), generator=generator
    ).to(torch.int8)
    x = torch.randint(least, 128, (3, shape.C, shape.H, shape.W), generator=generator)
    x = x.to(torch.int8)
    conv = ExactConv(shape, weight)

    got = conv(x)

    expected = convolve(shape, x.numpy(), weight.numpy())
    assert np.array_equal(got.numpy().astype(np.int64), expected)
    assert np.array_equal(conv._floats(pad(x, shape.padding)).numpy(), expected)


@given(st.floats(1e-3, 1e9), st.integers(0, 2**31))
def test_biases_are_16_bit_operands_shifted_left(largest, seed):
    values = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = (values * 2 - 1) * largest

    bias = _operand(values)

    unit = 1
    while float(bias.abs().max()) / unit > 32767:
        unit *= 2
    assert torch.equal(bias / unit, torch.round(bias / unit))
    assert float((bias - values).abs().max()) <= unit / 2
    assert unit == 1 or unit <= 2 * largest / 32767


@pytest.mark.parametrize("truncate", [1, 5, 31])
def test_a_shift_in_the_accumulator_equals_int64_numpy(truncate):
    model = nn.Sequential(nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(180, 3))
    images = torch.randn(4, 8, 8, 8)
    network, _ = quantize(lower(model, images), images)
    integers = network.arithmetic
    layers = {n: replace(layer, truncate=truncate) for n, layer in integers.layers.items()}
    network = network.with_arithmetic(replace(integers, layers=layers))

    values = network.trace(images)

    for node in network.nodes[1:]:
        inputs = [values[name].numpy().astype(np.int64) for name in node.inputs]
        assert np.array_equal(values[node.name].numpy(), run(node, inputs, network.arithmetic))


@given(st.integers(-(2**33), 2**33 - 1), st.integers(0, 31))
def test_delivery_shifts_rounds_half_away_and_saturates_to_32_bits(total, truncate):
    shape = ConvShape("x", 1, 1, 1, 1, 1, 1)
    weight, bias = torch.ones(1, 1, 1, 1, dtype=torch.int8), torch.zeros(1).long()
    unit = Converter(torch.ones(1).long(), 0, -128, 127)
    layer = Int8Layer(shape, weight, bias, unit, truncate)
    conv = Conv("x", ("input",), (1, 1, 1), weight.float(), bias.float(), shape)

    found = Int8Arithmetic({"x": 1.0}, {"x": layer}, {}, {}).deliver(conv, torch.tensor([total]))

    expected = np.clip(shift_round(np.int64(total), truncate), -(2**31), 2**31 - 1)
    assert int(found) == int(expected)
