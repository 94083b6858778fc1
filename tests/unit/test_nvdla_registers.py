from __future__ import annotations

import pytest

from rasp.errors import ConfigError
from rasp.nvdla.config import CONFIGS, load
from rasp.nvdla.registers import registers


def counts(name):
    return {register.name: register.flip_flops for register in registers(load(name))}


def total(name, prefix):
    return sum(count for key, count in counts(name).items() if key.startswith(prefix))


def test_nv_small_sums_to_the_units_of_the_inventory():
    assert sum(counts("nv_small").values()) == 44_342 - 43  # less the clock-gate latches
    assert total("nv_small", "cbuf") == 14_151
    assert total("nv_small", "csc_reg") == 768


@pytest.mark.parametrize(
    ("prefix", "inventory"),
    [
        ("cbuf", 44_958),
        ("csc", 60_800),
        ("cmac", 145_798 + 6_969 + 7_170),
        ("cacc", 86_178),
        ("cdma", 59_258),
        ("sdp", 107_488 + 7_224 + 2_151),
    ],
)
def test_nv_full_sums_to_the_units_of_the_inventory(prefix, inventory):
    assert total("nv_full", prefix) == inventory


@pytest.mark.parametrize("name", CONFIGS)
def test_only_uncounted_accelerators_are_estimated(name):
    marks = {register.estimated for register in registers(load(name))}
    assert marks == {name not in ("nv_small", "nv_full")}


def test_estimates_equal_the_count_where_the_geometry_is_that_of_nv_small():
    small = load("nv_small")
    copy = small.model_copy(update={"flip_flops": {}})
    scaled = registers(copy)
    assert all(register.estimated for register in scaled)
    assert {register.name: register.flip_flops for register in scaled} == small.flip_flops


def test_estimated_per_cell_copies_equal_the_count_of_nv_full():
    large, full = counts("nv_large"), counts("nv_full")
    for name in ("cmac_dat_actv", "cmac_wt_sd", "cmac_wt_actv"):
        assert large[name] == full[name]


def test_kinds_are_kept_apart():
    for register in registers(load("nv_small")):
        assert (register.role is None) == (register.kind != "datapath")
        assert register.reach is None or register.kind == "datapath"
        assert 0 <= register.measured.sdc <= 1
        assert 0 <= register.measured.hang <= 1


def test_a_count_for_an_unknown_class_is_refused():
    config = load("nv_small").model_copy(update={"flip_flops": {"cmac_sun": 3}})
    with pytest.raises(ConfigError, match="Did you mean 'cmac_sum'"):
        registers(config)
