"""What a worker needs to run any chunk of a campaign, and how it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp.campaign.store import COLUMNS, OUTCOMES
from rasp.faults.population import by_bits, strata
from rasp.faults.sampling import draw
from rasp.progress import silent
from rasp.replay.engine import Replay
from rasp.replay.golden import MEMORY

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rasp.campaign.spec import CampaignSpec
    from rasp.faults.population import Stratum
    from rasp.faults.sampling import Plan
    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.progress import Progress
    from rasp.replay.golden import SharedGolden

_SITE = COLUMNS[COLUMNS.index("kernel") : COLUMNS.index("changed")]


class Task(NamedTuple):
    """A chunk to run: its number, its trials and how they are drawn (``None``: uniformly)."""

    chunk: int
    trials: range
    plan: Plan | None = None


class Rows(NamedTuple):
    """What a chunk found.

    Attributes:
        columns: int64 ``(n, len(COLUMNS))``.
        weight: float64 ``(n,)``, population share of each trial over the probability it was drawn
            with.
    """

    columns: NDArray[np.int64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """All of a campaign but its store; it can be sent to another process.

    Attributes:
        spec: what is asked.
        network: what runs.
        accelerator: what it runs on.
        images: ``(N, C, H, W)`` normalised.
        labels: ``(N,)`` int64.
        batch: trials that are followed at once; chosen by the size of the maps if ``None``.
        device: torch device.
        memory: bytes of golden tensors a worker holds.
    """

    spec: CampaignSpec
    network: Network
    accelerator: AcceleratorConfig
    images: Tensor
    labels: Tensor
    batch: int | None = None
    device: str = "cpu"
    memory: int = MEMORY

    def population(self) -> tuple[Stratum, ...]:
        """What trials are drawn from.

        Raises:
            ConfigError: a layer or a fault model that there is not.
        """
        whole = strata(
            self.network,
            self.accelerator,
            models=self.spec.fault_models,
            layer_weights=self.spec.layer_weights,
            layers=self.spec.layers,
        )
        return by_bits(whole, self.network, self.accelerator)


class Worker:
    """Runs chunks of one campaign; a chunk's rows depend on its task alone.

    Args:
        job: the campaign.
        golden: golden tensors another worker of the same job has shared.
    """

    def __init__(self, job: Job, *, golden: SharedGolden | None = None) -> None:
        self._spec = job.spec
        self.population = job.population()
        self.replay = Replay(
            job.network,
            job.accelerator,
            job.images,
            job.labels,
            batch=job.batch,
            device=job.device,
            memory=job.memory,
            golden=golden,
        )

    def run(self, task: Task, *, progress: Progress = silent) -> Rows:
        """Run a chunk; ``progress`` hears of finished trials."""
        trials = draw(
            self.population,
            images=self._spec.images,
            seed=self._spec.seed,
            trials=task.trials,
            plan=task.plan,
        )
        sites, outcomes = self.replay.run(self.population, trials, progress=progress)
        columns = [
            trials.index,
            trials.stratum,
            trials.image,
            *(getattr(sites, name) for name in _SITE),
            outcomes.changed,
            *(getattr(outcomes, name) for name in OUTCOMES),
        ]
        return Rows(np.column_stack(columns).astype(np.int64), trials.weight)
