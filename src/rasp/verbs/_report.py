"""Write the page and figures, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rasp import checkpoint, runs
from rasp.errors import ConfigError
from rasp.report import arms
from rasp.verbs._shared import Result

if TYPE_CHECKING:
    from collections.abc import Sequence


class Reported(Result):
    """A written page, its first line, and the figure files written beside it."""

    out: Path
    verdict: str
    figures: tuple[Path, ...] = ()


def report(
    inputs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    figures: str | Path | None = None,
    title: str = "Reliability of pruned and quantised networks",
    commands: Sequence[str] = (),
) -> Reported:
    """Write one page from finished campaigns.

    Args:
        inputs: directories that :func:`rasp.verbs.inject` wrote, in the order of the table.
        out: the page.
        figures: directory for every figure as PDF and PNG; none are written by default.
        title: its heading.
        commands: what reproduces the whole, shown at its end.
    """
    from rasp.report import matplotlib_figures
    from rasp.report.figures import study_figures
    from rasp.report.html import render
    from rasp.report.verdict import verdict

    if not inputs:
        raise ConfigError("A report needs at least one directory that 'rasp inject' has finished.")
    found = [arms.read(run) for run in inputs]
    if Path(out).is_dir():
        raise ConfigError(f"'{out}' is a directory. Name the page to write, such as report.html.")
    for folder in (Path(out).parent, *([] if figures is None else [Path(figures)])):
        runs.check_writable(folder)
    page = render(found, title=title, commands=commands)
    content = {Path(out): page.encode()}
    if figures is not None:
        drawn = matplotlib_figures.files(study_figures(found))
        content |= {Path(figures) / name: drawn[name] for name in sorted(drawn)}
    for path, data in content.items():
        checkpoint.write_atomic(path, data)
    written = tuple(path for path in content if path != Path(out))
    return Reported(out=Path(out), verdict=verdict(found).sentence, figures=written)
