"""What a study asks, read from TOML. Torch-free."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rasp.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+-]{0,60}$")]
Format = Literal["fp32", "fp16", "int8"]
Rates = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]
Candidates = Annotated[tuple[Annotated[float, Field(ge=0, le=1000)], ...], Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ArmPlan(_Frozen):
    """One way to prune.

    Attributes:
        name: in tables and directories.
        criterion: a name of :data:`rasp.pruning.importance.CRITERIA`.
        scope: how widths are chosen, see :func:`rasp.verbs.prune`.
        format: number format the criterion and the widths are meant for.
        lam: weight of vulnerability or failures; of several one is chosen on validation images.
        upset_rate: how often upsets strike in fine-tuning, see :func:`rasp.verbs.prune`, likewise.
        distill: share of the dense network's answers in fine-tuning's loss.
        like: arm whose choice is taken instead of an own one.
    """

    name: Name
    criterion: str
    scope: Literal["uniform", "global", "failures"] = "uniform"
    format: Format = "int8"
    lam: Candidates = (0.5,)
    upset_rate: Rates = (0.0,)
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    like: Name | None = None

    @property
    def candidates(self) -> tuple[tuple[float, float], ...]:
        """Pairs of lambda and upset rate to choose from."""
        return tuple((lam, rate) for lam in self.lam for rate in self.upset_rate)


class CampaignPlan(_Frozen):
    """How networks are injected.

    Attributes:
        trials: faults a campaign.
        images: images of the split, of all formats or of some; all of them by default. Floating
            point needs fewer: its failures hit all images alike, in INT8 those near a boundary.
        faults: population of each format.
    """

    trials: Annotated[int, Field(ge=1, le=10**9)]
    images: Count | dict[Format, Count] | None = None
    faults: dict[Format, Literal["fidelity", "nvdla"]] = {"int8": "nvdla"}

    def images_of(self, number_format: Format) -> int | None:
        """Images to inject in, ``None`` for all."""
        if isinstance(self.images, dict):
            return self.images.get(number_format)
        return self.images


class StudyPlan(_Frozen):
    """A study.

    Attributes:
        name: of its directories.
        model, data: as in :func:`rasp.verbs.train`.
        accelerator: configuration that cycles are counted on.
        epochs: of dense training, ``None`` for the recipe's own.
        fine_tuning: epochs after pruning.
        round_to: channels of an atom.
        seeds: of training, pruning and fine-tuning; the unit of replication.
        cost: what budgets count, ``"cycles"`` of the accelerator or ``"macs"``.
        budgets: shares of the dense network's cost to keep.
        formats: number formats that are injected.
        restrictions: range restrictions, ``"MODE SCOPE"`` or ``"MODE SCOPE UPSET_RATE"``, see
            :func:`rasp.verbs.harden`; of several one is chosen on validation images. Every network
            is injected without hardening and with it, which is this in floating point.
        upset_rates: what the scales of a hardened INT8 network allow for, see
            :func:`rasp.verbs.quantize`; chosen likewise.
        baseline: arm that the others are held against.
        loss: top-1 that a choice may cost against the baseline on validation images.
        choice: campaigns on validation images, for what is chosen.
        campaign: campaigns on test images, for what is reported.
        arms: ways to prune.
    """

    name: Name
    model: str
    data: str
    accelerator: str = "nv_small"
    epochs: Annotated[int, Field(ge=1)] | None = None
    fine_tuning: Annotated[int, Field(ge=0)]
    round_to: Annotated[int, Field(ge=1)] = 1
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    cost: Literal["cycles", "macs"] = "cycles"
    budgets: Annotated[tuple[Share, ...], Field(min_length=1)]
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("fp32", "int8")
    restrictions: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(clip|zero) (layer|channel)( 0\.\d+)?$")], ...],
        Field(min_length=1),
    ] = ("clip layer",)
    upset_rates: Rates = (0.0,)
    baseline: Name = "magnitude"
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.003
    choice: CampaignPlan
    campaign: CampaignPlan
    arms: Annotated[tuple[ArmPlan, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("every arm needs a name of its own")
        if self.baseline not in names:
            raise ValueError(f"baseline '{self.baseline}' is none of the arms {', '.join(names)}")
        earlier: set[str] = set()
        for arm in sorted(self.arms, key=lambda arm: arm.name != self.baseline):
            if arm.like is not None and arm.like not in earlier:
                raise ValueError(
                    f"arm '{arm.name}' is like '{arm.like}', which is no arm before it"
                )
            earlier.add(arm.name)
        return self

    def arm(self, name: str) -> ArmPlan:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def load(path: str | Path) -> StudyPlan:
    """Read a study.

    Raises:
        ConfigError: no such file, no TOML, or a value that is not allowed.
    """
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return StudyPlan.model_validate(content)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the study '{file}': {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{file}' is not TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        got = first["input"]
        shown = "" if isinstance(got, (dict, list)) else f", got {got!r}"
        raise ConfigError(f"'{file}': {where}: {first['msg']}{shown}.") from error
