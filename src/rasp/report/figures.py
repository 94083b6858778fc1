"""Figures in two steps: what is shown (an ``Info`` tuple, tested) and how (plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rasp._lazy import require
from rasp.report.arms import relative_failures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.report.arms import Arm

SYMBOLS = ("circle", "square", "triangle-up", "cross", "pentagon", "hexagram")
"""Marker of each criterion in the order they appear; the dense network is a star."""

RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_INK = "#1f2933"
_GRID = "#e4e7eb"


class ParetoPoint(NamedTuple):
    """One network: cycles of an inference, failures relative to dense with interval, top-1."""

    name: str
    criterion: str
    cycles: int
    failures: float
    low: float
    high: float
    accuracy: float


class ParetoInfo(NamedTuple):
    """Points of each format, in the order the formats appear."""

    panels: dict[str, tuple[ParetoPoint, ...]]


class HeatMapInfo(NamedTuple):
    """SDC-1 per fault of one arm.

    Attributes:
        title: which arm.
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


class ModelPoint(NamedTuple):
    """SDC-1 per fault of one fault model in percent, with its interval and n."""

    model: str
    percent: float
    low: float
    high: float
    n: int


class ModelsInfo(NamedTuple):
    """Fault models of each arm, by arm name."""

    arms: dict[str, tuple[ModelPoint, ...]]


def title_of(arm: Arm) -> str:
    """Name and format of an arm as headings show it."""
    return f"{arm.name}, {arm.format.upper()}"


def pareto_info(arms: Sequence[Arm]) -> ParetoInfo:
    """Failures per inference against cycles, dense as 1; arms without a ratio are left out."""
    panels: dict[str, list[ParetoPoint]] = {}
    for arm in arms:
        ratio = relative_failures(arm, tuple(arms))
        if arm.criterion is None:
            values = (1.0, 1.0, 1.0)
        elif ratio is None or ratio.estimate is None or ratio.high is None:
            continue
        else:
            values = (ratio.estimate, ratio.low, ratio.high)
        point = ParetoPoint(
            arm.name, arm.criterion or "dense", arm.cycles, *values, arm.accuracy.estimate
        )
        panels.setdefault(arm.format, []).append(point)
    return ParetoInfo({name: tuple(points) for name, points in panels.items()})


def heat_map_info(arm: Arm) -> HeatMapInfo:
    """Layers of one arm against bit positions."""
    layers = tuple(dict.fromkeys(cell.layer for cell in arm.cells))
    bits = tuple(sorted({cell.bit for cell in arm.cells}, reverse=True))
    found = {(cell.layer, cell.bit): cell.rate for cell in arm.cells}
    return HeatMapInfo(
        title_of(arm),
        layers,
        bits,
        tuple(
            tuple(
                100 * found[layer, bit].estimate if (layer, bit) in found else None for bit in bits
            )
            for layer in layers
        ),
        tuple(
            tuple(found[layer, bit].n if (layer, bit) in found else 0 for bit in bits)
            for layer in layers
        ),
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
        }
    )


def pareto_figure(info: ParetoInfo) -> Any:
    """Draw :func:`pareto_info`, one panel a format; criteria stand side by side at equal cycles.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        PrerequisiteError: plotly is not installed.
    """
    go = _plotly("graph_objects")
    formats = list(info.panels)
    figure = _plotly("subplots").make_subplots(
        cols=len(formats),
        subplot_titles=[name.upper() for name in formats],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    points = [point for panel in info.panels.values() for point in panel]
    low = min(point.accuracy for point in points)
    high = max(point.accuracy for point in points)
    criteria = list(dict.fromkeys(p.criterion for p in points if p.criterion != "dense"))
    symbols = {"dense": "star"} | {
        name: SYMBOLS[i % len(SYMBOLS)] for i, name in enumerate(criteria)
    }
    cycles = [point.cycles for point in points]
    step = 0.03 * (max(cycles) - min(cycles))
    aside = {
        name: step * (place - (len(criteria) - 1) / 2) for place, name in enumerate(criteria)
    } | {"dense": 0.0}
    for column, panel in enumerate(info.panels.values(), start=1):
        for criterion, symbol in symbols.items():
            chosen = [point for point in panel if point.criterion == criterion]
            if not chosen:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[point.cycles + aside[criterion] for point in chosen],
                    y=[point.failures for point in chosen],
                    error_y={
                        "array": [point.high - point.failures for point in chosen],
                        "arrayminus": [point.failures - point.low for point in chosen],
                        "color": "#7b8794",
                        "thickness": 1.3,
                        "width": 4,
                    },
                    mode="markers",
                    name=criterion,
                    legendgroup=criterion,
                    showlegend=column == 1,
                    marker={
                        "symbol": symbol,
                        "size": 17 if criterion == "dense" else 13,
                        "color": [100 * point.accuracy for point in chosen],
                        "coloraxis": "coloraxis",
                        "line": {"color": _INK, "width": 1},
                    },
                    customdata=[
                        (point.name, point.low, point.high, 100 * point.accuracy, point.cycles)
                        for point in chosen
                    ],
                    hovertemplate=(
                        "<b>%{customdata[0]}</b><br>%{customdata[4]:,} cycles"
                        "<br>failures %{y:.3f} of dense "
                        "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]"
                        "<br>top-1 %{customdata[3]:.2f} %<extra></extra>"
                    ),
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text="NVDLA cycles per inference", row=1, col=column)
    figure.add_hline(y=1, line={"color": "#9aa5b1", "dash": "dot", "width": 1})
    figure.update_yaxes(
        type="log", tickvals=RATIO_TICKS, ticktext=[f"{tick:g}" for tick in RATIO_TICKS]
    )
    figure.update_yaxes(title_text="failures per inference, dense = 1", row=1, col=1)
    figure.update_xaxes(separatethousands=True)
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 100 * low,
            "cmax": 100 * max(high, low + 1e-3),
            "colorbar": {"title": {"text": "top-1 %"}, "thickness": 12, "outlinewidth": 0},
        },
        legend={"orientation": "h", "y": -0.2, "x": 0, "title": {"text": ""}},
    )
    return _styled(figure, height=460)


def heat_map_figure(grid: Sequence[Sequence[HeatMapInfo]]) -> Any:
    """Draw heat maps in rows, each map with its own colour scale.

    Args:
        grid: maps of each row, left to right; rows of one length.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    go = _plotly("graph_objects")
    tallest = max(len(info.layers) for row in grid for info in row)
    height = 34 * tallest + 120
    figure = _plotly("subplots").make_subplots(
        rows=len(grid),
        cols=len(grid[0]),
        subplot_titles=[info.title for row in grid for info in row],
        horizontal_spacing=0.16,
        vertical_spacing=0.3 / len(grid),
    )
    cells = [
        (row, column, info)
        for row, infos in enumerate(grid, 1)
        for column, info in enumerate(infos, 1)
    ]
    for place, (row, column, info) in enumerate(cells, start=1):
        suffix = "" if place == 1 else str(place)
        across = figure.layout[f"xaxis{suffix}"].domain
        down = figure.layout[f"yaxis{suffix}"].domain
        figure.add_trace(
            go.Heatmap(
                z=info.percent,
                x=[str(bit) for bit in info.bits],
                y=list(info.layers),
                customdata=info.trials,
                colorscale="Cividis",
                zmin=0,
                colorbar={
                    "x": across[1] + 0.008,
                    "y": sum(down) / 2,
                    "len": down[1] - down[0],
                    "thickness": 10,
                    "ticksuffix": " %",
                    "outlinewidth": 0,
                },
                xgap=1,
                ygap=2,
                hovertemplate=(
                    "%{y}, bit %{x}<br>SDC-1 %{z:.2f} % of %{customdata} faults<extra></extra>"
                ),
            ),
            row=row,
            col=column,
        )
    figure.update_xaxes(type="category", showgrid=False, nticks=17)
    figure.update_xaxes(title_text="bit (left: most significant)", row=len(grid))
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return _styled(figure, height=height * len(grid))


def models_figure(info: ModelsInfo) -> Any:
    """Draw :func:`models_info` as dots with intervals.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    go = _plotly("graph_objects")
    figure = go.Figure()
    colours = ("#1f2933", "#c07f00", "#2b6cb0", "#7a9a01")
    for place, (title, points) in enumerate(info.arms.items()):
        figure.add_trace(
            go.Scatter(
                x=[point.percent for point in points],
                y=[point.model for point in points],
                error_x={
                    "array": [point.high - point.percent for point in points],
                    "arrayminus": [point.percent - point.low for point in points],
                    "thickness": 1.3,
                    "width": 4,
                },
                mode="markers",
                name=title,
                marker={"size": 10, "color": colours[place % len(colours)]},
                customdata=[point.n for point in points],
                hovertemplate="%{y}: %{x:.2f} % of %{customdata:,} faults<extra></extra>",
            )
        )
    figure.update_layout(
        scattermode="group", legend={"orientation": "h", "y": -0.2, "x": 0}, hovermode="closest"
    )
    figure.update_xaxes(title_text="SDC-1 per fault", ticksuffix=" %", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _styled(figure, height=400)


def _plotly(part: str) -> Any:
    return require(f"plotly.{part}", extra="report", feature="The HTML report")


def _styled(figure: Any, *, height: int) -> Any:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 30, "t": 50, "b": 60},
        font={"family": _FONT, "size": 13, "color": _INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_annotations(font={"size": 14})
    return figure
