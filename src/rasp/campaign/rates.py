"""The rate of an outcome, of a whole campaign or a part of it, from its tallies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rasp.statistics import Rate, horvitz_thompson, weighted_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.campaign.contents import Tallies
    from rasp.campaign.spec import CampaignSpec


def overall(spec: CampaignSpec, tallies: Tallies, outcome: str) -> Rate:
    """Rate of an outcome, or of ``"live"`` faults, over the campaign's whole population.

    Faults that share an image are not independent, so intervals are clustered by image, unless the
    images are given and no sample of others. Trials of an adaptive campaign are weighted after
    Horvitz and Thompson; in a uniform one all weigh 1.

    Raises:
        ConfigError: no trial is finished.
    """
    cluster = None if spec.split == "given" else tallies.image
    columns = (cluster, tallies.happened(outcome), tallies.trials, tallies.weight, tallies.square)
    if spec.sampling == "uniform":
        return weighted_rate(*columns, confidence=spec.confidence)
    return horvitz_thompson(
        *columns,
        expected=spec.expected_weight(int(tallies.trials.sum())),
        clusters=spec.images,
        confidence=spec.confidence,
    )


def image_parts(spec: CampaignSpec, tallies: Tallies, outcome: str) -> NDArray[np.float64]:
    """Part of each image in :func:`overall`, ``(images,)``: they sum to its estimate."""
    happened = tallies.happened(outcome)
    expected = spec.expected_weight(int(tallies.trials.sum()))
    weight = tallies.weight[happened] / expected
    parts = np.bincount(tallies.image[happened], weights=weight, minlength=spec.images)
    return parts.astype(np.float64)


def pooled(
    specs: Sequence[CampaignSpec],
    tallies: Sequence[Tallies],
    outcome: str,
    shares: Sequence[float],
) -> Rate:
    """Mean rate of several networks injected in the same images, clustered by image.

    Args:
        specs: of each campaign.
        tallies: of each campaign.
        outcome: what counts.
        shares: weight of each network in the mean, on any scale.
    """
    expected = [
        spec.expected_weight(int(one.trials.sum()))
        for spec, one in zip(specs, tallies, strict=True)
    ]
    total, sizes = sum(expected), np.asarray(shares) / sum(shares)
    factors = [share * total / part for share, part in zip(sizes, expected, strict=True)]
    return horvitz_thompson(
        np.concatenate([one.image for one in tallies]),
        np.concatenate([one.happened(outcome) for one in tallies]),
        np.concatenate([one.trials for one in tallies]),
        np.concatenate([one.weight * f for one, f in zip(tallies, factors, strict=True)]),
        np.concatenate([one.square * f**2 for one, f in zip(tallies, factors, strict=True)]),
        expected=total,
        clusters=specs[0].images,
        confidence=specs[0].confidence,
    )


def part(spec: CampaignSpec, tallies: Tallies, outcome: str, chosen: NDArray[np.int64]) -> Rate:
    """Rate of an outcome over the faults of some of the tallies' entries, such as a layer's.

    How many trials fall into a part is chance, so their weights are divided by their own sum.
    """
    return weighted_rate(
        None if spec.split == "given" else tallies.image[chosen],
        tallies.happened(outcome)[chosen],
        tallies.trials[chosen],
        tallies.weight[chosen],
        tallies.square[chosen],
        confidence=spec.confidence,
    )
