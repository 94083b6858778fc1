"""Remove channels, then fine-tune."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING, Any

from rasp import loading, runs
from rasp.errors import ConfigError, unknown_name
from rasp.progress import Progress, silent
from rasp.statistics import Rate
from rasp.verbs._harden import measured_anew
from rasp.verbs._inject import check_faults
from rasp.verbs._shared import Result, accuracy, check_run, named, threads_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from rasp.checkpoint import Checkpoint
    from rasp.loading import Loaded
    from rasp.pruning.allocation import Budget
    from rasp.pruning.importance import Importance
    from rasp.pruning.selection import Trade

SCOPES = ("uniform", "global", "failures")
FINE_TUNING_RATE = 0.5
"""Highest learning rate of fine-tuning as a part of the training recipe's."""
FINE_TUNING_EPOCHS = 3
"""Fine-tuning takes the recipe's number of epochs divided by this, unless told otherwise."""


class Pruned(Result):
    """A pruned network and what it kept; top-1 is on the validation split.

    ``widths`` are output channels of each layer before and after.
    """

    out: Path
    criterion: str
    widths: dict[str, tuple[int, int]]
    macs: int
    dense_macs: int
    parameters: int
    validation: Rate
    notes: tuple[str, ...]


def prune(
    model: str | Path,
    *,
    criterion: str,
    channels: float | None = None,
    macs: float | None = None,
    cycles: float | None = None,
    scope: str = "uniform",
    round_to: int = 1,
    iterations: int = 1,
    epochs: int | None = None,
    upset_rate: float = 0.0,
    distill: float = 0.0,
    lam: float = 0.5,
    faults: str = "fidelity",
    format: str = "int8",  # noqa: A002
    accelerator: str | Path = "nv_small",
    data: str | None = None,
    weights: str | Path | None = None,
    calibration: int = loading.CALIBRATION_IMAGES,
    seed: int = 0,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Pruned:
    """Remove whole channels to a budget, then fine-tune.

    Without fine-tuning (``epochs=0``) batch-norm statistics are measured anew on the calibration
    images, which needs no labels. Bounds of a hardened network are measured anew. Exactly one of
    ``channels``, ``macs`` and ``cycles`` is given.

    Args:
        model: checkpoint directory or name.
        criterion: a name of :data:`rasp.pruning.importance.CRITERIA`.
        channels: share of the channels to remove, in (0, 1).
        macs: share of the MACs to keep, in (0, 1).
        cycles: share of the accelerator's cycles to keep, in (0, 1).
        scope: ``uniform`` (one ratio for every group), ``global`` (one ranking of all channels) or
            ``failures`` (Taylor importance against predicted failures per inference).
        round_to: widths are multiples of it.
        iterations: steps to the budget, each fine-tuned.
        epochs: fine-tuning after every step, 0 for none; a third of the recipe's by default.
        upset_rate: probability that an upset strikes a layer's result of an image while it is
            fine-tuned, see :mod:`rasp.upsets`.
        distill: share of fine-tuning's loss that holds the answers against those of the network
            before pruning, see :class:`rasp.training.Teacher`.
        lam: weight of the vulnerability in the criterion ``reliability``, and of the failures in
            the scope ``failures``.
        faults: population that failures are predicted for, as in :func:`rasp.verbs.inject`.
        format: number format the network is meant for: ``reliability`` weighs its bit flips,
            ``cycles`` are counted in it.
        accelerator: configuration that cycles are counted on.
        data: data set; a checkpoint knows its own.
        weights: weight file for a name.
        calibration: training images the criterion sees.
        seed: of the criterion and of fine-tuning.
        out: directory to write; a new one under ``runs/`` by default.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        device: a torch device, for fine-tuning.
        progress: hears about steps and epochs.
    """
    check_run(seed, device)
    check_faults(faults, None)
    importance = _importance(criterion, lam, format)
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)
    for name, value, least in (
        ("--round-to", round_to, 1),
        ("--iterations", iterations, 1),
        ("--epochs", epochs or 0, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")
    for name, share in (("--upset-rate", upset_rate), ("--distill", distill)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} must lie from 0 to 1, got {share:g}.")
    budget = _budget(channels, macs, cycles, accelerator, format)
    loaded = loading.open_model(
        model,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    if loaded.plan is not None:
        raise ConfigError(f"'{model}' is pruned already. Prune the dense network to a new budget.")
    arguments: dict[str, Any] = {
        "verb": "prune",
        "model": loaded.spec.model,
        "source": loaded.identity,
        "data": loaded.dataset.name,
        "criterion": criterion,
        "lam": lam,
        "format": format,
        "channels": channels,
        "macs": macs,
        "cycles": cycles,
        "accelerator": str(accelerator),
        "scope": scope,
        "round_to": round_to,
        "iterations": iterations,
        "epochs": _default_epochs(loaded) if epochs is None else epochs,
        "upset_rate": upset_rate,
        "faults": faults,
        "calibration": calibration,
        "seed": seed,
    }
    if distill:  # without it, networks that were written before it existed are found finished
        arguments["distill"] = distill
    target = runs.directory(out, f"prune-{loaded.name}")
    done = runs.finished(target, arguments) or _prune(
        loaded, importance, budget, arguments, target=target, device=device, progress=progress
    )
    plan, metrics = done.plan or {}, done.metrics
    return Pruned(
        out=target,
        criterion=criterion,
        widths={name: (w["before"], w["after"]) for name, w in plan["widths"].items()},
        macs=metrics["macs"],
        dense_macs=metrics["dense_macs"],
        parameters=metrics["parameters"],
        validation=Rate(**metrics["validation"]),
        notes=plan["notes"],
    )


def _prune(
    loaded: Loaded,
    importance: Importance,
    budget: Budget,
    arguments: Mapping[str, Any],
    *,
    target: Path,
    device: str,
    progress: Progress,
) -> Checkpoint:
    import torch

    from rasp import complexity, training
    from rasp.network.lower import lower
    from rasp.pruning import pruner
    from rasp.pruning.importance import CalibrationBatch
    from rasp.pruning.recalibrate import recalibrate

    lower(loaded.model, loaded.example)  # what cannot be exported is refused before the work
    label = f"prune {loaded.name} by {arguments['criterion']}"
    epochs = arguments["epochs"]
    config = replace(
        training.default_config(loaded.spec.model, loaded.dataset.name), seed=arguments["seed"]
    )

    share = arguments.get("distill", 0.0)
    teacher = training.Teacher(deepcopy(loaded.model), share) if share else None

    def repair(model: nn.Module, step: int) -> None:
        if not epochs:
            del step
            recalibrate(model, images)
            return
        training.fit(
            model,
            loaded.dataset,
            replace(
                config,
                epochs=epochs,
                lr=config.lr * FINE_TUNING_RATE,
                upset_rate=arguments["upset_rate"],
            ),
            teacher=teacher,
            device=device,
            checkpoint_dir=target / runs.TRAINING / f"step-{step}",
            progress=named(progress, f"{label}, fine-tune {step}/{arguments['iterations']}"),
        )
        model.cpu()

    sample = loading.calibration_split(loaded, arguments["calibration"], arguments["seed"])
    images = loaded.dataset.tensor(sample)
    with runs.resumable(target), threads_for(loaded):
        result = pruner.prune(
            loaded.model,
            example=loaded.example,
            importance=importance,
            budget=budget,
            calibration=CalibrationBatch(images, torch.from_numpy(sample.labels)),
            scope=arguments["scope"],
            trade=_trade(loaded, images, arguments, named(progress, f"{label}, predict failures")),
            round_to=arguments["round_to"],
            iterations=arguments["iterations"],
            fine_tune=repair,
            seed=arguments["seed"],
            progress=silent if epochs else named(progress, label),
        )
    tuned = {"upset_rate": arguments["upset_rate"], "distill": share} if epochs else {}
    plan = result.plan.model_copy(update=tuned)
    pruned = replace(loaded, model=result.model.eval(), plan=plan, quantization=None)
    if loaded.hardening is not None:
        pruned = measured_anew(pruned)
    size = complexity.count(result.model, loaded.example)
    metrics: dict[str, Any] = {
        "macs": size.macs,
        "dense_macs": complexity.count(loaded.model, loaded.example).macs,
        "parameters": size.parameters,
        "validation": asdict(accuracy(result.model, pruned, "validation")),
    }
    return runs.save(target, pruned, arguments, metrics)


def _trade(
    loaded: Loaded, images: Tensor, arguments: Mapping[str, Any], progress: Progress
) -> Trade | None:
    if arguments["scope"] != "failures":
        return None
    from rasp.nvdla import config
    from rasp.pruning.injection import predicted_failures
    from rasp.pruning.selection import Trade

    predicted = predicted_failures(
        loading.network_of(loaded, arguments["format"], calibration=arguments["calibration"]),
        config.load(arguments["accelerator"]),
        images,
        faults=arguments["faults"],
        seed=arguments["seed"],
        progress=progress,
    )
    return Trade(predicted, arguments["lam"])


def _importance(criterion: str, lam: float, number_format: str) -> Importance:
    from rasp.pruning.importance import CRITERIA, KeepVulnerable, Reliability

    if criterion not in CRITERIA:
        raise unknown_name("criterion", criterion, CRITERIA)
    loading.check_format(number_format)
    kind = CRITERIA[criterion]
    if issubclass(kind, Reliability):
        return kind(lam=lam, format=number_format)
    return kind(format=number_format) if issubclass(kind, KeepVulnerable) else kind()


def _default_epochs(loaded: Loaded) -> int:
    from rasp import training

    recipe = training.default_config(loaded.spec.model, loaded.dataset.name)
    return -(-recipe.epochs // FINE_TUNING_EPOCHS)


def _budget(
    channels: float | None,
    macs: float | None,
    cycles: float | None,
    accelerator: str | Path,
    number_format: str,
) -> Budget:
    from rasp.nvdla import config
    from rasp.pruning.allocation import Budget

    given = {"--channels": channels, "--macs": macs, "--cycles": cycles}
    named_ones = [name for name, value in given.items() if value is not None]
    if len(named_ones) != 1:
        raise ConfigError(
            "Give exactly one of --channels (share to remove), --macs or --cycles (shares to "
            f"keep), got {', '.join(named_ones) or 'none'}."
        )
    hardware = config.load(accelerator)
    if channels is not None:
        if not 0 < channels < 1:
            raise ConfigError(
                f"--channels must lie between 0 and 1, both excluded, got {channels:g}. "
                "0.5 removes half of them."
            )
        return Budget("channels", 1 - channels)
    if macs is not None:
        return Budget("macs", macs)
    return Budget("cycles", cycles or 0.0, hardware, number_format)
