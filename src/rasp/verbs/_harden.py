"""Restrict the range of a network's results."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING

from rasp import loading, runs
from rasp.errors import ConfigError, unknown_name
from rasp.progress import Progress, silent
from rasp.statistics import Rate
from rasp.verbs._shared import Result, accuracy, check_run, named

if TYPE_CHECKING:
    from rasp.loading import Loaded

BOUND_IMAGES = 1024
"""Training images that bounds are measured on unless the caller says otherwise."""


class Hardened(Result):
    """A network with bounds; top-1 without and with them on the validation split."""

    out: Path
    mode: str
    scope: str
    nodes: int
    before: Rate
    after: Rate


def harden(
    model: str | Path,
    *,
    mode: str = "clip",
    scope: str = "layer",
    upset_rate: float = 0.0,
    calibration: int = BOUND_IMAGES,
    data: str | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    progress: Progress = silent,
) -> Hardened:
    """Hold every layer's results to the range they have on training images, and save the bounds.

    A value outside the range is a fault's doing: a clip to it, or 0 in its place, keeps the
    damage of one upset small and costs NVDLA no cycle. INT8 scales are to be calibrated after it.

    Args:
        model: checkpoint directory or name.
        mode: ``clip`` to the nearest bound, or ``zero``.
        scope: bounds of a ``layer`` or of each ``channel``.
        upset_rate: share of values that upsets are expected to throw onto the bound; above 0 the
            bounds of mode ``clip`` are tighter than the range.
        calibration: training images the bounds are measured on.
        data: data set; a checkpoint knows its own.
        weights: weight file for a name.
        seed: which training images.
        out: directory to write; a new one under ``runs/`` by default.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        progress: hears about images.
    """
    from rasp.pruning import hardening

    check_run(seed)
    for what, value, allowed in (
        ("hardening mode", mode, hardening.MODES),
        ("hardening scope", scope, hardening.SCOPES),
    ):
        if value not in allowed:
            raise unknown_name(what, value, allowed)
    loaded = loading.open_model(
        model,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    if loaded.quantization is not None:
        raise ConfigError(f"'{model}' is quantised already. Harden it first, then quantise it.")
    if calibration == BOUND_IMAGES:
        calibration = min(calibration, len(loaded.dataset.train))
    arguments = {
        "verb": "harden",
        "model": loaded.spec.model,
        "source": loaded.identity,
        "data": loaded.dataset.name,
        "mode": mode,
        "scope": scope,
        "upset_rate": upset_rate,
        "calibration": calibration,
        "seed": seed,
    }
    target = runs.directory(out, f"harden-{loaded.name}")
    done = runs.finished(target, arguments)
    if done is None:
        bare = replace(loaded, hardening=None)
        hardened = _measured(
            bare,
            mode,
            scope,
            upset_rate,
            calibration,
            seed,
            named(progress, f"harden {loaded.name}"),
        )
        metrics = {
            name: asdict(
                accuracy(loading.network_of(one, "fp32"), one, "validation", progress=progress)
            )
            for name, one in (("before", bare), ("after", hardened))
        }
        done = runs.save(target, hardened, arguments, metrics)
    return Hardened(
        out=target,
        mode=mode,
        scope=scope,
        nodes=len((done.hardening or {})["high"]),
        before=Rate(**done.metrics["before"]),
        after=Rate(**done.metrics["after"]),
    )


def measured_anew(loaded: Loaded) -> Loaded:
    """A hardened network after its weights changed, with bounds of the same kind."""
    from rasp.pruning import hardening

    record = hardening.HardeningRecord.model_validate(loaded.hardening)
    bare = replace(loaded, hardening=None)
    kind = record.mode, record.scope, record.upset_rate
    return _measured(bare, *kind, record.images, 0, silent)


def _measured(
    bare: Loaded,
    mode: str,
    scope: str,
    upset_rate: float,
    images: int,
    seed: int,
    progress: Progress,
) -> Loaded:
    from rasp.pruning import hardening

    network = loading.network_of(bare, "fp32")
    sample = bare.dataset.tensor(loading.calibration_split(bare, images, seed))
    record = hardening.measure(
        network, sample, mode=mode, scope=scope, upset_rate=upset_rate, progress=progress
    )
    return replace(bare, hardening=record.model_dump(mode="json"))
