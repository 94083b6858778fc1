"""Where failures come from: each layer's cycles, rate per fault and failures per inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rasp.report.arms import reference_of
from rasp.statistics import spaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.report.arms import Arm

COLUMNS = ("cycles", "SDC-1 per fault", "failures per inference")


class LayerTable(NamedTuple):
    """Layers of some networks side by side.

    Attributes:
        arms: the networks.
        rows: each layer with a cell for every one of :data:`COLUMNS` of every network.
    """

    arms: tuple[Arm, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def layer_table(arms: Sequence[Arm], study: Sequence[Arm]) -> LayerTable | None:
    """Compare layers.

    A layer's failures per inference are its cycles times its rate per fault, shown in percent of
    all of the dense network's, or of the network's own where the study has no dense one. The
    interval is that of the layer's rate.

    Args:
        arms: networks to show.
        study: all networks of the report.

    Returns:
        The table; ``None`` where an arm does not know its layers' cycles or nothing failed.
    """
    totals = []
    for arm in arms:
        whole = (reference_of(arm, tuple(study)) or arm).exposure
        if not arm.layer_cycles or arm.exposure is None or whole is None or not whole.failures:
            return None
        totals.append(whole.failures / arm.exposure.register_bits)
    names = dict.fromkeys(name for arm in arms for name in arm.by_layer)
    rows = tuple(
        (name, tuple(c for arm, t in zip(arms, totals, strict=True) for c in _cells(arm, name, t)))
        for name in names
    )
    return LayerTable(tuple(arms), rows)


def _cells(arm: Arm, layer: str, total: float) -> tuple[str, ...]:
    """What an arm has in :data:`COLUMNS`; ``total`` is cycles times rate of the whole network."""
    rate = arm.by_layer.get(layer)
    if rate is None:
        return ("",) * len(COLUMNS)
    cycles = arm.layer_cycles[layer]
    low, part, high = (
        100 * cycles * value / total for value in (rate.low, rate.estimate, rate.high)
    )
    return spaced(cycles), str(rate), f"{part:.3g} % [{low:.3g}, {high:.3g}]"
