"""Which channels went: a plan that can be read, checked and replayed on the dense network."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from rasp.errors import ConfigError
from rasp.pruning.allocation import Budget

Name = Annotated[str, Field(min_length=1, max_length=500)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PruningStep(_Frozen):
    """Channels of one group to remove.

    Attributes:
        module: layer whose output channels number the group.
        channels: channels to remove, ascending, in the dense network's numbering.
    """

    module: Name
    channels: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]

    @field_validator("channels")
    @classmethod
    def _ascending(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in itertools.pairwise(channels)):
            raise ValueError("channels must ascend without repetition")
        return channels


class LayerWidth(_Frozen):
    """Output channels of a layer before and after pruning."""

    before: PositiveInt
    after: PositiveInt

    @model_validator(mode="after")
    def _not_wider(self) -> Self:
        if self.after > self.before:
            raise ValueError(f"a layer cannot grow from {self.before} to {self.after}")
        return self


class PruningPlan(_Frozen):
    """A pruning, complete up to the weights.

    Attributes:
        schema_version: version of this format.
        criterion: how channels were chosen.
        scope: ``"uniform"``, ``"global"`` or ``"failures"``: how widths were chosen.
        round_to: channels of an atom.
        iterations: steps the pruning was spread over.
        upset_rate: how often upsets struck in fine-tuning, see :mod:`rasp.upsets`.
        distill: share of the dense network's answers in fine-tuning's loss.
        budget: what was allowed to stay.
        seed: seed of the criterion.
        steps: channels to remove, one step a group, in order.
        widths: output channels of every convolution and linear layer.
        kept_macs: multiply-accumulates that stay, as a part of the dense network's.
        notes: groups left whole and why.
    """

    schema_version: Literal[1] = 1
    criterion: Name
    scope: Literal["uniform", "global", "failures"] = "uniform"
    round_to: PositiveInt = 1
    iterations: PositiveInt = 1
    upset_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    budget: Budget
    seed: NonNegativeInt = 0
    steps: tuple[PruningStep, ...]
    widths: dict[Name, LayerWidth]
    kept_macs: Annotated[float, Field(gt=0, le=1)]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as JSON text."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a plan, trusting nothing in it.

        Raises:
            ConfigError: not a plan of this schema, or a value that is not allowed.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(
                f"Not a pruning plan of schema 1: {where}: {first['msg']}."
            ) from error
