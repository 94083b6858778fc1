"""Failures in time of an injected network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path  # noqa: TC003  pydantic reads it

from rasp.analysis.fit import Interval, Part, control, duty
from rasp.errors import ConfigError
from rasp.nvdla import config
from rasp.nvdla.layout import flip_flops, steering
from rasp.nvdla.registers import registers
from rasp.report import arms
from rasp.statistics import Rate  # noqa: TC001  pydantic reads it
from rasp.verbs._shared import Result

_FAILURES = {
    "sdc1": "top-1 changes",
    "output": "outputs of a layer change (at most this many answers)",
    "hang": "no answer",
}


class Line(Result):
    """FIT of one part.

    ``activity`` is the share of (bit, cycle) that holds a live value and ``rate`` the failures per
    upset over all of them; ``fit`` is at 100 % duty, ``fit_at_rate`` at the frame rate.
    """

    part: str
    failure: str
    bits: float
    estimated: bool
    activity: float
    rate: Rate
    raw_fit: float
    fit: Interval
    fit_at_rate: Interval | None


class Fit(Result):
    """The waterfall from raw upset rate to FIT, a line a part."""

    name: str
    accelerator: str
    format: str
    cycles: int
    duty: float | None
    lines: tuple[Line, ...]
    footnotes: tuple[str, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """Columns of the table."""
        head = ("part", "failure", ">bits", ">raw FIT", ">activity", ">per upset", ">FIT")
        return head if self.duty is None else (*head, ">FIT at the frame rate")

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Rows of the table."""
        return tuple(
            (
                line.part,
                _FAILURES[line.failure],
                f"{line.bits:,.0f}" + ("*" if line.estimated else ""),
                _digits(line.raw_fit),
                f"{line.activity:.0%}",
                str(line.rate),
                _interval(line.fit),
                *([] if line.fit_at_rate is None else [_interval(line.fit_at_rate)]),
            )
            for line in self.lines
        )


def fit(
    run: str | Path,
    *,
    raw_fit_per_mbit: float,
    memory_run: str | Path | None = None,
    memory_raw_fit_per_mbit: float | None = None,
    clock_mhz: float | None = None,
    fps: float | None = None,
) -> Fit:
    """Failures in time of a network on its accelerator.

    Args:
        run: directory of a campaign with ``faults="nvdla"`` over all layers.
        raw_fit_per_mbit: upsets per 10^9 hours and 10^6 flip-flops.
        memory_run: directory of a campaign with ``faults="memory"`` of the same network; without
            it the convolution buffer, usually protected by ECC, is left out.
        memory_raw_fit_per_mbit: raw rate of memory bits, that of flip-flops by default.
        clock_mhz: clock, needed for a frame rate.
        fps: frames a second; the accelerator idles between them.

    Raises:
        ConfigError: a campaign of another population, numbers out of range.
    """
    arm = arms.read(run)
    accelerator = config.load(arm.spec["accelerator"])
    _whole(arm, "nvdla", "window", {name for name, bits in flip_flops(accelerator).items() if bits})
    found = registers(accelerator)
    parts = [
        Part(
            "datapath",
            sum(arm.spec["fault_models"].values()),
            arm.activity.estimate,
            arm.sdc1,
            "sdc1",
            any(entry.estimated for entry in found),
        ),
        *control(found, steering(accelerator), arm.sdc1.confidence),
    ]
    raw = [raw_fit_per_mbit] * len(parts)
    if memory_run is not None:
        parts.append(_memory(arms.read(memory_run), arm, accelerator))
        raw.append(memory_raw_fit_per_mbit or raw_fit_per_mbit)
    share = None
    if (clock_mhz is None) != (fps is None):
        raise ConfigError("A frame rate needs both --fps and --clock-mhz.")
    if clock_mhz is not None and fps is not None:
        share = duty(arm.cycles, clock_mhz=clock_mhz, frames_per_second=fps)
    return Fit(
        name=arm.name,
        accelerator=accelerator.name,
        format=arm.format,
        cycles=arm.cycles,
        duty=share,
        lines=tuple(_line(part, rate, share) for part, rate in zip(parts, raw, strict=True)),
        footnotes=_footnotes(arm, parts),
    )


def _whole(arm: arms.Arm, population: str, layer_weights: str, models: set[str]) -> None:
    spec = arm.spec
    whole = models == set(spec["fault_models"]) and spec["layers"] is None
    if not whole or spec["layer_weights"] != layer_weights:
        raise ConfigError(
            f"'{arm.name}' was not injected from the whole population: FIT needs a campaign of "
            f"'rasp inject --faults {population}' over all layers."
        )


def _memory(memory: arms.Arm, arm: arms.Arm, accelerator: config.AcceleratorConfig) -> Part:
    _whole(memory, "memory", "storage", {"INPUT", "WEIGHT"})
    if memory.spec["network_digest"] != arm.spec["network_digest"]:
        raise ConfigError("The two campaigns are of different networks. Inject the same one twice.")
    filled, rate = memory.buffer_occupancy, memory.sdc1
    scaled = replace(
        rate, estimate=filled * rate.estimate, low=filled * rate.low, high=filled * rate.high
    )
    return Part("memory", accelerator.cbuf_bytes * 8.0, filled, scaled, "sdc1")


def _line(part: Part, raw: float, share: float | None) -> Line:
    found = part.fit(raw)
    return Line(
        part=part.name,
        failure=part.failure,
        bits=part.bits,
        estimated=part.estimated,
        activity=part.activity,
        rate=part.rate,
        raw_fit=raw * part.bits / 1e6,
        fit=found,
        fit_at_rate=None if share is None else found.scaled(share),
    )


def _footnotes(arm: arms.Arm, parts: list[Part]) -> tuple[str, ...]:
    notes = [
        "FIT: failures per 10^9 device hours at 100 % duty; 1 Mbit is 10^6 bits.",
        "Parts are not added up: they count different failures.",
        "Control: shares measured on the RTL of nv_small, dense random data (500 upsets a class).",
    ]
    if not arm.native:
        notes.append(f"{arm.accelerator} has no {arm.format} datapath: an arithmetic model.")
    if any(part.estimated for part in parts):
        notes.append("* flip-flops scaled from nv_small, not counted.")
    total = sum({part.name: part.bits for part in parts if part.name != "memory"}.values())
    notes.append(
        f"Datapath and control are all {total:,.0f} flip-flops that 'rasp ls registers' counts."
    )
    notes.append("Buffer writes, in the datapath: each input and weight is written once a layer.")
    if not any(part.name == "memory" for part in parts):
        notes.append("Memories are left out (taken as protected by ECC).")
    return tuple(notes)


def _digits(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _interval(value: Interval) -> str:
    if not value.estimate:
        return f"<= {_digits(value.high)}"
    return f"{_digits(value.estimate)} [{_digits(value.low)}, {_digits(value.high)}]"
