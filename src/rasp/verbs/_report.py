"""Write the page, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rasp import checkpoint
from rasp.errors import ConfigError
from rasp.report import arms
from rasp.verbs._shared import Result

if TYPE_CHECKING:
    from collections.abc import Sequence


class Reported(Result):
    """A written page and its first line."""

    out: Path
    verdict: str


def report(
    inputs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    title: str = "Reliability of pruned and quantised networks",
    commands: Sequence[str] = (),
) -> Reported:
    """Write one page from finished campaigns.

    Args:
        inputs: directories that :func:`rasp.verbs.inject` wrote, in the order of the table.
        out: the page.
        title: its heading.
        commands: what reproduces the whole, shown at its end.
    """
    from rasp.report.html import render
    from rasp.report.verdict import verdict

    if not inputs:
        raise ConfigError("A report needs at least one directory that 'rasp inject' has finished.")
    found = [arms.read(run) for run in inputs]
    page = render(found, title=title, commands=commands)
    checkpoint.write_atomic(Path(out), page.encode())
    return Reported(out=Path(out), verdict=verdict(found).sentence)
