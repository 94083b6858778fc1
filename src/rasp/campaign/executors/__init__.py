"""Where chunks run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rasp import _lazy
from rasp.campaign.executors.in_process import Executor, InProcess
from rasp.campaign.executors.processes import Processes
from rasp.campaign.executors.ray import Ray
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from rasp.campaign.job import Job

__all__ = ["Executor", "InProcess", "Processes", "Ray", "check", "elsewhere"]


def check(workers: int, ray: str | None) -> None:
    """Refuse what :func:`elsewhere` would, before anything is loaded.

    Raises:
        ConfigError: fewer than one worker, or workers and a cluster.
        PrerequisiteError: Ray is not installed.
    """
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    if ray is None:
        return
    if workers > 1:
        raise ConfigError(
            f"--workers {workers} and --ray {ray} exclude each other: a cluster runs a worker on "
            "each of its CPUs. Leave one of them out."
        )
    _lazy.require("ray", extra="ray", feature="--ray")


def elsewhere(job: Job, *, workers: int = 1, ray: str | None = None) -> Processes | Ray | None:
    """The executor that was asked for, ``None`` if this process is to do the work.

    Args:
        job: the campaign.
        workers: processes of this machine.
        ray: address of a Ray cluster.

    Raises:
        ConfigError: fewer than one worker, or workers and a cluster.
        PrerequisiteError: Ray is not installed, or there is no cluster at the address.
    """
    check(workers, ray)
    if ray is not None:
        return Ray(job, ray)
    return Processes(job, workers) if workers > 1 else None
