"""Floating-point convolutions against float64, where oneDNN was seen to go wrong."""

import pytest
import torch
import torch.nn.functional as F

from rasp.network.float_ops import convolve
from rasp.network.graph import Conv
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
