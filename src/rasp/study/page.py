"""What a study found as one HTML page, and its comparisons as rows of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rasp._lazy import require
from rasp.statistics import Ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.report.arms import Arm
    from rasp.study.summary import Comparison, Summary

COLUMNS = (
    *("arm", "against", "format", "budget", "failures per inference", "each seed"),
    *("top-1 (points)", "cycles"),
)
"""What :func:`cells` holds."""

NOTE = """\
Ratios of failures per inference, arm over baseline, summed over {seeds} seeds; below 1 the arm \
fails less. 95 % intervals over images and faults, for these seeds. Lambda, bounds, scales and \
rates of upsets were chosen on validation images; everything here is of test images. The verdict, \
the networks and the figures are those of seed {seed}."""


def check() -> None:
    """Refuse to start what could not be shown at its end.

    Raises:
        PrerequisiteError: the report extra is not installed.
    """
    for package in ("jinja2", "plotly"):
        require(package, extra="report", feature="The report of a study")


def page(summary: Summary, networks: Sequence[Arm]) -> str:
    """Write the page.

    Args:
        summary: of all seeds.
        networks: of the first seed, see :func:`rasp.study.summary.injected`.
    """
    from rasp.report.html import Section, render

    seeds = [choice.seed for choice in summary.choices]
    section = Section(
        "Arms against the baseline",
        NOTE.format(seeds=len(seeds), seed=seeds[0]),
        COLUMNS,
        tuple(cells(entry) for entry in summary.comparisons),
    )
    return render(networks, title=f"Study {summary.study}", sections=[section])


def cells(entry: Comparison) -> tuple[str, ...]:
    """A comparison as a row of :data:`COLUMNS`."""
    ratio = Ratio(entry.ratio, entry.low, entry.high, 0.95)
    seeds = ", ".join("-" if one is None else f"{one:.2g}" for one in entry.by_seed)
    return (
        *(entry.arm, entry.baseline, entry.format, f"{entry.budget:.0%}", str(ratio), seeds),
        *(f"{100 * entry.accuracy_delta:+.2f}", f"{entry.cycles:.2f}x"),
    )
