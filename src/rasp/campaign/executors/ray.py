"""Workers on a Ray cluster, as many as it has CPUs; nodes may come and go."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from rasp import _lazy
from rasp.campaign.executors.answer import answered, result
from rasp.errors import PrerequisiteError
from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rasp.campaign.job import Job, Rows, Task, Worker
    from rasp.progress import Progress
    from rasp.replay.golden import SharedGolden

_RETRIES = 5  # of a task whose worker or node is lost
_SECONDS = 10.0  # in which a cluster must take a connection
_AHEAD = 2  # tasks in flight for every CPU

_held: tuple[str, Worker] | None = None
"""Campaign and its worker in a process of the cluster."""


class Ray:
    """Runs tasks on a Ray cluster, each on one CPU with one torch thread.

    The campaign goes into Ray's object store once. So do its golden tensors where they fit the
    memory of a worker: all workers of a node read the same copy. A task whose worker or node is
    lost runs again on another. Every node needs the same versions of torch-rasp and torch.

    Args:
        job: the campaign.
        address: ``local`` starts a cluster on this machine, ``auto`` joins the running one;
            ``HOST:PORT``; by default the running one or else a new one. Ignored if this process is
            connected already.

    Raises:
        PrerequisiteError: Ray is not installed, there is no cluster at the address, or it has no
            GPU for a campaign that runs on one.
    """

    def __init__(self, job: Job, address: str | None = None) -> None:
        self._ray: Any = _lazy.require("ray", extra="ray", feature="--ray")
        self._connected = not self._ray.is_initialized()
        if self._connected:
            _connect(self._ray, address)
        gpus = float(job.device.startswith("cuda"))
        if gpus and not self._ray.cluster_resources().get("GPU"):
            self.close()
            raise PrerequisiteError(f"The Ray cluster has no GPU for --device {job.device}.")
        remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)
        self._task = remote(_answer)
        # Refs in a list are handed over as they are: a process gets what they stand for once.
        self._parts = [self._ray.put(job)]
        self._parts.append(remote(_golden).remote(self._parts[:1]))

    @property
    def slots(self) -> int:
        """CPUs of the cluster at the moment."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(
        self, tasks: Iterable[Task], *, progress: Progress = silent
    ) -> Iterator[tuple[Task, Rows]]:
        """Every task with its rows, as they finish; ``progress`` hears nothing in between.

        Raises:
            PrerequisiteError: the cluster lost a task for good.
            Exception: what a task raised.
        """
        del progress
        waiting = deque(tasks)
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < _AHEAD * self.slots:
                    task = waiting.popleft()
                    running[self._task.remote(self._parts, task)] = task
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                yield running.pop(done), result(self._get(done))
        finally:
            if running and self._ray.is_initialized():
                for reference in running:
                    self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._connected and self._ray.is_initialized():
            self._ray.shutdown()

    def _get(self, reference: Any) -> Rows | Exception:
        try:
            answer: Rows | Exception = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()
            raise PrerequisiteError(
                f"The Ray cluster could not finish a chunk: {reason[0] if reason else error!r} "
                "Every node needs torch-rasp and enough memory. Finished chunks are kept, the "
                "same call goes on."
            ) from error
        return answer


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _probe(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise PrerequisiteError(
            f"Cannot use the Ray cluster '{address}': {reason}. Start one with 'ray start --head' "
            "and join it by --ray auto, or start one for this call with --ray local."
        ) from error


def _probe(address: str | None) -> None:
    """Try the port first: Ray itself tries for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()


def _golden(parts: list[Any]) -> SharedGolden | Exception | None:
    """Golden tensors of a campaign, if they fit; runs on the cluster."""
    return answered(_share, parts)


def _answer(parts: list[Any], task: Task) -> Rows | Exception:
    """Rows of a task; runs on the cluster."""
    return answered(_run, parts, task)


def _share(parts: list[Any]) -> SharedGolden | None:
    return _built(parts).replay.share()


def _run(parts: list[Any], task: Task) -> Rows:
    global _held  # noqa: PLW0603  what a process of the cluster keeps from task to task
    key = parts[0].hex()
    if _held is None or _held[0] != key:
        _held = None
        _held = key, _built(parts)
    return _held[1].run(task)


def _built(parts: list[Any]) -> Worker:
    import torch

    from rasp.campaign.job import Worker

    ray: Any = _lazy.require("ray", extra="ray", feature="--ray")
    torch.set_num_threads(1)
    job, *golden = ray.get(parts)
    return Worker(job, golden=result(golden[0]) if golden else None)
