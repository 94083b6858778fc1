"""Replay: from a fault's sparse change to its outcome, running only what comes after it."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rasp.errors import ConfigError
from rasp.faults.models import LayerContext, fault_model
from rasp.faults.sites import Sites, SparseChange
from rasp.network.graph import Conv, Network, Node
from rasp.replay.golden import MEMORY, GoldenTensors, filled
from rasp.replay.outcomes import Outcomes, classify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rasp.faults.population import Stratum
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.rng import Words


class Replay:
    """Inject faults into a network on a set of images.

    The faulted layer's output is its golden output with a few elements replaced; the nodes that
    depend on it run again, the others keep their golden values. A fault that changes nothing is
    masked without running anything.

    Args:
        network: what runs.
        accelerator: what it runs on.
        images: ``(N, C, H, W)`` normalised.
        labels: int64 ``(N,)``.
        batch: rows that run at once.
        device: where it runs.
        memory: budget of golden tensors in bytes.

    Raises:
        ConfigError: no images, or labels of another length.

    Example:
        >>> from rasp.faults.population import Stratum
        >>> from rasp.nvdla.config import load
        >>> from rasp.network.lower import lower
        >>> from rasp.rng import words
        >>> images = torch.rand(4, 1, 4, 4)
        >>> network = lower(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), images)
        >>> replay = Replay(network, load("nv_small"), images, torch.zeros(4, dtype=torch.int64))
        >>> sites, outcomes = replay.run(Stratum("1", "RD_BFLIP", 1.0), np.arange(4),
        ...                              words(0, "doc", 0, 4, 8))
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
        batch: int = 64,
        device: str = "cpu",
        memory: int = MEMORY,
    ) -> None:
        if not len(images) or len(images) != len(labels):
            raise ConfigError(
                f"Injection needs one label per image and at least one image, "
                f"got {len(images)} images and {len(labels)} labels."
            )
        self.network = network.to(device)
        self._accelerator = accelerator
        self._labels = labels.to(device)
        self._batch = batch
        with torch.inference_mode():
            self._tensors = GoldenTensors(
                self.network, images.to(device), batch=batch, memory=memory
            )
        self.golden = self._tensors.run(self._labels)
        self._suffix = lru_cache(maxsize=None)(self._nodes_after)

    def run(
        self, stratum: Stratum, image: NDArray[np.int64], words: Words
    ) -> tuple[Sites, Outcomes]:
        """Inject ``n`` faults of one stratum.

        Args:
            stratum: layer and fault model.
            image: ``(n,)`` image of each fault.
            words: ``(n, 8)`` random words of each fault.

        Returns:
            Where they hit and what they did; row ``i`` depends on ``image[i]`` and ``words[i]``
            alone.
        """
        layer = self.network[stratum.layer]
        if not isinstance(layer, Conv):
            raise ConfigError(f"Faults cannot be drawn in '{stratum.layer}': not a convolution.")
        context = LayerContext(layer, self.network.arithmetic, self._accelerator)
        sites = fault_model(stratum.model).draw(context, words)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(image), self._batch):
                rows = slice(start, start + self._batch)
                index = torch.from_numpy(image[rows]).to(self._labels.device)
                parts.append(self._inject(context, stratum.model, sites[rows], index))
        merged = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Outcomes)
        }
        return sites, Outcomes(**merged)

    def _inject(self, context: LayerContext, model: str, sites: Sites, index: Tensor) -> Outcomes:
        golden = self._tensors.rows(index)
        change = self._change(context, model, sites, golden)
        layer = context.conv
        y = golden[layer.name].reshape(len(index), -1)
        different = _bits(change.value) != _bits(y[change.row, change.element])
        change = SparseChange(
            change.row[different], change.element[different], change.value[different]
        )
        changed = torch.bincount(change.row, minlength=len(index))
        logits = self._tensors.logits[index]
        faulty = logits.clone()
        (live,) = torch.nonzero(changed, as_tuple=True)
        if len(live):
            y[change.row, change.element] = change.value
            faulty[live] = self._finish(layer, y, live, index)
        return classify(logits, faulty, self._labels[index], changed)

    def _change(
        self, context: LayerContext, model: str, sites: Sites, golden: Mapping[str, Tensor]
    ) -> SparseChange:
        chosen, layer = fault_model(model), context.conv
        x, y = golden[layer.inputs[0]], golden[layer.name]
        n, flat = len(y), (layer.conv.K, layer.conv.pixels)
        sums = torch.empty(0, device=y.device)
        if chosen.reads_sums:
            rows = filled(torch.arange(n, device=x.device), self.network)
            sums = context.arithmetic.accumulate(layer, x[rows])[:n].reshape(n, *flat)
        return chosen.change(context, sites, x, sums, y.reshape(n, *flat))

    def _finish(self, layer: Conv, y: Tensor, live: Tensor, index: Tensor) -> Tensor:
        """Logits of the ``live`` rows from the changed output of a layer."""
        rows = filled(live, self.network)
        golden = self._tensors.rows(index[rows])
        values = {layer.name: y[rows].reshape(len(rows), *layer.shape)}
        for node in self._suffix(layer.name):
            inputs = [values[i] if i in values else golden[i] for i in node.inputs]
            values[node.name] = self.network.arithmetic.run(node, inputs)
        output = self.network.output
        return self.network.arithmetic.decode(output, values[output])[: len(live)]

    def _nodes_after(self, name: str) -> tuple[Node, ...]:
        reached = {name}
        nodes = []
        for node in self.network.nodes:
            if reached.intersection(node.inputs):
                reached.add(node.name)
                nodes.append(node)
        return tuple(nodes)


def _bits(values: Tensor) -> Tensor:
    """Values as integers, so that NaN equals itself and -0 differs from 0."""
    integer = {torch.float32: torch.int32, torch.float16: torch.int16}.get(values.dtype)
    return values if integer is None else values.contiguous().view(integer)
