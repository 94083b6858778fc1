"""Drawing trials: a trial is a pure function of population, plan, seed and its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rasp import rng
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.faults.population import Stratum
    from rasp.rng import Words

WIDTH = 8
"""Words a trial owns: stratum, image, and six for the fault model's site."""

_MARGIN_SHARES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Where the images, in the order of their margins, are cut."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How the trials of a round are drawn: a cell by its probability, then uniformly within.

    Attributes:
        probability: ``(strata, bins)``, sums to 1.
        bins: ``(images,)`` margin bin of each image.
        emphasis: factor of the weights of the round's trials, fixed before the campaign: what is
            drawn before the rates are known says less.
    """

    probability: NDArray[np.float64]
    bins: NDArray[np.int64]
    emphasis: float = 1.0

    def to_bytes(self) -> bytes:
        """The probabilities, for the record; the bins follow from the images' margins."""
        return self.probability.astype("<f8").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """A run of consecutive trials.

    Attributes:
        index: ``(n,)`` number of the trial.
        stratum: ``(n,)`` index into the population.
        image: ``(n,)`` index into the images.
        words: ``(n, 8)`` the trial's random words.
        weight: ``(n,)`` population share of its cell over the probability it was drawn with.
    """

    index: NDArray[np.int64]
    stratum: NDArray[np.int64]
    image: NDArray[np.int64]
    words: Words
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
    index = np.arange(trials.start, trials.stop)
    shares = np.array([stratum.weight for stratum in population])
    if plan is None:
        stratum = rng.choice(words[:, 0], shares)
        image = rng.integers(words[:, 1], images)
        return Trials(index, stratum, image, words, np.ones(len(trials)))
    if len(plan.bins) != images or len(plan.probability) != len(population):
        raise ConfigError(
            f"The plan is for {len(plan.probability)} strata and {len(plan.bins)} images, the "
            f"campaign has {len(population)} and {images}."
        )
    cell = rng.choice(words[:, 0], plan.probability.ravel())
    stratum, margin = np.divmod(cell, plan.probability.shape[1])
    order = np.argsort(plan.bins, kind="stable")
    size = np.bincount(plan.bins, minlength=plan.probability.shape[1])
    first = np.cumsum(size) - size
    image = order[first[margin] + rng.integers(words[:, 1], size[margin])]
    share = shares[stratum] * size[margin] / images
    weight = plan.emphasis * share / plan.probability[stratum, margin]
    return Trials(index, stratum, image, words, weight)


def margin_bins(margin: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of each image by the rank of its margin, narrow where the margin is small.

    Args:
        margin: ``(images,)`` logit of the golden answer minus the runner-up's.

    Example:
        >>> margin_bins(np.arange(100.0))[[0, 1, 2, 99]].tolist()
        [0, 1, 2, 7]
    """
    n = len(margin)
    edges = np.unique([max(1, round(share * n)) for share in _MARGIN_SHARES])
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(margin, kind="stable")] = np.arange(n)
    return np.searchsorted(edges, rank, side="right").astype(np.int64)
