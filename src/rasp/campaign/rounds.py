"""Rounds of a campaign: how the next one draws, and when to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rasp.campaign.rates import overall
from rasp.faults.neyman import allocate, proportional
from rasp.faults.sampling import margin_bins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.campaign.store import Store
    from rasp.faults.population import Stratum
    from rasp.faults.sampling import Plan


class Rounds:
    """Plans of a campaign's rounds, a pure function of the complete rounds before each.

    Args:
        population: the strata.
        margin: ``(images,)`` logit of the golden answer minus the runner-up's.
    """

    def __init__(self, population: Sequence[Stratum], margin: NDArray[np.float64]) -> None:
        self._population = population
        self._bins = margin_bins(margin)

    def plan(self, store: Store, number: int) -> Plan | None:
        """How round ``number`` draws, recorded in the store; ``None``: uniformly.

        Raises:
            StoreMismatchError: the store has another plan for the round.
        """
        spec = store.spec
        if spec.sampling == "uniform":
            return None
        emphasis = spec.emphasis(number)
        if number == 0:
            plan = proportional(self._population, self._bins, emphasis=emphasis)
        else:
            seen = store.tallies(number)
            shape = (len(self._population), int(self._bins.max()) + 1)
            trials, events = np.zeros(shape), np.zeros(shape)
            cell = (seen.stratum, self._bins[seen.image])
            np.add.at(trials, cell, seen.trials)
            np.add.at(events, cell, seen.trials * seen.happened(spec.outcome))
            plan = allocate(self._population, self._bins, trials, events, emphasis=emphasis)
        store.record_plan(number, plan.to_bytes())
        return plan


def reached(store: Store, rounds: int) -> bool:
    """Whether the first rounds give an interval, that of the result, as narrow as asked for."""
    spec = store.spec
    if spec.margin is None:
        return False
    return overall(spec, store.tallies(rounds), spec.outcome).half_width <= spec.margin
