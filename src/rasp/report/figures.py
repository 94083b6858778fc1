"""What the figures of a study show: an ``Info`` tuple each, drawn by either renderer.

:mod:`rasp.report.plotly_figures` draws for the page, :mod:`rasp.report.matplotlib_figures` for
papers; neither computes a number that is not in the tuple.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rasp.report.arms import reference_of, relative_failures
from rasp.report.layers import LayerTable, layer_table
from rasp.report.verdict import verdict
from rasp.statistics import spaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rasp.report.arms import Arm

DENSE = "dense"
"""Stands for the criterion of a network that was not pruned."""

PALETTE = ("#000000", "#d55e00", "#0072b2", "#009e73")
"""Colours of networks side by side, told apart by every common kind of colour vision.

Source: M. Okabe, K. Ito, Color Universal Design (2008).
"""

SHADES = "Cividis"
"""Colour map of every number that is shown as a colour; dark is low."""

RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
CYCLES = "NVDLA cycles per inference"
FAILURES = "failures per inference, dense = 1"
ACCURACY = "top-1 (%)"
BIT = "bit (left: most significant)"
SDC1 = "SDC-1 per fault (%)"

_BESIDE, _SPREAD = 0.03, 0.12  # of the range of cycles, between neighbours and all criteria


class ParetoPoint(NamedTuple):
    """One network: its price and how often it fails.

    Attributes:
        name: which network.
        criterion: how it was pruned, :data:`DENSE` for the reference.
        cycles: NVDLA cycles of an inference.
        place: cycles it is drawn at, beside the networks of the same widths.
        failures: per inference, relative to the dense network; the upper end if ``bound``.
        low, high: ends of the interval of ``failures``.
        bound: nothing failed, so that only an upper end is known.
        accuracy: top-1 in percent.
        n: injected faults.
    """

    name: str
    criterion: str
    cycles: int
    place: float
    failures: float
    low: float
    high: float
    bound: bool
    accuracy: float
    n: int


class ParetoInfo(NamedTuple):
    """Failures per inference against cycles.

    Attributes:
        panels: points of each format, in the order the formats appear.
        criteria: every criterion in the order it appears, :data:`DENSE` first.
        left_out: networks whose ratio is unknown, because nothing failed in the dense one.
        confidence: level of the intervals.
    """

    panels: dict[str, tuple[ParetoPoint, ...]]
    criteria: tuple[str, ...]
    left_out: tuple[str, ...]
    confidence: float

    @property
    def points(self) -> tuple[ParetoPoint, ...]:
        """Points of all panels."""
        return tuple(point for panel in self.panels.values() for point in panel)

    @property
    def note(self) -> str:
        """What the marks mean, and n."""
        parts = [f"Bars: {_level(self.confidence)}"]
        if any(point.bound for point in self.points):
            parts.append("a bar that only points down: upper end, nothing failed")
        if self.left_out:
            parts.append(f"no ratio for {', '.join(self.left_out)}, nothing failed when dense")
        return "; ".join([*parts, f"n = {span(point.n for point in self.points)} faults each."])


class HeatMapInfo(NamedTuple):
    """SDC-1 per fault of one network, by layer and bit.

    Attributes:
        title: which network.
        layers: rows in execution order.
        bits: columns, most significant first.
        percent: per layer and bit; ``None`` where nothing was injected.
        trials: injected faults per layer and bit.
    """

    title: str
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    percent: tuple[tuple[float | None, ...], ...]
    trials: tuple[tuple[int, ...], ...]

    @property
    def note(self) -> str:
        """How much stands behind a cell."""
        return f"n = {span(n for row in self.trials for n in row if n)} faults a cell."


class ModelPoint(NamedTuple):
    """SDC-1 per fault of one fault model in percent, with its interval and n."""

    model: str
    percent: float
    low: float
    high: float
    n: int


class ModelsInfo(NamedTuple):
    """SDC-1 per fault by fault model.

    Attributes:
        networks: points of each network, by its title.
        models: every fault model, in the order it appears.
        confidence: level of the intervals.
    """

    networks: dict[str, tuple[ModelPoint, ...]]
    models: tuple[str, ...]
    confidence: float

    def height(self, network: int, model: str) -> float:
        """Where a point is drawn: models 1 apart from 0 down, networks beside each other."""
        return self.models.index(model) + 0.22 * (network - (len(self.networks) - 1) / 2)

    @property
    def note(self) -> str:
        """What the marks mean, and n."""
        sizes = [point.n for points in self.networks.values() for point in points]
        return f"Bars: {_level(self.confidence)}; n = {span(sizes)} faults a point."


class StudyFigures(NamedTuple):
    """Every figure of a study.

    Attributes:
        pareto: ``None`` where no pruned network has a dense one to compare with.
        heat: a row a format: the dense network and the chosen one, or one network alone.
        models, layers: networks of the first row of ``heat``.
    """

    pareto: ParetoInfo | None
    heat: tuple[tuple[HeatMapInfo, ...], ...]
    models: ModelsInfo
    layers: LayerTable | None


def study_figures(arms: Sequence[Arm]) -> StudyFigures:
    """Choose what a report of these arms shows; at least one arm."""
    everyone = tuple(arms)
    compared = any(arm.criterion is not None and reference_of(arm, everyone) for arm in everyone)
    shown = _pairs(everyone, verdict(everyone).arm)
    return StudyFigures(
        pareto_info(everyone) if compared else None,
        tuple(tuple(heat_map_info(arm) for arm in pair) for pair in shown),
        models_info(shown[0]),
        layer_table(shown[0], everyone),
    )


def title_of(arm: Arm) -> str:
    """Name and format of an arm as headings show it."""
    return f"{arm.name}, {arm.format.upper()}"


def pareto_info(arms: Sequence[Arm]) -> ParetoInfo:
    """Failures per inference against cycles, dense as 1."""
    everyone = tuple(arms)
    criteria = tuple(dict.fromkeys(arm.criterion for arm in everyone if arm.criterion))
    cycles = [arm.cycles for arm in everyone]
    middle = (len(criteria) - 1) / 2
    step = min(_BESIDE, _SPREAD / max(2 * middle, 1)) * (max(cycles) - min(cycles))
    panels: dict[str, list[ParetoPoint]] = {}
    left_out = []
    for arm in everyone:
        low = failures = high = 1.0
        aside = 0.0
        if arm.criterion is not None:
            ratio = relative_failures(arm, everyone)
            if ratio is None or ratio.estimate is None or ratio.high is None:
                left_out.append(title_of(arm))
                continue
            low, failures, high = ratio.low, ratio.estimate or ratio.high, ratio.high
            aside = step * (criteria.index(arm.criterion) - middle)
        point = ParetoPoint(
            name=arm.name,
            criterion=arm.criterion or DENSE,
            cycles=arm.cycles,
            place=arm.cycles + aside,
            failures=failures,
            low=low,
            high=high,
            bound=low == 0,
            accuracy=100 * arm.accuracy.estimate,
            n=arm.trials,
        )
        panels.setdefault(arm.format, []).append(point)
    return ParetoInfo(
        {name: tuple(points) for name, points in panels.items()},
        (DENSE, *criteria),
        tuple(left_out),
        everyone[0].sdc1.confidence,
    )


def heat_map_info(arm: Arm) -> HeatMapInfo:
    """Layers of one arm against bit positions."""
    layers = tuple(dict.fromkeys(cell.layer for cell in arm.cells))
    bits = tuple(sorted({cell.bit for cell in arm.cells}, reverse=True))
    found = {(cell.layer, cell.bit): cell.rate for cell in arm.cells}
    rates = [[found.get((layer, bit)) for bit in bits] for layer in layers]
    return HeatMapInfo(
        title_of(arm),
        layers,
        bits,
        tuple(tuple(100 * rate.estimate if rate else None for rate in row) for row in rates),
        tuple(tuple(rate.n if rate else 0 for rate in row) for row in rates),
    )


def models_info(arms: Sequence[Arm]) -> ModelsInfo:
    """Fault models of the given arms."""
    return ModelsInfo(
        {
            title_of(arm): tuple(
                ModelPoint(model, 100 * rate.estimate, 100 * rate.low, 100 * rate.high, rate.n)
                for model, rate in arm.by_model.items()
            )
            for arm in arms
        },
        tuple(dict.fromkeys(model for arm in arms for model in arm.by_model)),
        arms[0].sdc1.confidence,
    )


def _pairs(arms: tuple[Arm, ...], best: Arm | None) -> list[list[Arm]]:
    """Per format, the dense arm and the namesake of the best one, the best one's format first."""
    if best is None:
        return [[arm] for arm in arms[:1]]
    pairs = [
        [dense, arm]
        for arm in arms
        if arm.name == best.name and (dense := reference_of(arm, arms)) is not None
    ]
    return sorted(pairs, key=lambda pair: pair[1] is not best)


def _level(confidence: float) -> str:
    return f"{100 * confidence:g} % intervals"


def span(values: Iterable[int]) -> str:
    """Least and greatest of some counts, as text.

    Example:
        >>> span([4000, 900]), span([7, 7])
        ('900 to 4 000', '7')
    """
    found = sorted(values)
    if not found:
        return "0"
    low, high = found[0], found[-1]
    return spaced(low) if low == high else f"{spaced(low)} to {spaced(high)}"
