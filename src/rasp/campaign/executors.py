"""Where chunks run: in this process, or in others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rasp.campaign.job import Rows, Task, Worker
    from rasp.progress import Progress


class Executor(Protocol):
    """Runs tasks of one campaign.

    A task may run more than once if a worker dies; its rows are the same each time.
    """

    def run(
        self, tasks: Iterable[Task], *, progress: Progress = silent
    ) -> Iterator[tuple[Task, Rows]]:
        """Every task with its rows, in any order, as they finish."""


class InProcess:
    """Runs tasks one after the other in this process.

    Args:
        worker: the campaign's worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def run(
        self, tasks: Iterable[Task], *, progress: Progress = silent
    ) -> Iterator[tuple[Task, Rows]]:
        """Every task with its rows, in order."""
        for task in tasks:
            yield task, self._worker.run(task, progress=progress)
