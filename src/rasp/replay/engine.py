"""Replay: from a fault's sparse change to its outcome, running only what it changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rasp.errors import ConfigError
from rasp.faults.models import LayerContext, fault_model
from rasp.faults.sites import Integers, Sites, SparseChange
from rasp.faults.values import LayerValues
from rasp.progress import silent
from rasp.replay.golden import MEMORY, GoldenTensors
from rasp.replay.outcomes import Outcomes, classify
from rasp.replay.propagate import Propagation, bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rasp.faults.population import Stratum
    from rasp.faults.sampling import Trials
    from rasp.network.graph import Network
    from rasp.network.maps import Maps
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.progress import Progress
    from rasp.replay.golden import SharedGolden

_MAPS = 64 << 20  # bytes of the largest map in a batch
_LEAST, _MOST = 64, 256


class Answers(NamedTuple):
    """What ``n`` faults did to the logits.

    Attributes:
        sites: where they hit.
        golden, faulty: fp32 ``(n, classes)``.
        changed: int64 ``(n,)`` changed elements of the faulted layer's output.
    """

    sites: Sites
    golden: Tensor
    faulty: Tensor
    changed: Tensor


class Replay:
    """Inject faults into a network on a set of images.

    The faulted layer's output is its golden output with a few elements replaced; from there only
    what differs from the golden run is computed (:mod:`rasp.replay.propagate`).

    Args:
        network: what runs.
        accelerator: what it runs on.
        images: ``(N, C, H, W)`` normalised.
        labels: int64 ``(N,)``.
        batch: trials that run at once; by default as many as keep their largest maps in the
            CPU's cache.
        device: where it runs.
        memory: budget of golden tensors in bytes.
        golden: what :meth:`share` of the same replay gave in another process.

    Raises:
        ConfigError: no images, or labels of another length.

    Example:
        >>> from rasp.faults.population import Stratum
        >>> from rasp.faults.sampling import draw
        >>> from rasp.nvdla.config import load
        >>> from rasp.network.lower import lower
        >>> images = torch.rand(4, 1, 4, 4)
        >>> network = lower(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), images)
        >>> replay = Replay(network, load("nv_small"), images, torch.zeros(4, dtype=torch.int64))
        >>> population = [Stratum("1", "RD_BFLIP", 1.0)]
        >>> trials = draw(population, images=4, seed=0, trials=range(4))
        >>> sites, outcomes = replay.run(population, trials)
        >>> outcomes.changed.tolist()
        [1, 1, 1, 1]
    """

    def __init__(
        self,
        network: Network,
        accelerator: AcceleratorConfig,
        images: Tensor,
        labels: Tensor,
        *,
        batch: int | None = None,
        device: str = "cpu",
        memory: int = MEMORY,
        golden: SharedGolden | None = None,
    ) -> None:
        if not len(images) or len(images) != len(labels):
            raise ConfigError(
                f"Injection needs one label per image and at least one image, "
                f"got {len(images)} images and {len(labels)} labels."
            )
        self.network = network.to(device)
        self._labels = labels.to(device)
        self._contexts = {
            layer.name: LayerContext(layer, self.network.arithmetic, accelerator)
            for layer in self.network.layers
        }
        with torch.inference_mode():
            self._tensors = GoldenTensors(
                self.network, images.to(device), memory=memory, shared=golden
            )
        self._propagation = Propagation(self.network, batch=batch or _batch(network))
        self.golden = self._tensors.run(self._labels)

    def share(self) -> SharedGolden | None:
        """Golden tensors for other processes; ``None`` if they do not fit in memory at once."""
        with torch.inference_mode():
            return self._tensors.share()

    def run(
        self, population: Sequence[Stratum], trials: Trials, *, progress: Progress = silent
    ) -> tuple[Sites, Outcomes]:
        """Inject faults.

        Args:
            population: layers and fault models.
            trials: ``n`` draws from it.
            progress: hears of finished trials, layer by layer.

        Returns:
            Where they hit and what they did; row ``i`` depends on trial ``i`` alone.

        Raises:
            ConfigError: a layer of the population is no convolution of the network.
        """
        answers = self.answers(population, trials, progress=progress)
        labels = self._labels[torch.from_numpy(trials.image).to(self._labels.device)]
        with torch.inference_mode():
            outcomes = classify(answers.golden, answers.faulty, labels, answers.changed)
        return answers.sites, outcomes

    def answers(
        self, population: Sequence[Stratum], trials: Trials, *, progress: Progress = silent
    ) -> Answers:
        """Inject faults and give the logits; arguments and errors as of :meth:`run`."""
        sites = Sites.of(len(trials))
        image = torch.from_numpy(trials.image).to(self._labels.device)
        golden = self._tensors.logits[image]
        faulty, changed = golden.clone(), torch.zeros_like(image)
        block_of = trials.image // self._tensors.block
        layers = list(dict.fromkeys(stratum.layer for stratum in population))
        layer_of = np.array([layers.index(stratum.layer) for stratum in population])[trials.stratum]
        done = 0
        with torch.inference_mode():
            held = self._tensors.held  # first, so that it need not be computed again
            for block in sorted(np.unique(block_of).tolist(), key=lambda number: number != held):
                maps = self._tensors.of_block(block)
                within = image - block * self._tensors.block
                changes: dict[str, SparseChange] = {}
                for index, name in enumerate(layers):
                    (rows,) = np.nonzero((block_of == block) & (layer_of == index))
                    if len(rows):
                        change = self._change(name, population, trials, rows, maps, within, sites)
                        changed += torch.bincount(change.row, minlength=len(image))
                        changes[name] = change
                found, logits = self._propagation.run(changes, maps, within)
                faulty[found] = logits
                done += int((block_of == block).sum())
                progress("replay", done, len(trials))
                del maps  # or two blocks of golden tensors are held while the next is computed
        return Answers(sites, golden, faulty, changed)

    def _change(
        self,
        name: str,
        population: Sequence[Stratum],
        trials: Trials,
        rows: Integers,
        maps: Mapping[str, Maps],
        image: Tensor,
        sites: Sites,
    ) -> SparseChange:
        """What the trials ``rows`` change in one layer; their sites are put into ``sites``."""
        if name not in self._contexts:
            raise ConfigError(f"Faults cannot be drawn in '{name}': not a convolution.")
        context = self._contexts[name]
        x, y = maps[context.conv.inputs[0]], maps[name]
        parts = []
        model_of = np.array([stratum.model for stratum in population])[trials.stratum[rows]]
        group_of = np.array([stratum.group for stratum in population])[trials.stratum[rows]]
        for model_name in np.unique(model_of).tolist():
            mine, group = rows[model_of == model_name], group_of[model_of == model_name]
            model = fault_model(model_name)
            drawn = model.draw(context, trials.words[mine], None if group.min() < 0 else group)
            sites.put(mine, drawn)
            live = drawn.live
            trial = torch.from_numpy(mine[live]).to(image.device)
            part = model.change(drawn[live], LayerValues(context, x, y, image[trial]))
            parts.append(SparseChange(trial[part.row], part.element, part.value))
        change = SparseChange.of(parts, y.pixels)
        pixels = context.conv.conv.pixels
        before = y.at(image[change.row], change.element // pixels, change.element % pixels)
        return change.pick(bits(change.value) != bits(before))


def _batch(network: Network) -> int:
    largest = max(math.prod(node.shape) for node in network.nodes) * network.arithmetic.bits // 8
    return max(_LEAST, min(_MOST, _MAPS // largest))
