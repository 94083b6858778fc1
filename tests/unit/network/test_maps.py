"""Tables of pixels against plain indexing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rasp.network.maps import Maps
from rasp.network.windows import Window

N = 5


@st.composite
def stored(draw):
    shape = draw(
        st.one_of(
            st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
            st.tuples(st.integers(1, 9)),
            st.tuples(st.integers(1, 3), st.integers(1, 4)),
            st.tuples(*(st.integers(1, 3),) * 4),
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    values = torch.randint(-128, 128, (N, *shape), generator=generator)
    values = values.to(draw(st.sampled_from([torch.int8, torch.float16, torch.float32])))
    if len(shape) == 3 and draw(st.booleans()):
        values = values.to(memory_format=torch.channels_last)
    return values


@given(values=stored(), start=st.integers(0, N - 1), rows=st.lists(st.integers(0, N - 1)))
@settings(deadline=None)
def test_images_are_what_was_stored(values, start, rows):
    maps = Maps.empty(N, values)
    maps.store(slice(start, N), values[start:])
    maps.store(slice(0, start), values[:start])
    image = torch.tensor(rows, dtype=torch.int64)

    found = maps.images(image)

    assert found.dtype == values.dtype
    assert torch.equal(found, values[image])
    assert torch.equal(Maps.of(values).pixels, maps.pixels)


@given(values=stored(), seed=st.integers(0, 2**20))
@settings(deadline=None)
def test_single_values_and_padding(values, seed):
    maps = Maps.of(values)
    area = math.prod(maps.size)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, N, (30,), generator=generator)
    channel = torch.randint(0, maps.pixels.shape[1], (30,), generator=generator)
    pixel = torch.randint(-1, area, (30,), generator=generator)

    found = maps.at(image, channel, pixel)

    flat = values.reshape(N, -1, area)
    expected = torch.where(pixel < 0, torch.zeros_like(found), flat[image, channel, pixel])
    assert torch.equal(found, expected)


@given(
    values=stored().filter(lambda v: v.ndim == 4),
    corners=st.lists(st.tuples(st.integers(-4, 8), st.integers(-4, 8)), min_size=1, max_size=6),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None)
def test_windows_are_cuts_of_the_padded_map(values, corners, size, seed):
    top, left = torch.tensor(corners).T
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, N, (len(corners),), generator=generator)

    found = Maps.of(values).window(image, Window(top, left, *size))

    border = 16
    padded = torch.nn.functional.pad(values.float(), (border,) * 4)
    for i, (y, x) in enumerate(corners):
        cut = padded[image[i], :, y + border :, x + border :][:, : size[0], : size[1]]
        assert torch.equal(found[i].float(), cut.permute(1, 2, 0))


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4, 5)])
def test_what_is_no_map_is_one_pixel(shape):
    maps = Maps.of(torch.arange(3 * math.prod(shape), dtype=torch.float32).view(3, *shape))

    assert maps.size == (1, 1)
    assert maps.pixels.shape == (4, math.prod(shape))
    assert not maps.pixels[-1].any()
