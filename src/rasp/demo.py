"""The whole road on a small net: LeNet-5 on the embedded digits, from training to the report."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from rasp import runs, verbs
from rasp.progress import Progress, silent
from rasp.report import arms, html

CRITERIA = ("magnitude", "activation", "reliability")
KEPT_MACS = (0.5, 0.25)
FORMATS = ("fp32", "int8")
STEPS = 1 + len(CRITERIA) * len(KEPT_MACS) * (1 + len(FORMATS)) + len(FORMATS)
REPORT = "report.html"


class Demo(BaseModel):
    """What the demo found.

    Attributes:
        report: the page.
        verdict: its first line.
        headings, rows, footnotes: its table.
        arms: everything measured, one entry a network and format.
        seconds: time it took.
    """

    model_config = ConfigDict(frozen=True)

    report: Path
    verdict: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...]
    arms: tuple[arms.Arm, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values; rates of single bits stay in the ``summary.json`` files."""
        return self.model_dump(mode="json", exclude={"arms": {"__all__": {"cells"}}})


def demo(
    out: str | Path = "runs/demo",
    *,
    seed: int = 0,
    trials: int = 50_000,
    images: int = 450,
    epochs: int | None = None,
    fine_tuning: int | None = None,
    progress: Progress = silent,
) -> Demo:
    """Train, prune by three criteria to two sizes, inject in two formats, report.

    All criteria give the same widths at one budget, and all campaigns share seed and images.

    Args:
        out: directory; called again on it, only what is missing is done.
        seed: of everything.
        trials: faults a campaign.
        images: test images a campaign.
        epochs: training epochs, the recipe's own number by default.
        fine_tuning: fine-tuning epochs of a pruned net, a third of training's by default.
        progress: hears about every step.
    """
    started = time.monotonic()
    steps = _Steps(progress)
    dense = Path(out) / "dense"
    nets = [dense]
    with runs.resumable(Path(out)):
        verbs.train("lenet5", "digits", out=dense, epochs=epochs, seed=seed, progress=steps.next())
        for kept, criterion in product(KEPT_MACS, CRITERIA):
            nets.append(Path(out) / f"{criterion}-{100 * kept:.0f}")
            verbs.prune(
                dense,
                criterion=criterion,
                macs=kept,
                epochs=fine_tuning,
                seed=seed,
                out=nets[-1],
                progress=steps.next(),
            )
        found = [
            verbs.inject(
                net,
                format=number_format,
                trials=trials,
                images=images,
                seed=seed,
                out=net / number_format,
                progress=steps.next(),
            )
            for number_format, net in product(FORMATS, nets)
        ]
    page = verbs.report(
        [run.out for run in found],
        out=Path(out) / REPORT,
        title="LeNet-5 on digits: pruned, quantised, injected",
        commands=[f"rasp demo --seed {seed}"],
    )
    measured = tuple(run.arm for run in found)
    return Demo(
        report=page.out,
        verdict=page.verdict,
        headings=html.HEADINGS,
        rows=tuple(row.cells for row in html.rows(measured)),
        footnotes=html.footnotes(measured),
        arms=measured,
        seconds=time.monotonic() - started,
    )


class _Steps:
    """Numbers the steps in front of the stages they report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step = 0

    def next(self) -> Progress:
        self._step += 1
        prefix = f"[{self._step}/{STEPS}]"

        def heard(stage: str, done: int, total: int, detail: str = "") -> None:
            self._progress(f"{prefix} {stage}", done, total, detail)

        return heard
