"""The registers of nv_small by their RTL names: what a bit holds, where, and what losing it does.

:func:`locate` turns the class, instance path, register and bit of an injection record into a
:class:`Signal`; with a :class:`~rasp.nvdla.timeline.Timeline` its stage gives the resident atom.
The table was checked on the injections into layers A, B and D: each was reproduced exactly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rasp.nvdla.mapping import Reach
    from rasp.nvdla.registers import Held

Effect = Literal[
    "stored",
    "activation",
    "activation_bus",
    "activation_gate",
    "weight",
    "weight_bus",
    "weight_gate",
    "product",
    "sum",
    "partial",
    "restored",
    "final",
    "valid",
    "result",
    "bias",
    "operand",
    "biased",
    "saturated",
    "rectified",
    "offset",
    "scaled",
    "shifted",
    "output",
    "none",
]
"""What inverting the bit does to the atoms in reach:

- ``stored``: bit of an input or weight before it is in the buffer;
- ``activation``, ``weight``: bit ``bit`` of the operand in lane ``lane`` is inverted;
- ``activation_bus``, ``weight_bus``: the same bit of the word read from the buffer is set (the
  upset rose) or cleared (it fell), because idle bank registers are OR-ed into the word;
- ``activation_gate``, ``weight_gate``: the lane's operand becomes 0 (fell) or the last non-zero
  value that was in the lane (rose);
- ``product``: bit of the MAC cell's sum; ``sum``: of the adder before saturation;
- ``partial``, ``restored``: of the running sum after, before this atom; ``final``: of the result;
- ``valid``: the running sum is 0 after this atom;
- ``result`` to ``output``: of a value in the SDP, in the order it passes
  (:mod:`rasp.faults.sdp`): the result, the bias as read and as shifted (``operand``), their sum,
  that in 32 bits, after ReLU, less the converter's offset, times the multiplier, shifted right,
  and the stored output;
- ``none``: no effect in direct convolution.
"""

When = Literal["any", "last", "inner", "later"]
"""Atoms of an output element that are affected: all, only its last one, all but the last, all but
the first."""


class Signal(NamedTuple):
    """One bit of one register.

    Attributes:
        effect: what inverting it does.
        held: how long a value stays: how the timeline is asked.
        stage: pipeline distance in cycles from ``sc2mac_dat_*`` or ``sc2mac_wt_*``.
        reach: outputs in reach.
        kernel: kernel lane, the first of the half where ``reach`` is ``"half"``; a ``loading``
            register of CMAC A or B only holds kernels ``kernel .. kernel + 3``.
        lane: channel lane.
        bit: bit of the value.
        when: atoms of an output element that are affected.
        ungated: a zero operand is multiplied too: the zero mask is computed further down.
        unused: result lanes without a kernel are affected too.
        skip: stripe positions after the current one that are spared first.
    """

    effect: Effect
    held: Held = "atom"
    stage: int = 0
    reach: Reach = "element"
    kernel: int = 0
    lane: int = 0
    bit: int = 0
    when: When = "any"
    ungated: bool = False
    unused: bool = False
    skip: int = 0


_ALL = range(1 << 16)


class _Row(NamedTuple):
    """Names the registers of a class that hold the same.

    Groups of the patterns: ``step`` is added to the stage, ``lane`` and ``cell`` are indices,
    ``half`` is a or b. ``path`` is the end of the instance's path and ``bits`` those of the
    register that the row is about. The first row that fits name, bit and edge counts; where only
    the edge does not fit there is no effect.
    """

    cls: str
    pattern: str
    signal: Signal
    split: int = 0
    part: Literal["lane", "kernel"] = "lane"
    edge: Literal["rises", "falls", ""] = ""
    bits: range = _ALL
    path: str = ""


_IDLE = Signal("none")
_STEP, _LANE, _CELL, _HALF = (rf"(?P<{name}>\w)" for name in ("step", "lane", "cell", "half"))


def _operands() -> Iterator[_Row]:
    bus = Signal("activation_bus", "atom", -8, "group")
    yield _Row("cbuf_dat_rd", r"l\dgroup\d+_data_rd1_data", _IDLE)
    yield _Row("cbuf_dat_rd", rf"l{_STEP}group\d*_data_rd0?_data", bus, 8)
    bus = Signal("weight_bus", "loading", -9, "stripe")
    yield _Row("cbuf_wt_rd", rf"l{_STEP}group\d*_wt_rd_data", bus, 8)

    def data(stage: int, reach: Reach, *, ungated: bool = False) -> Signal:
        return Signal("activation", "atom", stage, reach, ungated=ungated)

    yield _Row("csc_dl_data", "dat_l0c0", data(-3, "group", ungated=True), 8)
    yield _Row("csc_dl_data", "dat_out_bypass_data", data(-2, "group"), 8)
    yield _Row("csc_dl_data", f"dl_out_data{_LANE}", data(-1, "group"))
    yield _Row("csc_dl_data", r"dat_l\dc\d|dat_rsp_\w+", _IDLE)
    yield _Row("csc_dl_out_ab", f"sc2mac_dat_{_HALF}_data{_LANE}", data(0, "half"))
    yield _Row("cmac_dat_in_rt", f"in_rt_dat_data{_LANE}_d{_STEP}", data(0, "half"))
    yield _Row("cmac_dat_pre", "dat_pre_data", data(3, "half"), 8)
    yield _Row("cmac_dat_actv", f"dat_actv_data_reg{_CELL}", data(4, "cell"), 8)

    def load(stage: int, *, ungated: bool = False) -> Signal:
        return Signal("weight", "loading", stage, "stripe", ungated=ungated)

    yield _Row("csc_wl_data", "dec_input_data", load(-4, ungated=True), 8)
    yield _Row("csc_wl_data", "data_d1", load(-3, ungated=True), 8)
    yield _Row("csc_wl_data", f"vec_data_0{_LANE}_d2", load(-2, ungated=True))
    yield _Row("csc_wl_data", f"vec_data_0{_LANE}_d3", load(-1))
    yield _Row("csc_wl_out_ab", f"sc2mac_wt_{_HALF}_data{_LANE}", load(0))
    yield _Row("cmac_wt_in_rt", f"in_rt_wt_data{_LANE}_d{_STEP}", load(0))
    yield _Row("cmac_wt_pre", "wt_pre_data", load(3), 8)
    shadow, active = (
        Signal("weight", "shadow", 4, "stripe"),
        Signal("weight", "active", 4, "suffix"),
    )
    yield _Row("cmac_wt_sd", f"wt{_CELL}_sd_data", shadow, 8)
    yield _Row("cmac_wt_actv", f"wt{_CELL}_actv_data", active, 8)


def _sums() -> Iterator[_Row]:
    def value(effect: Effect, stage: int, when: When = "any", *, unused: bool = False) -> Signal:
        return Signal(effect, "atom", stage, "element", when=when, unused=unused)

    late = value("final", 12, "last", unused=True)
    yield _Row("cmac_sum", rf"sum_out_d\d_d{_STEP}", value("product", 4))
    yield _Row("cmac_out_rt", f"out_rt_data{_CELL}_d{_STEP}", value("product", 7))
    yield _Row("cacc_sum", "i_sum_pd", value("sum", 10))
    yield _Row("cacc_partial_out", "out_partial_data", value("partial", 11, "inner"))
    yield _Row("cacc_final_out", "out_final_data", value("final", 11, "last"))
    yield _Row("cacc_abuf_wr", "abuf_wr_data", value("partial", 12, "inner"), 34, "kernel")
    yield _Row("cacc_abuf_rd", "abuf_rd_raw_data_d1", value("restored", 9, "later"), 34, "kernel")
    yield _Row("cacc_dlv_data", "dlv_data", late, 32, "kernel")
    yield _Row("cacc_dbuf_wr", "dbuf_wr_data", late._replace(stage=13), 32, "kernel")


def _gates() -> Iterator[_Row]:
    def mask(stage: int, reach: Reach) -> Signal:
        return Signal("activation_gate", "atom", stage, reach)

    yield _Row("csc_dl_mask", "dat_out_bypass_mask", mask(-2, "group"), 1)
    yield _Row("csc_dl_mask", "dl_out_mask", mask(-1, "group"), 1)
    yield _Row("csc_dl_mask", f"sc2mac_dat_{_HALF}_mask", mask(0, "half"), 1)
    yield _Row("cmac_mask_in_rt", f"in_rt_dat_mask_d{_STEP}", mask(0, "half"), 1)
    yield _Row("cmac_nz_mask", "dat_pre_nz", mask(3, "half"), 1)
    yield _Row("cmac_nz_mask", f"dat_actv_nz_reg{_CELL}", mask(4, "cell"), 1)

    def gate(held: Held, stage: int, reach: Reach) -> Signal:
        return Signal("weight_gate", held, stage, reach)

    yield _Row("cmac_mask_in_rt", f"in_rt_wt_mask_d{_STEP}", gate("loading", 0, "stripe"), 1)
    yield _Row("cmac_nz_mask", "wt_pre_nz", gate("loading", 3, "stripe"), 1)
    yield _Row("cmac_nz_mask", f"wt{_CELL}_sd_nz", gate("shadow", 4, "stripe"), 1)
    yield _Row("cmac_nz_mask", f"wt{_CELL}_actv_nz", gate("active", 4, "suffix"), 1, edge="falls")


def _valids() -> Iterator[_Row]:
    def valid(stage: int, when: When = "any", reach: Reach = "element") -> Signal:
        return Signal("valid", "atom", stage, reach, when=when)

    rest, whole = (
        Signal("valid", "active", 4, "suffix", skip=1),
        Signal("valid", "shadow", 4, "stripe"),
    )
    lane = Signal("activation_gate", "atom", 4, "cell")
    yield _Row("cmac_ctl_active", "dat_pre_pvld", valid(3, reach="half"), edge="falls")
    for name in (f"dat_actv_pvld_reg{_CELL}", f"wt{_CELL}_actv_pvld"):
        yield _Row("cmac_ctl_active", name, valid(4), edge="falls", bits=range(1))
        yield _Row("cmac_ctl_active", name, lane, 1, edge="falls")
    yield _Row("cmac_ctl_active", f"wt{_CELL}_actv_vld", rest, edge="falls")
    yield _Row("cmac_ctl_active", f"wt{_CELL}_sd_pvld", whole, edge="falls")
    yield _Row("cmac_sum_vld", rf"pp_pvld_d\d_d{_STEP}", valid(4), edge="falls")
    yield _Row("cmac_ctl_out", f"out_rt_mask_d{_STEP}", valid(7), 1, "kernel", edge="falls")
    yield _Row("cacc_cell_ctl", "i_sat_vld", valid(10), edge="falls")
    yield _Row("cacc_cell_ctl", "i_sat_sel", valid(10, "last"), edge="falls")
    yield _Row("cacc_cell_ctl", "i_sat_sel", valid(10, "inner"), edge="rises")
    yield _Row("cacc_cell_ctl", "out_partial_valid", valid(11, "inner"), edge="falls")
    yield _Row("cacc_cell_ctl", "out_final_valid", valid(11, "last"), edge="falls")
    yield _Row("cacc_cell_ctl", "out_final_sat", _IDLE)


def _results() -> Iterator[_Row]:
    # skid registers are passed by: nothing waits in the SDP of these layers
    yield _Row("sdp_data", r"p\d_skid_data|skid_flop_\w+", _IDLE)
    for unused in (r"u_bn\b.*", r"u_bn_\w+", "u_bs_mul_pack", "u_dpin_pack", r"\.pipe_p11"):
        yield _Row("sdp_data", r"\w+", _IDLE, path=unused)
    yield _Row("sdp_data", "p1_pipe_data", _IDLE, path=r"u_bs\.u_sdp_x_mul_0\.pipe_p1")

    def row(path: str, effect: Effect, stage: int, width: int, first: int = 0) -> _Row:
        signal = Signal(effect, "result", stage, when="last", unused=True)
        bits = range(first, first + width)
        return _Row(
            "sdp_data", r"p\d_pipe_data|pipe_skid_\w+|pack_\w+", signal, bits=bits, path=path
        )

    alu, converter = r"u_bs\.u_sdp_x_alu_0\.pipe_p", r"u_c\.c_int_0\.pipe_p"
    yield row(r"cmux\.pipe_p1", "result", 16, 32)
    yield row(r"cmux\.pipe_p2", "result", 17, 32)
    yield row("u_bs_dppack", "result", 18, 32)
    yield row(alu + "1", "result", 19, 32)
    yield row(alu + "1", "operand", 19, 32, first=32)
    yield row(alu + "2", "biased", 20, 33)
    yield row(r"u_bs\.u_sdp_x_trt_0\.pipe_p1", "saturated", 21, 32)
    yield row(r"u_bs\.u_sdp_x_relu_0\.pipe_p1", "rectified", 22, 32)
    yield row("u_bs_dpunpack", "rectified", 23, 32)
    yield row(converter + "1", "offset", 24, 33)
    yield row(converter + "2", "scaled", 25, 49)
    yield row(converter + "3", "shifted", 26, 17)
    yield row(converter + "4", "output", 27, 8)
    # the flag of a saturation counts it and no more; an int8 value is written 16 bits wide
    for idle in "34":
        yield _Row("sdp_data", "p._pipe_data", _IDLE, path=converter + idle)

    bias = Signal("bias", "operand", 18, when="last", unused=True)
    packed = Signal("output", "packed", 28, when="last", unused=True)
    word = packed._replace(held="word", stage=29)
    yield _Row("sdp_data", "pack_data", bias, 16, "kernel", path="u_bs_alu_pack")
    yield _Row("sdp_data", f"pack_seg{_CELL}", packed, path="u_dpout_unpack")
    yield _Row("sdp_wdma_data", r"skid_flop_\w+", _IDLE)
    queued = packed._replace(held="queued")
    name = "pipe_skid_dfifo_wr_pd"
    yield _Row("sdp_wdma_data", name, queued, 8, "kernel", path=f"u_dfifo{_LANE}")
    name = "pipe_skid_dmaif_wr_req_pd"
    yield _Row("sdp_wdma_data", name, word, 8, "kernel", bits=range(64), path="u_dmaif_wr")


_ROWS = (*_operands(), *_sums(), *_gates(), *_valids(), *_results())
MODELLED = frozenset(row.cls for row in _ROWS)
"""Register classes of which at least one register is modelled."""

_HALF_LANES = 4  # MAC cells of CMAC A
_INSTANCE = re.compile(r"u_(?:mac|cell_int8)_(\d)$")


def locate(cls: str, path: str, var: str, bit: int, *, rises: bool) -> Signal | None:
    """Find what a bit of the RTL holds.

    Args:
        cls: register class of the record.
        path: hierarchical instance.
        var: register name.
        bit: bit index.
        rises: the upset turned 0 into 1.

    Returns:
        The signal, with effect ``"none"`` where nothing can happen, or ``None`` if the register,
        or its upset in this direction, is not modelled.

    Example:
        >>> signal = locate("cmac_sum", "x.u_partition_mb.u_mac_2", "sum_out_d0_d1", 7, rises=True)
        >>> signal.stage, signal.kernel, signal.bit
        (5, 6, 7)
    """
    found = None
    for row in _ROWS:
        if row.cls != cls or bit not in row.bits:
            continue
        match, place = re.fullmatch(row.pattern, var), re.search(rf"{row.path}$", path)
        if match is None or place is None:
            continue
        if row.edge in ("", "rises" if rises else "falls"):
            names = {**place.groupdict(), **match.groupdict()}
            return _place(row, names, path, bit - row.bits.start)
        found = _IDLE
    return found


def _place(row: _Row, names: dict[str, str], path: str, bit: int) -> Signal:
    signal = row.signal
    instance = _INSTANCE.search(path)
    kernel = int(names.get("cell") or (instance[1] if instance else 0))
    if names.get("half") == "b" or "u_partition_mb" in path:
        kernel += _HALF_LANES
    lane = int(names.get("lane") or 0)
    part, rest = divmod(bit, row.split) if row.split else (0, bit)
    if row.part == "kernel":
        kernel += part
    else:
        lane += part
    stage = signal.stage + int(names.get("step") or 0)
    return signal._replace(stage=stage, kernel=kernel, lane=lane, bit=rest)
