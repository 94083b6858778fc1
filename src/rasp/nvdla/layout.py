"""Which flip-flops hold what: the datapath and gate registers, grouped by what an upset does.

The composition of a class (how many words wait in it, which of them are idle) is that of nv_small's
RTL; the width of a word, the number of lanes and cells come from the accelerator and the format. An
accelerator whose flip-flops were counted or estimated differently keeps the shares of nv_small
within a class and its own count of the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rasp.nvdla.config import load
from rasp.nvdla.drain import QUEUES
from rasp.nvdla.registers import registers
from rasp.nvdla.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.mapping import Reach
    from rasp.nvdla.registers import Held
    from rasp.nvdla.signals import Effect, When

GROUPS = {
    "BUFFER_WRITE": "input or weight on its way into the buffer, all its uses",
    "ACTIVATION_SHARED": "activation on its way, all kernels of the group",
    "ACTIVATION_HALF": "activation in CMAC A or B, half of the kernels",
    "ACTIVATION_CELL": "activation copy of one MAC cell",
    "WEIGHT_LOAD": "weight on its way, one kernel of the next stripe",
    "WEIGHT_SHADOW": "weight waiting in a MAC cell, one kernel of the next stripe",
    "WEIGHT_ACTIVE": "weight in use, one kernel and the rest of the stripe",
    "MAC_SUM": "sum of a MAC cell",
    "ACCUMULATOR_SUM": "sum in the adder, before saturation",
    "ACCUMULATOR_PARTIAL": "running sum between two atoms",
    "ACCUMULATOR_FINAL": "result on its way to the SDP",
    "SDP_OUTPUT": "value in the SDP, one output element",
    "ZERO_MASK": "mask of zero operands, one product",
    "LANE_VALID": "valid bit of a lane, what was summed before is lost",
}
"""Groups of registers by what one upset does."""


class Field(NamedTuple):
    """Registers of one class that hold the same kind of value in the same stage.

    Attributes:
        group: one of :data:`GROUPS`.
        cls: register class.
        signal: what inverting a bit does, with the stage.
        kernels: :attr:`Signal.kernel` of each copy; number of a register that writes the buffer.
        lanes: channel lanes of a copy.
        width: bits of a lane.
        words: registers of this kind, alike in all that matters here.
        edge: 1 where the register is 0 and can only rise, -1 where only a fall does something, 0
            where the golden bit decides.
        first_lane: number of the first lane.
    """

    group: str
    cls: str
    signal: Signal
    kernels: tuple[int, ...]
    lanes: int
    width: int
    words: int = 1
    edge: int = 0
    first_lane: int = 0

    @property
    def bits(self) -> int:
        """Flip-flops of the field on nv_small's composition."""
        return self.words * len(self.kernels) * self.lanes * self.width


class Share(NamedTuple):
    """A field and the flip-flops it stands for on the accelerator."""

    field: Field
    flip_flops: float


class _Build:
    """Geometry of one accelerator and format, and the fields that follow from it."""

    def __init__(self, config: AcceleratorConfig, format: str) -> None:  # noqa: A002
        path = config.datapath(format)
        self.channels, lanes = config.atoms(format)
        self.cells = tuple(range(lanes))
        half = lanes // 2
        self.word = {"int8": 8, "fp16": 16, "fp32": 32}[format]
        self.integer = integer = format == "int8"
        self.product = path.mac_bits if integer else 32
        self.sum = path.sum_bits if integer else 32
        self.partial = path.partial_bits if integer else 32
        self.final = path.final_bits if integer else 32
        # cells that hold two int8 kernels get their activations in two copies, even and odd
        twice = path.kernels_per_cycle > 1
        self.copies = (0, 1) if twice else (0,)
        self.halves = tuple(h + c for h in (0, half) for c in self.copies)
        self.shared: Reach = "interleaved" if twice else "group"
        self.half: Reach = "interleaved_half" if twice else "half"
        self.load = tuple(range(path.kernels_per_cycle))
        self.loads = tuple(h + sub for h in (0, half) for sub in self.load)
        self.drain = tuple(range(config.sdp_throughput))

    def fields(self) -> Iterator[Field]:
        yield from self._writes()
        yield from self._activations()
        yield from self._weights()
        yield from self._sums()
        yield from self._masks()
        yield from self._valids()
        yield from self._outputs()

    def _writes(self) -> Iterator[Field]:
        # a port for inputs and one for weights, then a register for every half of the 32 banks
        for stage, count in ((0, 2), (1, 64)):
            signal = Signal("stored", "written", stage)
            copies = tuple(range(count))
            yield Field("BUFFER_WRITE", "cbuf_wr_data", signal, copies, self.channels, self.word)

    def _activations(self) -> Iterator[Field]:
        def field(
            group: str,
            cls: str,
            stage: int,
            reach: Reach,
            kernels: tuple[int, ...] = (0,),
            effect: Effect = "activation",
            words: int = 1,
            edge: int = 0,
            *,
            ungated: bool = False,
        ) -> Field:
            signal = Signal(effect, "atom", stage, reach, ungated=ungated)
            return Field(group, cls, signal, kernels, self.channels, self.word, words, edge)

        # OR tree over 32 banks, 8 groups of 4, 2 groups of 4 and the port; two read sides, one idle
        shared, bus = "ACTIVATION_SHARED", "cbuf_dat_rd"
        for stage, words in zip((-7, -6, -5, -4), (32, 8, 2, 1), strict=True):
            yield field(shared, bus, stage, "group", effect="activation_bus")
            if words > 1:
                yield field(
                    shared,
                    bus,
                    stage,
                    "group",
                    effect="activation_bus",
                    words=words - 1,
                    edge=1,
                )
        yield field(shared, bus, 0, "group", effect="none", words=42)
        yield field(shared, "csc_dl_data", -3, "group", ungated=True)
        yield field(shared, "csc_dl_data", -2, "group")
        yield field(shared, "csc_dl_data", -1, self.shared, self.copies)
        yield field(shared, "csc_dl_data", 0, "group", effect="none", words=13)
        half = "ACTIVATION_HALF"
        yield field(half, "csc_dl_out_ab", 0, self.half, self.halves)
        yield field(half, "cmac_dat_in_rt", 1, self.half, self.halves)
        yield field(half, "cmac_dat_in_rt", 2, self.half, self.halves)
        yield field(half, "cmac_dat_pre", 3, self.half, self.halves)
        yield field("ACTIVATION_CELL", "cmac_dat_actv", 4, "cell", self.cells)

    def _weights(self) -> Iterator[Field]:
        def field(
            cls: str,
            stage: int,
            kernels: tuple[int, ...] = self.load,
            effect: Effect = "weight",
            words: int = 1,
            edge: int = 0,
            *,
            held: Held = "loading",
            ungated: bool = False,
        ) -> Field:
            group = {"shadow": "WEIGHT_SHADOW", "active": "WEIGHT_ACTIVE"}.get(held, "WEIGHT_LOAD")
            reach: Reach = "suffix" if held == "active" else "stripe"
            signal = Signal(effect, held, stage, reach, ungated=ungated)
            lanes = self.channels
            return Field(group, cls, signal, kernels, lanes, self.word, words, edge)

        for stage, words in zip((-8, -7, -6, -5), (32, 8, 2, 1), strict=True):
            yield field("cbuf_wt_rd", stage, effect="weight_bus")
            if words > 1:
                yield field("cbuf_wt_rd", stage, effect="weight_bus", words=words - 1, edge=1)
        for stage in (-4, -3, -2):
            yield field("csc_wl_data", stage, ungated=True)
        yield field("csc_wl_data", -1)
        # bytes left over from a word; empty where the channels fill whole atoms
        yield field("csc_wl_data", 0, effect="none")
        yield field("csc_wl_out_ab", 0, self.loads)
        yield field("cmac_wt_in_rt", 1, self.loads)
        yield field("cmac_wt_in_rt", 2, self.loads)
        yield field("cmac_wt_pre", 3, self.loads)
        yield field("cmac_wt_sd", 4, self.cells, held="shadow")
        yield field("cmac_wt_actv", 4, self.cells, held="active")

    def _sums(self) -> Iterator[Field]:
        def field(
            group: str, cls: str, effect: Effect, stage: int, width: int, when: When = "any"
        ) -> Field:
            signal = Signal(effect, "atom", stage, "element", when=when)
            return Field(group, cls, signal, self.cells, 1, width)

        for stage in (5, 6, 7):
            yield field("MAC_SUM", "cmac_sum", "product", stage, self.product)
        for stage in (8, 9):
            yield field("MAC_SUM", "cmac_out_rt", "product", stage, self.product)
        yield field("ACCUMULATOR_SUM", "cacc_sum", "sum", 10, self.sum)
        partial, final = "ACCUMULATOR_PARTIAL", "ACCUMULATOR_FINAL"
        yield field(partial, "cacc_partial_out", "partial", 11, self.partial, "inner")
        yield field(partial, "cacc_abuf_wr", "partial", 12, self.partial, "inner")
        yield field(partial, "cacc_abuf_rd", "restored", 9, self.partial, "later")
        yield field(final, "cacc_final_out", "final", 11, self.final, "last")
        yield field(final, "cacc_dlv_data", "final", 12, self.final, "last")
        yield field(final, "cacc_dbuf_wr", "final", 13, self.final, "last")

    def _masks(self) -> Iterator[Field]:
        def field(
            cls: str,
            stage: int,
            reach: Reach,
            kernels: tuple[int, ...],
            effect: Effect = "activation_gate",
            held: Held = "atom",
        ) -> Field:
            signal = Signal(effect, held, stage, reach)
            return Field("ZERO_MASK", cls, signal, kernels, self.channels, 1)

        yield field("csc_dl_mask", -2, "group", (0,))
        yield field("csc_dl_mask", -1, self.shared, self.copies)
        yield field("csc_dl_mask", 0, self.half, self.halves)
        for stage in (1, 2):
            yield field("cmac_mask_in_rt", stage, self.half, self.halves)
            yield field("cmac_mask_in_rt", stage, "stripe", self.loads, "weight_gate", "loading")
        yield field("cmac_nz_mask", 3, self.half, self.halves)
        yield field("cmac_nz_mask", 4, "cell", self.cells)
        yield field("cmac_nz_mask", 3, "stripe", self.loads, "weight_gate", "loading")
        yield field("cmac_nz_mask", 4, "stripe", self.cells, "weight_gate", "shadow")
        yield field("cmac_nz_mask", 4, "suffix", self.cells, "weight_gate", "active")

    def _valids(self) -> Iterator[Field]:
        def field(
            cls: str,
            stage: int,
            when: When = "any",
            words: int = 1,
            *,
            reach: Reach = "element",
            held: Held = "atom",
            effect: Effect = "valid",
            skip: int = 0,
        ) -> Field:
            signal = Signal(effect, held, stage, reach, when=when, skip=skip)
            kernels = (0, len(self.cells) // 2) if reach == "half" else self.cells
            return Field("LANE_VALID", cls, signal, kernels, 1, 1, words, -1)

        control = "cmac_ctl_active"
        # bit 0 of a cell's two valid masks counts for the lane, the others for one product each
        yield field(control, 4, words=2)
        product = field(control, 4, reach="cell", effect="activation_gate", words=2)
        yield product._replace(lanes=self.channels - 1, first_lane=1)
        yield field(control, 4, reach="suffix", held="active", skip=1)
        yield field(control, 4, reach="stripe", held="shadow")
        yield field(control, 3, reach="half")
        for stage in (5, 6, 7):
            yield field("cmac_sum_vld", stage)
        for stage in (8, 9):
            yield field("cmac_ctl_out", stage)
        yield field("cacc_cell_ctl", 10, words=2)
        yield field("cacc_cell_ctl", 11, "inner")
        yield field("cacc_cell_ctl", 11, "last")
        yield field("cacc_cell_ctl", 11)._replace(signal=Signal("none"))

    def _outputs(self) -> Iterator[Field]:
        def field(
            effect: Effect,
            stage: int,
            width: int,
            kernels: tuple[int, ...] = self.drain,
            held: Held = "result",
            lanes: int = 1,
            cls: str = "sdp_data",
        ) -> Field:
            signal = Signal(effect, held, stage, "element", when="last")
            return Field("SDP_OUTPUT", cls, signal, kernels, lanes, width)

        def idle(cls: str, bits: int) -> Field:
            return Field("SDP_OUTPUT", cls, Signal("none"), (0,), 1, 1, bits)

        def width(bits: int) -> int:
            return bits if self.integer else 32

        for stage in (16, 17, 18, 19):
            yield field("result", stage, self.final)
        yield field("bias", 18, 16 if self.integer else self.word, self.cells, "operand")
        yield field("operand", 19, self.final)
        yield field("biased", 20, width(33))
        yield field("saturated", 21, self.final)
        yield field("rectified", 22, self.final)
        yield field("rectified", 23, self.final)
        yield field("offset", 24, width(33))
        yield field("scaled", 25, width(49))
        yield field("shifted", 26, width(17))
        yield field("output", 27, self.word)
        yield field("output", 28, self.word, self.cells, "packed")
        # skid registers, the bypassed multiplier and BN unit, the way from memory and to the PDP
        yield idle("sdp_data", 1597)
        memory = "sdp_wdma_data"
        yield field("output", 28, self.word, self.cells, "queued", QUEUES, memory)
        yield field("output", 29, self.word, self.cells, "word", 1, memory)
        yield idle(memory, 322)


def fields(config: AcceleratorConfig, format: str = "int8") -> tuple[Field, ...]:  # noqa: A002
    """The fields of an accelerator in a number format.

    Example:
        >>> small = fields(load("nv_small"))
        >>> sum(field.bits for field in small if field.cls == "cbuf_dat_rd")
        5440
    """
    return tuple(_Build(config, format).fields())


def shares(config: AcceleratorConfig, format: str = "int8") -> tuple[Share, ...]:  # noqa: A002
    """Fields with the flip-flops they stand for; classes the accelerator does not have are 0."""
    small = load("nv_small")
    reference: dict[tuple[str, int], float] = {}
    for index, field in enumerate(fields(small)):
        reference[field.cls, index] = field.bits / small.flip_flops[field.cls]
    counts = {register.name: register.flip_flops for register in registers(config)}
    return tuple(
        Share(field, reference[field.cls, index] * counts.get(field.cls, 0))
        for index, field in enumerate(fields(config, format))
    )


def flip_flops(config: AcceleratorConfig) -> dict[str, float]:
    """Flip-flops of each group of registers on an accelerator, idle copies included.

    Example:
        >>> flip_flops(load("nv_small"))["ACTIVATION_CELL"]
        512.0
    """
    totals = dict.fromkeys(GROUPS, 0.0)
    for share in shares(config):
        totals[share.field.group] += share.flip_flops
    return totals


def steering(config: AcceleratorConfig) -> dict[str, float]:
    """Flip-flops of each register class that hold no value of the datapath.

    Those of the control classes, but for the valid bits among them, and the few elsewhere that
    mark the end of a stripe or a layer. With :func:`flip_flops` they add up to all classes.

    Example:
        >>> rest = steering(load("nv_small"))
        >>> rest["cacc_ctl"], rest["sdp_data"], sum(rest.values())
        (190.0, 3.0, 21982.0)
        >>> sum(rest.values()) + sum(flip_flops(load("nv_small")).values())
        44299.0
    """
    rest = {register.name: float(register.flip_flops) for register in registers(config)}
    for share in shares(config):
        if share.field.cls in rest:
            rest[share.field.cls] -= share.flip_flops
    return {name: round(count, 6) for name, count in rest.items() if round(count, 6)}
