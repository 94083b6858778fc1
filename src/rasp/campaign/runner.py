"""Run a campaign: the chunks its store misses, in order, one transaction each."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rasp import threads
from rasp.campaign import result
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import (
    CHUNK,
    COLUMNS,
    OUTCOMES,
    ImageFacts,
    StratumFacts,
    open_or_create,
)
from rasp.errors import ConfigError
from rasp.faults.population import strata
from rasp.faults.sampling import draw
from rasp.network.digest import digest
from rasp.progress import silent
from rasp.replay.engine import Replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from rasp.campaign.result import CampaignResult
    from rasp.campaign.store import Store
    from rasp.faults.population import Stratum
    from rasp.faults.sites import Sites
    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.progress import Progress
    from rasp.replay.outcomes import Outcomes
    from rasp.rng import Words

_SITE = COLUMNS[COLUMNS.index("kernel") : COLUMNS.index("changed")]


class Injector(Protocol):
    """What a chunk needs of a replay engine; rows depend on the arguments alone."""

    def run(
        self, stratum: Stratum, image: NDArray[np.int64], words: Words
    ) -> tuple[Sites, Outcomes]:
        """Inject ``(n,)`` faults of one stratum and say where they hit and what they did."""


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
    chunk: int = CHUNK,
    batch: int = 64,
    device: str = "cpu",
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
        chunk: trials of one transaction in a new store.
        batch: images or faults that run at once. A float convolution may round batches of another
            size differently, so leave it as it is when resuming.
        device: torch device.
        progress: hears of finished trials.

    Raises:
        ConfigError: the spec is not of these objects.
        StoreMismatchError: the store is of another campaign, damaged or in use.
        PrerequisiteError: the disk is full.
    """
    _check(spec, network, images, accelerator)
    population = strata(
        network,
        accelerator,
        models=spec.fault_models,
        layer_weights=spec.layer_weights,
        layers=spec.layers,
    )
    with threads.suited_to(network.macs), open_or_create(store_path, spec, chunk=chunk) as store:
        if store.missing():
            replay = Replay(network, accelerator, images, labels, batch=batch, device=device)
            golden = replay.golden
            facts = zip(
                labels.tolist(),
                golden.top1.tolist(),
                golden.confidence.tolist(),
                golden.margin.tolist(),
                strict=True,
            )
            store.describe(
                [StratumFacts(s.layer, s.model, float(s.weight)) for s in population],
                [ImageFacts(*fact) for fact in facts],
            )
            run_chunks(replay, population, store, progress=progress)
    return result.read(store_path)


def run_chunks(
    injector: Injector,
    population: Sequence[Stratum],
    store: Store,
    *,
    progress: Progress = silent,
) -> None:
    """Run and commit the chunks that a store misses, in order.

    Raises:
        PrerequisiteError: the disk is full; finished chunks are kept.
    """
    spec = store.spec
    missing = store.missing()
    done = spec.trials - sum(len(store.span(chunk)) for chunk in missing)
    stage = f"inject {spec.model} {spec.format}"
    progress(stage, done, spec.trials)
    for chunk in missing:
        span = store.span(chunk)
        trials = draw(
            population, images=spec.images, seed=spec.seed, start=span.start, count=len(span)
        )
        rows = np.empty((len(span), len(COLUMNS)), dtype=np.int64)
        finished = done
        for index in np.unique(trials.stratum).tolist():
            stratum = population[index]
            (chosen,) = np.nonzero(trials.stratum == index)
            sites, outcomes = injector.run(stratum, trials.image[chosen], trials.words[chosen])
            rows[chosen] = np.column_stack(
                [
                    trials.index[chosen],
                    trials.stratum[chosen],
                    trials.image[chosen],
                    *(getattr(sites, name) for name in _SITE),
                    outcomes.changed,
                    *(getattr(outcomes, name) for name in OUTCOMES),
                ]
            )
            finished += len(chosen)
            progress(stage, finished, spec.trials, f"{stratum.layer} {stratum.model}")
        store.commit(chunk, rows)
        done = finished


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
