"""Layers done in one kernel, whole and in windows, against integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rasp.network.graph import Conv
from rasp.network.int8_conv import ExactConv, pad
from rasp.network.int8_converter import Converter, add
from rasp.network.int8_ops import Int8Arithmetic, Int8Layer
from rasp.nvdla.shapes import ConvShape

SHAPES = {
    "3x3": ConvShape("x", 16, 9, 11, 24, 3, 3, padding=(1, 1)),
    "stride 2": ConvShape("x", 16, 12, 11, 16, 3, 3, (2, 2), (1, 1)),
    "strides differ": ConvShape("x", 8, 12, 13, 16, 3, 2, (2, 3), (1, 0)),
    "1x1": ConvShape("x", 32, 7, 6, 20, 1, 1),
    "1x1 stride 2": ConvShape("x", 32, 8, 8, 16, 1, 1, (2, 2)),
    "5x5": ConvShape("x", 12, 10, 10, 10, 5, 5, padding=(2, 2)),
    "dilation 2": ConvShape("x", 8, 12, 12, 8, 3, 3, padding=(2, 2), dilation=(2, 2)),
    "groups": ConvShape("x", 16, 8, 8, 24, 3, 3, padding=(1, 1), groups=4),
    "depthwise": ConvShape("x", 12, 9, 9, 12, 3, 3, (2, 2), (1, 1), groups=12),
    "odd kernels": ConvShape("x", 16, 8, 8, 7, 3, 3, padding=(1, 1)),
    "image": ConvShape("x", 3, 16, 16, 8, 3, 3, padding=(1, 1)),
    "grey image": ConvShape("x", 1, 12, 12, 6, 5, 5),
    "fully connected": ConvShape("x", 300, 1, 1, 10, 1, 1),
    "wide": ConvShape("x", 512, 4, 4, 64, 3, 3, padding=(1, 1)),
}


def layer_of(shape, generator, *, spread=0, low=-128, high=127, shift=None):
    """Random integers; ``spread`` halvings lie between the kernels' factors."""
    size = (shape.K, shape.C // shape.groups, shape.R, shape.S)
    weight = torch.randint(-127, 128, size, generator=generator).to(torch.int8)
    reach = float(weight.double().flatten(1).pow(2).sum(1).mean().sqrt()) * 70
    factors = torch.rand(shape.K, generator=generator, dtype=torch.float64) * 60 / reach + 1e-5
    factors *= 2.0 ** -torch.randint(0, spread + 1, (shape.K,), generator=generator)
    fitted = Converter.fit(factors, scale=1.0, clip=None, layer="x")
    if shift is None:
        converter = Converter(fitted.multiplier, fitted.shift, low, high)
    else:
        converter = Converter(torch.ones(shape.K).long(), shift, low, high)
    bias = torch.randint(-int(reach), int(reach) + 1, (shape.K,), generator=generator)
    return Int8Layer(shape, weight, bias, converter)


def arithmetic_of(layer):
    shape = layer.shape
    out = (shape.K, shape.Ho, shape.Wo)
    conv = Conv("x", ("input",), out, layer.weight.float(), layer.bias.float(), shape)
    return conv, Int8Arithmetic({"x": 1.0}, {"x": layer}, {}, {})


def inputs(shape, n, least, generator):
    x = torch.randint(least, 128, (n, shape.C, shape.H, shape.W), generator=generator)
    return x.to(torch.int8).contiguous(memory_format=torch.channels_last)


def expected(layer, x):
    """int64, by the definition; ``x`` is padded."""
    shape, converter = layer.shape, layer.converter
    sums = F.conv2d(
        x.double(), layer.weight.double(), None, shape.stride, 0, shape.dilation, shape.groups
    )
    v = (sums.numpy().astype(np.int64) + layer.bias.numpy()[:, None, None]).clip(
        -(2**31), 2**31 - 1
    )
    v = v * converter.multiplier.numpy()[:, None, None]
    half = (1 << converter.shift) >> 1
    v = np.sign(v) * ((np.abs(v) + half) >> converter.shift)
    return v.clip(converter.low, converter.high)


@pytest.mark.parametrize("least", [-128, 0])
@pytest.mark.parametrize("low", [-128, 0])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("large", [0, 1 << 17])
def test_windows_equal_slices_of_the_whole_layer(name, least, low, large, monkeypatch):
    monkeypatch.setattr("rasp.network.int8_fused._LARGE", large)
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(3)
    layer = layer_of(shape, generator, low=low, spread=2)
    conv, arithmetic = arithmetic_of(layer)
    x = inputs(shape, 4, least, generator)
    whole = arithmetic.run(conv, [x])
    padded = pad(x, shape.padding)
    assert np.array_equal(whole.numpy(), expected(layer, padded))

    (st_, sl), (dt, dl) = shape.stride, shape.dilation
    for top, left, rows, columns in ((0, 0, 1, 1), (1, 0, 3, 2), (0, 2, 2, 4), (2, 1, 9, 9)):
        stored = whole[:, :, top : top + rows, left : left + columns]
        if not stored.numel():
            continue
        h = (stored.shape[2] - 1) * st_ + dt * (shape.R - 1) + 1
        w = (stored.shape[3] - 1) * sl + dl * (shape.S - 1) + 1
        window = padded[:, :, top * st_ : top * st_ + h, left * sl : left * sl + w]
        for layout in (torch.channels_last, torch.contiguous_format):
            got = arithmetic.run_window(conv, window.contiguous(memory_format=layout))
            assert got.dtype == torch.int8
            assert torch.equal(got, stored)
        sums = layer.sums(window, padded=True)
        part = layer.sums(x)[:, :, top : top + rows, left : left + columns]
        assert torch.equal(sums, part)


@given(
    st.sampled_from([name for name in SHAPES if name != "wide"]),
    st.sampled_from([-128, -1, 0]),
    st.sampled_from([(-128, 127), (0, 127), (0, 37), (-5, 90), (3, 9)]),
    st.sampled_from([0, 3, 12]),
    st.sampled_from([None, None, 1, 4, 8, 14]),
    st.sampled_from([0, 0, 1 << 17]),
    st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_every_result_is_the_integers(name, least, clip, spread, shift, large, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[name]
    layer = layer_of(shape, generator, spread=spread, low=clip[0], high=clip[1], shift=shift)
    conv, arithmetic = arithmetic_of(layer)
    x = inputs(shape, 5, least, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rasp.network.int8_fused._LARGE", large)
        got = arithmetic.run(conv, [x])

    assert np.array_equal(got.numpy(), expected(layer, pad(x, shape.padding)))


@pytest.mark.parametrize("least", [-128, 0])
@pytest.mark.parametrize("spread", [0, 8])
@pytest.mark.parametrize("name", ["3x3", "wide", "groups", "image"])
def test_many_results_and_doubtful_ones(name, least, spread, monkeypatch):
    monkeypatch.setattr("rasp.network.int8_fused._CHUNK", 1 << 14)
    generator = torch.Generator().manual_seed(1)
    shape = SHAPES[name]
    layer = layer_of(shape, generator, spread=spread)
    x = inputs(shape, 200, least, generator)
    padded = pad(x, shape.padding)
    if layer.sums.bytes is None:
        pytest.skip("this machine has no byte kernel")

    read, kernel = layer.sums.choose(x, padded=False)
    assert (kernel is layer.sums.padding_bytes) == (least == 0 and any(shape.padding))
    got = layer.fused._whole(kernel, read)

    assert got is not None
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(got.numpy(), expected(layer, padded))


@pytest.mark.parametrize("large", [0, 1 << 17])
def test_sums_that_saturate_are_left_to_the_integers(large, monkeypatch):
    monkeypatch.setattr("rasp.network.int8_fused._LARGE", large)
    shape = ConvShape("x", 8, 1, 1, 4, 1, 1)
    weight = torch.full((4, 8, 1, 1), 127, dtype=torch.int8)
    bias = torch.tensor([2**31 - 1, -(2**31), 2**30, 0])
    layer = Int8Layer(shape, weight, bias, Converter(torch.full((4,), 32383), 39, -128, 127))
    conv, arithmetic = arithmetic_of(layer)
    x = torch.tensor([127, -128], dtype=torch.int8).view(2, 1, 1, 1).expand(2, 8, 1, 1)

    got = arithmetic.run(conv, [x])

    assert np.array_equal(got.numpy(), expected(layer, x))


@pytest.mark.parametrize("least", [-128, 0])
@pytest.mark.parametrize("name", ["3x3", "groups", "image"])
def test_sums_too_dense_for_fp32_to_tell_them_apart(name, least):
    """The biases put all results of a kernel near the middle of two integers."""
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(2)
    layer = layer_of(shape, generator)
    converter = Converter(torch.full((shape.K,), 3 << 7), 28, -128, 127)
    factor = converter.multiplier.double() * 2.0**-converter.shift
    middle = (90.5 + torch.arange(shape.K)) * (torch.arange(shape.K) % 2 * 2 - 1)
    bias = torch.round(middle / factor).long()
    layer = Int8Layer(shape, layer.weight, bias, converter)
    x = inputs(shape, 100, least, generator)
    padded = pad(x, shape.padding)
    if layer.sums.bytes is None:
        pytest.skip("this machine has no byte kernel")

    read, kernel = layer.sums.choose(x, padded=False)
    got = layer.fused._whole(kernel, read)

    assert got is not None
    assert np.array_equal(got.numpy(), expected(layer, padded))


@pytest.mark.parametrize("name", SHAPES)
def test_single_sums_equal_the_convolution(name):
    generator = torch.Generator().manual_seed(5)
    shape = SHAPES[name]
    layer = layer_of(shape, generator)
    padded = pad(inputs(shape, 3, -128, generator), shape.padding)
    whole = ExactConv(shape, layer.weight)(padded, padded=True)
    places = tuple(
        torch.randint(0, size, (50,), generator=generator)
        for size in (3, shape.Ho, shape.Wo, shape.K)
    )

    got = layer.sums.at(padded, places)

    image, row, column, kernel = places
    assert torch.equal(got.double(), whole[image, kernel, row, column].double())


@pytest.mark.parametrize(
    ("multiplier", "shift"),
    [
        ((32767, 32767), 15),
        ((32767, -32767), 16),
        ((16384, 16384), 15),
        ((20001, 31999), 17),
        ((1, 3), 1),
        ((2, 5), 0),
        ((32767, 32767), 24),
        ((-32767, 3), 40),
        ((16385, 777), 14),
    ],
)
@pytest.mark.parametrize("low", [-128, -3, 0, 5])
def test_adding_all_pairs_of_int8(multiplier, shift, low):
    every = torch.arange(-128, 128).to(torch.int8)
    a, b = every.repeat_interleave(256).view(64, -1), every.repeat(256).view(64, -1)

    got = add(Converter(torch.tensor(multiplier), shift, low, 127), a, b)

    v = a.long() * multiplier[0] + b.long() * multiplier[1]
    rounded = v.sign() * ((v.abs() + ((1 << shift) >> 1)) >> shift)
    assert got.dtype == torch.int8
    assert torch.equal(got.long(), rounded.clamp(low, 127))
