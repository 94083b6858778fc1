"""A rate and a ratio of rates: what they hold, what they refuse and how they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rasp.errors import ConfigError

_ROUNDING = 1e-12
_LARGEST_WITH_TWO_DIGITS = 3.55
"""Leading digits up to which an uncertainty is printed with two (Particle Data Group's rule)."""


@dataclass(frozen=True, slots=True)
class Rate:
    """An estimated probability with its confidence interval.

    Attributes:
        estimate: ``events / n``.
        low, high: ends of the interval, within [0, 1].
        n: trials.
        n_effective: independent trials that would give an interval this wide.
        events: trials that counted.
        confidence: two-sided confidence level of ``[low, high]``.
        method: how the interval was computed.
    """

    estimate: float
    low: float
    high: float
    n: int
    n_effective: float
    events: int
    confidence: float
    method: str

    def __post_init__(self) -> None:
        """Refuse what is no rate, for files that strangers wrote."""
        inside = 0 <= self.low <= self.estimate + _ROUNDING <= self.high + 2 * _ROUNDING
        if not (
            0 <= self.events <= self.n
            and self.n >= 1
            and 0 < self.n_effective < math.inf
            and inside
            and 0 < self.high <= 1
            and self.low < 1
            and 0 < self.confidence < 1
        ):
            raise ConfigError(
                f"Not a rate: {self.events} events of n = {self.n}, estimate {self.estimate} "
                f"[{self.low}, {self.high}] at confidence {self.confidence}."
            )

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def complement(self) -> Rate:
        """Rate of the trials that did not count."""
        low, high = 1 - self.high, 1 - self.low
        left = self.n - self.events
        return replace(self, estimate=1 - self.estimate, low=low, high=high, events=left)

    def __str__(self) -> str:
        """Percent with as many decimals as the interval supports; a bound if nothing varied."""
        if self.events == 0:
            return f"<= {_bound(100 * self.high)} % (0/{spaced(self.n)})"
        if self.events == self.n:
            shortfall = _bound(100 * (1 - self.low))
            decimals = len(shortfall.partition(".")[2])
            return f">= {100 - float(shortfall):.{decimals}f} % ({spaced(self.n)}/{spaced(self.n)})"
        finest = min(self.half_width, self.estimate, 1 - self.estimate)
        decimals = max(1, -math.floor(math.log10(100 * finest / _LARGEST_WITH_TWO_DIGITS)))
        estimate, low, high = (
            f"{100 * value:.{decimals}f}" for value in (self.estimate, self.low, self.high)
        )
        return f"{estimate} % [{low}, {high}] n={spaced(self.n)}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Quotient of two rates with its confidence interval.

    Attributes:
        estimate: the quotient; ``None`` where the denominator had no events.
        low: lower end.
        high: upper end; ``None`` where it is unbounded.
        confidence: two-sided confidence level of ``[low, high]``.
    """

    estimate: float | None
    low: float
    high: float | None
    confidence: float

    def scaled(self, factor: float) -> Ratio:
        """The same ratio with every number multiplied by a known positive factor."""
        return replace(
            self,
            estimate=None if self.estimate is None else self.estimate * factor,
            low=self.low * factor,
            high=None if self.high is None else self.high * factor,
        )

    def __str__(self) -> str:
        """Two digits or decimals, ``0.62x [0.51, 0.75]``; a bound where there is no estimate."""
        if self.high is None:
            return f">= {self.low:.2f}x" if self.low else "unknown"
        if not self.estimate:
            return f"<= {self.high:.{_decimals(self.high)}f}x"
        ends = (f"{value:.{_decimals(self.estimate)}f}" for value in (self.low, self.high))
        return f"{self.estimate:.{_decimals(self.estimate)}f}x [{', '.join(ends)}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two rates with its confidence interval.

    Attributes:
        estimate: the difference.
        low, high: ends of the interval.
        confidence: two-sided confidence level of ``[low, high]``.
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        """Percentage points with their sign."""
        estimate, low, high = (100 * value for value in (self.estimate, self.low, self.high))
        return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}] points"


def spaced(count: float) -> str:
    """A count as it is printed everywhere, rounded and in groups of three digits.

    Example:
        >>> spaced(38415)
        '38 415'
    """
    return f"{count:,.0f}".replace(",", " ")


def _decimals(ratio: float) -> int:
    return max(2, 1 - math.floor(math.log10(ratio)))


def _bound(percent: float) -> str:
    """Two significant digits, rounded up so that a printed bound still holds."""
    decimals = max(0, 1 - math.floor(math.log10(percent)))
    step = 10.0**decimals
    return f"{math.ceil(percent * step - 1e-9) / step:.{decimals}f}"
