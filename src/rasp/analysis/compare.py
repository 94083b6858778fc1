"""Paired comparison of campaigns: the same images, the same kind of faults, other networks.

Campaigns that share their images share what makes an image fragile, and campaigns with one seed
also their fault lists: a trial's random words pick the layer, the place and the bit by quantiles.
Ratios are therefore taken image by image, unless a network has fewer than 20 events: a handful
that two networks happen to share says nothing of how much they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rasp.campaign.rates import image_parts
from rasp.errors import ConfigError
from rasp.statistics import paired_ratio, ratio

if TYPE_CHECKING:
    from rasp.analysis.exposure import Exposure
    from rasp.campaign.result import CampaignResult
    from rasp.statistics import Rate, Ratio

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
        common: share of the first network's answers on the campaign's images that are the same.
    """

    rate: Rate
    per_fault: Ratio
    per_inference: Ratio | None
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
    rates = [result.overall[outcome] for result in (other, first)]
    found = None
    if a.split != "given" and min(rate.events for rate in rates) >= _FEW:
        parts = [image_parts(r.spec, r.contents.tallies, outcome) for r in (other, first)]
        found = paired_ratio(parts[0], parts[1], a.confidence)
    per_fault = found or ratio(*rates)
    exposed = exposures[1], exposures[0]
    both = [exposure.bit_cycles for exposure in exposed if exposure is not None]
    same = sum(x.top1 == y.top1 for x, y in zip(*images, strict=True))
    return Comparison(
        rate=rates[0],
        per_fault=per_fault,
        per_inference=per_fault.scaled(both[0] / both[1]) if len(both) == 2 else None,
        common=same / len(images[0]),
    )
