"""The flip-flops of the convolution pipeline by class: how many, what they hold, what they reach.

Classes are those of the RTL injections on nv_small. Three kinds are kept apart: ``datapath``
registers hold operands or sums, ``gate`` registers the masks and valids beside them, ``control``
registers steer the sequence and are never part of the datapath rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from rasp.errors import unknown_name
from rasp.nvdla.config import AcceleratorConfig, Atoms, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from rasp.nvdla.mapping import Reach

Kind = Literal["datapath", "gate", "control"]

Role = Literal["activation", "weight", "product", "sum", "partial", "final", "output", "memory"]
"""What a datapath register holds.

``product`` is the sum of one MAC cell, ``sum`` the adder's result before saturation, ``partial``
the running sum, ``final`` the 32-bit result, ``output`` a value in the SDP, and ``memory`` a value
on its way into the convolution buffer.
"""

Held = Literal[
    "written",
    "atom",
    "loading",
    "shadow",
    "active",
    "result",
    "operand",
    "packed",
    "word",
    "queued",
]
"""How long: the cycle a word is written in, one atom's cycle, one kernel's load cycle, until the
next package, a stripe; in the SDP one result's cycle, until its result comes, until its pixel is
complete, one cycle of a complete pixel, or that in one of :data:`~rasp.nvdla.drain.QUEUES` queues.
"""


class Shares(NamedTuple):
    """Outcome of random upsets in a class: changed int8 outputs, and hangs."""

    sdc: float
    hang: float


@dataclass(frozen=True, slots=True)
class RegisterClass:
    """One class of registers on one accelerator.

    Attributes:
        name: name of the class in the injection records.
        unit: NVDLA unit, e.g. ``"CMAC"``.
        kind: ``"datapath"``, ``"gate"`` or ``"control"``.
        flip_flops: number of bits.
        estimated: the number is scaled from nv_small, not counted.
        role: what it holds, datapath only.
        reach: which outputs one upset can touch, where the class has one answer.
        held: how long a value stays, datapath only.
        measured: shares measured on nv_small, layer A, 500 upsets a class (95 % interval about
            +-0.04).
    """

    name: str
    unit: str
    kind: Kind
    flip_flops: int
    estimated: bool
    role: Role | None
    reach: Reach | None
    held: Held | None
    measured: Shares


class _Class(NamedTuple):
    kind: Kind
    scale: str
    sdc: float
    hang: float
    role: Role | None = None
    reach: Reach | None = None
    held: Held | None = None


# Factor on nv_small's count: one word of atomic C, one register per kernel lane, one word per MAC
# cell, per lane and MAC width, per SDP lane; control does not grow.
_SCALES: dict[str, Callable[[AcceleratorConfig, Atoms], float]] = {
    "word": lambda _, atoms: atoms.channels / 8,
    "lane": lambda _, atoms: atoms.kernels / 8,
    "cell": lambda _, atoms: atoms.channels * atoms.kernels / 64,
    "mac": lambda config, atoms: atoms.kernels / 8 * config.datapath("int8").mac_bits / 19,
    "sdp": lambda config, _: float(config.sdp_throughput),
    "none": lambda _config, _atoms: 1.0,
}

_CLASSES: dict[str, _Class] = {
    "cbuf_dat_rd": _Class("datapath", "word", 0.138, 0.0, "activation", "group", "atom"),
    "cbuf_wt_rd": _Class("datapath", "word", 0.278, 0.0, "weight", "stripe", "loading"),
    "cbuf_wr_data": _Class("datapath", "word", 0.002, 0.0, "memory", None, "written"),
    "cbuf_ctl": _Class("control", "none", 0.026, 0.0),
    "csc_dl_data": _Class("datapath", "word", 0.084, 0.0, "activation", "group", "atom"),
    "csc_dl_out_ab": _Class("datapath", "word", 0.428, 0.0, "activation", "half", "atom"),
    "csc_dl_mask": _Class("gate", "word", 0.674, 0.0),
    "csc_dl_ctl": _Class("control", "none", 0.248, 0.010),
    "csc_wl_data": _Class("datapath", "word", 0.430, 0.0, "weight", "stripe", "loading"),
    "csc_wl_out_ab": _Class("datapath", "word", 0.244, 0.0, "weight", "stripe", "loading"),
    "csc_wl_ctl": _Class("control", "none", 0.184, 0.0),
    "csc_sg_ctl": _Class("control", "none", 0.232, 0.104),
    "csc_reg_active": _Class("control", "none", 0.044, 0.0),
    "csc_reg_other": _Class("control", "none", 0.010, 0.0),
    "cmac_dat_in_rt": _Class("datapath", "word", 0.436, 0.0, "activation", "half", "atom"),
    "cmac_wt_in_rt": _Class("datapath", "word", 0.268, 0.0, "weight", "stripe", "loading"),
    "cmac_mask_in_rt": _Class("gate", "word", 0.566, 0.0),
    "cmac_ctl_in_rt": _Class("control", "none", 0.296, 0.002),
    "cmac_dat_pre": _Class("datapath", "word", 0.436, 0.0, "activation", "half", "atom"),
    "cmac_dat_actv": _Class("datapath", "cell", 0.180, 0.0, "activation", "cell", "atom"),
    "cmac_wt_pre": _Class("datapath", "word", 0.252, 0.0, "weight", "stripe", "loading"),
    "cmac_wt_sd": _Class("datapath", "cell", 0.464, 0.0, "weight", "stripe", "shadow"),
    "cmac_wt_actv": _Class("datapath", "cell", 0.496, 0.0, "weight", "suffix", "active"),
    "cmac_nz_mask": _Class("gate", "cell", 0.562, 0.0),
    "cmac_ctl_active": _Class("gate", "cell", 0.396, 0.0),
    "cmac_sum": _Class("datapath", "mac", 0.254, 0.0, "product", "element", "atom"),
    "cmac_sum_vld": _Class("gate", "lane", 0.496, 0.0),
    "cmac_out_rt": _Class("datapath", "mac", 0.282, 0.0, "product", "element", "atom"),
    "cmac_ctl_out": _Class("control", "none", 0.198, 0.036),
    "cmac_reg_active": _Class("control", "none", 0.0, 0.0),
    "cmac_reg_other": _Class("control", "none", 0.132, 0.008),
    "cacc_sum": _Class("datapath", "lane", 0.406, 0.0, "sum", "element", "atom"),
    "cacc_partial_out": _Class("datapath", "lane", 0.370, 0.0, "partial", "element", "atom"),
    "cacc_final_out": _Class("datapath", "lane", 0.014, 0.0, "final", "element", "atom"),
    "cacc_cell_ctl": _Class("gate", "lane", 0.352, 0.0),
    "cacc_abuf_wr": _Class("datapath", "lane", 0.430, 0.0, "partial", "element", "atom"),
    "cacc_abuf_rd": _Class("datapath", "lane", 0.390, 0.0, "partial", "element", "atom"),
    "cacc_dlv_data": _Class("datapath", "lane", 0.022, 0.0, "final", "element", "atom"),
    "cacc_dbuf_wr": _Class("datapath", "lane", 0.018, 0.0, "final", "element", "atom"),
    "cacc_reg_active": _Class("control", "none", 0.0, 0.0),
    "cacc_reg_other": _Class("control", "none", 0.042, 0.0),
    "cacc_ctl": _Class("control", "none", 0.350, 0.044),
    "cdma_reg_active": _Class("control", "none", 0.0, 0.0),
    "cdma_other": _Class("control", "none", 0.006, 0.002),
    "sdp_reg_active": _Class("control", "none", 0.132, 0.024),
    "sdp_reg_other": _Class("control", "none", 0.0, 0.002),
    "sdp_data": _Class("datapath", "sdp", 0.060, 0.0, "output", "element", "result"),
    "sdp_ctl": _Class("control", "none", 0.180, 0.120),
    "sdp_wdma_data": _Class("datapath", "sdp", 0.020, 0.0, "output", "element", "result"),
    "sdp_wdma_ctl": _Class("control", "none", 0.186, 0.324),
}

CLASSES = tuple(_CLASSES)
"""Names of the register classes."""


def registers(config: AcceleratorConfig) -> tuple[RegisterClass, ...]:
    """Register classes of an accelerator with their flip-flop counts.

    Counts come from the configuration where somebody counted them (nv_small, nv_full); elsewhere
    nv_small's counts are scaled with the width of what the class holds (an operand word with
    atomic C, a per-cell copy with C x K, a lane with K, the MAC sum with K and its width, the SDP
    with its throughput, control not at all) and marked as estimated.

    Raises:
        ConfigError: the configuration counts a class that does not exist.

    Example:
        >>> small = {register.name: register for register in registers(load("nv_small"))}
        >>> small["cmac_dat_actv"].flip_flops, small["cmac_dat_actv"].reach
        (512, 'cell')
        >>> sum(register.flip_flops for register in small.values())
        44299
    """
    for name in config.flip_flops:
        if name not in _CLASSES:
            raise unknown_name("register class", name, CLASSES)
    estimated = not config.flip_flops
    counts = _scaled(config) if estimated else config.flip_flops
    return tuple(
        RegisterClass(
            name=name,
            unit=name.split("_")[0].upper(),
            kind=entry.kind,
            flip_flops=counts[name],
            estimated=estimated,
            role=entry.role,
            reach=entry.reach,
            held=entry.held,
            measured=Shares(entry.sdc, entry.hang),
        )
        for name, entry in _CLASSES.items()
        if name in counts
    )


def _scaled(config: AcceleratorConfig) -> dict[str, int]:
    atoms = config.atoms("int8")
    return {
        name: round(count * _SCALES[_CLASSES[name].scale](config, atoms))
        for name, count in load("nv_small").flip_flops.items()
    }
