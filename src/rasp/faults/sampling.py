"""Drawing trials: trial ``i`` is a pure function of the population, the seed and ``i``."""

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
class Trials:
    """A run of consecutive trials.

    Attributes:
        index: ``(n,)`` number of the trial.
        stratum: ``(n,)`` index into the population.
        image: ``(n,)`` index into the images.
        words: ``(n, 8)`` the trial's random words.
    """

    index: NDArray[np.int64]
    stratum: NDArray[np.int64]
    image: NDArray[np.int64]
    words: Words


def draw(
    population: Sequence[Stratum], *, images: int, seed: int, start: int, count: int
) -> Trials:
    """Trials ``start .. start + count``: stratum by its weight, image uniformly, independently.

    Example:
        >>> from rasp.faults.population import Stratum
        >>> one = draw([Stratum("conv1", "RD", 1.0)], images=10, seed=0, start=0, count=5)
        >>> two = draw([Stratum("conv1", "RD", 1.0)], images=10, seed=0, start=3, count=2)
        >>> bool((one.image[3:] == two.image).all())
        True
    """
    words = rng.words(seed, "trial", start, count, WIDTH)
    weights = np.array([stratum.weight for stratum in population])
    return Trials(
        index=np.arange(start, start + count),
        stratum=rng.choice(words[:, 0], weights),
        image=rng.integers(words[:, 1], images),
        words=words,
    )
