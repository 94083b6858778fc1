"""Which channels go at each step: widths from the budget, channels from the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rasp.errors import ConfigError
from rasp.pruning.allocation import Budget, Widths, greedy, ranked, uniform
from rasp.pruning.plan import PruningStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from rasp.nvdla.shapes import ConvShape
    from rasp.pruning.groups import Group, Indices
    from rasp.pruning.importance import CalibrationBatch, Importance


class Trade(NamedTuple):
    """How layer widths trade importance for failures.

    Attributes:
        failures: predicted failures per inference of layers of these shapes.
        lam: weight of the failures; 0 is the plain ranking of all channels.
    """

    failures: Callable[[Sequence[ConvShape]], float]
    lam: float = 1.0


class Selection:
    """Counts channels over the steps of one pruning, in the dense network's numbering.

    Attributes:
        shapes: layers of the dense network.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        widths: Widths,
        budget: Budget,
        *,
        same_ratio: bool,
        round_to: int,
        trade: Trade | None = None,
    ) -> None:
        """Take the dense network's groups; ``same_ratio`` fixes all widths at once."""
        self.shapes: tuple[ConvShape, ...] = widths.shapes
        self._budget, self._round_to, self._trade = budget, round_to, trade
        self._width = {group.root: group.width for group in groups}
        self._alive = {group.root: np.arange(group.width) for group in groups}
        full = widths.full
        self._dense = int(full.sum()) if budget.kind == "channels" else budget.cost(widths.shapes)
        self._full = dict(zip(widths.keys, full.tolist(), strict=True))
        self._ends = None
        if same_ratio:
            ends = uniform(widths, budget, dense=self._dense, round_to=round_to)
            self._ends = dict(zip(widths.keys, ends.tolist(), strict=True))

    def kept(
        self,
        widths: Widths,
        scores: Mapping[str, NDArray[np.float64]],
        importance: Mapping[str, NDArray[np.float64]],
        step: int,
        steps: int,
    ) -> Indices:
        """Channels each segment keeps after this step of all ``steps``."""
        if self._ends is not None:
            ends = [(self._full[key], self._ends[key]) for key in widths.keys]
            return np.array([full - (full - end) * step // steps for full, end in ends])
        share = self._budget.at(step / steps)
        size = {"dense": self._dense, "round_to": self._round_to}
        if self._trade is None:
            return ranked(widths, share, scores, **size)
        failures, lam = self._trade
        return greedy(widths, share, scores, importance, failures, lam=lam, **size)

    def record(self, removed: Mapping[str, Indices]) -> None:
        """Take note of channels removed, given in the numbering they had when they went."""
        for root, channels in removed.items():
            self._alive[root] = np.delete(self._alive[root], channels)

    def steps(self) -> tuple[PruningStep, ...]:
        """All channels removed, by group.

        Raises:
            ConfigError: there are none.
        """
        gone = {
            root: np.setdiff1d(np.arange(self._width[root]), alive).tolist()
            for root, alive in self._alive.items()
        }
        steps = tuple(
            PruningStep(module=root, channels=tuple(channels))
            for root, channels in gone.items()
            if channels
        )
        if not steps:
            raise ConfigError(
                f"Keeping {self._budget.kept:.1%} of the {self._budget.kind} in atoms of "
                f"{self._round_to} removes no channel. Keep less, or round to smaller atoms."
            )
        return steps

    def notes(self) -> tuple[str, ...]:
        """Groups that lost no channel."""
        whole = (root for root, alive in self._alive.items() if len(alive) == self._width[root])
        return tuple(
            f"{root}: left whole by the budget and the rounding to {self._round_to}."
            for root in whole
        )


def checked_scores(
    importance: Importance,
    model: nn.Module,
    groups: Sequence[Group],
    calibration: CalibrationBatch | None,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Run a criterion with torch's generator seeded and put back afterwards.

    Raises:
        ConfigError: a group without scores, of another width, or scores that are not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scores = importance(model, groups, calibration)
    checked = {}
    for group in groups:
        if group.root not in scores:
            raise ConfigError(f"Criterion '{importance.name}' gave no scores for '{group.root}'.")
        values = scores[group.root].detach().to("cpu", torch.float64).numpy()
        if values.shape != (group.width,):
            raise ConfigError(
                f"Criterion '{importance.name}' gave scores of shape {values.shape} for "
                f"'{group.root}', which has {group.width} channels."
            )
        if not np.isfinite(values).all():
            raise ConfigError(
                f"Criterion '{importance.name}' gave NaN or Inf for '{group.root}'. "
                "Check the weights and the calibration images."
            )
        checked[group.root] = values
    return checked


def remarks(
    scores: Mapping[str, NDArray[np.float64]], calibration: CalibrationBatch | None
) -> tuple[str, ...]:
    """What a reader of the plan should know of how the channels were chosen."""
    ties = tuple(
        f"{root}: every channel scored alike, so channels went by their number."
        for root, values in scores.items()
        if len(values) > 1 and np.ptp(values) == 0
    )
    labels = [] if calibration is None else calibration.labels.tolist()
    if len(labels) < 2 or len(set(labels)) > 1:
        return ties
    seen = f"All {len(labels)} calibration images are of class {labels[0]};"
    return (*ties, f"{seen} what other classes need was not seen.")


def lowest(
    widths: Widths, kept: Indices, scores: Mapping[str, NDArray[np.float64]]
) -> dict[str, Indices]:
    """The channels of each group that go: lowest scores first, ties by channel number."""
    removed: dict[str, list[int]] = {}
    for segment, stay in zip(widths.segments, kept, strict=True):
        order = np.argsort(scores[segment.root][segment.channels], kind="stable")
        gone = segment.channels[order[: len(order) - stay]]
        removed.setdefault(segment.root, []).extend(gone.tolist())
    return {root: np.sort(channels) for root, channels in removed.items() if channels}
