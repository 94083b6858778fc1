from __future__ import annotations

import math

import numpy as np
import pytest

from rasp.errors import UnsupportedModelError
from rasp.nvdla.config import load
from rasp.nvdla.mapping import REACHES, Mapping, check, stripes
from rasp.nvdla.shapes import ConvShape

CASES = [
    (ConvShape("plain", 16, 6, 7, 16, 3, 3, padding=(1, 1)), "nv_small", "int8"),
    (ConvShape("strided", 20, 7, 9, 12, 3, 3, (2, 2), (1, 1)), "nv_small", "int8"),
    (ConvShape("linear", 70, 1, 1, 25, 1, 1), "nv_small", "int8"),
    (ConvShape("odd", 5, 9, 4, 11, 2, 3, (1, 2), (0, 2), (2, 1)), "nv_small", "int8"),
    (ConvShape("depthwise", 6, 5, 5, 12, 3, 3, groups=6), "nv_small", "fp32"),
    (ConvShape("grouped", 24, 5, 8, 36, 1, 2, groups=2), "nv_small_256", "int8"),
    (ConvShape("wide", 70, 6, 7, 50, 2, 1), "nv_full", "int8"),
    (ConvShape("half", 70, 6, 7, 50, 2, 1), "nv_full", "fp16"),
]


def loop_nest(shape, config, fmt):
    """The sequence as nvdla.md section 2 prints it, one dict per atom."""
    aC, aK = config.atoms(fmt)
    kernels, channels = shape.K // shape.groups, shape.C // shape.groups
    for g in range(shape.groups):
        for kg in range(math.ceil(kernels / aK)):
            for start, length in stripes(shape.pixels, config):
                for cb in range(math.ceil(channels / aC)):
                    for r in range(shape.R):
                        for s in range(shape.S):
                            for p in range(start, start + length):
                                yield {
                                    "group": g,
                                    "kgroup": kg,
                                    "cblock": cb,
                                    "r": r,
                                    "s": s,
                                    "pixel": p,
                                    "position": p - start,
                                    "length": length,
                                }


@pytest.fixture(params=CASES, ids=lambda case: case[0].name)
def case(request):
    shape, name, fmt = request.param
    config = load(name)
    return Mapping(shape, config, fmt), list(loop_nest(shape, config, fmt))


def test_atoms_are_numbered_in_the_order_of_the_loop_nest(case):
    mapping, atoms = case
    assert mapping.count == len(atoms)
    found = mapping.atom(np.arange(mapping.count))._asdict()
    for field, values in found.items():
        assert values.tolist() == [atom[field] for atom in atoms], field


def test_index_inverts_atom(case):
    mapping, _ = case
    n = np.arange(mapping.count)
    a = mapping.atom(n)
    back = mapping.index(a.kgroup, a.cblock, a.r, a.s, a.pixel, group=a.group)
    assert np.array_equal(back, n)


def test_summing_lanes_of_atoms_is_the_convolution(case):
    torch = pytest.importorskip("torch")
    mapping, _ = case
    shape, lanes = mapping.shape, mapping.atoms.channels
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (shape.C, shape.H, shape.W))
    w = rng.integers(-128, 128, (shape.K, shape.C // shape.groups, shape.R, shape.S))
    n, lane = np.repeat(np.arange(mapping.count), lanes), np.tile(np.arange(lanes), mapping.count)
    atom = mapping.atom(n)
    operand = mapping.operand(atom, lane)
    at = operand.inside
    values = np.zeros(n.size, np.int64)
    values[at] = x[operand.channel[at], operand.y[at], operand.x[at]]
    total = np.zeros((shape.K, shape.pixels), np.int64)
    outputs = mapping.reach("group", n)
    c = operand.channel - atom.group * (shape.C // shape.groups)
    for j in range(mapping.atoms.kernels):
        use = at & (j < outputs.kernels)
        k = outputs.kernel[use] + j
        products = values[use] * w[k, c[use], atom.r[use], atom.s[use]]
        np.add.at(total, (k, atom.pixel[use]), products)
    expected = torch.nn.functional.conv2d(
        torch.tensor(x[None], dtype=torch.float64),
        torch.tensor(w, dtype=torch.float64),
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=shape.groups,
    )[0].reshape(shape.K, -1)
    assert np.array_equal(total, expected.numpy().astype(np.int64))


def brute_reach(reach, atoms, n, lane, aK, per_group):
    here = atoms[n]
    half = range(aK // 2) if lane < aK // 2 else range(aK // 2, aK)
    lanes = {
        "group": range(aK),
        "half": half,
        "interleaved": range(lane % 2, aK, 2),
        "interleaved_half": [j for j in half if j % 2 == lane % 2],
    }.get(reach, [lane])
    base = here["group"] * per_group
    kernels = [base + here["kgroup"] * aK + j for j in lanes if here["kgroup"] * aK + j < per_group]
    pixels = [here["pixel"]]
    if reach in ("stripe", "suffix"):
        same = ("group", "kgroup", "cblock", "r", "s")
        package = [
            (i, a)
            for i, a in enumerate(atoms)
            if all(a[f] == here[f] for f in same)
            and a["pixel"] - a["position"] == here["pixel"] - here["position"]
        ]
        pixels = [a["pixel"] for i, a in package if reach == "stripe" or i >= n]
    return {(k, p) for k in kernels for p in pixels}


def rectangle(outputs):
    kernel, kernels, step, pixel, pixels = map(int, outputs)
    return {(kernel + i * step, pixel + j) for i in range(kernels) for j in range(pixels)}


@pytest.mark.parametrize("reach", REACHES)
def test_reach_is_what_shares_the_register_in_the_loop_nest(case, reach):
    mapping, atoms = case
    aK, per_group = mapping.atoms.kernels, mapping.shape.K // mapping.shape.groups
    rng = np.random.default_rng(1)
    for n in rng.integers(mapping.count, size=12):
        for lane in {0, 1, aK // 2, aK - 1, int(rng.integers(aK))}:
            found = rectangle(mapping.reach(reach, n, lane))
            assert found == brute_reach(reach, atoms, n, lane, aK, per_group)


def test_atoms_of_an_output_a_weight_and_an_input_are_those_that_use_it(case):
    mapping, atoms = case
    shape, (aC, aK) = mapping.shape, mapping.atoms
    kernels, channels = shape.K // shape.groups, shape.C // shape.groups
    rng = np.random.default_rng(2)
    for _ in range(5):
        k, p = int(rng.integers(shape.K)), int(rng.integers(shape.pixels))
        g, kg = k // kernels, k % kernels // aK
        expected = [
            n for n, a in enumerate(atoms) if (a["group"], a["kgroup"], a["pixel"]) == (g, kg, p)
        ]
        found = mapping.atoms_of_output(k, p)
        assert found.tolist() == expected
        assert len(expected) == mapping.taps

        c, r, s = (int(rng.integers(bound)) for bound in (channels, shape.R, shape.S))
        expected = [
            n
            for n, a in enumerate(atoms)
            if (a["group"], a["kgroup"], a["cblock"], a["r"], a["s"]) == (g, kg, c // aC, r, s)
        ]
        assert mapping.atoms_of_weight(k, c, r, s).tolist() == expected

        channel, y, x = (int(rng.integers(bound)) for bound in (shape.C, shape.H, shape.W))
        every = mapping.atom(np.arange(mapping.count))
        operand = mapping.operand(every, channel % channels % aC)
        uses = operand.inside & (operand.channel == channel)
        uses &= (operand.y == y) & (operand.x == x)
        assert mapping.atoms_of_input(channel, y, x).tolist() == np.flatnonzero(uses).tolist()


@pytest.mark.parametrize(
    ("name", "pixels", "lengths"),
    [
        ("nv_small", 42, [16, 8, 8, 10]),
        ("nv_small", 20, [8, 12]),
        ("nv_small", 25, [8, 8, 9]),
        ("nv_small", 64, [16] * 4),
        ("nv_small", 1, [1]),
        ("nv_full", 64, [16, 16, 32]),
        ("nv_full", 49, [16, 16, 17]),
        ("nv_full", 196, [16] * 11 + [20]),
        ("nv_full", 784, [16] * 47 + [32]),
    ],
)
def test_stripes_equal_the_measured_and_printed_examples(name, pixels, lengths):
    found = stripes(pixels, load(name))
    assert [stripe.length for stripe in found] == lengths
    starts = np.cumsum([0, *lengths[:-1]])
    assert [stripe.start for stripe in found] == starts.tolist()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (ConvShape("big", 8, 64, 64, 8, 33, 3), "'big'.*kernel rows 33.*32"),
        (ConvShape("jump", 8, 64, 64, 8, 3, 3, stride=(9, 1)), "'jump'.*stride 9.*8"),
        (ConvShape("many", 8, 4, 4, 9000, 1, 1), "'many'.*kernels 9000.*8192"),
        (ConvShape("fat", 8000, 1, 1, 8, 2, 2, padding=(1, 1)), "'fat'.*264000.*bytes"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused_by_name_and_limit(shape, said):
    with pytest.raises(UnsupportedModelError, match=said):
        check(shape, load("nv_small"))
