"""Hold campaigns of several networks against the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rasp.errors import ConfigError, unknown_name
from rasp.report import arms
from rasp.statistics import Difference, Rate, Ratio, difference, paired_difference
from rasp.verbs._shared import STORE, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCURACY_LOSS = 0.003
"""Top-1 that a better network may lose against the first, as the point estimate."""


class Compared(Result):
    """One network beside the first.

    ``rate`` is per fault, ``failures`` per inference and upset rate of one bit in one cycle with
    its interval; ratios and the difference of top-1 are to the first network, ``None`` for itself.
    """

    run: Path
    name: str
    accuracy: Rate
    cycles: int
    rate: Rate
    failures: tuple[float, float, float] | None
    per_fault: Ratio | None = None
    per_inference: Ratio | None = None
    accuracy_difference: Difference | None = None
    common_answers: float | None = None


class Comparisons(Result):
    """All networks, the first one first, and what they show in a sentence."""

    outcome: str
    networks: tuple[Compared, ...]
    verdict: str


def compare(inputs: Sequence[str | Path], *, outcome: str = "sdc1") -> Comparisons:
    """Compare networks that were injected on the same images with the same options.

    Args:
        inputs: directories that :func:`rasp.verbs.inject` wrote; ratios are to the first.
        outcome: what counts as a failure.
    """
    from rasp.analysis.compare import compare as compared
    from rasp.campaign import result
    from rasp.campaign.store import OUTCOMES

    if outcome not in OUTCOMES:
        raise unknown_name("outcome", outcome, OUTCOMES)
    if len(inputs) < 2:
        raise ConfigError(
            f"A comparison needs at least two directories of 'rasp inject', got {len(inputs)}."
        )
    found = [arms.read(run) for run in inputs]
    results = [result.read(Path(run) / STORE) for run in inputs]
    networks: list[Compared] = []
    for run, arm, campaign in zip(inputs, found, results, strict=True):
        entry = Compared(
            run=Path(run),
            name=arm.name,
            accuracy=arm.accuracy,
            cycles=arm.cycles,
            rate=campaign.overall[outcome],
            failures=None,
        )
        exposures = [one.exposure for one in (found[0], arm)]
        if arm.exposure is not None:
            places = arm.exposure.bit_cycles
            ends = entry.rate.estimate, entry.rate.low, entry.rate.high
            entry = entry.model_copy(update={"failures": tuple(places * end for end in ends)})
        if networks:
            against = compared(results[0], campaign, (exposures[0], exposures[1]), outcome=outcome)
            entry = entry.model_copy(
                update={
                    "per_fault": against.per_fault,
                    "per_inference": against.per_inference,
                    "accuracy_difference": _accuracy(found[0], arm, against.accuracy),
                    "common_answers": against.common,
                }
            )
        networks.append(entry)
    return Comparisons(outcome=outcome, networks=tuple(networks), verdict=_verdict(networks))


def _accuracy(first: arms.Arm, arm: arms.Arm, paired: Difference) -> Difference:
    """Difference of top-1, paired by image where every image's answer is known."""
    if arm.images == arm.accuracy.n == first.accuracy.n:
        return paired
    answers = arm.answers, first.answers
    if answers[0] is None or answers[1] is None or len(answers[0]) != len(answers[1]):
        return difference(arm.accuracy, first.accuracy)
    return paired_difference(answers[0], answers[1], arm.accuracy.confidence)


def _verdict(networks: Sequence[Compared]) -> str:
    """Which network fails least per inference at the first one's accuracy, if that is shown."""
    first, *others = networks
    able = [
        (entry.per_inference, entry.accuracy_difference, entry)
        for entry in others
        if entry.per_inference is not None and entry.accuracy_difference is not None
    ]
    if not able:
        return (
            "Failures per inference cannot be compared: faults were not drawn by the layers' "
            "cycles. The ratios are per fault."
        )
    near = [row for row in able if row[1].estimate >= -ACCURACY_LOSS]
    points = 100 * ACCURACY_LOSS
    if not near:
        return f"No network stays within {points:g} points of the top-1 of {first.name}."
    ratio, loss, best = min(near, key=lambda row: (row[0].high is None, row[0].high))
    price = f"at {loss} of top-1 and {100 * best.cycles / first.cycles:.0f} % of its cycles"
    if ratio.high is not None and ratio.high < 1:
        return f"{best.name} fails {ratio} as often per inference as {first.name}, {price}."
    return (
        f"No network is shown to fail less often per inference than {first.name}; nearest is "
        f"{best.name} with {ratio}, {price}."
    )
