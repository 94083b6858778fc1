"""How often recorded upsets changed an output: what a campaign on their layer has to find.

Registers are weighed by their flip-flops: the records hold as many of every class. Counted are the
registers that fault models draw, also those of which a single record cannot be predicted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rasp.nvdla.layout import shares
from rasp.nvdla.signals import MODELLED
from rasp.statistics import stratified

if TYPE_CHECKING:
    from rasp.faults.records import Record
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.statistics import Rate

_BY_RATE = frozenset([("csc_wl_data", "wt_data_remain")])
"""Registers of modelled classes that campaigns draw as idle: bytes left over from a word."""


class Recorded:
    """Counts records by layer and register class.

    Args:
        config: accelerator the records were made on.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._bits: dict[str, float] = defaultdict(float)
        for share in shares(config):
            self._bits[share.field.cls] += share.flip_flops
        self._events: dict[tuple[str, str], int] = defaultdict(int)
        self._trials: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, record: Record, *, modelled: bool) -> None:
        """Count a record, unless it is of a register that no fault model draws."""
        whole = record.cls not in MODELLED or (record.cls, record.var) in _BY_RATE
        if record.cls in self._bits and (modelled or whole):
            self._trials[record.layer, record.cls] += 1
            self._events[record.layer, record.cls] += record.n_outputs > 0

    @property
    def rates(self) -> dict[str, Rate]:
        """Share of upsets that change an output of each layer, by flip-flops."""
        found = {}
        for layer in sorted({layer for layer, _ in self._trials}):
            keys = [key for key in self._trials if key[0] == layer]
            found[layer] = stratified(
                [self._bits[cls] for _, cls in keys],
                [self._events[key] for key in keys],
                [self._trials[key] for key in keys],
            )
        return found
