"""The fault models against upsets simulated in NVDLA's RTL, record by record.

Records are JSON lines, plain or gzipped, with a ``layers.json`` beside them that gives each layer's
shape, seed and converter. A layer becomes a :class:`~rasp.network.graph.Network` of one convolution
and each record one upset of the effect engine that campaigns use; the set of changed 32-bit sums
and int8 outputs and all their values have to be equal.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rasp.errors import ConfigError
from rasp.faults.context import LayerContext
from rasp.faults.effects import Upsets, change_stored, change_sums
from rasp.faults.recorded import Recorded
from rasp.faults.records import Record, read_layers, read_records
from rasp.faults.sdp import EFFECTS
from rasp.faults.values import LayerValues
from rasp.nvdla.config import load
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.registers import CLASSES
from rasp.nvdla.signals import MODELLED, locate
from rasp.nvdla.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from rasp.faults.effects import SumChange
    from rasp.faults.records import Element, RtlLayer
    from rasp.faults.sites import Integers
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.signals import Signal
    from rasp.statistics import Rate

_ROWS = 512  # records that go through the engine at once
_WIDTHS = {
    **dict.fromkeys(("activation", "activation_bus", "weight", "weight_bus"), 8),
    "product": 19,
    "sum": 35,
    "partial": 34,
    "restored": 34,
    "final": 32,
}


_Key = tuple[str, str]  # folder and layer


class ClassCount(NamedTuple):
    """Records of one register class."""

    name: str
    records: int
    modelled: int
    exact: int
    mismatches: int


class Unmodelled(NamedTuple):
    """Records nothing is said about, and why; ``register`` is named where its class is modelled."""

    layer: str
    register_class: str
    register: str
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
        changed: share of upsets that change an output of each layer, by flip-flops.
    """

    files: tuple[str, ...]
    classes: tuple[ClassCount, ...]
    unmodelled: tuple[Unmodelled, ...]
    malformed: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    changed: dict[str, Rate]

    @property
    def total(self) -> ClassCount:
        """Sums over all classes."""
        columns = ("records", "modelled", "exact", "mismatches")
        return ClassCount(
            "all", *(sum(getattr(entry, column) for entry in self.classes) for column in columns)
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
            name = f"{entry.register_class} {entry.register}".rstrip()
            reasons[entry.reason][name] += entry.records
        return (
            *(
                f"{reason}: {', '.join(f'{name} {n}' for name, n in sorted(classes.items()))}"
                for reason, classes in reasons.items()
            ),
            *(
                f"layer {layer}: {rate} of datapath upsets change an output, by flip-flops"
                for layer, rate in self.changed.items()
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
            "changed": {layer: asdict(rate) for layer, rate in self.changed.items()},
            "files": list(self.files),
        }


class _Located(NamedTuple):
    record: Record
    signal: Signal


@dataclass
class _Gathered:
    """Records of all files by folder and layer."""

    recorded: Recorded
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    malformed: list[str] = field(default_factory=list)
    layers: dict[_Key, RtlLayer] = field(default_factory=dict)
    located: dict[_Key, list[_Located]] = field(default_factory=lambda: defaultdict(list))
    observed: dict[_Key, list[Record]] = field(default_factory=lambda: defaultdict(list))


def _gather(files: Iterable[str], config: AcceleratorConfig) -> _Gathered:
    into = _Gathered(Recorded(config))
    for path in files:
        folder, known = read_layers(path)
        for found in read_records(path):
            wrong = found if isinstance(found, str) else _impossible(found, known, config)
            if isinstance(found, str) or wrong:
                into.malformed.append(wrong)
                continue
            into.counts[found.cls] += 1
            if found.layer not in known:
                reason = f"layer {found.layer} is not in layers.json"
                into.reasons[found.layer, found.cls, "", reason] += 1
                continue
            key = (folder, found.layer)
            into.layers[key] = known[found.layer]
            if found.observed is not None:
                into.observed[key].append(found)
            signal = _locate(found, config)
            into.recorded.add(found, modelled=not isinstance(signal, str))
            if isinstance(signal, str):
                register = found.var if found.cls in MODELLED else ""
                into.reasons[found.layer, found.cls, register, signal] += 1
            else:
                into.located[key].append(_Located(found, signal))
    return into


def check(files: Iterable[str | Path], *, accelerator: str = "nv_small") -> RtlReport:
    """Compare the records of files with what the fault models predict.

    Args:
        files: JSON lines, gzipped or not, each with a ``layers.json`` in its folder.
        accelerator: name or TOML of the accelerator the records were made on.

    Raises:
        ConfigError: a file or its ``layers.json`` cannot be read, or there is no record.
        UnsupportedModelError: a layer does not fit the accelerator.
    """
    config = load(accelerator)
    names = [str(path) for path in files]
    gathered = _gather(names, config)
    counts, reasons = gathered.counts, gathered.reasons
    modelled: Counter[str] = Counter()
    if not counts and not gathered.malformed:
        raise ConfigError(f"There is no record in {', '.join(names) or 'no file'}.")
    mismatches: list[Mismatch] = []
    for key, entries in gathered.located.items():
        layer = gathered.layers[key]
        try:
            differing = _check_layer(layer, config, entries, gathered.observed[key])
        except _NoTimelineError as error:
            for entry in entries:
                reasons[key[1], entry.record.cls, "", str(error)] += 1
            continue
        modelled.update(entry.record.cls for entry in entries)
        mismatches += differing
    differing_by_class = Counter(mismatch.register_class for mismatch in mismatches)
    order = [name for name in CLASSES if name in counts]
    order += sorted(set(counts) - set(order))
    return RtlReport(
        files=tuple(names),
        classes=tuple(
            ClassCount(
                name,
                counts[name],
                modelled[name],
                modelled[name] - differing_by_class[name],
                differing_by_class[name],
            )
            for name in order
        ),
        unmodelled=tuple(Unmodelled(*key, records) for key, records in sorted(reasons.items())),
        malformed=tuple(gathered.malformed),
        mismatches=tuple(mismatches),
        changed=gathered.recorded.rates,
    )


class _NoTimelineError(Exception):
    """The records of a layer do not say when its atoms were where."""


def _impossible(record: Record, known: dict[str, RtlLayer], config: AcceleratorConfig) -> str:
    """What is wrong with the record's atom; empty if nothing is."""
    if record.observed is None or record.layer not in known:
        return ""
    count, atom = Mapping(known[record.layer].conv.conv, config).count, record.observed.atom
    return "" if 0 <= atom < count else f"{record.place}: atom {atom} of a layer with {count}"


def _locate(record: Record, config: AcceleratorConfig) -> Signal | str:
    if record.cls not in CLASSES:
        return "unknown register class"
    signal = locate(record.cls, record.path, record.var, record.bit, rises=record.rises)
    if signal is None:
        return "register not modelled"
    atoms = config.atoms("int8")
    beyond = signal.bit >= _WIDTHS.get(signal.effect, signal.bit + 1)
    if beyond or signal.lane >= atoms.channels or signal.kernel >= atoms.kernels:
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
        one = LayerValues.of(context, layer.x)
        values = replace(one, image=one.image.expand(rows))
        if kind.effect in EFFECTS:
            stored = change_stored(upsets, values)
        else:
            change = change_sums(upsets, values)
            stored = change._replace(
                golden=arithmetic.convert(context.conv, change.golden, change.kernel),
                faulty=arithmetic.convert(context.conv, change.faulty, change.kernel),
            )
            for i, element in _different(change, shape.Wo):
                predictions[i].sums.add(element)
    for i, element in _different(stored, shape.Wo):
        predictions[i].outputs.add(element)
    return predictions


def _different(change: SumChange, columns: int) -> Iterator[tuple[int, Element]]:
    """Row and element of what changed."""
    kept = change.golden != change.faulty
    found = (values[kept].tolist() for values in change)
    for row, kernel, pixel, golden, faulty in zip(*found, strict=True):
        yield row, (kernel, *divmod(pixel, columns), golden, faulty)
