"""The only code that draws: results on stdout, progress and errors on stderr.

On a terminal results are rich tables and progress is live; elsewhere both are plain lines. Text
that comes from the program is never read as rich markup, which would eat intervals ``[lo, hi]``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import rich.console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

PLAIN_SECONDS = 10.0
"""At most one plain progress line of a stage in this time."""


@dataclass(frozen=True)
class Table:
    """Rows to show.

    Attributes:
        columns: headings; one that starts with ``>`` is a column of numbers, aligned right.
        rows: one text a column.
        title: line above the table.
        notes: lines below the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    def plain(self) -> str:
        """The table as aligned text without any drawing.

        Example:
            >>> print(Table(["name", ">n"], [["a", "10"], ["bc", "9"]]).plain())
            name   n
            a     10
            bc     9
        """
        heads = [column.removeprefix(">") for column in self.columns]
        grid = [heads, *self.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(heads))]
        lines = [
            "  ".join(
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for column, cell, width in zip(self.columns, row, widths, strict=True)
            ).rstrip()
            for row in grid
        ]
        return "\n".join([*([self.title] if self.title else []), *lines, *self.notes])

    def drawn(self) -> RichTable:
        """The table for a terminal."""
        drawn = RichTable(title=Text(self.title) if self.title else None, title_justify="left")
        for column in self.columns:
            right = column.startswith(">")
            drawn.add_column(
                Text(column.removeprefix(">")), justify="right" if right else "left", no_wrap=right
            )
        for row in self.rows:
            drawn.add_row(*[Text(cell) for cell in row])
        return drawn


def facts(*rows: tuple[str, object]) -> Table:
    """Names and values below one another."""
    return Table(["", ""], [[name, str(value)] for name, value in rows])


class Console:
    """Display of one command.

    Used as a context manager, so that a live display is closed before anything else is printed.
    The instance's :meth:`progress` is a :class:`rasp.progress.Progress`.

    Args:
        json_output: print results as one JSON object instead of text.
    """

    def __init__(self, *, json_output: bool = False) -> None:
        self._json = json_output
        self._out = rich.console.Console(file=sys.stdout, markup=False, highlight=False)
        self._err = rich.console.Console(file=sys.stderr, markup=False, highlight=False)
        self._live: Progress | None = None
        self._stage = self._detail = ""
        self._started = self._printed = 0.0
        self._finished = False

    def __enter__(self) -> Self:
        if self._err.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._err,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_stage()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def progress(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Show that ``done`` of ``total`` units of a stage are finished."""
        now = time.monotonic()
        if stage != self._stage:
            self._close_stage()
            self._stage, self._started, self._printed, self._detail = stage, now, now, ""
            self._open_bar(stage, total)
        self._finished, self._detail = done >= total, detail or self._detail
        if self._live is not None:
            bar = self._live.task_ids[-1]
            self._live.update(bar, completed=done, total=total, detail=self._detail)
        elif now - self._printed >= PLAIN_SECONDS and not self._finished:
            self._printed = now
            self._line(f"{stage}: {done}/{total}")

    def note(self, text: str) -> None:
        """Print one line on stderr."""
        self._err.print(Text(text), soft_wrap=True)

    def result(self, payload: Mapping[str, Any], *tables: Table) -> None:
        """Print what the command found: the tables, or with ``--json`` the payload alone."""
        if self._json:
            self._out.file.write(json.dumps(payload, indent=2, allow_nan=False) + "\n")
            return
        for table in tables:
            if self._out.is_terminal:
                self._out.print(table.drawn())
                for line in table.notes:
                    self._out.print(Text(line))
            else:
                self._out.file.write(table.plain() + "\n")

    def _close_stage(self) -> None:
        if self._stage and self._finished:
            self._line(f"{self._stage}: done in {time.monotonic() - self._started:.1f} s")
        self._stage = ""

    def _open_bar(self, stage: str, total: int) -> None:
        if self._live is not None:
            for task in self._live.task_ids:
                self._live.remove_task(task)
            self._live.add_task(stage, total=total, detail="")

    def _line(self, text: str) -> None:
        self.note(f"{text}, {self._detail}" if self._detail else text)
