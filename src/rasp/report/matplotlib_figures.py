"""Figures for papers, drawn by matplotlib without a display: PDF to typeset, PNG to show."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from rasp._lazy import require
from rasp.report import figures
from rasp.statistics import spaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rasp.report.figures import (
        HeatMapInfo,
        ModelsInfo,
        ParetoInfo,
        ParetoPoint,
        StudyFigures,
    )

SYMBOLS = ("*", "o", "s", "^", "P", "p", "h", "D", "v", "X", "<", ">", "d", "8")
"""Marker of each criterion in the order they appear, the dense network's first."""

WIDTH = 7.16
"""Inches across both columns of an IEEE page."""

DPI = 200

_MARKS = ("o", "D", "s", "^")
_SHADES = figures.SHADES.lower()
_SOFT = "#52606d"
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # publishers refuse Type 3 fonts
}


def files(study: StudyFigures) -> dict[str, bytes]:
    """Every figure of a study as PDF and as PNG, by file name.

    The same study gives the same bytes.

    Raises:
        PrerequisiteError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="report", feature="A figure file")
    with matplotlib.rc_context(_STYLE):
        drawn = {"heat": heat_maps(study.heat), "models": fault_models(study.models)}
        if study.pareto is not None:
            drawn["pareto"] = pareto(study.pareto)
        return {
            f"{name}.{kind}": _content(figure, kind)
            for name, figure in drawn.items()
            for kind in ("pdf", "png")
        }


def pareto(info: ParetoInfo) -> Figure:
    """Failures per inference against cycles, one panel a format."""
    figure = _figure(3.1)
    row = figure.subplots(1, len(info.panels), sharey=True, squeeze=False)[0]
    top1 = [point.accuracy for point in info.points]
    scale = _matplotlib("colors").Normalize(min(top1), max(*top1, min(top1) + 0.1))
    for axes, (name, panel) in zip(row, info.panels.items(), strict=True):
        for place, criterion in enumerate(info.criteria):
            chosen = [point for point in panel if point.criterion == criterion]
            _pareto_points(axes, chosen, SYMBOLS[place % len(SYMBOLS)], scale)
        axes.axhline(1, color="#9aa5b1", linestyle=":", linewidth=0.8, zorder=0)
        axes.set(title=name.upper(), xlabel=figures.CYCLES, yscale="log")
        axes.xaxis.set_major_formatter(lambda value, _: spaced(value))
        axes.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(5, steps=[1, 2, 5, 10]))
    _ratio_ticks(row[0])
    row[0].set_ylabel(figures.FAILURES)
    shades = _matplotlib("cm").ScalarMappable(scale, _SHADES)
    figure.colorbar(shades, ax=row, label=figures.ACCURACY, aspect=30, pad=0.02)
    line = _matplotlib("lines").Line2D
    handles = [
        line([], [], linestyle="", color="black", marker=SYMBOLS[place % len(SYMBOLS)], label=name)
        for place, name in enumerate(info.criteria)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return _noted(figure, info.note)


def heat_maps(grid: Sequence[Sequence[HeatMapInfo]]) -> Figure:
    """SDC-1 by layer and bit, maps in rows, each with its own colour scale."""
    tallest = max(len(info.layers) for row in grid for info in row)
    figure = _figure((0.17 * tallest + 0.88) * len(grid) + 0.2)
    panels = figure.subplots(len(grid), len(grid[0]), squeeze=False)
    for row, infos in zip(panels, grid, strict=True):
        for axes, info in zip(row, infos, strict=True):
            values = [[float("nan") if x is None else x for x in line] for line in info.percent]
            image = axes.imshow(values, cmap=_SHADES, vmin=0, aspect="auto", interpolation="none")
            axes.set(title=f"{info.title}\n{info.note}", xlabel=figures.BIT)
            axes.set_yticks(range(len(info.layers)), info.layers)
            step = 1 if len(info.bits) <= 16 else 4
            marked = [i for i, bit in enumerate(info.bits) if bit % step == step - 1 or not bit]
            axes.set_xticks(marked, [str(info.bits[i]) for i in marked])
            axes.tick_params(length=0)
            axes.set_xticks([i - 0.5 for i in range(1, len(info.bits))], minor=True)
            axes.set_yticks([i - 0.5 for i in range(1, len(info.layers))], minor=True)
            axes.grid(which="minor", color="white", linewidth=0.6)
            axes.tick_params(which="minor", length=0)
            axes.spines[:].set_visible(False)
            figure.colorbar(image, ax=axes, label="SDC-1 (%)", aspect=12, pad=0.02)
    return figure


def fault_models(info: ModelsInfo) -> Figure:
    """SDC-1 by fault model, networks beside each other."""
    figure = _figure(0.36 * len(info.models) + 1.1)
    axes = figure.subplots()
    for place, (title, points) in enumerate(info.networks.items()):
        axes.errorbar(
            [point.percent for point in points],
            [info.height(place, point.model) for point in points],
            xerr=_ends([(p.percent, p.low, p.high) for p in points]),
            fmt=_MARKS[place % len(_MARKS)],
            color=figures.PALETTE[place % len(figures.PALETTE)],
            label=title,
            markersize=4.5,
            capsize=2,
            linewidth=0.9,
        )
        for point in points:
            axes.annotate(
                f"n = {spaced(point.n)}",
                (1.01, info.height(place, point.model)),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6,
                color=_SOFT,
            )
    axes.set_yticks(range(len(info.models)), info.models)
    axes.set_ylim(len(info.models) - 0.5, -0.5)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])
    axes.set_xlabel(figures.SDC1)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=len(info.networks))
    return _noted(figure, info.note)


def _pareto_points(axes: Axes, points: Sequence[ParetoPoint], symbol: str, scale: Any) -> None:
    if not points:
        return
    x, y = [point.place for point in points], [point.failures for point in points]
    axes.errorbar(
        x,
        y,
        yerr=_ends([(p.failures, p.failures / 2 if p.bound else p.low, p.high) for p in points]),
        uplims=[point.bound for point in points],
        fmt="none",
        ecolor="#7b8794",
        elinewidth=0.9,
        capsize=2,
        zorder=1,
    )
    axes.scatter(
        x,
        y,
        c=[point.accuracy for point in points],
        cmap=_SHADES,
        norm=scale,
        marker=symbol,
        s=80 if points[0].criterion == figures.DENSE else 34,
        edgecolors="black",
        linewidths=0.6,
        zorder=2,
    )


def _ratio_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    low, high = min(low, 0.8), max(high, 1.25)
    shown = [tick for tick in figures.RATIO_TICKS if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.yaxis.set_minor_locator(_matplotlib("ticker").NullLocator())
    axes.set_ylim(low, high)


def _ends(values: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Lengths of the bars below and above (estimate, low, high)."""
    return [
        [estimate - low for estimate, low, _ in values],
        [high - estimate for estimate, _, high in values],
    ]


def _figure(height: float) -> Figure:
    made: Figure = _matplotlib("figure").Figure(figsize=(WIDTH, height), layout="constrained")
    return made


def _noted(figure: Figure, note: str) -> Figure:
    figure.supxlabel(note, fontsize=7, color=_SOFT, x=0.01, ha="left")
    return figure


def _content(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    undated = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=undated)
    return buffer.getvalue()


def _matplotlib(part: str) -> Any:
    return require(f"matplotlib.{part}", extra="report", feature="A figure file")
