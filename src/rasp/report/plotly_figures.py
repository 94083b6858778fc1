"""Figures for the page, drawn by plotly; each function returns a ``plotly.graph_objects.Figure``.

All raise :class:`~rasp.errors.PrerequisiteError` where plotly is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rasp._lazy import require
from rasp.report import figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.report.figures import HeatMapInfo, ModelsInfo, ParetoInfo, ParetoPoint

SYMBOLS = (
    *("star", "circle", "square", "triangle-up", "cross", "pentagon", "hexagram", "diamond"),
    *("triangle-down", "x", "triangle-left", "triangle-right", "bowtie", "hourglass"),
)
"""Marker of each criterion in the order they appear, the dense network's first."""

_MARKS = ("circle", "diamond", "square", "triangle-up")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_INK = "#1f2933"
_GRID = "#e4e7eb"
_BARS = {"thickness": 1.3, "width": 4}


def pareto(info: ParetoInfo) -> Any:
    """Failures per inference against cycles, one panel a format."""
    figure = _plotly("subplots").make_subplots(
        cols=len(info.panels),
        subplot_titles=[name.upper() for name in info.panels],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for column, panel in enumerate(info.panels.values(), start=1):
        for place, criterion in enumerate(info.criteria):
            chosen = [point for point in panel if point.criterion == criterion]
            if chosen:
                trace = _pareto_trace(chosen, SYMBOLS[place % len(SYMBOLS)])
                trace.update(legendgroup=criterion, showlegend=column == 1)
                figure.add_trace(trace, row=1, col=column)
    top1 = [point.accuracy for point in info.points]
    figure.add_hline(y=1, line={"color": "#9aa5b1", "dash": "dot", "width": 1})
    figure.update_yaxes(
        type="log",
        tickvals=figures.RATIO_TICKS,
        ticktext=[f"{tick:g}" for tick in figures.RATIO_TICKS],
    )
    figure.update_yaxes(title_text=figures.FAILURES, row=1, col=1)
    figure.update_xaxes(title_text=figures.CYCLES, separatethousands=True)
    figure.update_layout(
        coloraxis={
            "colorscale": figures.SHADES,
            "cmin": min(top1),
            "cmax": max(*top1, min(top1) + 0.1),
            "colorbar": {"title": {"text": figures.ACCURACY}, "thickness": 12, "outlinewidth": 0},
        },
        legend={"orientation": "h", "y": -0.2, "x": 0, "title": {"text": ""}},
    )
    return _styled(figure, height=460)


def heat_map(info: HeatMapInfo) -> Any:
    """SDC-1 by layer and bit, with its own colour scale."""
    go = _plotly("graph_objects")
    figure = go.Figure(
        go.Heatmap(
            z=info.percent,
            x=[str(bit) for bit in info.bits],
            y=list(info.layers),
            customdata=info.trials,
            colorscale=figures.SHADES,
            zmin=0,
            colorbar={"thickness": 10, "ticksuffix": " %", "outlinewidth": 0, "x": 1.01},
            xgap=1,
            ygap=2,
            hovertemplate=(
                "%{y}, bit %{x}<br>SDC-1 %{z:.2f} % of %{customdata} faults<extra></extra>"
            ),
        )
    )
    figure.update_layout(title={"text": info.title, "x": 0.5, "y": 0.97, "font": {"size": 14}})
    figure.update_xaxes(type="category", showgrid=False, nticks=17, title_text=figures.BIT)
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return _styled(figure, height=34 * len(info.layers) + 110, right=10)


def fault_models(info: ModelsInfo) -> Any:
    """SDC-1 by fault model, networks beside each other."""
    go = _plotly("graph_objects")
    figure = go.Figure()
    for place, (title, points) in enumerate(info.networks.items()):
        figure.add_trace(
            go.Scatter(
                x=[point.percent for point in points],
                y=[info.height(place, point.model) for point in points],
                error_x={
                    "array": [point.high - point.percent for point in points],
                    "arrayminus": [point.percent - point.low for point in points],
                    **_BARS,
                },
                mode="markers",
                name=title,
                cliponaxis=False,
                marker={
                    "size": 10,
                    "symbol": _MARKS[place % len(_MARKS)],
                    "color": figures.PALETTE[place % len(figures.PALETTE)],
                },
                customdata=[(point.model, point.n) for point in points],
                hovertemplate=(
                    "%{customdata[0]}: %{x:.2f} % of %{customdata[1]:,} faults<extra></extra>"
                ),
            )
        )
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "x": 0}, hovermode="closest")
    figure.update_xaxes(title_text=figures.SDC1, rangemode="tozero")
    figure.update_yaxes(
        tickvals=list(range(len(info.models))),
        ticktext=info.models,
        range=[len(info.models) - 0.5, -0.5],
        ticks="outside",
        ticklen=8,
        tickcolor="rgba(0,0,0,0)",
        zeroline=False,
        automargin=True,
    )
    return _styled(figure, height=48 * len(info.models) + 110)


def _pareto_trace(points: Sequence[ParetoPoint], symbol: str) -> Any:
    return _plotly("graph_objects").Scatter(
        x=[point.place for point in points],
        y=[point.failures for point in points],
        error_y={
            "array": [point.high - point.failures for point in points],
            "arrayminus": [
                point.failures / 2 if point.bound else point.failures - point.low
                for point in points
            ],
            "color": "#7b8794",
            **_BARS,
        },
        mode="markers",
        name=points[0].criterion,
        marker={
            "symbol": symbol,
            "size": 17 if points[0].criterion == figures.DENSE else 13,
            "color": [point.accuracy for point in points],
            "coloraxis": "coloraxis",
            "line": {"color": _INK, "width": 1},
        },
        customdata=[
            (
                point.name,
                point.cycles,
                f"at most {point.high:.3f}"
                if point.bound
                else f"{point.failures:.3f} [{point.low:.3f}, {point.high:.3f}]",
                point.accuracy,
                point.n,
            )
            for point in points
        ],
        hovertemplate=(
            "<b>%{customdata[0]}</b><br>%{customdata[1]:,} cycles"
            "<br>failures %{customdata[2]} of dense, n = %{customdata[4]:,}"
            "<br>top-1 %{customdata[3]:.2f} %<extra></extra>"
        ),
    )


def _plotly(part: str) -> Any:
    return require(f"plotly.{part}", extra="report", feature="The HTML report")


def _styled(figure: Any, *, height: int, right: int = 30) -> Any:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": right, "t": 50, "b": 60},
        font={"family": _FONT, "size": 13, "color": _INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_annotations(font={"size": 14})
    return figure
