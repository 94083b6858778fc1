"""How far a change reaches, against marking every pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Add, Conv, Flatten, Pool
from rasp.network.maps import Maps
from rasp.network.windows import Reach, Window, conv_reach, exact, filled, reach, touched
from rasp.nvdla.shapes import ConvShape

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def geometries(draw):
    """How a node reads, the size of its input and of its output."""
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    room = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    assume(all(r >= s for r, s in zip(room, spans, strict=True)))
    out = [(r - s) // t + 1 for r, s, t in zip(room, spans, stride, strict=True)]
    return Reach(kernel, stride, padding, dilation), size, tuple(out)


@st.composite
def windows(draw, size, number=4):
    """Windows of one size inside a map."""
    height, width = (draw(st.integers(1, n)) for n in size)
    corners = [
        (draw(st.integers(0, size[0] - height)), draw(st.integers(0, size[1] - width)))
        for _ in range(number)
    ]
    top, left = torch.tensor(corners).T
    return Window(top, left, height, width)


def reads(how, out):
    """Rows and columns that an output pixel reads, padding included."""
    return [
        [o * stride - padding + k * dilation for k in range(kernel)]
        for o, kernel, stride, padding, dilation in zip(out, *how, strict=True)
    ]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_every_output_that_reads_a_changed_pixel_is_touched(data):
    how, size, out = data.draw(geometries())
    changed = data.draw(windows(size))

    found = how.touches(changed, out)

    for i in range(len(changed.top)):
        top, left = int(found.top[i]), int(found.left[i])
        assert 0 <= top <= out[0] - found.height
        assert 0 <= left <= out[1] - found.width
        hit = set(changed.rows()[i].tolist()), set(changed.columns()[i].tolist())
        for pixel in np.ndindex(out):
            if all(h & set(r) for h, r in zip(hit, reads(how, pixel), strict=True)):
                assert top <= pixel[0] < top + found.height
                assert left <= pixel[1] < left + found.width


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_a_window_needs_begins_and_ends_with_what_it_reads(data):
    how, _, out = data.draw(geometries())
    window = data.draw(windows(out))

    found = how.needs(window)

    for i in range(len(window.top)):
        first = int(window.top[i]), int(window.left[i])
        last = first[0] + window.height - 1, first[1] + window.width - 1
        low = [min(axis) for axis in reads(how, first)]
        high = [max(axis) for axis in reads(how, last)]
        assert [int(found.top[i]), int(found.left[i])] == low
        assert [low[0] + found.height - 1, low[1] + found.width - 1] == high


def test_nothing_larger_than_needed_is_touched():
    how = Reach((3, 3), (1, 1), (1, 1))
    at = torch.tensor([5])

    found = how.touches(Window(at, at, 1, 1), (12, 12))

    assert (found.top.item(), found.left.item(), found.height, found.width) == (4, 4, 3, 3)


def test_nodes_that_read_windows_and_nodes_that_read_whole_maps():
    shape = ConvShape("c", 2, 9, 9, 3, 3, 5, (2, 1), (1, 2), (1, 1))
    weight, bias = torch.zeros(3, 2, 3, 5), torch.zeros(3)
    conv = Conv("c", ("x",), (3, shape.Ho, shape.Wo), weight, bias, shape)

    assert reach(conv) == conv_reach(shape) == Reach((3, 5), (2, 1), (1, 2), (1, 1))
    assert reach(Pool("p", ("x",), (2, 4, 4), "max", (2, 2), (2, 2))) == Reach((2, 2), (2, 2))
    assert reach(Pool("p", ("x",), (2, 5, 5), "max", (3, 3), (2, 2), (1, 1))) is None
    assert reach(Pool("p", ("x",), (2, 5, 5), "max", (2, 2), (2, 2), ceil=True)) is None
    assert reach(Add("a", ("x", "y"), (2, 9, 9))) == Reach((1, 1))
    assert reach(Add("a", ("x", "y"), (8,))) is None
    assert reach(Flatten("f", ("x",), (162,))) is None


def test_windows_of_two_inputs_are_joined_and_most_of_a_map_is_the_map():
    node = Add("a", ("x", "y"), (2, 20, 20))
    first = Window(torch.tensor([2, 0]), torch.tensor([3, 0]), 2, 2)
    second = Window(torch.tensor([5, 1]), torch.tensor([1, 2]), 1, 1)

    found = touched(node, [first, second])

    assert found is not None
    assert (found.output.height, found.output.width) == (4, 4)
    assert found.output.top.tolist() == [2, 0]
    assert found.output.left.tolist() == [1, 0]
    assert touched(node, [Window(torch.tensor([0]), torch.tensor([0]), 16, 16)]) is None


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_floating_point_rows_are_filled_to_blocks_of_16(n):
    rows = torch.arange(n) + 3

    found = filled(rows, FloatArithmetic("fp16"))

    assert len(found) % 16 == 0
    assert len(found) < n + 16
    assert torch.equal(found[:n], rows)
    assert set(found.tolist()) == set(rows.tolist())


def conv_of(**changes):
    shape = ConvShape("c", **{"C": 8, "H": 12, "W": 12, "K": 6, "R": 3, "S": 3} | changes)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape.K, shape.C // shape.groups, shape.R, shape.S, generator=generator)
    out = (shape.K, shape.Ho, shape.Wo)
    return Conv("c", ("x",), out, weight, torch.zeros(shape.K), shape)


class Backwards(FloatArithmetic):
    """Sums windows of one row in the order of the last channel first."""

    def accumulate(self, conv, x, *, padded=False):
        if not padded or x.shape[2] > conv.conv.R:
            return super().accumulate(conv, x, padded=padded)
        flipped = self.operands(conv).float().flip(1, 2, 3)
        columns = F.unfold(x.float().flip(1, 2, 3), flipped.shape[2:])
        sums = torch.zeros(len(x), conv.conv.K, columns.shape[2])
        for weight, column in zip(flipped.flatten(1).T, columns.unbind(1), strict=True):
            sums = sums + weight[:, None] * column[:, None]
        return sums.flip(2).view(len(x), conv.conv.K, 1, -1)


def test_other_bits_of_a_window_are_seen():
    conv = conv_of(padding=(1, 1))

    assert exact(FloatArithmetic("fp32"), conv, 1, 4)
    assert not exact(Backwards("fp32"), conv, 1, 4)
    assert exact(Backwards("fp32"), conv, 2, 4)


@pytest.mark.parametrize(
    "shape",
    [
        {"R": 1, "S": 1},
        {"padding": (1, 1)},
        {"R": 5, "S": 5, "padding": (2, 2), "stride": (2, 2)},
        {"padding": (2, 2), "dilation": (2, 2)},
        {"K": 8, "groups": 8, "padding": (1, 1)},
        {"C": 1, "padding": (1, 1)},
        {"R": 2, "S": 2, "padding": (1, 1)},
        {"C": 37, "K": 19, "padding": (1, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_windows_found_exact_are_exact_on_other_values_and_in_larger_batches(
    shape, number_format, same_bits
):
    conv, arithmetic = conv_of(**shape), FloatArithmetic(number_format)
    geometry, generator = conv.conv, torch.Generator().manual_seed(3)
    images = torch.randn(256, geometry.C, 12, 12, generator=generator)
    images[:16] *= 1e4
    images[16:32] *= 1e-4
    x = arithmetic.encode(images)
    golden = Maps.of(arithmetic.run(conv, [x]))
    tried = 0
    for height, width in ((1, 1), (1, 3), (2, 2), (3, 3), (5, 4), (geometry.Ho, 2)):
        if not exact(arithmetic, conv, height, width):
            continue
        tried += 1
        for n in (16, 48, 128, 256):
            image = torch.randperm(256, generator=generator)[:n]
            limits = (geometry.Ho - height + 1, geometry.Wo - width + 1)
            top, left = (torch.randint(0, limit, (n,), generator=generator) for limit in limits)
            window = Window(top, left, height, width)
            patch = Maps.of(x).window(image, conv_reach(geometry).needs(window))
            found = arithmetic.run_window(conv, patch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            assert same_bits(found, golden.window(image, window)), (height, width, n)
    if not tried:
        pytest.skip("no window of this layer has the bits of the whole map on this machine")
