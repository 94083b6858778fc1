"""How many channels stay: from a budget to widths, without pruning on trial.

A layer's width is its dense width less what the segments it touches lose, so multiply-accumulates
and cycles are functions of the segments' widths. Every function here is torch-free and exact.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from rasp.errors import ConfigError, unknown_name
from rasp.nvdla.config import AcceleratorConfig  # noqa: TC001  pydantic reads the annotation
from rasp.nvdla.cycles import network_cycles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from rasp.nvdla.shapes import ConvShape
    from rasp.pruning.groups import Indices, Segment, Side

BudgetKind = Literal["channels", "macs", "cycles"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What part of the dense network may stay.

    Attributes:
        kind: ``"channels"`` of every group (uniform) or of all groups (global), ``"macs"`` of the
            network, or ``"cycles"`` of the network on an accelerator.
        kept: the part that stays, above 0 and below 1.
        accelerator: needed for cycles.
        format: number format of the cycles.

    Raises:
        ConfigError: a value is not allowed.

    Example:
        >>> Budget("macs", 0.5).kept
        0.5
    """

    kind: BudgetKind
    kept: float
    accelerator: AcceleratorConfig | None = None
    format: str = "int8"

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind):
            raise unknown_name("budget", self.kind, get_args(BudgetKind))
        if not 0 < self.kept < 1:
            raise ConfigError(
                f"The kept part of the {self.kind} must lie between 0 and 1, both excluded, "
                f"got {self.kept:g}. For half of them give 0.5."
            )
        if self.kind == "cycles" and self.accelerator is None:
            raise ConfigError("A budget in cycles needs an accelerator, e.g. load('nv_small').")

    def cost(self, shapes: Sequence[ConvShape]) -> int:
        """Multiply-accumulates, or cycles of the accelerator, of one image."""
        if self.accelerator is None or self.kind != "cycles":
            return sum(shape.macs for shape in shapes)
        return network_cycles(shapes, self.accelerator, self.format)

    def at(self, progress: float) -> Budget:
        """The budget of an intermediate step: all may stay at 0, ``kept`` at 1."""
        return replace(self, kept=1 - (1 - self.kept) * progress)


@dataclass(frozen=True, eq=False)
class Widths:
    """Layer shapes as a function of how many channels each segment keeps.

    Attributes:
        shapes: shapes of all convolutions and linear layers now.
        segments: segments that can shrink.
        inputs: ``(layers, segments)`` input positions a layer loses per channel of a segment.
        outputs: ``(layers, segments)`` the same for kernels.
    """

    shapes: tuple[ConvShape, ...]
    segments: tuple[Segment, ...]
    inputs: Indices
    outputs: Indices

    @classmethod
    def of(cls, shapes: Sequence[ConvShape], segments: Sequence[Segment]) -> Widths:
        """Tabulate the footprints of the segments."""
        row = {shape.name: index for index, shape in enumerate(shapes)}
        tables = np.zeros((2, len(shapes), len(segments)), dtype=np.int64)
        for column, segment in enumerate(segments):
            for module, side, positions in segment.footprint:
                if module in row:
                    tables[int(side == "out"), row[module], column] += positions
        return cls(tuple(shapes), tuple(segments), *tables)

    @property
    def keys(self) -> tuple[frozenset[tuple[str, Side, int]], ...]:
        """What tells the segments apart, before and after pruning: their footprints."""
        return tuple(segment.footprint for segment in self.segments)

    @property
    def full(self) -> Indices:
        """Channels of each segment now."""
        return np.array([len(segment.channels) for segment in self.segments], dtype=np.int64)

    def keeping(self, kept: Indices) -> tuple[ConvShape, ...]:
        """Shapes of all layers once each segment keeps ``kept`` channels."""
        gone = self.full - kept
        return tuple(
            _narrower(shape, int(c), int(k))
            for shape, c, k in zip(
                self.shapes, self.inputs @ gone, self.outputs @ gone, strict=True
            )
        )


def _narrower(shape: ConvShape, fewer_inputs: int, fewer_kernels: int) -> ConvShape:
    kernels = shape.K - fewer_kernels
    if shape.groups > 1 and shape.groups == shape.K:
        return replace(shape, C=kernels, K=kernels, groups=kernels)
    return replace(shape, C=shape.C - fewer_inputs, K=kernels)


def round_widths(kept: NDArray[np.float64], segments: Sequence[Segment], round_to: int) -> Indices:
    """Round wished widths to the nearest multiple of an atom, at least one atom.

    What is rounded is the running width of a group over its segments, widest footprint first:
    those are the widths the layers get. A full width that is no multiple counts as one. A group
    no wider than one atom is rounded to whole channels instead. Halves round up, and every segment
    keeps at least one channel.

    Args:
        kept: ``(segments,)`` wished widths, fractions allowed.
        segments: the segments; those of one group need not be adjacent.
        round_to: channels of an atom.

    Example:
        >>> from rasp.pruning.groups import Segment
        >>> alone = [Segment("fc", np.arange(n), frozenset()) for n in (120, 6)]
        >>> alone[1] = alone[1]._replace(root="conv")
        >>> round_widths(np.array([60.0, 2.6]), alone, 8)
        array([64,  3])
    """
    result = np.zeros(len(segments), dtype=np.int64)
    for root in dict.fromkeys(segment.root for segment in segments):
        wished, given, room = 0.0, 0, 0
        members = [index for index, segment in enumerate(segments) if segment.root == root]
        for index in sorted(members, key=lambda index: -len(segments[index].footprint)):
            width = len(segments[index].channels)
            wished, room = wished + kept[index], room + width
            atom = round_to if room > round_to else 1
            total = min(max(atom, atom * int(np.floor(wished / atom + 0.5))), room)
            if room - wished < abs(total - wished):
                total = room
            result[index] = min(max(total - given, 1), width)
            given += int(result[index])
    return result


def uniform(widths: Widths, budget: Budget, *, dense: int, round_to: int = 1) -> Indices:
    """Widths at one kept ratio for all segments: the ratio whose cost is nearest the budget.

    Of ratios that cost the same the greatest is taken: channels that cost no cycle stay. What
    rounding leaves over then goes, an atom at a time, to the groups it treated worst, as long as
    the cost comes nearer the budget. The result does not depend on any score, so all criteria get
    the same architecture.

    Args:
        widths: the network's widths.
        budget: what may stay, as a part of ``dense``.
        dense: multiply-accumulates or cycles of the dense network.
        round_to: channels of an atom.

    Returns:
        ``(segments,)`` channels kept.

    Raises:
        ConfigError: the narrowest network costs more than the budget.
    """
    full = widths.full

    def at(ratio: float) -> Indices:
        return round_widths(full.astype(np.float64) * ratio, widths.segments, round_to)

    if budget.kind == "channels":
        return at(budget.kept)
    ratio = _bisect(lambda ratio: budget.cost(widths.keeping(at(ratio))), 0.0, 1.0, budget, dense)
    return _spend(
        widths, budget, at(ratio), full.astype(np.float64) * ratio, dense=dense, round_to=round_to
    )


def _spend(
    widths: Widths,
    budget: Budget,
    kept: Indices,
    wished: NDArray[np.float64],
    *,
    dense: int,
    round_to: int,
) -> Indices:
    """Widths moved by single atoms towards the budget, the largest rounding error first.

    Groups of several segments stay: their atoms are counted over all of them.
    """
    full, target = widths.full, budget.kept * dense
    roots = Counter(segment.root for segment in widths.segments)
    free = np.array([roots[segment.root] == 1 for segment in widths.segments])
    atoms = np.where(full > round_to, round_to, 1)

    def miss(kept: Indices) -> float:
        return abs(budget.cost(widths.keeping(kept)) - target)

    while True:
        short = budget.cost(widths.keeping(kept)) < target
        moved = kept + (atoms if short else -atoms)
        allowed = np.flatnonzero(free & (moved > 0) & (moved <= full))
        error = (wished - kept) / full * (1 if short else -1)
        for index in allowed[np.argsort(-error[allowed], kind="stable")]:
            trial = kept.copy()
            trial[index] = moved[index]
            if miss(trial) < miss(kept):
                kept = trial
                break
        else:
            return kept


def ranked(
    widths: Widths,
    budget: Budget,
    scores: Mapping[str, NDArray[np.float64]],
    *,
    dense: int,
    round_to: int = 1,
) -> Indices:
    """Widths by one ranking of all channels: the lowest scores of the whole network go first.

    Scores of a segment are divided by the mean of their absolute values to make them comparable;
    ties go in the order of segments and channels.

    Args:
        widths: the network's widths.
        budget: what may stay; ``"channels"`` counts those of all segments.
        scores: scores of each group by root, lower goes first.
        dense: multiply-accumulates, cycles or channels of the dense network.
        round_to: channels of an atom.

    Returns:
        ``(segments,)`` channels kept.

    Raises:
        ConfigError: the narrowest network costs more than the budget.
    """
    full = widths.full
    values = [scores[segment.root][segment.channels] for segment in widths.segments]
    values = [value / (np.abs(value).mean() or 1.0) for value in values]
    order = np.argsort(np.concatenate(values), kind="stable")
    owner = np.repeat(np.arange(len(full)), full)[order]

    def at(stay: float) -> Indices:
        gone = np.bincount(owner[: full.sum() - int(stay)], minlength=len(full))
        return round_widths((full - gone).astype(np.float64), widths.segments, round_to)

    def cost(stay: float) -> int:
        kept = at(stay)
        return int(kept.sum()) if budget.kind == "channels" else budget.cost(widths.keeping(kept))

    return at(_bisect(cost, 0, int(full.sum()), budget, dense))


def greedy(
    widths: Widths,
    budget: Budget,
    scores: Mapping[str, NDArray[np.float64]],
    importance: Mapping[str, NDArray[np.float64]],
    failures: Callable[[Sequence[ConvShape]], float],
    *,
    lam: float,
    dense: int,
    round_to: int = 1,
) -> Indices:
    r"""Widths that trade importance for failures: step by step, the cheapest channels go first.

    A step is the fewest atoms of a segment without which fewer inferences fail: cycles fall with
    the accelerator's atoms alone. Its price is the mean importance of its channels over the share
    of the failures per inference that each takes along, :math:`A / (\Delta F / F)^\lambda`.
    Importance is divided by its segment's mean, as in :func:`ranked`, which this is at
    :math:`\lambda = 0`. Where no step saves failures any more, steps save the budget's cost.

    Args:
        widths: the network's widths.
        budget: what may stay, in MACs or cycles.
        scores: order in which the channels of a group go, by root, lower goes first.
        importance: what the answer loses with each channel, 0 or more, by root.
        failures: predicted failures per inference of layers of these shapes.
        lam: weight of the failures.
        dense: multiply-accumulates or cycles of the dense network.
        round_to: channels of an atom.

    Returns:
        ``(segments,)`` channels kept.

    Raises:
        ConfigError: the narrowest network costs more than the budget, or it counts channels.
    """
    if not lam:
        return ranked(widths, budget, scores, dense=dense, round_to=round_to)
    if budget.kind == "channels":
        raise ConfigError("Failures are traded against MACs or cycles: give --macs or --cycles.")
    losses = [_losses(segment, scores, importance) for segment in widths.segments]
    kept, target = widths.full, budget.kept * dense
    while budget.cost(widths.keeping(kept)) > target:
        prices = _prices(widths, kept, losses, failures, lam, round_to)
        if not prices:  # what is left saves no failure, only cost
            prices = _prices(widths, kept, losses, budget.cost, 1.0, round_to)
        if not prices:
            raise _out_of_reach(budget, budget.cost(widths.keeping(kept)), dense)
        kept = prices[min(prices)]
    return kept


def _prices(
    widths: Widths,
    kept: Indices,
    losses: Sequence[NDArray[np.float64]],
    measure: Callable[[Sequence[ConvShape]], float],
    lam: float,
    round_to: int,
) -> dict[float, Indices]:
    """For each segment the widths after its shortest step that saves, by the step's price."""
    before = measure(widths.keeping(kept))
    prices = {}
    for index in range(len(kept)):
        for less in _narrower_widths(kept, index, round_to):
            saved = 1 - measure(widths.keeping(less)) / before
            if saved > 0:
                gone = widths.full[index] - np.array([kept[index], less[index]])
                lost = float(losses[index][slice(*gone)].mean())
                prices[lost / (saved / (gone[1] - gone[0])) ** lam] = less
                break
    return prices


def _narrower_widths(kept: Indices, index: int, round_to: int) -> Iterator[Indices]:
    """Widths with ever fewer atoms of one segment, at least one atom of it."""
    atom = round_to if kept[index] > round_to else 1
    for width in range((int(kept[index]) - 1) // atom * atom, 0, -atom):
        less = kept.copy()
        less[index] = width
        yield less


def _losses(
    segment: Segment,
    scores: Mapping[str, NDArray[np.float64]],
    importance: Mapping[str, NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Importance of a segment's channels in the order they go, 1 on average."""
    order = np.argsort(scores[segment.root][segment.channels], kind="stable")
    values = importance[segment.root][segment.channels][order]
    return values / (np.abs(values).mean() or 1.0)


def _bisect(
    cost: Callable[[float], int], low: float, high: float, budget: Budget, dense: int
) -> float:
    target = budget.kept * dense
    if cost(low) > target:
        raise _out_of_reach(budget, cost(low), dense)
    below, above = _crossing(cost, low, high, target)
    if cost(above) - target < target - cost(below):
        below, _ = _crossing(cost, above, high, cost(above))
    return below


def _crossing(
    cost: Callable[[float], int], low: float, high: float, limit: float
) -> tuple[float, float]:
    """The widest point that costs no more than ``limit`` and its neighbour."""
    if cost(high) <= limit:
        return high, high
    whole = isinstance(high, int)
    while high - low > (1 if whole else 1e-6):
        middle = (low + high) // 2 if whole else (low + high) / 2
        if cost(middle) <= limit:
            low = middle
        else:
            high = middle
    return low, high


def _out_of_reach(budget: Budget, narrowest: int, dense: int) -> ConfigError:
    return ConfigError(
        f"{budget.kept:.1%} of the {budget.kind} cannot be reached: with every prunable "
        f"channel group at its narrowest {narrowest / dense:.1%} stay. "
        "Keep more, or round to smaller atoms."
    )
