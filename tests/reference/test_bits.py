"""Bit flips against Python's struct module."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rasp.faults.bits import flip, pattern

FORMATS = {"f": (torch.float32, "I", 32), "e": (torch.float16, "H", 16), "b": (torch.int8, "B", 8)}


def by_struct(code, word):
    return struct.pack("<" + FORMATS[code][1], word)


@pytest.mark.parametrize("code", FORMATS)
@given(data=st.data())
def test_flip_inverts_the_bit_that_struct_inverts(code, data):
    dtype, _, bits = FORMATS[code]
    word = data.draw(st.integers(0, 2**bits - 1))
    bit = data.draw(st.integers(0, bits - 1))
    value = torch.frombuffer(bytearray(by_struct(code, word)), dtype=dtype)

    flipped = flip(value, torch.tensor([bit]))

    assert flipped.numpy().tobytes() == by_struct(code, word ^ (1 << bit))
    assert value.numpy().tobytes() == by_struct(code, word)


@pytest.mark.parametrize("code", FORMATS)
@given(data=st.data())
def test_pattern_reads_the_bits_that_struct_reads(code, data):
    dtype, _, bits = FORMATS[code]
    word = data.draw(st.integers(0, 2**bits - 1))

    value = pattern(torch.tensor([word]), torch.zeros(1, dtype=dtype))

    assert value.numpy().tobytes() == by_struct(code, word)


def test_flip_of_nan_and_infinity_is_a_flip_of_bits():
    values = torch.tensor([float("inf"), float("nan")])

    back = flip(flip(values, torch.tensor([22])), torch.tensor([22]))

    assert torch.equal(back.view(torch.int32), values.view(torch.int32))
    assert flip(values, torch.tensor([22]))[0].isnan()
