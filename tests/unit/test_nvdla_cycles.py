from __future__ import annotations

import pytest

from rasp.nvdla.config import load
from rasp.nvdla.cycles import layer_cycles, layer_window, network_cycles
from rasp.nvdla.shapes import ConvShape

P = (1, 1)
LAYERS = {
    "A": ConvShape("A", 16, 6, 7, 16, 3, 3, padding=P),
    "B": ConvShape("B", 20, 7, 9, 12, 3, 3, stride=(2, 2), padding=P),
    "C": ConvShape("C", 32, 5, 5, 24, 1, 1),
    "D": ConvShape("D", 64, 1, 1, 24, 1, 1),
    "E": ConvShape("E", 32, 8, 8, 32, 3, 3, padding=P),
}


@pytest.mark.parametrize(("layer", "measured"), [("A", 1512), ("B", 1080), ("E", 9216)])
def test_layers_limited_by_the_mac_array_equal_the_rtl(layer, measured):
    cycles = layer_cycles(LAYERS[layer], load("nv_small"))
    assert cycles.total == cycles.mac == measured
    assert cycles.bound == "mac"


@pytest.mark.parametrize(("layer", "measured", "bound"), [("C", 602, "sdp"), ("D", 185, "mac")])
def test_other_layers_are_within_five_percent_of_the_rtl(layer, measured, bound):
    cycles = layer_cycles(LAYERS[layer], load("nv_small"))
    assert cycles.total == pytest.approx(measured, rel=0.05)
    assert cycles.bound == bound


@pytest.mark.parametrize(
    ("layer", "measured"), [("A", 1678), ("B", 1252), ("C", 774), ("D", 268), ("E", 9419)]
)
def test_the_window_is_that_of_the_simulated_injections(layer, measured):
    assert layer_window(LAYERS[layer], load("nv_small")) == pytest.approx(measured, rel=0.05)


def test_nv_full_takes_sixteen_cycles_an_atom_on_fully_connected_layers():
    full = load("nv_full")
    linear = ConvShape("fc", 640, 1, 1, 320, 1, 1)
    assert layer_cycles(linear, full, "int8").mac == 16 * 10 * 10
    assert layer_cycles(linear, full, "fp16").mac == 16 * 10 * 20


def test_a_grouped_convolution_costs_its_groups_one_by_one():
    small = load("nv_small")
    whole = ConvShape("g", 32, 10, 10, 16, 3, 3, groups=4)
    part = ConvShape("p", 8, 10, 10, 4, 3, 3)
    assert layer_cycles(whole, small).total == 4 * layer_cycles(part, small).total


def test_a_network_is_the_sum_of_its_layers():
    small = load("nv_small")
    assert network_cycles(LAYERS.values(), small) == 1512 + 1080 + 600 + 192 + 9216


def test_cycles_fall_in_steps_of_a_kernel_group():
    small = load("nv_small")
    totals = [layer_cycles(ConvShape("k", 16, 8, 8, k, 3, 3), small).total for k in range(1, 25)]
    assert totals == sorted(totals)
    assert len(set(totals)) == 3
