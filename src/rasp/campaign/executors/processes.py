"""Workers as processes of this machine: a chunk each at a time, replaced when they are killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any

from rasp.campaign.executors.answer import answered, result
from rasp.errors import ConfigError, PrerequisiteError
from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from rasp.campaign.job import Job, Rows, Task
    from rasp.progress import Progress

_DEATHS = 3  # in a row, with no chunk finished in between
_SECONDS = 5.0  # in which a process whose line is closed has ended


@dataclass(eq=False)
class _Child:
    process: SpawnProcess
    line: Connection
    task: Task | None = None
    ready: bool = False


class Processes:
    """Runs tasks in worker processes, one torch thread each.

    They are started with ``spawn``, hold their own golden tensors and stay for the next call of
    :meth:`run`. One that is killed is replaced and its task runs again. Workers end when this
    process does, even by ``kill -9``; Ctrl-C only this process hears, and ends them.

    Args:
        job: the campaign.
        workers: number of processes.

    Raises:
        ConfigError: fewer than one worker.
    """

    def __init__(self, job: Job, workers: int) -> None:
        if workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {workers}.")
        self.slots = workers
        self._job = pickle.dumps(job)
        self._children: list[_Child] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(child.process.pid or 0 for child in self._children)

    def run(
        self, tasks: Iterable[Task], *, progress: Progress = silent
    ) -> Iterator[tuple[Task, Rows]]:
        """Every task with its rows, as they finish; ``progress`` hears nothing in between.

        Raises:
            PrerequisiteError: three workers in a row died before a chunk was finished.
            Exception: what a task raised.
        """
        del progress
        try:
            yield from self._run(deque(tasks))
        except BaseException:  # also that the caller wants no more
            self.close()
            raise

    def close(self) -> None:
        """Kill the workers."""
        for child in self._children:
            child.process.kill()
        while self._children:
            _bury(self._children.pop())

    def _run(self, waiting: deque[Task]) -> Iterator[tuple[Task, Rows]]:
        deaths = 0
        self._assign(waiting)
        while busy := {c.line: (c, c.task) for c in self._children if c.task is not None}:
            lines: list[Any] = connection.wait(list(busy))
            for child, task in [busy[line] for line in lines]:
                try:
                    answer = self._hear(child)
                except (EOFError, OSError):
                    self._children.remove(child)
                    exit_code = _bury(child)
                    deaths += 1
                    if deaths == _DEATHS:
                        raise _died(exit_code) from None
                    waiting.appendleft(task)
                    self._assign(waiting)
                    continue
                if answer is not None:
                    deaths = 0
                    child.task = None
                    self._assign(waiting)  # before the caller is busy with the rows
                    yield task, result(answer)

    def _assign(self, waiting: deque[Task]) -> None:
        """Give waiting tasks to idle workers, and start workers while there are too few."""
        while waiting:
            child = next((child for child in self._children if child.task is None), None)
            if child is None:
                if len(self._children) == self.slots:
                    return
                child = _start()
                self._children.append(child)
            child.task = waiting.popleft()
            if child.ready:
                with suppress(OSError):  # it died, which the next wait finds out
                    child.line.send(child.task)

    def _hear(self, child: _Child) -> Rows | Exception | None:
        """What a worker says; its first word is answered with the campaign and its task."""
        answer: Rows | Exception | None = child.line.recv()
        if not child.ready:
            child.ready = True
            child.line.send_bytes(self._job)
            child.line.send(child.task)
        return answer


def _start() -> _Child:
    """A new process that does not hear Ctrl-C from its first moment on."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    resource_tracker.ensure_running()  # if started below, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return _Child(process, here)


def _serve(line: Connection) -> None:
    """What a worker process does: it says that it is there, then answers tasks."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from rasp.campaign.job import Worker

    torch.set_num_threads(1)
    worker: Worker | None = None

    def run(task: Task) -> Rows:
        nonlocal worker
        worker = worker or Worker(pickle.loads(job))  # noqa: S301  the parent's own bytes
        return worker.run(task)

    with suppress(EOFError, OSError):  # the parent has closed the line
        line.send(None)
        job = line.recv_bytes()
        while True:
            line.send(answered(run, line.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _bury(child: _Child) -> int:
    """Exit code of a worker that has ended or must."""
    child.line.close()
    child.process.join(_SECONDS)
    child.process.kill()
    child.process.join()
    exit_code = child.process.exitcode or 0
    child.process.close()
    return exit_code


def _died(exit_code: int) -> PrerequisiteError:
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return PrerequisiteError(
        f"{_DEATHS} worker processes in a row died before a chunk was finished, the last by {how}. "
        "If memory is short, use fewer --workers; a script that starts workers must do so below "
        "'if __name__ == \"__main__\":'. Finished chunks are kept, the same call goes on."
    )
