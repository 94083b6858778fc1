"""What the verbs share: their results, measuring top-1, naming progress, the command to repeat."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from rasp import statistics
from rasp.errors import ConfigError, PrerequisiteError, unknown_name
from rasp.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rasp.loading import Loaded
    from rasp.statistics import Rate

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of torch devices; ``cuda:1`` is the second one of its kind."""

STORE = "campaign.sqlite"
"""File of a run directory that holds every injection."""

CONFIDENCE = 0.95
"""Level of intervals unless the caller asks for another."""


class Result(BaseModel):
    """What a verb found."""

    model_config = ConfigDict(frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return self.model_dump(mode="json")


def check_run(seed: int, device: str = "cpu") -> None:
    """Refuse a seed or a device before anything is loaded.

    Raises:
        ConfigError: the seed is out of range, or there is no such kind of device.
        PrerequisiteError: this machine or this torch does not have the device.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be a whole number from 0 to 2**63 - 1, got {seed}.")
    if device == "cpu":
        return
    if device.partition(":")[0] not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PrerequisiteError(
            f"Device '{device}' cannot be used: {reason}. Without --device the CPU is."
        ) from error


def threads_for(loaded: Loaded) -> AbstractContextManager[None]:
    """The threads that suit a loaded network."""
    from rasp import complexity, threads

    return threads.suited_to(complexity.count(loaded.model, loaded.example).macs)


def accuracy(
    run: Callable[[Tensor], Tensor],
    loaded: Loaded,
    split: str,
    *,
    limit: int | None = None,
    progress: Progress = silent,
) -> Rate:
    """Top-1 with its Wilson interval, see :func:`right_answers`."""
    found = right_answers(run, loaded, split, limit=limit, progress=progress)
    return statistics.wilson(int(found.sum()), len(found), CONFIDENCE)


def right_answers(
    run: Callable[[Tensor], Tensor],
    loaded: Loaded,
    split: str,
    *,
    limit: int | None = None,
    progress: Progress = silent,
) -> NDArray[np.bool_]:
    """Which images of a split are answered rightly, ``(N,)``.

    Args:
        run: normalised images to logits.
        loaded: gives the data.
        split: ``train``, ``validation`` or ``test``.
        limit: images to take, all by default.
        progress: hears about images.
    """
    from rasp import training

    images = loaded.dataset.split(split)
    total = min(limit or len(images), len(images))
    done = 0

    def watched(batch: Tensor) -> Tensor:
        nonlocal done
        logits = run(batch)
        done += len(batch)
        progress(f"evaluate on {split}", done, total)
        return logits

    return training.right_answers(watched, loaded.dataset, images, limit=limit)


def named(progress: Progress, name: str, *, details: bool = True) -> Progress:
    """The same listener, hearing ``name`` instead of the stage's own name."""

    def heard(stage: str, done: int, total: int, detail: str = "") -> None:
        del stage
        progress(name, done, total, detail if details else "")

    return heard


def command(verb: str, **options: Any) -> str:
    """The line that repeats a verb; options that are ``None`` are left out, lists repeat theirs."""
    words = ["rasp", verb]
    for key, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words += ["--" + key.replace("_", "-"), str(one)]
    return shlex.join(words)
