from __future__ import annotations

import subprocess
import sys

import pytest

from rasp.errors import ConfigError
from rasp.nvdla.config import CONFIGS, Atoms, load
from rasp.nvdla.mapping import stripes

MINE = """
name = "mine"
cbuf_bytes = 65536
sdp_throughput = 1
minimum_package = 4

[stripe]
lower = 4
upper = 8

[formats.int8]
atomic_c = 16
atomic_k = 4
operand_bits = 8
mac_bits = 20
sum_bits = 35
partial_bits = 34
"""


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_obey_the_generator_s_relations(name):
    config = load(name)
    path = config.datapath("int8")
    assert config.name == name
    # NVDLA_MAC_RESULT_WIDTH = 2 * BPE + log2(atomic C)
    assert path.mac_bits == 16 + (path.atomic_c - 1).bit_length()
    if name != "nv_full":
        assert (config.stripe.lower, config.stripe.upper) == (path.atomic_k, 2 * path.atomic_k)
        assert config.minimum_package == path.atomic_k


def test_multiply_accumulate_units_match_the_product_names():
    cells = {name: load(name).atoms("int8") for name in CONFIGS}
    assert {name: a.channels * a.kernels for name, a in cells.items()} == {
        "nv_small": 64,
        "nv_small_256": 256,
        "nv_medium_512": 512,
        "nv_medium_1024": 1024,
        "nv_large": 2048,
        "nv_full": 2048,
    }


def test_a_format_without_datapath_borrows_the_int8_geometry():
    small, full = load("nv_small"), load("nv_full")
    assert not small.native("fp16")
    assert small.atoms("fp16") == small.atoms("fp32") == Atoms(8, 8)
    assert full.native("fp16")
    assert full.atoms("fp16") == Atoms(64, 16)
    assert not full.native("fp32")
    assert full.atoms("fp32") == Atoms(64, 32)


def test_a_users_own_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    config = load(path)
    assert config.atoms("int8") == Atoms(16, 4)
    assert [stripe.length for stripe in stripes(21, config)] == [8, 4, 4, 5]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("atomic_k = 4", "atomic_k = 5", "even"),
        ("atomic_c = 16", "atomic_c = 0", "formats.int8.atomic_c"),
        ("cbuf_bytes = 65536", "", "cbuf_bytes"),
        ("cbuf_bytes = 65536", "cbuf_bites = 1", "cbuf_b"),
        ("upper = 8", "upper = 9", "lower"),
        ("[formats.int8]", "[formats.int4]", "formats.int8"),
        ("[formats.int8]", "[formats.int8", "TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path, old, new, said):
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'nv_small'"):
        load("nv_smal")
    with pytest.raises(ConfigError, match="Cannot read"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="fp8"):
        load("nv_full").atoms("fp8")


def test_the_accelerator_is_known_without_torch():
    code = "import sys, rasp.nvdla.cycles, rasp.nvdla.registers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
