"""Trained networks on disk: ``model.safetensors`` and ``model.json``, data that runs no code."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError
from rasp.zoo.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SCHEMA_VERSION: Final = 1
STATE_FILE, HEADER_FILE = "model.safetensors", "model.json"
_LARGEST_HEADER = 64 << 20


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network and how it came to be.

    Attributes:
        spec: the dense network; with ``plan``, what the plan starts from.
        state: tensors by name, of the network after pruning.
        data: name of the data set it was trained on.
        mean: normalisation of its images, see :class:`rasp.data.Dataset`.
        std: as ``mean``.
        plan: the pruning plan as JSON, ``None`` for a dense network.
        quantization: the quantisation record as JSON, ``None`` if there is none.
        hardening: the bounds as JSON, ``None`` if there are none.
        metrics: numbers measured on it.
        provenance: what :func:`rasp.provenance.collect` gave.
    """

    spec: ModelSpec
    state: dict[str, Tensor]
    data: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    plan: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    hardening: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rasp checkpoint"] = "rasp checkpoint"
    schema_version: Literal[1] = SCHEMA_VERSION
    spec: ModelSpec
    data: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    plan: dict[str, Any] | None
    quantization: dict[str, Any] | None
    hardening: dict[str, Any] | None = None
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    state_bytes: int = Field(ge=0)
    state_sha256: str


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an interruption leaves the old one, or a pair that ``read`` refuses.

    Args:
        directory: made if it does not exist.
        checkpoint: what to write.

    Raises:
        ConfigError: a tensor holds NaN or infinity.
    """
    from safetensors.torch import save as to_bytes

    directory = Path(directory)
    broken = [name for name, value in checkpoint.state.items() if not value.isfinite().all()]
    if broken:
        raise ConfigError(
            f"Tensor '{broken[0]}' is not finite, so nothing was written. Did training diverge?"
        )
    state = to_bytes(
        {
            name: value.detach().cpu().contiguous().clone()
            for name, value in checkpoint.state.items()
        }
    )
    header = _Header(
        spec=checkpoint.spec,
        data=checkpoint.data,
        mean=checkpoint.mean,
        std=checkpoint.std,
        plan=checkpoint.plan,
        quantization=checkpoint.quantization,
        hardening=checkpoint.hardening,
        metrics=checkpoint.metrics,
        provenance=checkpoint.provenance,
        state_bytes=len(state),
        state_sha256=sha256(state).hexdigest(),
    )
    write_atomic(directory / STATE_FILE, state)
    write_atomic(directory / HEADER_FILE, f"{header.model_dump_json(indent=2)}\n".encode())


def read(directory: Path) -> Checkpoint:
    """Read a checkpoint as data; nothing in it is imported or run.

    Args:
        directory: holds ``model.safetensors`` and ``model.json``.

    Raises:
        PrerequisiteError: a file is missing.
        StoreMismatchError: not a checkpoint, one of another schema, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    directory = Path(directory)
    for name in (HEADER_FILE, STATE_FILE):
        if not (directory / name).is_file():
            raise PrerequisiteError(
                f"'{directory}' is not a checkpoint: it has no {name}. "
                "Give the directory that 'rasp train' or 'rasp prune' wrote."
            )
    header = _read_header(directory / HEADER_FILE)
    path = directory / STATE_FILE
    size = path.stat().st_size
    if size != header.state_bytes:
        raise StoreMismatchError(
            f"'{path}' has {size} bytes, {HEADER_FILE} says {header.state_bytes}. The files do "
            "not belong together or a save was interrupted; make the checkpoint again."
        )
    content = path.read_bytes()
    if sha256(content).hexdigest() != header.state_sha256:
        raise StoreMismatchError(
            f"'{path}' does not have the SHA-256 that {HEADER_FILE} names. The file was changed "
            "or a save was interrupted; make the checkpoint again."
        )
    try:
        state = from_bytes(content)
    except SafetensorError as error:
        raise StoreMismatchError(f"'{path}' is not a safetensors file: {error}.") from error
    return Checkpoint(
        spec=header.spec,
        state=state,
        data=header.data,
        mean=header.mean,
        std=header.std,
        plan=header.plan,
        quantization=header.quantization,
        hardening=header.hardening,
        metrics=header.metrics,
        provenance=header.provenance,
    )


def _read_header(path: Path) -> _Header:
    if path.stat().st_size > _LARGEST_HEADER:
        raise StoreMismatchError(f"'{path}' is larger than any checkpoint's description.")
    try:
        return _Header.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StoreMismatchError(
            f"'{path}' is not a checkpoint of schema {SCHEMA_VERSION}: {where}: {first['msg']}. "
            "Give a checkpoint written by this version of rasp."
        ) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, also after a crash.

    Args:
        path: file to write; its directory is made if it does not exist.
        content: the whole content.

    Raises:
        PrerequisiteError: the disk is full, or the path cannot be written.
    """
    with staged(path) as new:
        new.write_bytes(content)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place beside ``path`` for a file that replaces it, on disk and whole, if the body succeeds.

    Args:
        path: file to write; its directory is made if it does not exist.

    Raises:
        PrerequisiteError: the disk is full, or the path cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise PrerequisiteError(f"Cannot write '{path}': {reason}.") from error
        raise
