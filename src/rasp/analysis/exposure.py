"""From failures per fault to failures per inference.

A rate of a campaign says what ONE upset does. How many upsets an inference meets grows with the
register bits that can be hit and the cycles they are exposed for:

    failures per inference = upset rate per bit and cycle x register bits x cycles x rate per fault

The upset rate is the environment's and cancels in every comparison, so it is left out here: an
:class:`Exposure` counts failures per inference *per upset rate of one bit in one cycle*. A pruned
network can be worse per fault and better per inference; say which one is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from typing import TYPE_CHECKING

from rasp.errors import ConfigError
from rasp.statistics import Rate, Ratio, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rasp.campaign.result import CampaignResult


@dataclass(frozen=True, slots=True)
class Exposure:
    """What an inference exposes, and how much of it fails.

    Attributes:
        register_bits: bits of the registers that the campaign's faults stand for.
        cycles: cycles of one inference in which they are live.
        rate: failures per fault.

    Example:
        >>> from rasp.statistics import wilson
        >>> exposure = Exposure(register_bits=4096, cycles=10_000, rate=wilson(50, 10_000))
        >>> round(exposure.failures)
        204800
    """

    register_bits: float
    cycles: int
    rate: Rate

    def __post_init__(self) -> None:
        if not (self.register_bits > 0 and self.cycles > 0):
            raise ConfigError(
                f"An exposure needs register bits and cycles above zero, "
                f"got {self.register_bits} bits and {self.cycles} cycles."
            )

    @property
    def bit_cycles(self) -> float:
        """Places and times an upset can hit in one inference."""
        return self.register_bits * self.cycles

    @property
    def failures(self) -> float:
        """Failures per inference per upset rate (of one bit in one cycle)."""
        return self.bit_cycles * self.rate.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the interval of :attr:`failures`; bits and cycles are known exactly."""
        return self.bit_cycles * self.rate.low, self.bit_cycles * self.rate.high


def exposure(
    result: CampaignResult,
    *,
    cycles: Mapping[str, int],
    register_bits: float,
    outcome: str = "sdc1",
) -> Exposure:
    """Exposure of a campaign's network, over the layers the campaign drew faults in.

    The overall rate is the mean over register bits and cycles only if layers were drawn in
    proportion to their cycles, so anything else is refused.

    Args:
        result: a campaign.
        cycles: cycles of each layer for one inference.
        register_bits: bits of the registers that the faults stand for.
        outcome: what counts as a failure.

    Raises:
        ConfigError: layers were not drawn by these cycles, or a layer has none.
    """
    shares = result.layer_shares
    if absent := [layer for layer in shares if layer not in cycles]:
        raise ConfigError(f"No cycles were given for layer '{absent[0]}'.")
    total = sum(cycles[layer] for layer in shares)
    for layer, share in shares.items():
        if not isclose(share * total, cycles[layer], rel_tol=1e-6):
            raise ConfigError(
                f"Failures per inference need faults drawn by the layers' cycles: '{layer}' has "
                f"{cycles[layer] / total:.3%} of the cycles but {share:.3%} of the faults. Run "
                f"the campaign with layer weights 'cycles' on the same accelerator and format."
            )
    return Exposure(register_bits=register_bits, cycles=total, rate=result.overall[outcome])


def relative(candidate: Exposure, reference: Exposure) -> Ratio:
    """Failures per inference of one network over those of another, usually the dense one.

    Raises:
        ConfigError: the two rates have different confidence levels.

    Example:
        >>> from rasp.statistics import wilson
        >>> dense = Exposure(register_bits=4096, cycles=10_000, rate=wilson(100, 10_000))
        >>> pruned = Exposure(register_bits=4096, cycles=4_000, rate=wilson(150, 10_000))
        >>> print(relative(pruned, dense))
        0.60x [0.47, 0.77]
    """
    return ratio(candidate.rate, reference.rate).scaled(candidate.bit_cycles / reference.bit_cycles)
