"""How a campaign is cut: rounds into chunks of trials, chunks among shards."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Self

from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.campaign.spec import CampaignSpec

TRIALS = {"fp32": 1 << 13, "fp16": 1 << 14, "int8": 1 << 16}
"""Trials of a chunk by number format, the work a kill can cost: half a minute or less of most."""


class Chunks:
    """Pieces of at most ``size`` trials of each round, numbered in order.

    Args:
        rounds: trials of each round, one after the other; none is empty.
        size: trials of a whole chunk, above zero.

    Example:
        >>> chunks = Chunks([range(0, 5), range(5, 8)], size=4)
        >>> [chunks.span(chunk) for chunk in range(len(chunks))]
        [range(0, 4), range(4, 5), range(5, 8)]
        >>> chunks.before(1)
        2
    """

    def __init__(self, rounds: Sequence[range], size: int) -> None:
        self.size = size
        self._rounds = tuple(rounds)
        self._first = list(accumulate((-(-len(r) // size) for r in rounds), initial=0))

    def __len__(self) -> int:
        return self._first[-1]

    def span(self, chunk: int) -> range:
        """Trials of a chunk.

        Raises:
            ValueError: there is no such chunk.
        """
        if not 0 <= chunk < len(self):
            raise ValueError(f"there are chunks 0 to {len(self) - 1}, not {chunk}")
        index = bisect_right(self._first, chunk) - 1
        trials = self._rounds[index]
        start = trials.start + (chunk - self._first[index]) * self.size
        return range(start, min(start + self.size, trials.stop))

    def before(self, rounds: int) -> int:
        """Chunks in the first ``rounds`` rounds."""
        return self._first[rounds]

    def ending(self, trials: int) -> int:
        """Number of rounds that ``trials`` trials fill.

        Raises:
            ValueError: ``trials`` is not the end of a round.
        """
        for number, span in enumerate(self._rounds, start=1):
            if span.stop == trials:
                return number
        raise ValueError(f"no round ends after {trials} trials")


@dataclass(frozen=True, order=True, slots=True)
class Shard:
    """One of ``count`` parts of a campaign, run by itself and joined by ``rasp merge``.

    Example:
        >>> shard = Shard.parse("2/4")
        >>> [chunk for chunk in range(10) if shard.owns(chunk)]
        [1, 5, 9]
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"k/N"``.

        Raises:
            ConfigError: not two whole numbers with ``1 <= k <= N``.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(
                f"A shard is k/N with 1 <= k <= N, got '{text}'. Example: --shard 1/4."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, chunk: int) -> bool:
        """Whether the shard runs a chunk."""
        return chunk % self.count == self.number - 1


def check_shard(shard: Shard, spec: CampaignSpec, chunks: Chunks) -> None:
    """Refuse a shard of a campaign that cannot be cut into that many.

    Raises:
        ConfigError: a trial may depend on the outcomes of others, or a shard would have no trial.
    """
    if getattr(spec, "sampling", "uniform") != "uniform" or getattr(spec, "margin", None):
        raise ConfigError(
            f"Shard {shard} was asked of a campaign that decides by its own outcomes which trials "
            f"to run, and a shard sees only its own. Use uniform sampling without a margin."
        )
    if shard.count > len(chunks):
        raise ConfigError(
            f"Shard {shard} was asked of a campaign of {spec.trials} trials, which is "
            f"{len(chunks)} chunk(s) of {chunks.size}. At most that many shards have work."
        )
