"""The first line of a report: which network fails least for the accuracy it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rasp.report.arms import reference_of, relative_failures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.report.arms import Arm

ACCURACY_LOSS = 0.01
"""A candidate may lose at most this much top-1 against the dense network of its format."""


class Verdict(NamedTuple):
    """The sentence, and the arm it names if there is one."""

    sentence: str
    arm: Arm | None


def verdict(arms: Sequence[Arm]) -> Verdict:
    """Choose the pruned arm with the fewest failures per inference at nearly dense accuracy.

    Native formats come first, since only they run on the accelerator; among them the upper end of
    the interval decides, which is harder to win by chance than the estimate.

    Args:
        arms: at least one.

    Returns:
        The choice and a sentence with its interval; no arm where none qualifies.
    """
    everyone = tuple(arms)
    found = []
    pruned = False
    for arm in everyone:
        dense = reference_of(arm, everyone)
        ratio = relative_failures(arm, everyone)
        if dense is None or ratio is None:
            continue
        pruned = True
        if ratio.estimate is None or ratio.high is None:
            continue
        if arm.accuracy.estimate >= dense.accuracy.estimate - ACCURACY_LOSS:
            found.append((not arm.native, ratio.high, arm, dense, ratio))
    if not found:
        return Verdict(_without_choice(everyone, pruned=pruned), None)
    _, _, arm, dense, ratio = min(found, key=lambda entry: entry[:2])
    points = 100 * (arm.accuracy.estimate - dense.accuracy.estimate)
    cycles = 100 * arm.cycles / dense.cycles
    price = (
        f"at {points:+.1f} points of top-1 and {cycles:.0f} % of its cycles on {arm.accelerator}"
    )
    if ratio.high is not None and ratio.high < 1:
        sentence = (
            f"{arm.name} in {arm.format.upper()} fails {ratio} as often per inference as the "
            f"dense network, {price}."
        )
    else:
        sentence = (
            f"In {arm.format.upper()} no pruned network is shown to fail less often per inference "
            f"than the dense one; nearest is {arm.name} with {ratio}, {price}."
        )
    return Verdict(sentence, arm)


def _without_choice(arms: tuple[Arm, ...], *, pruned: bool) -> str:
    if pruned:
        return (
            f"No pruned network stays within {100 * ACCURACY_LOSS:.0f} point of the dense "
            "network's top-1."
        )
    arm = arms[0]
    return (
        f"{arm.name} in {arm.format.upper()}: one upset changes the top-1 class with probability "
        f"{arm.sdc1}."
    )
