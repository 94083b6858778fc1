"""What ``rasp ls`` shows: every registry with one line a name."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from rasp.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable


def listing(what: str | None) -> dict[str, dict[str, str]]:
    """Names and what they stand for, by kind.

    Args:
        what: one kind, all if ``None``.

    Raises:
        ConfigError: there is no such kind.
    """
    if what is not None and what not in _KINDS:
        raise unknown_name("kind", what, _KINDS)
    return {kind: _KINDS[kind]() for kind in ([what] if what else _KINDS)}


def _models() -> dict[str, str]:
    from rasp.zoo.spec import MODELS

    return {name: entry.summary for name, entry in MODELS.items()}


def _criteria() -> dict[str, str]:
    from rasp.pruning.importance import CRITERIA

    return {name: _summary(kind) for name, kind in CRITERIA.items()}


def _fault_models() -> dict[str, str]:
    from rasp.faults.models import FAULT_MODELS

    return {name: model.summary for name, model in FAULT_MODELS.items()}


def _accelerators() -> dict[str, str]:
    from rasp.nvdla.config import CONFIGS, load

    def line(name: str) -> str:
        config = load(name)
        atoms = config.atoms("int8")
        formats = ", ".join(sorted(config.formats))
        return f"{atoms.channels} channels x {atoms.kernels} kernels a cycle; {formats}"

    return {name: line(name) for name in CONFIGS}


def _registers() -> dict[str, str]:
    from rasp.nvdla.config import load
    from rasp.nvdla.layout import shares, steering
    from rasp.nvdla.registers import registers

    small = load("nv_small")
    models: dict[str, dict[str, float]] = {}
    for field, bits in shares(small):
        groups = models.setdefault(field.cls, {})
        groups[field.group] = groups.get(field.group, 0.0) + bits
    steer = steering(small)

    def line(name: str, flip_flops: float) -> str:
        parts = models.get(name, {}) | {"control": steer.get(name, 0.0)}
        placed = ", ".join(f"{bits:.0f} {part}" for part, bits in parts.items() if bits)
        return f"{flip_flops} flip-flops on nv_small ({placed})"

    found = {
        entry.name: f"{entry.kind}, {line(entry.name, entry.flip_flops)}; of random upsets in its "
        f"RTL {entry.measured.sdc:.1%} change outputs, {entry.measured.hang:.1%} hang"
        for entry in registers(small)
    }
    total = sum(entry.flip_flops for entry in registers(small))
    drawn = sum(sum(parts.values()) for parts in models.values())
    found["all"] = (
        f"{total} flip-flops: {drawn:.0f} in fault models, {sum(steer.values()):.0f} control"
    )
    return found


def _data() -> dict[str, str]:
    from rasp.data.registry import DATASETS

    return DATASETS


_KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "models": _models,
    "criteria": _criteria,
    "fault-models": _fault_models,
    "accelerators": _accelerators,
    "registers": _registers,
    "data": _data,
}


def _summary(thing: object) -> str:
    line = (inspect.getdoc(thing) or "").partition("\n")[0]
    return re.split(r"[,:]? *:math:", line)[0].rstrip(".")
