"""Convolutions on torch's floating-point kernels against float64, where oneDNN went wrong."""

import pytest
import torch
import torch.nn.functional as F

from rasp.network.float_ops import convolve
from rasp.network.graph import Conv
from rasp.network.int8_conv import ExactConv
from rasp.nvdla.shapes import ConvShape


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("size", [(3, 3), (8, 3), (3, 4), (9, 7)])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 0), (0, 1)])
def test_one_input_channel_is_read_within_its_map(stride, size, kernel, padding):
    generator = torch.Generator().manual_seed(0)
    shape = ConvShape(
        "x", 1, *size, 5, *kernel, stride, (min(padding[0], kernel[0] - 1), padding[1])
    )
    weight = torch.randn(5, 1, *kernel, generator=generator)
    conv = Conv("x", ("in",), (5, shape.Ho, shape.Wo), weight, torch.zeros(5), shape, None)
    beyond = torch.full((17, 1, *size), 1e30)
    for count in (16, 32):
        x = torch.randn(count, 1, *size, generator=generator)
        maps = beyond.repeat(2, 1, 1, 1)
        maps[:count] = x

        got = convolve(conv, maps[:count], weight)

        expected = F.conv2d(x.double(), weight.double(), stride=stride, padding=shape.padding)
        assert torch.allclose(got.double(), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [(1, 2), (2, 3)])
@pytest.mark.parametrize("size", [(3, 3), (8, 3), (3, 4), (9, 7)])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 3), (3, 3)])
def test_integers_in_floats_are_read_within_their_map(stride, size, kernel):
    generator = torch.Generator().manual_seed(0)
    shape = ConvShape("x", 1, *size, 5, *kernel, stride)
    weight = torch.randint(-128, 128, (5, 1, *kernel), generator=generator).to(torch.int8)
    conv = ExactConv(shape, weight)
    for count in (3, 16):
        x = torch.randint(-128, 128, (count, *size, 1), generator=generator).to(torch.int8)
        x = x.permute(0, 3, 1, 2)
        for _ in range(20):  # freed memory, which a map may come to lie in
            torch.full((x.numel() + 64,), 1e30)

            got = conv._floats(x)

            expected = F.conv2d(x.double(), weight.double(), stride=stride)
            assert torch.equal(got.double(), expected)
