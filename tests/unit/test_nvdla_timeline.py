from __future__ import annotations

import numpy as np
import pytest

from rasp.nvdla.config import load
from rasp.nvdla.cycles import layer_cycles
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.shapes import ConvShape
from rasp.nvdla.signals import locate
from rasp.nvdla.timeline import Timeline

SHAPES = [
    ConvShape("dense", 16, 6, 7, 16, 3, 3, padding=(1, 1)),
    ConvShape("ragged", 20, 7, 9, 12, 3, 3, stride=(2, 2), padding=(1, 1)),
    ConvShape("linear", 64, 1, 1, 3, 1, 1),
    ConvShape("depthwise", 4, 5, 5, 4, 3, 3, groups=4),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def mapping(request):
    return Mapping(request.param, load("nv_small"))


def test_every_atom_passes_once_and_in_order(mapping):
    timeline = Timeline(mapping)
    end = layer_cycles(mapping.shape, mapping.config).mac
    seen = timeline.atom(np.arange(-5, end + 5))
    assert seen[seen >= 0].tolist() == list(range(mapping.count))


def test_each_kernel_is_loaded_once_a_package_and_before_its_first_atom(mapping):
    timeline = Timeline(mapping)
    cycles = np.arange(-20, int(timeline.starts[-1]) + 40)
    load_ = timeline.loading(cycles)
    pairs = list(zip(load_.package.tolist(), load_.kernel.tolist(), strict=True))
    found = [pair for pair in pairs if pair[0] >= 0]
    expected = [(p, k) for p, n in enumerate(timeline.kernels) for k in range(n)]
    assert found == expected
    when = dict(zip(pairs, cycles, strict=True))
    assert all(when[p, k] < timeline.starts[p] for p, k in expected)


def test_a_shadow_is_a_package_from_its_load_to_its_first_atom(mapping):
    timeline = Timeline(mapping)
    cycles = np.arange(-20, int(timeline.starts[-1]) + 40)
    for kernel in range(8):
        held = timeline.shadow(cycles, kernel)
        for p in np.flatnonzero(timeline.kernels > kernel):
            mine = cycles[held == p]
            first, last = timeline.loads[p] + kernel + 4, timeline.starts[p] + 3
            assert mine.tolist() == list(range(first, last + 1))


def test_active_weights_multiply_the_atom_in_the_mac_stage(mapping):
    timeline = Timeline(mapping)
    cycles = np.arange(-5, int(timeline.starts[-1]) + 40)
    use = timeline.active(cycles, 0)
    atoms = np.where(use.package >= 0, timeline.first[use.package] + use.position, -1)
    assert np.array_equal(atoms, timeline.atom(cycles - 4))


def test_words_read_for_a_pass_are_its_weights_in_order(mapping):
    timeline = Timeline(mapping)
    blocks = mapping.channel_blocks
    per_block = mapping.shape.R * mapping.shape.S
    for start in range(0, len(timeline.first), mapping.taps):
        packages = range(start, start + mapping.taps)
        kernels = int(timeline.kernels[start])
        p, k, lane = np.array(
            [(p, k, i) for p in packages for k in range(kernels) for i in range(8)]
        ).T
        read = np.stack(timeline.word(p, k, lane), axis=1)
        full = (read >= 0).all(axis=1).reshape(-1, 8)
        assert full[full.any(axis=1)][:-1].all()
        assert [tuple(weight) for weight in read[full.ravel()].tolist()] == [
            (p, k, c)
            for p in packages
            for k in range(kernels)
            for c in range(blocks[(p - start) // per_block].size)
        ]


def test_a_fit_recovers_stalls_from_one_observation_a_package(mapping):
    free = Timeline(mapping)
    stalls = np.cumsum(np.random.default_rng(0).integers(0, 5, free.starts.size)) + 100
    true = Timeline(mapping, free.starts + stalls)
    position = free.length // 2
    found = Timeline.fitted(mapping, true.starts + position, free.first + position)
    assert np.array_equal(found.starts, true.starts)


def test_a_fit_through_one_atom_places_the_whole_layer(mapping):
    free = Timeline(mapping)
    last = mapping.count - 1
    package = free.first.size - 1
    cycle = 7000 + free.starts[package] + last - free.first[package]
    found = Timeline.fitted(mapping, [cycle], [last])
    assert np.array_equal(found.starts, free.starts + 7000)


def test_a_layer_the_sdp_limits_takes_the_time_of_its_results():
    shape = ConvShape("C", 32, 5, 5, 24, 1, 1)
    timeline = Timeline(Mapping(shape, load("nv_small")))
    last = int(timeline.starts[-1] + timeline.length[-1])
    assert last == layer_cycles(shape, load("nv_small")).sdp == 600


def test_unobserved_packages_never_run_into_observed_ones():
    mapping = Mapping(SHAPES[0], load("nv_small"))
    free = Timeline(mapping)
    found = Timeline.fitted(mapping, [100, 150], [0, int(free.first[3])])
    assert found.starts[:4].tolist() == [100, 116, 132, 150]
    early = Timeline.fitted(mapping, [int(free.starts[9]) + 5, 20], [int(free.first[9]), 16])
    assert early.starts[[1, 9]].tolist() == [20, int(free.starts[9]) + 5]


def test_two_kernels_a_cycle_are_loaded_where_cells_hold_two():
    mapping = Mapping(ConvShape("wide", 64, 6, 6, 40, 1, 1), load("nv_full"))
    load_ = Timeline(mapping).loading(np.arange(-16, 0))
    assert load_.kernel.tolist() == list(range(0, 32, 2))


def test_contradicting_observations_are_refused():
    mapping = Mapping(SHAPES[0], load("nv_small"))
    with pytest.raises(ValueError, match="one package"):
        Timeline.fitted(mapping, [0, 2], [0, 1])
    with pytest.raises(ValueError, match="overlap"):
        Timeline.fitted(mapping, [0, 8], [0, 16])
    with pytest.raises(ValueError, match="at least one"):
        Timeline.fitted(mapping, [], [])


def test_an_unknown_register_is_not_modelled():
    assert locate("csc_sg_ctl", "x", "pop_cnt", 0, rises=True) is None
    assert locate("cmac_sum", "x", "renamed", 0, rises=True) is None


def test_only_the_edge_that_matters_has_an_effect():
    cell = ("cacc_cell_ctl", "u_cell_int8_3")
    assert locate(*cell, "i_sat_vld", 0, rises=False).effect == "valid"
    assert locate(*cell, "i_sat_vld", 0, rises=True).effect == "none"
    assert locate(*cell, "i_sat_sel", 0, rises=False).when == "last"
    assert locate(*cell, "i_sat_sel", 0, rises=True).when == "inner"
    sd = ("cmac_nz_mask", "u_partition_ma.x", "wt1_sd_nz", 4)
    assert locate(*sd, rises=False).effect == "weight_gate"
    assert locate(*sd, rises=True).effect == "weight_gate"
    active = ("cmac_nz_mask", "u_partition_ma.x", "wt1_actv_nz", 4)
    assert locate(*active, rises=True).effect == "none"
