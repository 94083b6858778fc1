"""The effect engine against a walk through NVDLA's loop nest, one atom after the other.

The walk is plain Python and shares nothing with the package; an upset is applied while it passes
the atom that is in the register.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rasp.faults.bits import flip as flip_float
from rasp.faults.context import LayerContext
from rasp.faults.effects import Upsets, change_sums, saturating_sum
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Conv, Input, Network
from rasp.network.int8_converter import Converter
from rasp.network.int8_ops import Int8Arithmetic, Int8Layer
from rasp.nvdla.config import load
from rasp.nvdla.shapes import ConvShape
from rasp.nvdla.signals import Signal

LANES, HALF = 8, 4


def stripes(pixels):
    found, left = [], pixels
    while left:
        length = left if left <= 16 else 16 if left >= 32 else 8
        found.append(length)
        left -= length
    return found


def wrap(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def flip(value, bit, bits):
    return wrap(value ^ (1 << bit), bits)


def clip(value, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, value))


class Walk:
    """Sums of a layer, ``x[c][y][x]`` and ``w[k][c][r][s]`` nested lists of int."""

    def __init__(self, x, w, shape, lanes=8):
        self.x, self.w, self.shape, self.lanes = x, w, shape, lanes
        self.atoms = []
        per_group, channels = shape.K // shape.groups, shape.C // shape.groups
        for g in range(shape.groups):
            for kg in range(-(-per_group // lanes)):
                start = 0
                for length in stripes(shape.pixels):
                    for cb in range(-(-channels // lanes)):
                        for r in range(shape.R):
                            for s in range(shape.S):
                                for p in range(start, start + length):
                                    self.atoms.append((g, kg, cb, r, s, p, start, length))
                    start += length

    def activation(self, atom, lane):
        """Value and whether there is one."""
        g, _, cb, r, s, p, _, _ = atom
        shape = self.shape
        c = cb * self.lanes + lane
        y = p // shape.Wo * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        x = p % shape.Wo * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        channels = shape.C // shape.groups
        if c >= channels or not (0 <= y < shape.H and 0 <= x < shape.W):
            return 0, False
        return self.x[g * channels + c][y][x], True

    def weight(self, atom, cell, lane):
        g, kg, cb, r, s, *_ = atom
        per_group, channels = self.shape.K // self.shape.groups, self.shape.C // self.shape.groups
        k, c = kg * self.lanes + cell, cb * self.lanes + lane
        return self.w[g * per_group + k][c][r][s] if k < per_group and c < channels else 0

    def stale_activation(self, n, lane):
        for atom in reversed(self.atoms[:n]):
            if value := self.activation(atom, lane)[0]:
                return value
        return 0

    def stale_weight(self, n, cell, lane, cells):
        """Last non-zero weight before that of ``cell``, among kernels that share the register."""
        history = []
        last = None
        for atom in self.atoms[: n + 1]:
            package = atom[:5] + atom[6:7]
            if package != last:
                history += [(atom, j) for j in cells]
                last = package
        while history[-1][1] != cell:
            history.pop()
        for atom, j in reversed(history[:-1]):
            if value := self.weight(atom, j, lane):
                return value
        return 0

    def run(self, upset=None):
        """``{(kernel, pixel): 32-bit sum}``; ``upset(n, atom, cell, stage, value)`` may change it.

        Stages: ``operands`` (list of 8 pairs), ``product``, ``sum``, ``partial``, ``final``.
        """
        change = upset or (lambda _n, _atom, _cell, _stage, value: value)
        running, sums, count = {}, {}, {}
        per_group = self.shape.K // self.shape.groups
        channels = self.shape.C // self.shape.groups
        taps = -(-channels // self.lanes) * self.shape.R * self.shape.S
        for n, atom in enumerate(self.atoms):
            g, kg, pixel = atom[0], atom[1], atom[5]
            for cell in range(min(self.lanes, per_group - kg * self.lanes)):
                k = g * per_group + kg * self.lanes + cell
                pairs = [
                    (self.activation(atom, i)[0], self.weight(atom, cell, i))
                    for i in range(self.lanes)
                ]
                pairs = change(n, atom, cell, "operands", pairs)
                product = change(n, atom, cell, "product", sum(a * w for a, w in pairs))
                before = change(n, atom, cell, "restored", running.get((k, pixel), 0))
                total = clip(change(n, atom, cell, "sum", before + product), 34)
                running[k, pixel] = change(n, atom, cell, "partial", total)
                count[k, pixel] = count.get((k, pixel), 0) + 1
                if count[k, pixel] == taps:
                    sums[k, pixel] = change(n, atom, cell, "final", clip(running[k, pixel], 32))
        return sums


ATOM_SIGNALS = [
    Signal("activation", "atom", reach="group"),
    Signal("activation", "atom", reach="group", ungated=True),
    Signal("activation", "atom", reach="half"),
    Signal("activation", "atom", reach="cell"),
    Signal("activation_bus", "atom", reach="group"),
    Signal("activation_gate", "atom", reach="group"),
    Signal("activation_gate", "atom", reach="cell"),
    Signal("product", "atom"),
    Signal("sum", "atom"),
    Signal("partial", "atom", when="inner"),
    Signal("restored", "atom", when="later"),
    Signal("final", "atom", when="last"),
    Signal("valid", "atom"),
    Signal("valid", "atom", reach="half"),
    Signal("valid", "atom", when="inner"),
]
WEIGHT_SIGNALS = [
    Signal("weight", "loading", reach="stripe"),
    Signal("weight", "loading", reach="stripe", ungated=True),
    Signal("weight_bus", "loading", reach="stripe"),
    Signal("weight", "shadow", reach="stripe"),
    Signal("weight", "active", reach="suffix"),
    Signal("weight_gate", "loading", reach="stripe"),
    Signal("weight_gate", "shadow", reach="stripe"),
    Signal("weight_gate", "active", reach="suffix"),
    Signal("valid", "active", reach="suffix", skip=1),
    Signal("valid", "shadow", reach="stripe"),
]
WIDTHS = {"product": 19, "sum": 35, "partial": 34, "restored": 34, "final": 32}

SHAPES = [
    ConvShape("blocks", 11, 4, 5, 10, 2, 2, padding=(1, 0)),
    ConvShape("strided", 9, 6, 7, 3, 3, 2, stride=(2, 1), padding=(1, 1)),
    ConvShape("linear", 20, 1, 1, 9, 1, 1),
    ConvShape("dilated", 3, 7, 6, 8, 2, 2, dilation=(2, 3)),
    ConvShape("grouped", 6, 4, 4, 12, 3, 3, padding=(1, 1), groups=3),
]


def build(shape, seed, zeros=0.3):
    """Context, input and golden sums of an int8 layer with many zeros."""
    rng = np.random.default_rng(seed)

    def draw(*size):
        return rng.integers(-128, 128, size) * (rng.random(size) > zeros)

    x = torch.from_numpy(draw(shape.C, shape.H, shape.W).astype(np.int8))
    w = torch.from_numpy(draw(shape.K, shape.C // shape.groups, shape.R, shape.S).astype(np.int8))
    bias = torch.zeros(shape.K, dtype=torch.int64)
    conv = Conv(
        shape.name, ("input",), (shape.K, shape.Ho, shape.Wo), w.float(), bias.float(), shape
    )
    layer = Int8Layer(shape, w, bias, Converter(torch.full((shape.K,), 50), 16, -128, 127))
    scales = {"input": 1.0, shape.name: 1.0}
    arithmetic = Int8Arithmetic(scales, {shape.name: layer}, {}, {})
    nodes = (Input("input", (), (shape.C, shape.H, shape.W)), conv)
    network = Network(nodes, shape.name, arithmetic)
    context = LayerContext(conv, arithmetic, load("nv_small"))
    return network, context, x, w


def cells_in_reach(signal, kernel):
    if signal.reach == "group":
        return range(LANES)
    if signal.reach == "half":
        return range(kernel // HALF * HALF, kernel // HALF * HALF + HALF)
    return [kernel]


def expected_sums(walk, signal, n, kernel, lane, bit, edge):
    """All sums with the upset applied during the walk."""
    target = walk.atoms[n]
    g, kg, cb, r, s, pixel, start, length = target
    whole = signal.reach == "stripe"
    pixels = range(start if whole else pixel, start + length)
    if signal.reach not in ("stripe", "suffix"):
        pixels = [pixel]
    pixels = list(pixels)[signal.skip :]
    channels = walk.shape.C // walk.shape.groups
    taps = -(-channels // LANES) * walk.shape.R * walk.shape.S
    tap = (cb * walk.shape.R + r) * walk.shape.S + s
    skipped = {
        "any": False,
        "last": tap < taps - 1,
        "inner": tap == taps - 1,
        "later": tap == 0,
    }[signal.when]

    def operand(golden, exists, stale):
        if signal.effect.endswith("_gate"):
            rises = edge > 0 or (edge == 0 and golden == 0)
            return stale() if rises else 0
        if signal.effect.endswith("_bus"):
            if (
                not exists
                or (edge > 0 and golden >> bit & 1)
                or (edge < 0 and not golden >> bit & 1)
            ):
                return golden
        elif golden == 0 and not (signal.ungated and exists):
            return golden
        return flip(golden, bit, 8)

    def upset(_n, atom, cell, stage, value):
        mine = atom[:5] == (g, kg, cb, r, s) and atom[5] in pixels
        if skipped or not mine or cell not in cells_in_reach(signal, kernel):
            return value
        if stage == "operands" and signal.effect.startswith(("activation", "weight")):
            a, w = value[lane]
            changed = list(value)
            if signal.effect.startswith("activation"):
                a = operand(
                    a, walk.activation(atom, lane)[1], lambda: walk.stale_activation(n, lane)
                )
            else:
                half = kernel // HALF * HALF
                cells = range(half, half + HALF) if signal.held == "loading" else [kernel]
                held = signal.held != "active"
                w = operand(
                    w, True, lambda: walk.stale_weight(n, kernel, lane, cells) if held else 0
                )
            changed[lane] = (a, w)
            return changed
        if signal.effect == stage:
            return flip(value, bit, WIDTHS[stage])
        if stage == "partial" and signal.effect == "valid":
            return 0
        return value

    return walk.run(upset)


def engine_sums(context, network, x, signal, *columns):
    """Golden sums with one upset's changes put in, as ``{(kernel, pixel): sum}``."""
    shape = context.conv.conv
    sums = network.arithmetic.accumulate(context.conv, x[None]).reshape(1, shape.K, -1)
    arrays = (np.array([value], dtype=np.int64) for value in columns)
    change = change_sums(Upsets(signal, *arrays), LayerValues.of(context, x[None]))
    result = {(k, p): int(sums[0, k, p]) for k in range(shape.K) for p in range(shape.pixels)}
    for k, p, golden, faulty in zip(*(c.tolist() for c in change[1:]), strict=True):
        assert golden == result[k, p]
        result[k, p] = faulty
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    "signal",
    ATOM_SIGNALS + WEIGHT_SIGNALS,
    ids=lambda s: "-".join(map(str, (s.effect, s.held, s.reach, s.when, s.ungated))),
)
def test_sums_are_those_of_the_walk(shape, signal):
    pick = random.Random(f"{shape.name} {signal}")
    network, context, x, w = build(shape, pick.randrange(2**32))
    walk = Walk(x.tolist(), w.tolist(), shape)
    per_group = shape.K // shape.groups
    for _ in range(8):
        n = pick.randrange(len(walk.atoms))
        if signal.held in ("loading", "shadow"):
            n -= walk.atoms[n][5] - walk.atoms[n][6]
        kernel = pick.randrange(min(LANES, per_group - walk.atoms[n][1] * LANES))
        if signal.reach == "half":
            kernel = kernel // HALF * HALF
        lane, bit = pick.randrange(LANES), pick.randrange(WIDTHS.get(signal.effect, 8))
        edge = pick.choice([-1, 0, 1]) if signal.effect.endswith(("_gate", "_bus")) else 0
        expected = expected_sums(walk, signal, n, kernel, lane, bit, edge)
        found = engine_sums(context, network, x, signal, n, kernel, lane, bit, edge)
        assert found == expected, (n, kernel, lane, bit, edge)


@pytest.mark.parametrize("weight", [127, -128])
@pytest.mark.parametrize(
    ("effect", "bit"),
    [("sum", bit) for bit in (31, 32, 33, 34)] + [("partial", bit) for bit in (31, 32, 33)],
)
def test_the_accumulator_saturates_after_every_atom(effect, bit, weight):
    """Inputs that first rise and then fall, so that what saturation cuts off does not come back."""
    shape = ConvShape("up-down", 8, 1, 20, 8, 1, 20)
    network, context, x, w = build(shape, 0)
    x[:, :, :10], x[:, :, 10:] = 127, -128
    w[:] = weight
    walk = Walk(x.tolist(), w.tolist(), shape)
    for n in (0, 3, 9, 15):
        expected = expected_sums(walk, Signal(effect), n, 2, 0, bit, 0)
        assert engine_sums(context, network, x, Signal(effect), n, 2, 0, bit, 0) == expected


def test_what_saturation_cuts_off_does_not_come_back():
    top, bottom = 2**33 - 1, -(2**33)
    start = torch.tensor([top - 10, top - 10, bottom + 5, 0])
    terms = torch.tensor([[100, -50], [5, -50], [-9, 9], [2**33, -(2**33)]])
    found = saturating_sum(start, terms, 34).tolist()
    assert found == [top - 50, top - 55, bottom + 9, -1]


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=12),
    st.integers(-128, 127),
)
def test_saturating_sums_equal_a_loop(terms, start):
    value = start
    for term in terms:
        value = max(-128, min(127, value + term))
    assert saturating_sum(torch.tensor([start]), torch.tensor([terms]), 8).item() == value


def test_an_atom_nobody_holds_changes_nothing():
    network, context, x, _ = build(SHAPES[0], 1)
    golden = engine_sums(context, network, x, Signal("final"), -1, 0, 0, 3, 0)
    shape = SHAPES[0]
    sums = network.arithmetic.accumulate(context.conv, x[None])
    assert list(golden.values()) == sums.reshape(shape.K, -1).flatten().tolist()


def test_zeros_are_gated_unless_the_mask_is_computed_later():
    network, context, x, w = build(SHAPES[0], 2)
    walk = Walk(x.tolist(), w.tolist(), SHAPES[0])
    atom = next(
        n
        for n, a in enumerate(walk.atoms)
        if walk.activation(a, 0) == (0, True) and walk.weight(a, 0, 0)
    )
    gated, open_ = (
        engine_sums(
            context, network, x, Signal("activation", reach="cell", ungated=u), atom, 0, 0, 6, 0
        )
        for u in (False, True)
    )
    golden = walk.run()
    key = (0, walk.atoms[atom][5])
    assert gated == golden
    assert open_[key] - golden[key] == 64 * walk.weight(walk.atoms[atom], 0, 0)


@pytest.mark.parametrize(
    ("signal", "value"),
    [
        (Signal("product"), lambda taps, n: taps[n]),
        (Signal("sum"), lambda taps, n: taps[: n + 1].sum()),
        (Signal("restored", when="later"), lambda taps, n: taps[:n].sum()),
        (Signal("final", when="last"), lambda taps, _: taps.sum()),
    ],
    ids=lambda case: getattr(case, "effect", ""),
)
@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_floating_point_sums_flip_in_their_own_bits(number_format, signal, value):
    shape = ConvShape("one", 11, 1, 1, 3, 1, 1)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 11, 1, 1, generator=generator)
    conv = Conv("one", ("input",), (3, 1, 1), weight, torch.zeros(3), shape)
    arithmetic = FloatArithmetic(number_format)
    context = LayerContext(conv, arithmetic, load("nv_small"))
    x = arithmetic.encode(torch.randn(1, 11, 1, 1, generator=generator))
    sums = arithmetic.accumulate(conv, x).reshape(1, 3, 1)
    n = 1  # the second of two atoms
    products = (x[0, :, 0, 0].float() * arithmetic.operands(conv)[2, :, 0, 0].float()).double()
    taps = torch.stack([products[:8].sum(), products[8:].sum()])
    for bit in (10, 22, 25, 31):
        arrays = (np.array([entry]) for entry in (n, 2, 0, bit, 0))
        change = change_sums(Upsets(signal, *arrays), LayerValues.of(context, x))
        before = value(taps, n).float()
        step = flip_float(before, torch.tensor(bit)).double() - before.double()
        assert change.kernel.tolist() == [2]
        assert change.faulty.double().item() == pytest.approx(
            (sums[0, 2, 0].double() + step).item(), rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_a_lost_lane_keeps_what_comes_after_in_floating_point(number_format):
    shape = ConvShape("one", 11, 1, 1, 3, 1, 1)
    weight = torch.randn(3, 11, 1, 1, generator=torch.Generator().manual_seed(5))
    conv = Conv("one", ("input",), (3, 1, 1), weight, torch.zeros(3), shape)
    arithmetic = FloatArithmetic(number_format)
    context = LayerContext(conv, arithmetic, load("nv_small"))
    x = arithmetic.encode(torch.ones(1, 11, 1, 1))
    rest = arithmetic.operands(conv)[1, 8:, 0, 0].float().sum().item()
    for n, expected in ((0, rest), (1, 0.0)):
        arrays = (np.array([entry]) for entry in (n, 1, 0, 0, -1))
        change = change_sums(Upsets(Signal("valid"), *arrays), LayerValues.of(context, x))
        assert change.faulty.item() == pytest.approx(expected, abs=1e-6)
