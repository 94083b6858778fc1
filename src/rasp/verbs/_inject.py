"""Run a campaign and sum it up."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING, Any

from rasp import checkpoint, loading, provenance, runs
from rasp.errors import ConfigError, unknown_name
from rasp.progress import Progress, silent
from rasp.report.arms import SUMMARY, Arm, Cell, pack
from rasp.statistics import wilson
from rasp.verbs._shared import CONFIDENCE, STORE, Result, check_run, command, named, right_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rasp.campaign.result import CampaignResult
    from rasp.loading import Loaded
    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig


class Injected(Result):
    """A finished campaign; ``arm`` is also written as ``summary.json``, but not of a shard.

    Attributes:
        out: the directory.
        arm: what was found, of a shard in its trials alone.
        shard: the part of the campaign this is, such as ``"1/4"``; ``None`` for the whole.
        missing: trials of the campaign that other shards run.
    """

    out: Path
    arm: Arm
    shard: str | None = None
    missing: int = 0


def inject(
    model: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    trials: int = 10_000,
    images: int | None = 200,
    split: str = "test",
    faults: str = "fidelity",
    fault_models: Mapping[str, float] | None = None,
    layers: Sequence[str] | None = None,
    layer_weights: str | None = None,
    accelerator: str | Path = "nv_small",
    name: str | None = None,
    data: str | None = None,
    weights: str | Path | None = None,
    calibration: int = loading.CALIBRATION_IMAGES,
    confidence: float = CONFIDENCE,
    sampling: str = "uniform",
    margin: float | None = None,
    outcome: str = "sdc1",
    shard: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    device: str = "cpu",
    workers: int = 1,
    ray: str | None = None,
    progress: Progress = silent,
) -> Injected:
    """Inject single-bit upsets and count what becomes of the answers.

    Args:
        model: checkpoint directory or name.
        format: ``fp32``, ``fp16`` or ``int8``; ``int8`` for a quantised checkpoint, else ``fp32``.
        trials: faults to inject, the most of them with a ``margin``.
        images: images they are injected in; ``None`` for all of the split.
        split: ``test``, or ``validation`` for what is to be chosen.
        faults: population that faults are drawn from: ``fidelity``, ``nvdla`` (every datapath
            flip-flop of the accelerator) or ``memory`` (its convolution buffer).
        fault_models: weight of each fault model, instead of ``faults``.
        layers: layers to inject in; all by default.
        layer_weights: a layer's share goes by ``cycles``, ``window`` (with lead-in and drain),
            ``storage``, ``macs``, ``neurons`` or ``uniform``; by default ``window`` for ``nvdla``,
            ``storage`` for ``memory``, else ``cycles``.
        accelerator: configuration whose mapping and cycles are used.
        name: label in reports; criterion and kept MACs by default.
        data: data set; a checkpoint knows its own.
        weights: weight file for a name.
        calibration: training images for INT8 scales.
        confidence: level of the intervals.
        sampling: ``uniform``, or ``adaptive`` to draw most where failures are, with weights.
        margin: half-width of the interval of ``outcome`` at which to stop.
        outcome: what ``margin`` and ``adaptive`` are about.
        shard: ``k/N`` runs the ``k``-th of ``N`` parts of the campaign in a directory of its own;
            :func:`rasp.verbs.merge` joins them.
        seed: of the images, and with the trial's number all that decides a trial.
        out: directory to write; a new one under ``runs/`` by default.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        device: a torch device.
        workers: processes of this machine that inject; rows do not depend on it.
        ray: address of a Ray cluster that injects: ``local`` starts one here, ``auto`` joins the
            running one, or ``HOST:PORT``.
        progress: hears about trials.
    """
    import torch

    from rasp.campaign import executors, runner
    from rasp.campaign.chunks import Shard
    from rasp.faults.population import mix
    from rasp.nvdla import config

    check_run(seed, device)
    executors.check(workers, ray)
    check_faults(faults, fault_models)
    part = None if shard is None else Shard.parse(shard)
    shares = layer_weights or shares_of_layers(faults, fault_models)
    loading.check_format(format)
    for option, value in (("--trials", trials), ("--images", images)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}.")
    hardware = config.load(accelerator)
    loaded = loading.open_model(
        model,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    whole = loaded.dataset.split(split)
    chosen = whole.take(len(whole) if images is None else images, seed)
    network = loading.network_of(loaded, format or loaded.own_format, calibration=calibration)
    tensors = loaded.dataset.tensor(chosen)
    spec = runner.specify(
        network,
        tensors,
        hardware,
        model=loaded.name,
        data=loaded.dataset.name,
        fault_models=fault_models or mix(faults, hardware),
        trials=trials,
        split=split,
        layer_weights=shares,
        layers=layers,
        seed=seed,
        confidence=confidence,
        sampling=sampling,
        margin=margin,
        outcome=outcome,
    )
    target = runs.directory(out, f"inject-{loaded.name}")
    label = name or loaded.label
    with runs.resumable(target):
        result = runner.inject(
            network,
            tensors,
            torch.from_numpy(chosen.labels),
            hardware,
            spec,
            target / STORE,
            shard=part,
            device=device,
            workers=workers,
            ray=ray,
            progress=named(progress, f"inject {label}, {network.format}", details=False),
        )
    line = command(
        "inject",
        model=model,
        weights=weights,
        data=data,
        format=network.format,
        trials=trials,
        images=len(chosen),
        split=None if split == "test" else split,
        fault_model=[f"{key}={value:g}" for key, value in (fault_models or {}).items()],
        faults=None if fault_models else faults,
        layer=list(layers or ()),
        layer_weights=layer_weights,
        accelerator=accelerator,
        calibration=calibration,
        confidence=confidence,
        sampling=None if sampling == "uniform" else sampling,
        margin=margin,
        outcome=None if outcome == "sdc1" else outcome,
        shard=shard,
        seed=seed,
    )
    right = right_answers(network, loaded, split)
    arm = Arm(
        name=label,
        accuracy=wilson(int(right.sum()), len(right), CONFIDENCE),
        right=pack(right),
        accuracy_split=split,
        command=line,
        provenance=provenance.collect({"verb": "inject", "spec": spec.digest()}),
        **_facts(loaded, network, hardware, result),
    )
    if part is not None:
        missing = spec.trials - result.trials
        return Injected(out=target, arm=arm, shard=str(part), missing=missing)
    checkpoint.write_atomic(target / SUMMARY, arm.to_json().encode())
    return Injected(out=target, arm=arm)


def shares_of_layers(faults: str, fault_models: Mapping[str, float] | None) -> str:
    """What a layer's share goes by in each population."""
    by_population = {"fidelity": "cycles", "nvdla": "window", "memory": "storage"}
    return "cycles" if fault_models else by_population[faults]


def check_faults(faults: str, weights: Mapping[str, float] | None) -> None:
    """Refuse a population or fault model that does not exist."""
    from rasp.faults.models import fault_model
    from rasp.faults.population import MIXES

    if faults not in MIXES:
        raise unknown_name("fault population", faults, MIXES)
    for name in weights or ():
        fault_model(name)


def _facts(
    loaded: Loaded, network: Network, hardware: AcceleratorConfig, result: CampaignResult
) -> dict[str, Any]:
    from rasp import complexity
    from rasp.analysis.exposure import exposure
    from rasp.faults.population import mix, occupancy
    from rasp.faults.registers import nvdla_mix
    from rasp.network.graph import Host
    from rasp.nvdla.cycles import layer_cycles, layer_window

    spec = result.spec
    cycles = {
        layer.name: layer_cycles(layer.conv, hardware, network.format).total
        for layer in network.layers
    }
    windows = {
        layer.name: layer_window(layer.conv, hardware, network.format) for layer in network.layers
    }
    exposed = {"cycles": cycles, "window": windows}.get(spec.layer_weights)
    named = spec.fault_models in (mix("fidelity", hardware), mix("nvdla", hardware))
    bits = sum(nvdla_mix(hardware).values()) if named else 1.0
    size = complexity.count(loaded.model, loaded.example)
    hosted = tuple(
        f"{node.name}: '{node.op}' runs on the host, no fault is drawn in it."
        for node in network.nodes
        if isinstance(node, Host)
    )
    return {
        "network": spec.model,
        "criterion": None if loaded.plan is None else loaded.plan.criterion,
        "data": spec.data,
        "format": network.format,
        "native": hardware.native(network.format),
        "accelerator": hardware.name,
        "macs": size.macs,
        "parameters": size.parameters,
        "cycles": sum(cycles.values()),
        "outcomes": result.overall,
        "by_layer": result.by_layer["sdc1"],
        "by_model": result.by_model["sdc1"],
        "layer_cycles": exposed or {},
        "cells": tuple(
            Cell.model_validate({"layer": key[0], "bit": key[1], "rate": rate})
            for key, rate in result.rates("sdc1", "layer", "bit").items()
            if isinstance(key, tuple)
        ),
        "exposure": exposed and exposure(result, cycles=exposed, register_bits=bits),
        "activity": result.activity,
        "buffer_occupancy": occupancy(network, hardware),
        "images": spec.images,
        "trials": result.trials,
        "spec": spec.model_dump(mode="json"),
        "spec_digest": spec.digest(),
        "notes": (*hosted, *(() if loaded.plan is None else loaded.plan.notes)),
    }
