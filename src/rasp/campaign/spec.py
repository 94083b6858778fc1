"""What a campaign asks: everything that decides which rows its store holds."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from rasp.errors import ConfigError

_FIRST_ROUND, _LAST_ROUND = 4096, 131_072
_EMPHASIS = (0.1, 0.5)

Name = Annotated[str, Field(min_length=1)]


def _sorted(weights: dict[str, float]) -> dict[str, float]:
    return dict(sorted(weights.items()))


class CampaignSpec(BaseModel):
    """A fault-injection campaign, frozen; two equal specs give equal rows.

    How the work is cut into chunks is no part of it, since it changes no row.

    Attributes:
        schema_version: version of this record.
        network_digest: digest of the lowered network that runs.
        model: label of the network ("lenet5"), for readers.
        data: data set ("digits").
        split: the split the images are from; ``given`` where they are no sample of other images and
            rates are about them.
        images: number of images faults are drawn on.
        format: number format the network runs in.
        accelerator: name of the accelerator's configuration.
        accelerator_digest: digest of its content.
        fault_models: weight of each fault model; held in the order of the names.
        layer_weights: what a layer's share of the faults is proportional to.
        layers: layers that faults are drawn in; all if ``None``.
        trials: number of injected faults, the most of them where ``margin`` is given.
        seed: with the trial's number, all that decides what a trial draws.
        confidence: two-sided level of the intervals in the result.
        sampling: ``"uniform"``: every trial from the whole population; ``"adaptive"``: where
            complete rounds say that trials tell most, with weights.
        margin: half-width of the interval of ``outcome`` at which the campaign stops, looked at
            after each round; ``None`` to run all trials.
        outcome: what ``margin`` and adaptive sampling are about.

    Raises:
        ConfigError: a value that is not allowed; the message names the field.

    Example:
        >>> spec = CampaignSpec(
        ...     network_digest="d", model="lenet5", data="digits", images=100, format="int8",
        ...     accelerator="nv_small", accelerator_digest="a", fault_models={"RD_BFLIP": 1.0},
        ...     trials=1000,
        ... )
        >>> CampaignSpec.from_json(spec.to_json()) == spec
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[2] = 2
    network_digest: Name
    model: Name
    data: Name
    split: Literal["train", "validation", "test", "given"] = "test"
    images: Annotated[int, Field(gt=0)]
    format: Literal["fp32", "fp16", "int8"]
    accelerator: Name
    accelerator_digest: Name
    fault_models: Annotated[
        dict[Name, Annotated[float, Field(gt=0)]], Field(min_length=1), AfterValidator(_sorted)
    ]
    layer_weights: Literal["cycles", "window", "storage", "macs", "neurons", "uniform"] = "cycles"
    layers: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    trials: Annotated[int, Field(gt=0, le=10**9)]
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    sampling: Literal["uniform", "adaptive"] = "uniform"
    margin: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    outcome: Literal["sdc1", "sdc5", "sdc10", "sdc20", "critical", "due"] = "sdc1"

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the record"
            raise ConfigError(
                f"Campaign specification, {field}: {first['msg']}, got {first['input']!r}."
            ) from None

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`, for text from anywhere.

        Raises:
            ConfigError: the text is not JSON or not a specification.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"Campaign specification: {error.errors()[0]['msg']}.") from None

    def rounds(self) -> tuple[range, ...]:
        """Trials of each round, in order; chunks never reach over the end of a round."""
        if self.sampling == "uniform" and self.margin is None:
            return (range(self.trials),)
        ends = [0]
        while ends[-1] < self.trials:
            size = min(_FIRST_ROUND if len(ends) < 3 else ends[-1], _LAST_ROUND)
            ends.append(min(ends[-1] + size, self.trials))
        return tuple(range(*pair) for pair in pairwise(ends))

    def emphasis(self, number: int) -> float:
        """Factor of the weights of a round's trials; fixed beforehand, so it biases nothing."""
        adaptive = self.sampling == "adaptive"
        return _EMPHASIS[number] if adaptive and number < len(_EMPHASIS) else 1.0

    def expected_weight(self, trials: int) -> float:
        """Sum of the weights that the first trials have on average."""
        sizes = (min(len(span), max(0, trials - span.start)) for span in self.rounds())
        return sum(self.emphasis(number) * size for number, size in enumerate(sizes))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits: the identity of the campaign."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: CampaignSpec) -> tuple[str, ...]:
        """Names of the fields in which two specs differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return tuple(name for name in mine if mine[name] != theirs[name])
