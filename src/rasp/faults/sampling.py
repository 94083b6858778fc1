"""Drawing trials: a trial is a pure function of population, plan, seed and its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rasp import rng

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.faults.population import Stratum
    from rasp.rng import Words

WIDTH = 8
"""Words a trial owns: stratum, image, and six for the fault model's site."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a round draws its trials."""


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """A run of consecutive trials.

    Attributes:
        index: ``(n,)`` number of the trial.
        stratum: ``(n,)`` index into the population.
        image: ``(n,)`` index into the images.
        words: ``(n, 8)`` the trial's random words.
        group: ``(n,)`` group of bits the site is drawn in, -1 for any.
        weight: ``(n,)`` population share of the trial over the probability it was drawn with.
    """

    index: NDArray[np.int64]
    stratum: NDArray[np.int64]
    image: NDArray[np.int64]
    words: Words
    group: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)


def draw(
    population: Sequence[Stratum],
    *,
    images: int,
    seed: int,
    trials: range,
    plan: Plan | None = None,
) -> Trials:
    """Draw trials: without a plan, the stratum by its weight and the image uniformly.

    Example:
        >>> from rasp.faults.population import Stratum
        >>> one = draw([Stratum("conv1", "RD", 1.0)], images=10, seed=0, trials=range(5))
        >>> two = draw([Stratum("conv1", "RD", 1.0)], images=10, seed=0, trials=range(3, 5))
        >>> bool((one.image[3:] == two.image).all())
        True
    """
    words = rng.words(seed, "trial", trials.start, len(trials), WIDTH)
    weights = np.array([stratum.weight for stratum in population])
    return Trials(
        index=np.arange(trials.start, trials.stop),
        stratum=rng.choice(words[:, 0], weights),
        image=rng.integers(words[:, 1], images),
        words=words,
        group=np.full(len(trials), -1, dtype=np.int64),
        weight=np.ones(len(trials)),
    )
