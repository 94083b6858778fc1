"""Calibrate a network for INT8."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path  # noqa: TC003  pydantic reads it

from rasp import loading, runs
from rasp.progress import Progress, silent
from rasp.statistics import Rate
from rasp.verbs._shared import Result, accuracy, check_run, named


class Quantized(Result):
    """An INT8 network; top-1 of both formats on the validation split."""

    out: Path
    fp32: Rate
    int8: Rate


def quantize(
    model: str | Path,
    *,
    observer: str = "mse",
    upset_rate: float = 0.0,
    calibration: int = loading.CALIBRATION_IMAGES,
    data: str | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    progress: Progress = silent,
) -> Quantized:
    """Calibrate a network for INT8 and save it with its scales.

    Args:
        model: checkpoint directory or name.
        observer: ``mse``, ``minmax`` or ``percentile``.
        upset_rate: probability of a bit flip in a value that ``mse`` weighs against rounding and
            clipping; above 0 values saturate earlier and a flip does less.
        calibration: training images scales are fitted on.
        data: data set; a checkpoint knows its own.
        weights: weight file for a name.
        seed: which training images.
        out: directory to write; a new one under ``runs/`` by default.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        progress: hears about images.
    """
    from rasp.quantization import calibrate
    from rasp.quantization.observers import observer as observer_named

    check_run(seed)
    observer_named(observer)
    loaded = loading.open_model(
        model,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    sample = loading.calibration_split(loaded, calibration, seed)
    arguments = {
        "verb": "quantize",
        "model": loaded.spec.model,
        "source": loaded.identity,
        "data": loaded.dataset.name,
        "observer": observer,
        "upset_rate": upset_rate,
        "calibration": len(sample),
        "seed": seed,
    }
    target = runs.directory(out, f"quantize-{loaded.name}")
    done = runs.finished(target, arguments)
    if done is None:
        plain = loading.network_of(loaded, "fp32", calibration=calibration, seed=seed)
        integer, record = calibrate.quantize(
            plain,
            loaded.dataset.tensor(sample),
            observer=observer,
            upset_rate=upset_rate,
            progress=named(progress, f"calibrate {loaded.name}"),
        )
        metrics = {
            network.format: asdict(accuracy(network, loaded, "validation", progress=progress))
            for network in (plain, integer)
        }
        scaled = replace(loaded, quantization=record.model_dump(mode="json"))
        done = runs.save(target, scaled, arguments, metrics)
    return Quantized(
        out=target, fp32=Rate(**done.metrics["fp32"]), int8=Rate(**done.metrics["int8"])
    )
