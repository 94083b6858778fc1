"""Golden values of a layer as fault models read them, against the tensors they were taken from."""

import pytest
import torch

from rasp.faults.context import LayerContext
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv, Input, Network
from rasp.network.int8_ops import Int8Arithmetic
from rasp.network.maps import Maps
from rasp.nvdla.config import load
from rasp.nvdla.shapes import ConvShape

SHAPES = [
    ConvShape("layer", 8, 13, 12, 16, 3, 3, padding=(1, 1)),
    ConvShape("layer", 1, 9, 9, 6, 5, 5, padding=(2, 2)),
    ConvShape("layer", 6, 12, 7, 9, 2, 3, stride=(2, 1), dilation=(1, 2), groups=3),
    ConvShape("layer", 12, 1, 1, 10, 1, 1),
]
IMAGES = 32


@pytest.fixture(params=["fp32", "fp16", "int8"])
def number_format(request):
    return request.param


def build(shape, number_format, n=200):
    """A context, golden input, output and sums, and values for ``n`` trials on random images."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape.K, shape.C // shape.groups, shape.R, shape.S, generator=generator)
    bias = torch.randn(shape.K, generator=generator)
    conv = Conv("layer", ("input",), (shape.K, shape.Ho, shape.Wo), weight, bias, shape)
    nodes = (Input("input", (), (shape.C, shape.H, shape.W)), conv)
    network = Network(nodes, "layer", FloatArithmetic("fp32"))
    if number_format == "int8":
        arithmetic = Int8Arithmetic.build(network, {"input": 3 / 127, "layer": 9 / 127})
    else:
        arithmetic = FloatArithmetic(number_format)
    network = network.with_arithmetic(arithmetic)
    traced = network.trace(torch.randn(IMAGES, shape.C, shape.H, shape.W, generator=generator))
    x, y = traced["input"], traced["layer"]
    image = torch.randint(0, IMAGES, (n,), generator=generator)
    context = LayerContext(conv, arithmetic, load("nv_small"))
    return x, y, arithmetic.accumulate(conv, x), LayerValues(context, Maps.of(x), Maps.of(y), image)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 7, 60, 3000])
@pytest.mark.parametrize("single", [None, False])
def test_sums_have_the_bits_of_the_golden_run(shape, number_format, m, single, same_bits):
    _, _, sums, values = build(shape, number_format)
    if single is not None:
        values.context.__dict__["exact_pixels"] = single
    generator = torch.Generator().manual_seed(m)
    trial = torch.randint(0, len(values), (m,), generator=generator)
    kernel = torch.randint(0, shape.K, (m,), generator=generator)
    pixel = torch.randint(0, shape.pixels, (m,), generator=generator)

    found = values.sums(trial, kernel, pixel)

    assert found.dtype == sums.dtype
    assert found.shape == (m,)
    assert same_bits(found, sums.flatten(2)[values.image[trial], kernel, pixel])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inputs_and_outputs_are_those_of_the_trials_image(shape, number_format):
    x, y, _, values = build(shape, number_format, n=40)
    trial = torch.arange(40)[:, None]
    channel, kernel = torch.arange(shape.C), torch.arange(shape.K)
    last = shape.H * shape.W - 1

    assert len(values) == 40
    assert torch.equal(
        values.input(trial, channel, torch.tensor(last)), x[values.image].flatten(2)[:, :, last]
    )
    assert not values.input(trial, channel, torch.tensor(-1)).any()
    assert torch.equal(
        values.output(trial, kernel, torch.tensor(0)), y[values.image].flatten(2)[:, :, 0]
    )


def test_values_of_inputs_are_one_trial_each(number_format, same_bits):
    x, y, _, values = build(SHAPES[0], number_format)

    found = LayerValues.of(values.context, x)

    assert found.image.tolist() == list(range(IMAGES))
    assert same_bits(found.y.images(found.image), y)
