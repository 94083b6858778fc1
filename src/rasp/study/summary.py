"""What a study found: every network, and every arm against the baseline."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from rasp.analysis.compare import Run, pooled
from rasp.campaign import result
from rasp.errors import ConfigError
from rasp.report import arms
from rasp.statistics import Difference, Rate, paired_difference
from rasp.verbs._shared import STORE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rasp.report.arms import Arm
    from rasp.study.plan import ArmPlan, StudyPlan

SUMMARY = "summary.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Frozen):
    """What a seed chose on validation images.

    Attributes:
        seed: the seed.
        budgets: those whose networks are finished.
        restriction: mode and scope of the bounds, and what they allow for.
        upset_rate: what the scales of hardened INT8 networks allow for.
        arms: lambda and upset rate of each arm.
    """

    seed: int
    budgets: tuple[float, ...]
    restriction: str
    upset_rate: float
    arms: dict[str, tuple[float, float]]


class Measured(_Frozen):
    """One network in one format, on test images.

    Attributes:
        seed, arm: which; arm ``"dense"`` is the network before pruning.
        budget: share of the dense cost that was asked for, 1 for the dense network.
        hardened: whether its results are held to bounds or its INT8 scales allow for upsets.
        format: number format.
        accuracy: top-1.
        cycles, macs: of one image.
        sdc1: per fault.
        failures: per inference and upset rate of one bit in one cycle, with its interval.
        trials: faults.
    """

    seed: int
    arm: str
    budget: float
    hardened: bool
    format: str
    accuracy: Rate
    cycles: int
    macs: int
    sdc1: Rate
    failures: tuple[float, float, float]
    trials: int


class Comparison(_Frozen):
    """An arm against a baseline at one budget: failures per inference, over all seeds.

    Attributes:
        format, budget: of both.
        arm, baseline: names, ``+ hardening`` where hardened.
        ratio: arm over baseline; below 1 the arm fails less. ``None``: the baseline never failed.
        low, high: its 95 % interval over images and faults, for these seeds.
        by_seed: the ratio in each seed.
        seeds_low, seeds_high: 95 % interval of the geometric mean over seeds as a sample of all.
        accuracy_delta: top-1 of the arm less the baseline's, mean over seeds, paired by image.
        low_accuracy_delta: lower end of its 95 % interval.
        cycles: of the arm over the baseline's.
        seeds: number of seeds.
        trials: faults of all campaigns compared.
    """

    format: str
    budget: float
    arm: str
    baseline: str
    ratio: float | None
    low: float
    high: float | None
    by_seed: tuple[float | None, ...]
    seeds_low: float | None
    seeds_high: float | None
    accuracy_delta: float
    low_accuracy_delta: float
    cycles: float
    seeds: int
    trials: int


class Summary(_Frozen):
    """A study's small result file.

    Attributes:
        study: its name.
        plan: what was asked.
        choices: of each seed.
        networks: everything measured.
        comparisons: every arm against the baseline, and hardened ones against the hardened one.
    """

    study: str
    plan: dict[str, object]
    choices: tuple[Choice, ...]
    networks: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> str:
        """The summary as JSON text."""
        return self.model_dump_json(indent=1) + "\n"


def directory_of(budget: float, arm: ArmPlan, lam: float, upset_rate: float) -> str:
    """Place of a pruned network in its seed's directory: budget, arm and what was chosen."""
    choices = [
        f"{name}-{value:g}"
        for name, value, options in (
            ("lambda", lam, arm.lam),
            ("upsets", upset_rate, arm.upset_rate),
        )
        if len(options) > 1 or arm.like
    ]
    return f"{100 * budget:g}/" + "-".join([arm.name.replace(" ", "-"), *choices])


def hardened_in(net: Path, number_format: str, restriction: str, upset_rate: float) -> Path:
    """Place of a network's hardened copy for a format."""
    if number_format == "int8":
        return net / f"scales-{upset_rate:g}"
    return net / restriction.replace(" ", "-")


def summarise(plan: StudyPlan, target: Path, choices: Sequence[Choice]) -> Summary:
    """Read the campaigns of all seeds.

    Args:
        plan: the study.
        target: its directory.
        choices: of each seed.
    """
    cells = _Cells(plan, target, {choice.seed: choice for choice in choices})
    networks = [
        cells.measured(seed, name, budget, number_format, hardened=hardened)
        for budget, names in [(1.0, [DENSE]), *((b, cells.names) for b in plan.budgets)]
        for name, number_format, hardened, seed in product(
            names, plan.formats, (False, True), plan.seeds
        )
    ]
    comparisons = [
        cells.compared(number_format, budget, name, hardened=hardened, against=against)
        for number_format, budget, hardened, name in product(
            plan.formats, plan.budgets, (False, True), cells.names
        )
        for against in (False, True)
        if (hardened or not against) and (name, hardened) != (plan.baseline, against)
    ]
    return Summary(
        study=plan.name,
        plan=plan.model_dump(mode="json"),
        choices=tuple(choices),
        networks=tuple(networks),
        comparisons=tuple(comparisons),
    )


def injected(plan: StudyPlan, target: Path, choice: Choice) -> tuple[Arm, ...]:
    """Every pruned network of a seed and the dense one, by format, under their arms' names.

    Args:
        plan: the study.
        target: its directory.
        choice: of the seed.
    """
    cells = _Cells(plan, target, {choice.seed: choice})
    found = []
    for number_format in plan.formats:
        found.append(cells.named(choice.seed, DENSE, 1.0, number_format, hardened=False))
        for budget, hardened, name in product(plan.budgets, (False, True), cells.names):
            found.append(cells.named(choice.seed, name, budget, number_format, hardened=hardened))
    return tuple(found)


DENSE = "dense"


class _Cells:
    """Networks of a study by seed, arm, budget, format and restriction."""

    def __init__(self, plan: StudyPlan, target: Path, choices: dict[int, Choice]) -> None:
        self.plan, self.target, self.choices = plan, target, choices
        self.names = [arm.name for arm in plan.arms]
        self._runs: dict[Path, Run] = {}

    def measured(
        self, seed: int, name: str, budget: float, number_format: str, *, hardened: bool
    ) -> Measured:
        place = self._place(seed, name, budget, number_format, hardened=hardened)
        arm, exposure = arms.read(place), self._run(place).exposure
        return Measured(
            seed=seed,
            arm=name,
            budget=budget,
            hardened=hardened,
            format=number_format,
            accuracy=arm.accuracy,
            cycles=arm.cycles,
            macs=arm.macs,
            sdc1=arm.sdc1,
            failures=(exposure.failures, *exposure.interval),
            trials=arm.trials,
        )

    def named(
        self, seed: int, name: str, budget: float, number_format: str, *, hardened: bool
    ) -> Arm:
        """A network's arm of a report."""
        arm = arms.read(self._place(seed, name, budget, number_format, hardened=hardened))
        if name == DENSE:
            return arm.model_copy(update={"name": DENSE, "criterion": None})
        label = _label(f"{name} {100 * budget:g} %", hardened=hardened)
        return arm.model_copy(update={"name": label, "criterion": name})

    def compared(
        self, number_format: str, budget: float, name: str, *, hardened: bool, against: bool
    ) -> Comparison:
        places = [
            [
                self._place(seed, one, budget, number_format, hardened=bounds)
                for seed in self.plan.seeds
            ]
            for one, bounds in ((self.plan.baseline, against), (name, hardened))
        ]
        sides = [[self._run(place) for place in side] for side in places]
        found = pooled(sides[0], sides[1])
        top1 = self._accuracy(places) or found.accuracy
        cycles = [sum(run.exposure.cycles for run in runs) for runs in sides]
        return Comparison(
            format=number_format,
            budget=budget,
            arm=_label(name, hardened=hardened),
            baseline=_label(self.plan.baseline, hardened=against),
            ratio=found.ratio.estimate,
            low=found.ratio.low,
            high=found.ratio.high,
            by_seed=found.by_seed,
            seeds_low=None if found.over_seeds is None else found.over_seeds.low,
            seeds_high=None if found.over_seeds is None else found.over_seeds.high,
            accuracy_delta=top1.estimate,
            low_accuracy_delta=top1.low,
            cycles=cycles[1] / cycles[0],
            seeds=len(self.plan.seeds),
            trials=found.trials,
        )

    @staticmethod
    def _accuracy(places: Sequence[Sequence[Path]]) -> Difference | None:
        """Difference of top-1 over seeds on all images, if every image's answer is known."""
        means = []
        for side in places:
            answers = [arms.read(place).answers for place in side]
            known = [one for one in answers if one is not None]
            if len(known) < len(answers):
                return None
            means.append(np.mean(known, axis=0))
        return paired_difference(means[1], means[0])

    def _place(
        self, seed: int, name: str, budget: float, number_format: str, *, hardened: bool
    ) -> Path:
        choice, folder = self.choices[seed], self.target / f"seed-{seed}"
        if name == DENSE:
            net = folder / DENSE
        else:
            net = folder / directory_of(budget, self.plan.arm(name), *choice.arms[name])
        if hardened:
            net = hardened_in(net, number_format, choice.restriction, choice.upset_rate)
        return net / f"{number_format}-test"

    def _run(self, place: Path) -> Run:
        if place not in self._runs:
            exposure = arms.read(place).exposure
            if exposure is None:
                raise ConfigError(f"'{place}' was not injected by the layers' cycles.")
            self._runs[place] = Run(result.read(place / STORE), exposure)
        return self._runs[place]


def _label(name: str, *, hardened: bool) -> str:
    return f"{name} + hardening" if hardened else name
