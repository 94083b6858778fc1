"""Failures in time: from a raw upset rate to FIT, step by step.

    FIT of a part = raw FIT per Mbit x Mbit of the part x P(failure | upset)

where the probability is over uniformly random bits of the part and cycles of an inference, dead
time included; it factors into the activity (the upset hits a live value) and the failure rate of
live hits. 1 FIT is one failure in 10^9 device hours, 1 Mbit is 10^6 bits. At 100 % duty the FIT
does not depend on how long an inference takes; at a fixed frame rate it shrinks with the duty.

Parts are never mixed: the datapath is injected, control registers carry shares measured on the RTL
of nv_small, and memory, usually protected by ECC, is left out unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple

from rasp.errors import ConfigError
from rasp.statistics import Rate, stratified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rasp.nvdla.registers import RegisterClass

MBIT = 1e6
MEASURED_UPSETS = 500
"""Upsets injected per register class of nv_small's RTL, layer A."""

Failure = Literal["sdc1", "output", "hang"]
"""``sdc1``: top-1 changes; ``output``: some INT8 output of the layer changes, an upper bound of it;
``hang``: no answer."""


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Everything times a known factor."""
        return Interval(*(factor * value for value in self))


@dataclass(frozen=True, slots=True)
class Part:
    """Bits that fail together.

    Attributes:
        name: ``"datapath"``, ``"control"`` or ``"memory"``.
        bits: number of bits.
        activity: share of (bit, cycle) that holds a live value; 1 where the rate was measured over
            all of them.
        rate: failures per upset of a random bit in a random cycle.
        failure: what counts as a failure.
        estimated: the bits are scaled from nv_small, not counted.
    """

    name: str
    bits: float
    activity: float
    rate: Rate
    failure: Failure
    estimated: bool = False

    def fit(self, raw_fit_per_mbit: float) -> Interval:
        """FIT at 100 % duty.

        Args:
            raw_fit_per_mbit: upsets per 10^9 hours and 10^6 bits.

        Raises:
            ConfigError: the raw rate is not a positive number.

        Example:
            >>> from rasp.statistics import wilson
            >>> part = Part("datapath", 40_000, 0.3, wilson(100, 10_000), "sdc1")
            >>> round(part.fit(600).estimate, 3)
            0.24
        """
        if not (isfinite(raw_fit_per_mbit) and raw_fit_per_mbit > 0):
            raise ConfigError(
                f"The raw rate must be positive FIT per Mbit, got {raw_fit_per_mbit}."
            )
        rate = Interval(self.rate.estimate, self.rate.low, self.rate.high)
        return rate.scaled(raw_fit_per_mbit * self.bits / MBIT)


def duty(cycles: int, *, clock_mhz: float, frames_per_second: float) -> float:
    """Share of the time an inference runs.

    Raises:
        ConfigError: a number that is not positive, or more frames than the clock allows.

    Example:
        >>> duty(20_000_000, clock_mhz=1000, frames_per_second=30)
        0.6
    """
    for name, value in (("clock", clock_mhz), ("frame rate", frames_per_second)):
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"The {name} must be positive, got {value}.")
    share = cycles * frames_per_second / (clock_mhz * 1e6)
    if share > 1:
        raise ConfigError(
            f"{frames_per_second:g} frames a second of {cycles} cycles need {share:.0%} of a "
            f"{clock_mhz:g} MHz clock. Lower the frame rate or raise the clock."
        )
    return share


def control(
    registers: Iterable[RegisterClass], bits: Mapping[str, float], confidence: float = 0.95
) -> tuple[Part, Part]:
    """Control registers: upsets that change outputs, and upsets that hang.

    Shares per class are those measured on nv_small, weighted by the accelerator's flip-flops. A
    changed output need not change the answer, so the first part is an upper bound of SDC-1.

    Args:
        registers: the classes of an accelerator.
        bits: flip-flops of each class that steer, :func:`rasp.nvdla.layout.steering`.
        confidence: level of the intervals.
    """
    chosen = [register for register in registers if register.name in bits]
    weights = [bits[register.name] for register in chosen]
    total = sum(weights)
    estimated = any(register.estimated for register in chosen)
    shares = {
        "output": [register.measured.sdc for register in chosen],
        "hang": [register.measured.hang for register in chosen],
    }
    silent, hang = (
        Part(
            "control",
            total,
            1.0,
            stratified(
                weights,
                [round(share * MEASURED_UPSETS) for share in shares[failure]],
                [MEASURED_UPSETS] * len(chosen),
                confidence,
            ),
            failure,
            estimated,
        )
        for failure in ("output", "hang")
    )
    return silent, hang
