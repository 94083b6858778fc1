"""What an executor is, and the one that runs chunks in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rasp.campaign.job import Rows, Task, Worker
    from rasp.progress import Progress


class Executor(Protocol):
    """Runs tasks of one campaign, in one or more calls of :meth:`run`.

    A task may run more than once if a worker dies; its rows are the same each time.
    """

    def run(
        self, tasks: Iterable[Task], *, progress: Progress = silent
    ) -> Iterator[tuple[Task, Rows]]:
        """Every task with its rows, in any order, as they finish.

        Raises:
            RaspError: what a task raised, or that its workers keep dying.
        """

    def close(self) -> None:
        """End the workers at once; a task that still runs is dropped."""


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

    def close(self) -> None:
        """Nothing to end."""
