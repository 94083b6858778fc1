"""Train a network, and measure one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path  # noqa: TC003  pydantic reads it

from rasp import loading, runs
from rasp.errors import ConfigError
from rasp.progress import Progress, silent
from rasp.statistics import Rate
from rasp.verbs._shared import Result, accuracy, check_run, named, threads_for


class Trained(Result):
    """A trained network: top-1 on the validation split, and once, at the end, on the test split."""

    out: Path
    model: str
    data: str
    epochs: int
    validation: Rate
    test: Rate


class Evaluated(Result):
    """Top-1 of a network in a number format."""

    model: str
    data: str
    split: str
    format: str
    accuracy: Rate


def train(
    model: str,
    data: str,
    *,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Trained:
    """Train a network from fresh weights.

    Args:
        model: name that :func:`rasp.zoo.build` takes.
        data: name of a data set.
        out: directory to write; a new one under ``runs/`` by default.
        epochs: passes over the training split; the recipe's own number by default.
        seed: of weights, order and augmentation.
        data_dir: where data sets lie.
        device: a torch device.
        progress: hears about every epoch.
    """
    check_run(seed, device)
    if loading.is_checkpoint(model):
        raise ConfigError(
            f"Training starts from fresh weights, and '{model}' is a checkpoint. Give the name of "
            "a network; 'rasp prune' fine-tunes what it prunes."
        )
    if epochs is not None and epochs < 1:
        raise ConfigError(f"Training needs at least 1 epoch, got {epochs}.")
    loaded = loading.open_model(model, data, data_dir=data_dir, seed=seed, progress=progress)
    from rasp import training

    config = training.default_config(model, loaded.dataset.name)
    config = replace(config, seed=seed, epochs=epochs or config.epochs)
    arguments = {
        "verb": "train",
        "model": model,
        "data": data,
        "epochs": config.epochs,
        "seed": seed,
    }
    target = runs.directory(out, f"train-{loaded.name}")
    done = runs.finished(target, arguments)
    if done is None:
        with runs.resumable(target), threads_for(loaded):
            result = training.fit(
                loaded.model,
                loaded.dataset,
                config,
                device=device,
                checkpoint_dir=target / runs.TRAINING,
                progress=named(progress, f"train {loaded.name}"),
            )
        trained = replace(loaded, model=result.model.cpu().eval())
        metrics = {
            split: asdict(accuracy(trained.model, trained, split))
            for split in ("validation", "test")
        }
        done = runs.save(target, trained, arguments, metrics)
    return Trained(
        out=target,
        model=model,
        data=data,
        epochs=config.epochs,
        validation=Rate(**done.metrics["validation"]),
        test=Rate(**done.metrics["test"]),
    )


def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    weights: str | Path | None = None,
    format: str | None = None,  # noqa: A002
    split: str = "test",
    limit: int | None = None,
    calibration: int = loading.CALIBRATION_IMAGES,
    seed: int = 0,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    progress: Progress = silent,
) -> Evaluated:
    """Measure top-1 of the lowered network, the one that faults are injected in.

    Args:
        model: checkpoint directory or name.
        data: data set; a checkpoint knows its own.
        weights: weight file for a name.
        format: ``fp32``, ``fp16`` or ``int8``; ``int8`` for a quantised checkpoint, else ``fp32``.
        split: ``test`` or ``validation``.
        limit: images to take, all by default.
        calibration: training images for INT8 scales.
        seed: which training images.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        progress: hears about images.
    """
    check_run(seed)
    loading.check_format(format)
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1 image, got {limit}.")
    loaded = loading.open_model(
        model,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    loaded.dataset.split(split)
    network = loading.network_of(
        loaded, format or loaded.own_format, calibration=calibration, seed=seed
    )
    return Evaluated(
        model=str(model),
        data=loaded.dataset.name,
        split=split,
        format=network.format,
        accuracy=accuracy(network, loaded, split, limit=limit, progress=progress),
    )
