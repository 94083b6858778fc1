"""The fault models against upsets simulated in NVDLA's RTL, record by record.

Records are JSON lines, plain or gzipped, with a ``layers.json`` beside them that gives each layer's
shape, seed and converter. A layer becomes a :class:`~rasp.network.graph.Network` of one convolution
and each record one upset of the effect engine that campaigns use; the set of changed 32-bit sums
and int8 outputs and all their values have to be equal.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rasp.faults.context import LayerContext
from rasp.faults.effects import Upsets, change_sums
from rasp.faults.records import Record, read_layers, read_records
from rasp.nvdla.config import load
from rasp.nvdla.registers import CLASSES
from rasp.nvdla.signals import locate
from rasp.nvdla.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rasp.faults.records import Element, RtlLayer
    from rasp.faults.sites import Integers
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.signals import Signal

_ROWS = 512  # records that go through the engine at once


class ClassCount(NamedTuple):
    """Records of one register class."""

    name: str
    records: int
    modelled: int
    exact: int
    mismatches: int


class Unmodelled(NamedTuple):
    """Records nothing is said about, and why."""

    layer: str
    register_class: str
    reason: str
    records: int


class Mismatch(NamedTuple):
    """A record the model does not reproduce; ``place`` is the file and line."""

    place: str
    layer: str
    register_class: str
    register: str
    bit: int
    cycle: int
    difference: str


@dataclass(frozen=True, slots=True)
class RtlReport:
    """What a check found.

    Attributes:
        files: names of the files.
        classes: counts by register class, in the order of the inventory.
        unmodelled: records without a prediction.
        malformed: file, line and reason of lines that are no record.
        mismatches: the records that differ.
    """

    files: tuple[str, ...]
    classes: tuple[ClassCount, ...]
    unmodelled: tuple[Unmodelled, ...]
    malformed: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def total(self) -> ClassCount:
        """Sums over all classes."""
        return ClassCount(
            "all", *(sum(column) for column in list(zip(*self.classes, strict=True))[1:])
        )

    @property
    def ok(self) -> bool:
        """Whether no record differs and every line could be read."""
        return not self.mismatches and not self.malformed

    @property
    def rows(self) -> tuple[ClassCount, ...]:
        """Lines of a table: every class with records, then the sum."""
        return (*self.classes, self.total)

    @property
    def footnotes(self) -> tuple[str, ...]:
        """One line for each reason of having no prediction, bad line and mismatch."""
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for entry in self.unmodelled:
            reasons[entry.reason][entry.register_class] += entry.records
        return (
            *(
                f"{reason}: {', '.join(f'{name} {n}' for name, n in sorted(classes.items()))}"
                for reason, classes in reasons.items()
            ),
            *(f"malformed: {line}" for line in self.malformed),
            *(
                f"mismatch: {entry.place}, layer {entry.layer}, {entry.register} bit {entry.bit} "
                f"cycle {entry.cycle}: {entry.difference}"
                for entry in self.mismatches
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        total = self.total._asdict()
        del total["name"]
        return {
            **total,
            "mismatches": [mismatch._asdict() for mismatch in self.mismatches],
            "classes": [count._asdict() for count in self.classes],
            "unmodelled": [entry._asdict() for entry in self.unmodelled],
            "malformed": list(self.malformed),
            "files": list(self.files),
        }


class _Located(NamedTuple):
    record: Record
    signal: Signal


def check(files: Iterable[str | Path], *, accelerator: str = "nv_small") -> RtlReport:
    """Compare the records of files with what the fault models predict.

    Args:
        files: JSON lines, gzipped or not, each with a ``layers.json`` in its folder.
        accelerator: name or TOML of the accelerator the records were made on.

    Raises:
        ConfigError: a file or its ``layers.json`` cannot be read.
    """
    config = load(accelerator)
    names, malformed = [], []
    counts: Counter[str] = Counter()
    modelled: Counter[str] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    located: dict[tuple[str, str], list[_Located]] = defaultdict(list)
    observed: dict[tuple[str, str], list[Record]] = defaultdict(list)
    layers: dict[tuple[str, str], RtlLayer] = {}
    for path in files:
        names.append(str(path))
        folder, known = read_layers(path)
        for found in read_records(path):
            if isinstance(found, str):
                malformed.append(found)
                continue
            counts[found.cls] += 1
            key = (folder, found.layer)
            if found.layer not in known:
                reasons[found.layer, found.cls, "layer not in layers.json"] += 1
                continue
            layers[key] = known[found.layer]
            if found.observed is not None:
                observed[key].append(found)
            signal = _locate(found, config)
            if isinstance(signal, str):
                reasons[found.layer, found.cls, signal] += 1
            else:
                located[key].append(_Located(found, signal))
    mismatches: list[Mismatch] = []
    for key, entries in located.items():
        try:
            differing = _check_layer(layers[key], config, entries, observed[key])
        except _NoTimelineError as error:
            for entry in entries:
                reasons[key[1], entry.record.cls, str(error)] += 1
            continue
        modelled.update(entry.record.cls for entry in entries)
        mismatches += differing
    wrong = Counter(mismatch.register_class for mismatch in mismatches)
    order = [name for name in CLASSES if name in counts]
    order += sorted(set(counts) - set(order))
    return RtlReport(
        files=tuple(names),
        classes=tuple(
            ClassCount(
                name, counts[name], modelled[name], modelled[name] - wrong[name], wrong[name]
            )
            for name in order
        ),
        unmodelled=tuple(Unmodelled(*key, records) for key, records in sorted(reasons.items())),
        malformed=tuple(malformed),
        mismatches=tuple(mismatches),
    )


class _NoTimelineError(Exception):
    """The records of a layer do not say when its atoms were where."""


def _locate(record: Record, config: AcceleratorConfig) -> Signal | str:
    if record.cls not in CLASSES:
        return "unknown register class"
    signal = locate(record.cls, record.path, record.var, record.bit, rises=record.rises)
    if signal is None:
        return "register not modelled"
    atoms = config.atoms("int8")
    if signal.lane >= atoms.channels or signal.kernel >= atoms.kernels:
        return f"bit beyond the registers of {config.name}"
    return signal


def _check_layer(
    layer: RtlLayer,
    config: AcceleratorConfig,
    entries: Sequence[_Located],
    observed: Sequence[Record],
) -> list[Mismatch]:
    context = LayerContext(layer.conv, layer.network.arithmetic, config)
    kinds: dict[Signal, list[_Located]] = defaultdict(list)
    for entry in entries:
        kinds[entry.signal._replace(stage=0, kernel=0, lane=0, bit=0)].append(entry)
    seen = [
        (record.cycle - at.stage, at.atom)
        for record in observed
        if (at := record.observed) is not None
    ]
    if not seen and any(kind.effect != "none" for kind in kinds):
        raise _NoTimelineError("no record of the layer names an atom")
    try:
        timeline = Timeline.fitted(
            context.mapping, *np.array(seen, dtype=np.int64).reshape(-1, 2).T
        )
    except (ValueError, IndexError):
        message = "the recorded atoms are not in the order of the mapping"
        return [_mismatch(record, message) for record, _ in entries]
    differing = []
    for kind, members in kinds.items():
        for start in range(0, len(members), _ROWS):
            part = members[start : start + _ROWS]
            predicted = _predict(context, layer, timeline, kind, part)
            for (record, _), prediction in zip(part, predicted, strict=True):
                if difference := record.difference(*prediction):
                    differing.append(_mismatch(record, difference))
    return differing


def _mismatch(record: Record, difference: str) -> Mismatch:
    register = f"{record.path}.{record.var}"
    return Mismatch(
        record.place,
        record.layer,
        record.cls,
        register,
        record.bit,
        record.cycle,
        difference,
    )


class _Prediction(NamedTuple):
    sums: set[Element]
    outputs: set[Element]


def _predict(
    context: LayerContext,
    layer: RtlLayer,
    timeline: Timeline,
    kind: Signal,
    entries: Sequence[_Located],
) -> list[_Prediction]:
    """Changed sums and outputs of records that hit the same kind of value."""
    predictions = [_Prediction(set(), set()) for _ in entries]
    if kind.effect == "none":
        return predictions

    def column(values: Iterable[int]) -> Integers:
        return np.fromiter(values, dtype=np.int64, count=len(entries))

    held = timeline.resident(
        kind,
        column(e.record.cycle for e in entries),
        column(e.signal.stage for e in entries),
        column(e.signal.kernel for e in entries),
        column(e.signal.lane for e in entries),
    )
    bit = column(e.signal.bit for e in entries)
    edge = column(1 if e.record.rises else -1 for e in entries)
    upsets = Upsets(kind, held.atom, held.kernel, held.lane, bit, edge)
    shape, arithmetic = context.conv.conv, context.arithmetic
    rows = len(entries)
    with torch.inference_mode():
        sums = arithmetic.accumulate(context.conv, layer.x).reshape(1, shape.K, -1)
        change = change_sums(
            context, upsets, layer.x.expand(rows, -1, -1, -1), sums.expand(rows, -1, -1)
        )
        different = change.golden != change.faulty
        row, kernel, pixel, golden, faulty = (values[different] for values in change)
        before = arithmetic.finish(context.conv, golden, kernel).tolist()
        after = arithmetic.finish(context.conv, faulty, kernel).tolist()
    columns = (values.tolist() for values in (row, kernel, pixel, golden, faulty))
    for i, k, p, old, new, out, wrong in zip(*columns, before, after, strict=True):
        y, x = divmod(p, shape.Wo)
        predictions[i].sums.add((k, y, x, old, new))
        if out != wrong:
            predictions[i].outputs.add((k, y, x, out, wrong))
    return predictions
