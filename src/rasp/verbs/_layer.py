"""Inject into one recorded layer as a network of its own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING, Any

from rasp import checkpoint, loading, provenance, runs
from rasp.errors import ConfigError
from rasp.progress import Progress, silent
from rasp.statistics import Rate  # noqa: TC001  pydantic reads it
from rasp.verbs._inject import check_faults, shares_of_layers
from rasp.verbs._shared import CONFIDENCE, STORE, Result, check_run, command, named

if TYPE_CHECKING:
    from collections.abc import Mapping

LAYER = "layer.json"
"""File of a run directory that sums the campaign up."""


class LayerInjected(Result):
    """A finished campaign on one layer with one input.

    There is no label and so no accuracy: what counts is whether the INT8 output changes. The image
    is given, not drawn, so trials are independent and intervals (Wilson) are about this image.

    Attributes:
        out: directory of the run, with ``layer.json`` and the campaign's store.
        layer: name of the layer.
        accelerator: what it runs on.
        window: cycles in which its registers are struck.
        trials: injected upsets.
        changed: share that changes at least one INT8 output.
        activity: share that hits a live value.
        by_model: share that changes an output, of each fault model.
        spec: the campaign's specification, ``spec_digest`` its identity.
        command: what reproduces the run.
        provenance: where and with what it was made.
    """

    out: Path
    layer: str
    accelerator: str
    window: int
    trials: int
    changed: Rate
    activity: Rate
    by_model: dict[str, Rate]
    spec: dict[str, Any]
    spec_digest: str
    command: str
    provenance: dict[str, Any]


def inject_layer(
    model: str,
    *,
    format: str | None = None,  # noqa: A002
    trials: int = 10_000,
    faults: str = "nvdla",
    fault_models: Mapping[str, float] | None = None,
    accelerator: str | Path = "nv_small",
    confidence: float = CONFIDENCE,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> LayerInjected:
    """Inject single-bit upsets into a recorded layer with its one input.

    Args:
        model: ``rtl:FOLDER#LAYER``, the folder (or path) of a ``layers.json``.
        format: ``int8``, the only one the records have.
        trials: upsets to inject.
        faults: population they are drawn from, as for ``inject``.
        fault_models: weight of each fault model, instead of ``faults``.
        accelerator: configuration whose mapping and cycles are used.
        confidence: level of the intervals.
        seed: with the trial's number all that decides a trial.
        out: directory to write; a new one under ``runs/`` by default.
        device: a torch device.
        progress: hears about trials.

    Raises:
        ConfigError: no such layer, another format, a number out of range.
    """
    import torch

    from rasp.campaign import runner
    from rasp.faults.population import mix
    from rasp.faults.records import open_layer
    from rasp.nvdla import config
    from rasp.nvdla.cycles import layer_window

    check_run(seed, device)
    check_faults(faults, fault_models)
    loading.check_format(format)
    if format not in (None, "int8"):
        raise ConfigError(f"Recorded layers are int8, got --format {format}. Leave it out.")
    if trials < 1:
        raise ConfigError(f"--trials must be at least 1, got {trials}.")
    hardware = config.load(accelerator)
    found = open_layer(model)
    name, image = found.conv.name, found.x.float()
    spec = runner.specify(
        found.network,
        image,
        hardware,
        model=name,
        data="rtl",
        split="given",
        fault_models=fault_models or mix(faults, hardware),
        trials=trials,
        layer_weights=shares_of_layers(faults, fault_models),
        seed=seed,
        confidence=confidence,
    )
    target = runs.directory(out, f"inject-rtl-{name}")
    with runs.resumable(target):
        result = runner.inject(
            found.network,
            image,
            torch.zeros(1, dtype=torch.int64),
            hardware,
            spec,
            target / STORE,
            device=device,
            progress=named(progress, f"inject {name}, int8", details=False),
        )
    line = command(
        "inject",
        model=model,
        trials=trials,
        fault_model=[f"{key}={value:g}" for key, value in (fault_models or {}).items()],
        faults=None if fault_models else faults,
        accelerator=accelerator,
        confidence=confidence,
        seed=seed,
    )
    summary = LayerInjected(
        out=target,
        layer=name,
        accelerator=hardware.name,
        window=layer_window(found.conv.conv, hardware),
        trials=result.trials,
        changed=result.overall["masked"].complement,
        activity=result.activity,
        by_model={str(key): rate.complement for key, rate in result.by_model["masked"].items()},
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        command=line,
        provenance=provenance.collect({"verb": "inject", "spec": spec.digest()}),
    )
    checkpoint.write_atomic(target / LAYER, summary.model_dump_json(indent=2).encode() + b"\n")
    return summary
