"""Paired comparison of campaigns: the same images, the same kind of faults, other networks.

Campaigns that share their images share what makes an image fragile, and campaigns with one seed
also their fault lists: a trial's random words pick the layer, the place and the bit by quantiles.
Ratios are therefore taken image by image, unless a network has fewer than 20 events: a handful
that two networks happen to share says nothing of how much they share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp.campaign.rates import image_parts
from rasp.campaign.rates import pooled as mean_rate
from rasp.errors import ConfigError
from rasp.statistics import Ratio, paired_difference, paired_ratio, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rasp.analysis.exposure import Exposure
    from rasp.campaign.contents import ImageFacts
    from rasp.campaign.result import CampaignResult
    from rasp.statistics import Difference, Rate

_SAME = (
    *("data", "split", "images", "format", "accelerator", "accelerator_digest"),
    *("fault_models", "layer_weights", "layers", "confidence", "seed"),
)

_FEW = 20  # events of a network, below which what images share is not known either


@dataclass(frozen=True, slots=True)
class Comparison:
    """One network against the first.

    Attributes:
        rate: of the outcome per fault.
        per_fault: its ratio to that of the first network.
        per_inference: ratio of failures per inference; ``None`` where faults were not drawn by the
            layers' cycles.
        accuracy: top-1 less the first network's on the campaign's images, paired.
        common: share of the first network's answers on the campaign's images that are the same.
    """

    rate: Rate
    per_fault: Ratio
    per_inference: Ratio | None
    accuracy: Difference
    common: float


def compare(
    first: CampaignResult,
    other: CampaignResult,
    exposures: tuple[Exposure | None, Exposure | None] = (None, None),
    *,
    outcome: str = "sdc1",
) -> Comparison:
    """Compare a campaign with the first one.

    Args:
        first: what the ratio is to.
        other: another network's campaign.
        exposures: of both, for failures per inference.
        outcome: what counts as a failure.

    Raises:
        ConfigError: the campaigns differ in more than the network and the trials.
    """
    images = _checked(first, other)
    rates = [result.overall[outcome] for result in (other, first)]
    found = None
    if other.spec.split != "given" and min(rate.events for rate in rates) >= _FEW:
        parts = [_parts(result, outcome) for result in (other, first)]
        found = paired_ratio(parts[0], parts[1], other.spec.confidence)
    per_fault = found or ratio(*rates)
    exposed = exposures[1], exposures[0]
    both = [exposure.bit_cycles for exposure in exposed if exposure is not None]
    same = sum(x.top1 == y.top1 for x, y in zip(*images, strict=True))
    return Comparison(
        rate=rates[0],
        per_fault=per_fault,
        per_inference=per_fault.scaled(both[0] / both[1]) if len(both) == 2 else None,
        accuracy=paired_difference(_right(other), _right(first), other.spec.confidence),
        common=same / len(images[0]),
    )


class Run(NamedTuple):
    """A campaign and what its network exposes."""

    result: CampaignResult
    exposure: Exposure


@dataclass(frozen=True, slots=True)
class Pooled:
    """Networks of several training seeds against a baseline's of the same seeds.

    Attributes:
        ratio: failures per inference summed over seeds; its interval is of images and faults, for
            these seeds.
        by_seed: estimate of each seed alone, ``None`` where its baseline never failed.
        over_seeds: geometric mean of the seeds' ratios with Student's interval over them, the one
            that speaks of other seeds; ``None`` below two seeds or without an estimate of each.
        accuracy: difference of top-1, mean over seeds, paired by image.
        trials: faults of all campaigns together.
    """

    ratio: Ratio
    by_seed: tuple[float | None, ...]
    over_seeds: Ratio | None
    accuracy: Difference
    trials: int


def pooled(baseline: Sequence[Run], arm: Sequence[Run], *, outcome: str = "sdc1") -> Pooled:
    """Compare an arm with the baseline over training seeds, all on the same images.

    Args:
        baseline: one run a seed.
        arm: one run for each of the same seeds.
        outcome: what counts as a failure.

    Raises:
        ConfigError: no seed, another number of seeds, or campaigns that differ in more than the
            network and the trials.
    """
    if not baseline or len(arm) != len(baseline):
        raise ConfigError(
            f"Seeds are compared in pairs, got {len(baseline)} and {len(arm)} campaigns."
        )
    for run in (*baseline, *arm):
        _checked(baseline[0].result, run.result)
    confidence = baseline[0].result.spec.confidence
    totals = [_total(runs, outcome) for runs in (arm, baseline)]
    events = [sum(r.result.overall[outcome].events for r in runs) for runs in (arm, baseline)]
    found = paired_ratio(totals[0], totals[1], confidence) if min(events) >= _FEW else None
    pairs = list(zip(baseline, arm, strict=True))
    each = [
        compare(b.result, a.result, (b.exposure, a.exposure), outcome=outcome).per_inference
        for b, a in pairs
    ]
    by_seed = tuple(None if one is None else one.estimate for one in each)
    right = [np.mean([_right(run.result) for run in runs], axis=0) for runs in (arm, baseline)]
    return Pooled(
        ratio=found or _summed(baseline, arm, outcome),
        by_seed=by_seed,
        over_seeds=_over_seeds(by_seed, confidence),
        accuracy=paired_difference(right[0], right[1], confidence),
        trials=sum(run.result.trials for run in (*baseline, *arm)),
    )


def _total(runs: Sequence[Run], outcome: str) -> NDArray[np.float64]:
    parts = [_parts(run.result, outcome) * run.exposure.bit_cycles for run in runs]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _summed(baseline: Sequence[Run], arm: Sequence[Run], outcome: str) -> Ratio:
    """Ratio of the seeds' sums, taken as independent: few events tell nothing of a pairing."""
    rates, exposed = [], []
    for runs in (arm, baseline):
        shares = [run.exposure.bit_cycles for run in runs]
        results = [run.result for run in runs]
        specs, tallies = [r.spec for r in results], [r.contents.tallies for r in results]
        rates.append(mean_rate(specs, tallies, outcome, shares))
        exposed.append(sum(shares))
    return ratio(*rates).scaled(exposed[0] / exposed[1])


def _over_seeds(ratios: Sequence[float | None], confidence: float) -> Ratio | None:
    from scipy.special import stdtrit

    logs = np.array([math.log(value) for value in ratios if value])
    if len(logs) < max(2, len(ratios)):
        return None
    error = logs.std(ddof=1) / math.sqrt(len(logs))
    factor = math.exp(float(stdtrit(len(logs) - 1, (1 + confidence) / 2)) * float(error))
    estimate = math.exp(float(logs.mean()))
    return Ratio(estimate, estimate / factor, estimate * factor, confidence)


def _parts(result: CampaignResult, outcome: str) -> NDArray[np.float64]:
    return image_parts(result.spec, result.contents.tallies, outcome)


def _right(result: CampaignResult) -> NDArray[np.float64]:
    return np.array([image.top1 == image.label for image in result.contents.images], dtype=float)


def _checked(first: CampaignResult, other: CampaignResult) -> list[tuple[ImageFacts, ...]]:
    """Images of both campaigns, which are the same."""
    a, b = other.spec, first.spec
    if differing := [name for name in a.differences(b) if name in _SAME]:
        name = differing[0]
        raise ConfigError(
            f"Campaigns can be compared that differ in the network alone: '{name}' is "
            f"{getattr(b, name)} in the first and {getattr(a, name)} in another. "
            f"Inject both with the same options."
        )
    images = [result.contents.images for result in (other, first)]
    if [image.label for image in images[0]] != [image.label for image in images[1]]:
        raise ConfigError(
            "Campaigns can be compared that inject into the same images; these have other labels. "
            "Inject with the same --seed and --images."
        )
    return images
