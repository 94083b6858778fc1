"""What a campaign found: rates with image-clustered intervals, read from its store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp.campaign import rates, store
from rasp.campaign.store import OUTCOMES
from rasp.errors import ConfigError, unknown_name
from rasp.statistics import Rate, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rasp.campaign.spec import CampaignSpec

Key = str | int | tuple[str | int, ...]
"""A layer, model or bit; a tuple of them where rates are split by more than one."""

DIMENSIONS = ("layer", "model", "bit")
"""What rates can be split by."""


class _Column(NamedTuple):
    """A dimension of the tallies: ``labels[codes]`` has one entry a tally."""

    codes: NDArray[np.int64]
    labels: Sequence[str | int]


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """Rates of a campaign, finished or interrupted.

    Every rate is a probability per fault: of one upset, given that it hits what the campaign
    injects into. Faults that share an image are not independent, so intervals are clustered by
    image. Where the images are given and no sample of others, trials are independent and intervals
    are about these images. Trials drawn more often than their share of the population weigh less.

    Attributes:
        contents: what the store holds.
    """

    contents: store.Contents

    @property
    def spec(self) -> CampaignSpec:
        """What was asked."""
        return self.contents.spec

    @property
    def trials(self) -> int:
        """Trials that are finished."""
        return int(self.contents.tallies.trials.sum())

    @property
    def complete(self) -> bool:
        """Whether every trial asked for is finished, or the interval asked for was reached."""
        return self.trials == (self.contents.stopped or self.spec.trials)

    @property
    def accuracy(self) -> Rate:
        """Fault-free top-1 accuracy on the campaign's images (Wilson)."""
        images = self.contents.images
        correct = sum(image.top1 == image.label for image in images)
        return wilson(correct, len(images), self.spec.confidence)

    @cached_property
    def layer_shares(self) -> dict[str, float]:
        """Probability that a fault is drawn in each layer, in the order of execution."""
        shares: dict[str, float] = {}
        for stratum in self.contents.strata:
            shares[stratum.layer] = shares.get(stratum.layer, 0.0) + stratum.weight
        return shares

    @cached_property
    def overall(self) -> dict[str, Rate]:
        """Rate of every outcome over all faults.

        Raises:
            ConfigError: no trial is finished.
        """
        return {name: rates.overall(self.spec, self.contents.tallies, name) for name in OUTCOMES}

    @cached_property
    def activity(self) -> Rate:
        """Share of the faults that hit a value, not an idle register or a cycle without one."""
        return rates.overall(self.spec, self.contents.tallies, "live")

    @cached_property
    def by_layer(self) -> dict[str, dict[Key, Rate]]:
        """Per outcome, the rate of each layer."""
        return self._split("layer")

    @cached_property
    def by_model(self) -> dict[str, dict[Key, Rate]]:
        """Per outcome, the rate of each fault model."""
        return self._split("model")

    @cached_property
    def by_bit(self) -> dict[str, dict[Key, Rate]]:
        """Per outcome, the rate of each bit position; faults without one are left out."""
        return self._split("bit")

    def rates(self, outcome: str, *by: str) -> dict[Key, Rate]:
        """Rate of an outcome in each part of the campaign that has trials.

        Args:
            outcome: one of :data:`rasp.campaign.store.OUTCOMES`.
            by: one or more of ``"layer"``, ``"model"``, ``"bit"``. Faults without a bit position
                are left out of a split by bit.

        Returns:
            Rates in the order of execution, model and bit; keys are tuples if ``by`` has more than
            one entry.

        Raises:
            ConfigError: a name that does not exist, or nothing to split by.

        Example:
            ``result.rates("sdc1", "layer", "bit")[("conv1", 30)]`` is a cell of the heat map.
        """
        if outcome not in OUTCOMES:
            raise unknown_name("outcome", outcome, OUTCOMES)
        for name in by:
            if name not in DIMENSIONS:
                raise unknown_name("dimension", name, DIMENSIONS)
        if not by:
            raise ConfigError(f"Name what to split by: {', '.join(DIMENSIONS)}.")
        return {key: self._rate(outcome, chosen) for key, chosen in self._parts(*by)}

    def _split(self, by: str) -> dict[str, dict[Key, Rate]]:
        parts = self._parts(by)
        return {
            outcome: {key: self._rate(outcome, chosen) for key, chosen in parts}
            for outcome in OUTCOMES
        }

    def _parts(self, *by: str) -> list[tuple[Key, NDArray[np.int64]]]:
        """Keys of a split in order, and the tallies' entries that belong to each."""
        if not self.trials:
            return []
        columns = [self._column(name) for name in by]
        shape = [len(column.labels) for column in columns]
        part = np.ravel_multi_index([column.codes for column in columns], shape)
        order = np.argsort(part, kind="stable")
        found, starts = np.unique(part[order], return_index=True)
        parts: list[tuple[Key, NDArray[np.int64]]] = []
        for index, chosen in zip(found, np.split(order, starts[1:]), strict=True):
            at = np.unravel_index(index, shape)
            key = tuple(column.labels[i] for column, i in zip(columns, at, strict=True))
            if -1 not in key:
                parts.append((key if len(key) > 1 else key[0], chosen))
        return parts

    def _column(self, dimension: str) -> _Column:
        tallies, strata = self.contents.tallies, self.contents.strata
        if dimension == "bit":
            return _Column(tallies.bit + 1, range(-1, int(tallies.bit.max()) + 1))
        of_stratum = [getattr(stratum, dimension) for stratum in strata]
        labels = list(dict.fromkeys(of_stratum))
        codes = np.array([labels.index(label) for label in of_stratum], dtype=np.int64)
        return _Column(codes[tallies.stratum], labels)

    def _rate(self, outcome: str, chosen: NDArray[np.int64]) -> Rate:
        return rates.part(self.spec, self.contents.tallies, outcome, chosen)


def read(path: str | Path) -> CampaignResult:
    """Read the result of a finished, interrupted or running campaign from its store.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file is no campaign store of this schema, or is damaged.
    """
    return CampaignResult(store.read(path))
