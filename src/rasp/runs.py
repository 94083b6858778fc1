"""Directories that verbs write: their names, and how a finished one is recognised."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasp import checkpoint, provenance
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rasp.checkpoint import Checkpoint
    from rasp.loading import Loaded

RUNS = Path("runs")
"""Where directories go that nobody named."""

TRAINING = "training"
"""Folder of a run directory that holds the state of training until it is finished."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a directory was being written; the same call on ``out`` goes on."""

    def __init__(self, out: Path) -> None:
        super().__init__(str(out))
        self.out = out


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Turn Ctrl-C into :class:`Interrupted`, which says where to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(out) from None


def directory(out: str | Path | None, prefix: str) -> Path:
    """The directory to write: ``out``, or the next free ``runs/<prefix>-NNN``. Nothing is made.

    Raises:
        ConfigError: ``out``, or a part of its path, is a file.
        PrerequisiteError: nothing may be written there.
    """
    check_writable(RUNS if out is None else Path(out))
    if out is not None:
        return Path(out)
    taken = [
        int(found.group(1))
        for path in RUNS.glob(f"{prefix}-*")
        if (found := re.fullmatch(rf"{re.escape(prefix)}-(\d+)", path.name))
    ]
    return RUNS / f"{prefix}-{max(taken, default=0) + 1:03d}"


def check_writable(folder: Path) -> None:
    """Refuse a directory that could not be made or written, before the work that fills it.

    Raises:
        ConfigError: the path, or a part of it, is a file.
        PrerequisiteError: nothing may be written there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"Cannot write into '{folder}': '{there}' is a file. Name a directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PrerequisiteError(
            f"Cannot write into '{folder}': no permission for '{there}'. Name another directory."
        )


def finished(target: Path, arguments: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint in ``target`` if these arguments made it, ``None`` if there is none.

    Raises:
        StoreMismatchError: the directory holds the result of other arguments.
    """
    if not (target / checkpoint.HEADER_FILE).is_file():
        return None
    found = checkpoint.read(target)
    before = found.provenance.get("arguments", {})
    now = json.loads(json.dumps(arguments))
    if before != now:
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        raise StoreMismatchError(
            f"'{target}' holds the result of another run: {', '.join(differing)} differ. "
            "Choose another --out; nothing was changed."
        )
    return found


def save(
    target: Path, loaded: Loaded, arguments: Mapping[str, Any], metrics: dict[str, Any]
) -> Checkpoint:
    """Write a network with the arguments :func:`finished` knows it by; training state goes."""
    written = checkpoint.Checkpoint(
        spec=loaded.spec,
        state=dict(loaded.model.state_dict()),
        data=loaded.dataset.name,
        mean=loaded.dataset.mean,
        std=loaded.dataset.std,
        plan=None if loaded.plan is None else loaded.plan.model_dump(mode="json"),
        quantization=loaded.quantization,
        hardening=loaded.hardening,
        metrics=metrics,
        provenance=provenance.collect(arguments),
    )
    checkpoint.save(target, written)
    shutil.rmtree(target / TRAINING, ignore_errors=True)
    return written
