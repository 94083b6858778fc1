"""One self-contained HTML page from the arms of a study: no server, no network, no other file."""

from __future__ import annotations

import base64
import json
import re
import shlex
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from rasp._lazy import require
from rasp.report import plotly_figures
from rasp.report.arms import reference_of, relative_failures
from rasp.report.figures import span, study_figures, title_of
from rasp.report.layers import COLUMNS
from rasp.report.verdict import verdict
from rasp.statistics import spaced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rasp.report.arms import Arm
    from rasp.statistics import Rate

HEADINGS = (
    "Network",
    "Format",
    "Top-1\N{NO-BREAK SPACE}↑",
    "MACs\N{NO-BREAK SPACE}↓",
    "NVDLA cycles\N{NO-BREAK SPACE}↓",
    "SDC-1 per fault\N{NO-BREAK SPACE}↓",
    "Failures per inference\N{NO-BREAK SPACE}↓, dense = 1",
)
"""Columns of the table, here and on the command line; the arrow points to the better side."""

LIMITS = """\
One upset is one flipped bit (RD: one random result) in one layer of one inference. Upsets in \
control registers, memories and the host are not in these numbers.
Per fault and per inference are two questions. A smaller network offers fewer cycles to be hit in, \
so it can be worse per fault and better per inference. Failures per inference are register bits x \
cycles x SDC-1 at one upset rate per bit and cycle, divided by the same for the dense network of \
the same format.
Cycles are those of the model of {accelerator}, not of a chip.
Intervals cover the choice of faults and images, not training: every network is one run with one \
seed. Differences between criteria smaller than the spread of seeds mean nothing.
The verdict names the network whose interval ends lowest among several, which is still optimistic \
by selection; top-1 and failures come from the same test split.
MACs are multiply-accumulates of convolutions and linear layers for one image, padding included.
These are estimates for evidence, not a claim of conformity with a safety standard.
"""
"""What a reader has to know before quoting a number, a line each."""


class Section(NamedTuple):
    """A table above that of the networks.

    Attributes:
        heading, note: what is over it.
        columns: its head.
        rows: a text for each column.
    """

    heading: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Row(NamedTuple):
    """One arm as the table shows it.

    Attributes:
        cells: one text a column of :data:`HEADINGS`.
        dense: whether other rows are relative to this one.
        best: whether the verdict names it.
    """

    cells: tuple[str, ...]
    dense: bool
    best: bool


def rows(arms: Sequence[Arm]) -> tuple[Row, ...]:
    """The table of a study, in the order of the arms."""
    chosen = verdict(arms).arm
    return tuple(_row(arm, tuple(arms), best=arm is chosen) for arm in arms)


def render(
    arms: Sequence[Arm],
    *,
    title: str,
    commands: Sequence[str] = (),
    sections: Sequence[Section] = (),
) -> str:
    """Write the page.

    Args:
        arms: at least one; dense ones are the reference of the pruned ones of their format.
        title: heading of the page.
        commands: what reproduces the whole study; each arm's own command is shown anyway.
        sections: tables above that of the arms.

    Returns:
        The HTML text, about 5 MB because it carries the plotting library.

    Raises:
        PrerequisiteError: the report extra is not installed.
    """
    jinja2 = require("jinja2", extra="report", feature="The HTML report")
    offline = require("plotly.offline", extra="report", feature="The HTML report")
    study = study_figures(arms)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["tight"] = _tight
    template = environment.from_string(
        (resources.files(__package__) / "templates" / "report.html").read_text(encoding="utf-8")
    )
    page: str = template.render(
        title=title,
        verdict=verdict(arms).sentence,
        sections=sections,
        headings=HEADINGS,
        rows=rows(arms),
        pareto=study.pareto and _div(plotly_figures.pareto(study.pareto), "pareto"),
        heat=[
            [_div(plotly_figures.heat_map(info), f"heat-{i}-{j}") for j, info in enumerate(row)]
            for i, row in enumerate(study.heat)
        ],
        models=_div(plotly_figures.fault_models(study.models), "models"),
        study=study,
        columns=COLUMNS,
        title_of=title_of,
        plotly=offline.get_plotlyjs(),
        statistics=_statistics(arms),
        limits=_limits(arms),
        commands=commands,
        arms=arms,
        provenance=_provenance(arms[0].provenance),
        digests=[(title_of(arm), arm.spec_digest, arm.command) for arm in arms],
        summary=_download([arm.model_dump(mode="json") for arm in arms]),
    )
    return page


def _row(arm: Arm, arms: tuple[Arm, ...], *, best: bool) -> Row:
    ratio = relative_failures(arm, arms)
    dense = reference_of(arm, arms)
    if arm.criterion is None:
        failures = "1"
    elif ratio is None:
        failures = "unknown"
    else:
        failures = str(ratio)
    return Row(
        (
            arm.name,
            arm.format.upper() + ("" if arm.native else "*"),
            str(arm.accuracy),
            _amount(arm.macs, None if dense is None else dense.macs),
            _amount(arm.cycles, None if dense is None else dense.cycles),
            str(arm.sdc1),
            failures,
        ),
        arm.criterion is None,
        best,
    )


def _amount(value: int, dense: int | None) -> str:
    share = f" ({100 * value / dense:.0f} %)" if dense and dense != value else ""
    return spaced(value) + share


def _statistics(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    trials = [arm.trials for arm in arms]
    first = arms[0]
    return [
        ("Injected faults (n)", f"{spaced(sum(trials))}; each network {span(trials)}"),
        ("Images, shared by the faults", span(arm.images for arm in arms)),
        (
            "Effective n of SDC-1 after clustering by image",
            span(round(arm.sdc1.n_effective) for arm in arms),
        ),
        ("Layers, strata", f"{len(first.by_layer)} layers x {len(first.by_model)} fault models"),
        ("Fault models and weights", _weights(first.spec.get("fault_models", {}))),
        ("Layers weighted by", str(first.spec.get("layer_weights", "cycles"))),
        ("Interval of SDC-1", _method(first.sdc1)),
        ("Interval of top-1", _method(first.accuracy)),
        (
            "Interval of the relative failures",
            "log-delta; taken as independent, though images are shared",
        ),
        ("Seed, the same for every network", str(first.spec.get("seed", 0))),
    ]


def footnotes(arms: Sequence[Arm]) -> tuple[str, ...]:
    """What the marks in the table mean."""
    foreign = sorted({arm.format.upper() for arm in arms if not arm.native})
    if not foreign:
        return ()
    note = (
        f"* {', '.join(foreign)} is an arithmetic model: {arms[0].accelerator} has no such "
        "datapath, and no NVDLA has one for FP32. Cycles and the reach of a fault are those of its "
        "INT8 pipeline, the values are the format's own."
    )
    return (note,)


def _limits(arms: Sequence[Arm]) -> list[str]:
    return [
        *footnotes(arms),
        *LIMITS.format(accelerator=arms[0].accelerator).splitlines(),
        *sorted({note for arm in arms for note in arm.notes}),
    ]


def _method(rate: Rate) -> str:
    name, comma, how = rate.method.partition(",")
    return f"{100 * rate.confidence:g} % {name.title()}{comma}{how}"


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, shlex.join(value) if key == "argv" else _text(value))
        for key, value in record.items()
        if value not in (None, {}, [], "")
    ]


def _tight(text: str) -> str:
    """The text with no line break inside a number, before its unit or after ``n =``."""
    return re.sub(r"(?<=[\dn=]) (?=[\d%=])", "\N{NO-BREAK SPACE}", text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _weights(models: Any) -> str:
    if not isinstance(models, dict) or not models:
        return "as in the specification"
    if not all(isinstance(weight, int | float) and weight > 0 for weight in models.values()):
        return "as in the specification"
    total = sum(models.values())
    return ", ".join(f"{name} {100 * weight / total:.1f} %" for name, weight in models.items())


def _div(figure: Any, name: str) -> str:
    text: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return text


def _download(payload: Any) -> str:
    text = json.dumps(payload, indent=1).encode()
    return "data:application/json;base64," + base64.b64encode(text).decode()
