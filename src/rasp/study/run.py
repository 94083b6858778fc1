"""Run a study, verb by verb; every step is a directory that a later call finds finished."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import ValidationError

from rasp import checkpoint, locks, runs, verbs
from rasp.errors import ConfigError, StoreMismatchError
from rasp.progress import Progress, silent
from rasp.report import arms
from rasp.study import page
from rasp.study.summary import (
    SUMMARY,
    Choice,
    Summary,
    directory_of,
    hardened_in,
    injected,
    summarise,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rasp.report.arms import Arm
    from rasp.study.plan import ArmPlan, CampaignPlan, Format, StudyPlan

Option = TypeVar("Option")

PLAN = "study.json"
CHOICES = "choices.json"
REPORT = "report.html"
_MAY_GROW = ("seeds", "budgets", "arms")  # what is added later leaves finished work valid


class Studied(NamedTuple):
    """A study, or the part of it that some seeds are.

    Attributes:
        out: directory of the networks and campaigns.
        summary: written file; ``None`` while seeds are missing.
        found: what it holds.
        report: page in ``out``; ``None`` while seeds are missing.
    """

    out: Path
    summary: Path | None
    found: Summary | None
    report: Path | None


def study(
    plan: StudyPlan,
    *,
    out: str | Path | None = None,
    results: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress = silent,
) -> Studied:
    """Train, prune, choose on validation images, inject on test images, compare.

    Args:
        plan: what is asked.
        out: directory of networks and campaigns, ``runs/NAME`` by default; called again on it,
            only what is missing is done.
        results: directory of the summary, ``results/NAME`` by default.
        seeds: do the work of these alone; the call that finds all finished writes the summary.
        data_dir: where data sets lie.
        device: a torch device.
        workers: processes of this machine that inject.
        progress: hears about every step.

    Raises:
        ConfigError: seeds that are not the plan's.
        StoreMismatchError: ``out`` holds another study, or another process is at work on a seed.
        PrerequisiteError: the report extra is not installed.
    """
    page.check()
    target = runs.RUNS / plan.name if out is None else Path(out)
    mine = plan.seeds if seeds is None else tuple(seeds)
    if odd := [seed for seed in mine if seed not in plan.seeds]:
        allowed = ", ".join(map(str, plan.seeds))
        raise ConfigError(f"Seed {odd[0]} is none of the study's. Allowed: {allowed}.")
    runs.check_writable(target)
    _claim(target, plan)
    with runs.resumable(target):
        for seed in mine:
            lock = locks.claim(target / f"seed-{seed}")
            try:
                _Replica(plan, target, seed, data_dir, device, workers, progress).run()
            finally:
                os.close(lock)
    choices = [_finished(target / f"seed-{seed}", plan) for seed in plan.seeds]
    if not all(choices):
        return Studied(target, None, None, None)
    known = [choice for choice in choices if choice is not None]
    found = summarise(plan, target, known)
    folder = Path("results") / plan.name if results is None else Path(results)
    checkpoint.write_atomic(folder / SUMMARY, found.to_json().encode())
    report = target / REPORT
    content = page.page(found, injected(plan, target, known[0]))
    checkpoint.write_atomic(report, content.encode())
    return Studied(target, folder / SUMMARY, found, report)


def _claim(target: Path, plan: StudyPlan) -> None:
    """Refuse a directory of another study; note the plan in it."""
    file = target / PLAN
    now = plan.model_dump(mode="json")
    if file.is_file():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError, RecursionError):
            raise StoreMismatchError(
                f"'{file}' is not the plan of a study. Choose another --out."
            ) from None
        fixed = [key for key in now if key not in _MAY_GROW and now[key] != before.get(key)]
        if fixed:
            raise StoreMismatchError(
                f"'{target}' holds another study: {', '.join(fixed)} differ. Choose another --out."
            )
    checkpoint.write_atomic(file, (json.dumps(now, indent=2) + "\n").encode())


def _finished(folder: Path, plan: StudyPlan) -> Choice | None:
    """What a seed chose if all its work is done, budgets and arms added later included."""
    file = folder / CHOICES
    if not file.is_file():
        return None
    try:
        choice = Choice.model_validate_json(file.read_bytes())
    except ValidationError:
        raise StoreMismatchError(
            f"'{file}' does not say what a seed chose. Delete it and run the study again."
        ) from None
    names = {arm.name for arm in plan.arms}
    done = set(plan.budgets) <= set(choice.budgets) and names <= choice.arms.keys()
    return choice if done else None


@dataclass(frozen=True)
class _Replica:
    """All the work of one seed."""

    plan: StudyPlan
    target: Path
    seed: int
    data_dir: str | Path | None
    device: str
    workers: int
    progress: Progress

    @property
    def folder(self) -> Path:
        return self.target / f"seed-{self.seed}"

    def run(self) -> None:
        plan = self.plan
        dense = self._dense()
        restriction = self._restriction()
        upset_rate = self._upset_rate(restriction)
        self._report(dense, restriction, upset_rate)
        chosen: dict[str, tuple[float, float]] = {}
        order = sorted(plan.arms, key=lambda arm: arm.name != plan.baseline)
        for budget, arm in product(plan.budgets, order):
            if arm.name not in chosen:
                chosen[arm.name] = chosen[arm.like] if arm.like else self._candidate(arm)
            net = self._pruned(arm, budget, *chosen[arm.name])
            self._report(net, restriction, upset_rate)
        choice = Choice(
            seed=self.seed,
            budgets=plan.budgets,
            restriction=restriction,
            upset_rate=upset_rate,
            arms=chosen,
        )
        checkpoint.write_atomic(self.folder / CHOICES, choice.model_dump_json(indent=2).encode())

    def _report(self, net: Path, restriction: str, upset_rate: float) -> None:
        """Inject a network in test images, as it is and hardened, in every format."""
        for number_format in self.plan.formats:
            self._injected(net, number_format, self.plan.campaign, "test")
            hardened = self._hardened(net, number_format, restriction, upset_rate)
            self._injected(hardened, number_format, self.plan.campaign, "test")

    def _hears(self, step: str) -> Progress:
        def heard(stage: str, done: int, total: int, detail: str = "") -> None:
            del stage
            self.progress(f"[seed {self.seed}] {step}", done, total, detail)

        return heard

    def _dense(self) -> Path:
        plan, place = self.plan, self.folder / "dense"
        verbs.train(
            plan.model,
            plan.data,
            out=place,
            epochs=plan.epochs,
            seed=self.seed,
            data_dir=self.data_dir,
            device=self.device,
            progress=self._hears("train"),
        )
        return place

    def _pruned(self, arm: ArmPlan, budget: float, lam: float, upset_rate: float) -> Path:
        place = self.folder / directory_of(budget, arm, lam, upset_rate)
        verbs.prune(
            self.folder / "dense",
            criterion=arm.criterion,
            cycles=budget if self.plan.cost == "cycles" else None,
            macs=budget if self.plan.cost == "macs" else None,
            scope=arm.scope,
            round_to=self.plan.round_to,
            epochs=self.plan.fine_tuning,
            upset_rate=upset_rate,
            distill=arm.distill,
            lam=lam,
            faults=self.plan.campaign.faults.get(arm.format, "fidelity"),
            format=arm.format,
            accelerator=self.plan.accelerator,
            seed=self.seed,
            out=place,
            data_dir=self.data_dir,
            device=self.device,
            progress=self._hears(f"prune by {arm.name} to {budget:.0%}"),
        )
        return place

    def _hardened(
        self, net: Path, number_format: Format, restriction: str, upset_rate: float
    ) -> Path:
        out = hardened_in(net, number_format, restriction, upset_rate)
        step = self._hears(f"harden {net.relative_to(self.folder)}, {number_format}")
        if number_format == "int8":
            verbs.quantize(
                net, upset_rate=upset_rate, out=out, data_dir=self.data_dir, progress=step
            )
            return out
        mode, scope, *rate = restriction.split()
        verbs.harden(
            net,
            mode=mode,
            scope=scope,
            upset_rate=float(rate[0]) if rate else 0.0,
            out=out,
            data_dir=self.data_dir,
            progress=step,
        )
        return out

    def _injected(
        self, net: Path, number_format: Format, campaign: CampaignPlan, split: str
    ) -> Arm:
        out = net / f"{number_format}-{split}"
        if not (out / arms.SUMMARY).is_file():
            verbs.inject(
                net,
                format=number_format,
                trials=campaign.trials,
                images=campaign.images_of(number_format),
                split=split,
                faults=campaign.faults.get(number_format, "fidelity"),
                accelerator=self.plan.accelerator,
                sampling="adaptive",
                out=out,
                data_dir=self.data_dir,
                device=self.device,
                workers=self.workers,
                progress=self._hears(f"inject {net.relative_to(self.folder)}, {number_format}"),
            )
        return arms.read(out)

    def _restriction(self) -> str:
        """The restriction that leaves the fewest failures of the baseline in the first format."""
        number_format = self.plan.formats[0]

        def measured(option: str) -> Arm:
            net = self._hardened(self._base(), number_format, option, self.plan.upset_rates[0])
            return self._validated(net, number_format)

        return self._least(self.plan.restrictions, measured, number_format)

    def _upset_rate(self, restriction: str) -> float:
        """The rate that leaves the fewest failures of the baseline in INT8."""

        def measured(option: float) -> Arm:
            net = self._hardened(self._base(), "int8", restriction, option)
            return self._validated(net, "int8")

        return self._least(self.plan.upset_rates, measured, "int8")

    def _candidate(self, arm: ArmPlan) -> tuple[float, float]:
        """Lambda and upset rate of an arm with the fewest failures."""

        def measured(option: tuple[float, float]) -> Arm:
            net = self._pruned(arm, self.plan.budgets[0], *option)
            return self._validated(net, arm.format)

        return self._least(arm.candidates, measured, arm.format)

    def _base(self) -> Path:
        """The baseline at the first budget, which choices are held against."""
        base = self.plan.arm(self.plan.baseline)
        return self._pruned(base, self.plan.budgets[0], *base.candidates[0])

    def _validated(self, net: Path, number_format: Format) -> Arm:
        return self._injected(net, number_format, self.plan.choice, "validation")

    def _least(
        self,
        options: Sequence[Option],
        measured: Callable[[Option], Arm],
        number_format: Format,
    ) -> Option:
        """The option that fails least on validation images among those near the baseline's top-1.

        If none is near it, the one with the best top-1.
        """
        if len(options) == 1:
            return options[0]
        needed = self._validated(self._base(), number_format).accuracy.estimate - self.plan.loss
        found = {option: measured(option) for option in options}
        near = [option for option in options if found[option].accuracy.estimate >= needed]
        if not near:
            return max(options, key=lambda option: found[option].accuracy.estimate)
        return min(near, key=lambda option: _failures(found[option]))


def _failures(arm: Arm) -> float:
    return arm.sdc1.estimate if arm.exposure is None else arm.exposure.failures
