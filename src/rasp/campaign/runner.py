"""Run a campaign: the chunks its store misses, in order, one transaction each."""

from __future__ import annotations

import hashlib
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from rasp import threads
from rasp.campaign import result
from rasp.campaign.chunks import TRIALS
from rasp.campaign.executors import InProcess, elsewhere
from rasp.campaign.job import Job, Task, Worker
from rasp.campaign.rounds import Rounds, reached
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import ImageFacts, StratumFacts, open_or_create
from rasp.errors import ConfigError
from rasp.network.digest import digest
from rasp.progress import silent
from rasp.replay.golden import golden_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from rasp.campaign.chunks import Shard
    from rasp.campaign.executors import Executor
    from rasp.campaign.result import CampaignResult
    from rasp.campaign.store import Store
    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.progress import Progress
    from rasp.replay.golden import GoldenRun

_LARGE = 4  # times, where golden tensors do not fit in memory and are computed once a chunk
_CHUNKS_EACH = 4  # at least, of a worker


def specify(
    network: Network,
    images: Tensor,
    accelerator: AcceleratorConfig,
    *,
    model: str,
    data: str,
    fault_models: Mapping[str, float],
    trials: int,
    split: str = "test",
    layer_weights: str = "cycles",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    sampling: str = "uniform",
    margin: float | None = None,
    outcome: str = "sdc1",
) -> CampaignSpec:
    """The specification of a campaign on these objects.

    Args:
        network: what runs.
        images: ``(N, C, H, W)`` normalised.
        accelerator: what it runs on.
        model: label of the network, for readers.
        data: data set the images are from.
        fault_models: weight of each fault model.
        trials: number of injected faults.
        split: split the images are from.
        layer_weights: what a layer's share of the faults is proportional to.
        layers: layers that faults are drawn in; all if ``None``.
        seed: with a trial's number, all that decides what it draws.
        confidence: two-sided level of the intervals.
        sampling: ``"uniform"`` or ``"adaptive"``.
        margin: half-width of the interval of ``outcome`` at which to stop.
        outcome: what ``margin`` and adaptive sampling are about.

    Raises:
        ConfigError: a value that is not allowed.
    """
    return CampaignSpec.model_validate(
        {
            "network_digest": digest(network),
            "model": model,
            "data": data,
            "split": split,
            "images": len(images),
            "format": network.format,
            "accelerator": accelerator.name,
            "accelerator_digest": _content(accelerator),
            "fault_models": dict(fault_models),
            "layer_weights": layer_weights,
            "layers": None if layers is None else tuple(layers),
            "trials": trials,
            "seed": seed,
            "confidence": confidence,
            "sampling": sampling,
            "margin": margin,
            "outcome": outcome,
        }
    )


def inject(
    network: Network,
    images: Tensor,
    labels: Tensor,
    accelerator: AcceleratorConfig,
    spec: CampaignSpec,
    store_path: str | Path,
    *,
    chunk: int | None = None,
    shard: Shard | None = None,
    batch: int | None = None,
    device: str = "cpu",
    workers: int = 1,
    ray: str | None = None,
    progress: Progress = silent,
) -> CampaignResult:
    """Run a campaign, or what is missing of it, and read its result.

    Interrupted at any point, by Ctrl-C or ``kill -9``, the store keeps every finished chunk; the
    same call again goes on from there and ends with the rows of an undisturbed run.

    Args:
        network: what runs.
        images: ``(N, C, H, W)`` normalised.
        labels: ``(N,)`` int64.
        accelerator: what it runs on.
        spec: what is asked; see :func:`specify`.
        store_path: SQLite file, made if it is not there.
        chunk: trials of one transaction in a new store; by default what keeps every worker busy.
        shard: run this part of the campaign only, in a store of its own.
        batch: images or faults that run at once; it changes no row.
        device: torch device.
        workers: processes of this machine that run chunks; 1 is this one.
        ray: address of a Ray cluster that runs them instead, see
            :class:`~rasp.campaign.executors.Ray`.
        progress: hears of finished trials.

    Raises:
        ConfigError: the spec is not of these objects, or an option has a value that is not allowed.
        StoreMismatchError: the store is of another campaign, damaged or in use.
        PrerequisiteError: the disk is full, workers keep dying, or Ray is missing.
    """
    _check(spec, network, images, accelerator)
    job = Job(spec, network, accelerator, images, labels, batch=batch, device=device)
    job.population()  # its errors come before anything is written
    others = elsewhere(job, workers=workers, ray=ray)
    with closing(others) if others else nullcontext(), threads.suited_to(network.macs):
        if chunk is None:
            fits = golden_bytes(network) * len(images) <= job.memory
            most = TRIALS[network.format] * (1 if fits else _LARGE)
            chunk = _chunk(spec.trials, others.slots if others else 1, most)
        with open_or_create(store_path, spec, chunk=chunk, shard=shard) as store:
            if store.missing():
                worker = Worker(job)
                store.describe(
                    [
                        StratumFacts(s.layer, s.model, float(s.weight), s.bits)
                        for s in worker.population
                    ],
                    _image_facts(worker.replay.golden, labels),
                )
                rounds = Rounds(worker.population, worker.replay.golden.margin)
                executor = others or InProcess(worker)
                del worker  # its golden tensors, unless it is the one that runs chunks
                run_rounds(executor, store, rounds, progress=progress)
    return result.read(store_path)


def run_rounds(
    executor: Executor, store: Store, rounds: Rounds, *, progress: Progress = silent
) -> None:
    """Run and commit what a store misses, round by round, until the trials or the margin are met.

    Rounds that were drawn before the rates are known do not end a campaign.

    Raises:
        PrerequisiteError: the disk is full; finished chunks are kept.
    """
    spec = store.spec
    missing = [(chunk, store.span(chunk)) for chunk in store.missing()]
    for number, trials in enumerate(spec.rounds()):
        spans = [(chunk, span) for chunk, span in missing if span.start in trials]
        if spans:
            plan = rounds.plan(store, number)
            tasks = [Task(chunk, span, plan) for chunk, span in spans]
            run_chunks(executor, store, tasks, progress=progress)
        if spec.emphasis(number) == 1 and reached(store, number + 1):
            store.finish(trials.stop)
            return


def run_chunks(
    executor: Executor, store: Store, tasks: Sequence[Task], *, progress: Progress = silent
) -> None:
    """Run chunks and commit them.

    Raises:
        PrerequisiteError: the disk is full; finished chunks are kept.
    """
    spec = store.spec
    title = f"inject {spec.model} {spec.format}"
    asked = store.trials
    finished = asked - sum(len(store.span(chunk)) for chunk in store.missing())

    def partly(stage: str, done: int, total: int, detail: str = "") -> None:
        del stage, total
        progress(title, finished + done, asked, detail)

    progress(title, finished, asked)
    for task, rows in executor.run(tasks, progress=partly):
        store.commit(task.chunk, rows.columns, rows.weight)
        finished += len(task.trials)
        progress(title, finished, asked)


def _chunk(trials: int, slots: int, most: int) -> int:
    """Trials of a chunk, so many that all workers have the last ones at about the same time."""
    return most if slots == 1 else max(1, min(most, -(-trials // (_CHUNKS_EACH * slots))))


def _image_facts(golden: GoldenRun, labels: Tensor) -> list[ImageFacts]:
    columns = (labels, golden.top1, golden.confidence, golden.margin)
    facts = zip(*(column.tolist() for column in columns), strict=True)
    return [ImageFacts(*fact) for fact in facts]


def _check(
    spec: CampaignSpec, network: Network, images: Tensor, accelerator: AcceleratorConfig
) -> None:
    found = {
        "network_digest": digest(network),
        "format": network.format,
        "images": len(images),
        "accelerator": accelerator.name,
        "accelerator_digest": _content(accelerator),
    }
    for name, value in found.items():
        if getattr(spec, name) != value:
            raise ConfigError(
                f"The specification's {name} is {getattr(spec, name)!r}, but what was passed has "
                f"{value!r}. Build the specification from the same objects with specify()."
            )


def _content(accelerator: AcceleratorConfig) -> str:
    return hashlib.sha256(accelerator.model_dump_json().encode()).hexdigest()
