"""What a report is made of: one :class:`Arm` a network that was injected.

An arm is written as ``summary.json`` beside its campaign store, and is all that a report reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from rasp.analysis.exposure import Exposure, relative
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError
from rasp.statistics import Rate, Ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
SUMMARY = "summary.json"


def _with_sdc1(rates: dict[str, Rate]) -> dict[str, Rate]:
    if "sdc1" not in rates:
        raise ValueError("there is no rate of 'sdc1'")
    return rates


class Cell(BaseModel):
    """SDC-1 of one bit position of one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    bit: Annotated[int, Field(ge=-1, lt=64)]
    rate: Rate


class Arm(BaseModel):
    """One injected network.

    Attributes:
        name: what tells it from the other arms, e.g. ``"reliability 50 %"``.
        network: model name, e.g. ``"lenet5"``.
        criterion: pruning criterion, ``None`` for the dense network.
        format: ``fp32``, ``fp16`` or ``int8``.
        native: whether the accelerator has a datapath for the format.
        accuracy: top-1 on ``accuracy_split``.
        right: which of its images are answered rightly, a bit an image in hex; ``None`` if unknown.
        macs, parameters: of one image and of the network.
        cycles: NVDLA cycles of one image.
        outcomes: rate per fault of each outcome, ``sdc1`` among them.
        by_layer, by_model: SDC-1 per fault of each layer and fault model.
        layer_cycles: cycles in which the registers of each layer of ``by_layer`` can be hit; empty
            if unknown.
        cells: SDC-1 per layer and bit.
        exposure: what turns a rate per fault into failures per inference; ``None`` where faults
            were not drawn by the layers' cycles.
        activity: share of the faults that hit a live value.
        buffer_occupancy: share of the convolution buffer that holds inputs and weights.
        images: injected images.
        trials: injected faults.
        spec: the campaign's specification, ``spec_digest`` its identity.
        command: what reproduces the arm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: str
    network: str
    criterion: str | None
    data: str
    format: str
    native: bool
    accelerator: str
    accuracy: Rate
    accuracy_split: str
    right: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] | None = None
    macs: NonNegativeInt
    parameters: NonNegativeInt
    cycles: PositiveInt
    outcomes: Annotated[dict[str, Rate], AfterValidator(_with_sdc1)]
    by_layer: dict[str, Rate]
    by_model: dict[str, Rate]
    layer_cycles: dict[str, PositiveInt] = {}
    cells: tuple[Cell, ...]
    exposure: Exposure | None
    activity: Rate
    buffer_occupancy: float
    images: PositiveInt
    trials: PositiveInt
    spec: dict[str, Any]
    spec_digest: str
    notes: tuple[str, ...] = ()
    command: str
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        if self.layer_cycles and (odd := self.by_layer.keys() - self.layer_cycles):
            raise ValueError(f"layer_cycles has no {min(odd)!r}, by_layer has")
        return self

    @property
    def sdc1(self) -> Rate:
        """Probability that one upset changes the top-1 class."""
        return self.outcomes["sdc1"]

    @property
    def answers(self) -> NDArray[np.bool_] | None:
        """Which images are answered rightly, ``(N,)``; ``None`` if unknown."""
        if self.right is None or len(self.right) != 2 * -(-self.accuracy.n // 8):
            return None
        packed = np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8)
        return np.unpackbits(packed, count=self.accuracy.n).astype(bool)

    def to_json(self) -> str:
        """The arm as JSON text, the inverse of :func:`read`."""
        return self.model_dump_json(indent=2) + "\n"


def pack(right: NDArray[np.bool_]) -> str:
    """Answers as :attr:`Arm.right` keeps them.

    Example:
        >>> pack(np.array([True, False, False, True]))
        '90'
    """
    return np.packbits(right).tobytes().hex()


def read(path: str | Path) -> Arm:
    """Read an arm from a run directory or its ``summary.json``.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file has another schema version.
        ConfigError: the file is not a summary.
    """
    file = Path(path)
    file = file / SUMMARY if file.is_dir() else file
    if not file.is_file():
        raise PrerequisiteError(
            f"No {SUMMARY} at '{path}'. Name a directory that 'rasp inject' has finished."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"'{file}' is not JSON: {error}.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreMismatchError(
            f"'{file}' has schema version {version!r}, this rasp reads version {SCHEMA_VERSION}. "
            f"Run 'rasp inject' again, or use the rasp that wrote it."
        )
    try:
        return Arm.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"'{file}' is not a summary: {where}: {first['msg']}.") from None
    except ConfigError as error:
        raise ConfigError(f"'{file}' is not a summary. {error}") from None


def reference_of(arm: Arm, arms: tuple[Arm, ...]) -> Arm | None:
    """The dense arm of the same format, data and accelerator, if there is one."""
    for other in arms:
        if other.criterion is None and _kind(other) == _kind(arm):
            return other
    return None


def relative_failures(arm: Arm, arms: tuple[Arm, ...]) -> Ratio | None:
    """Failures per inference relative to the dense arm of the same format.

    Returns:
        The ratio with its interval; ``None`` for a dense arm, where there is no dense arm or
        where an arm has no exposure.
    """
    dense = reference_of(arm, arms)
    if dense is None or arm.criterion is None or arm.exposure is None or dense.exposure is None:
        return None
    return relative(arm.exposure, dense.exposure)


def _kind(arm: Arm) -> tuple[str, ...]:
    """What two arms must share to be compared: the network, its setting and the population."""
    population = {key: arm.spec.get(key) for key in ("fault_models", "layer_weights", "layers")}
    return (
        arm.network,
        arm.data,
        arm.format,
        arm.accelerator,
        json.dumps(population, sort_keys=True),
    )
