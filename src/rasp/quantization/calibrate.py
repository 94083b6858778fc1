"""Post-training quantisation: scales from calibration images, recorded so they can be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rasp.errors import ConfigError
from rasp.network.int8_converter import HIGH
from rasp.network.int8_ops import VIEWS, Int8Arithmetic, scale_groups
from rasp.progress import Progress, silent
from rasp.quantization.observers import BINS, Histogram
from rasp.quantization.observers import observer as observer_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rasp.network.graph import Network

_BATCH = 64
_SMALLEST_PEAK = 1e-6
_DEAD_PEAK = 1.0  # of a tensor that is zero on every calibration image: any scale is right


class QuantizationRecord(BaseModel):
    """Everything that turns an fp32 network into one INT8 network, bit for bit.

    Attributes:
        observer: name of the observer that chose the scales.
        images: number of calibration images.
        upset_rate: probability of a bit flip in a value that the observer allowed for.
        scales: real value of one step of every node's output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    observer: str
    images: int = Field(ge=1)
    upset_rate: float = Field(default=0.0, ge=0, le=1)
    scales: dict[str, float]


def quantize(
    network: Network,
    images: Tensor,
    *,
    observer: str = "mse",
    upset_rate: float = 0.0,
    progress: Progress = silent,
) -> tuple[Network, QuantizationRecord]:
    """Quantise an fp32 network to INT8 with scales from calibration images.

    Activations are symmetric per tensor, weights per kernel, the logits are never clipped (a
    clipped logit ties with another).

    Args:
        network: the lowered network in fp32.
        images: normalised training images ``(N, C, H, W)``.
        observer: ``"minmax"``, ``"percentile"`` (99.99) or ``"mse"``.
        upset_rate: probability of a bit flip in a value that ``"mse"`` weighs against rounding and
            clipping: the greater, the smaller the scales and what a flip can do.
        progress: hears about batches.

    Returns:
        The INT8 network and the record :func:`apply` rebuilds it from.

    Raises:
        ConfigError: no images, images that are not finite, a network that is not fp32, or a rate
            that is no probability or that the observer does not weigh.
    """
    choose = observer_named(observer)
    if not 0 <= upset_rate <= 1:
        raise ConfigError(f"The upset rate must lie from 0 to 1, got {upset_rate}.")
    if network.format != "fp32":
        raise ConfigError(f"Only an fp32 network can be quantised, got {network.format}.")
    if not len(images):
        raise ConfigError("The calibration set is empty; give at least one training image.")
    if not bool(torch.isfinite(images).all()):
        raise ConfigError("The calibration images hold NaN or infinite values.")
    groups = scale_groups(network)
    histograms = _histograms(network, images, groups, progress)
    thresholds = {root: choose(histogram, upset_rate) for root, histogram in histograms.items()}
    last = groups[network.output]
    thresholds[last] = histograms[last].peak
    scales = {node.name: thresholds[groups[node.name]] / HIGH for node in network.nodes}
    record = QuantizationRecord(
        observer=observer, images=len(images), upset_rate=upset_rate, scales=scales
    )
    return apply(network, record), record


def apply(network: Network, record: QuantizationRecord) -> Network:
    """The INT8 network of a record; the same network and record give the same bits.

    Raises:
        ConfigError: the record belongs to another network.
    """
    names = {node.name for node in network.nodes}
    if names != set(record.scales):
        odd = sorted(names.symmetric_difference(record.scales))
        raise ConfigError(
            f"The quantisation record does not belong to this network: node '{odd[0]}' is in only "
            f"one of them. Quantise the network again."
        )
    return network.with_arithmetic(Int8Arithmetic.build(network, record.scales))


def _histograms(
    network: Network, images: Tensor, groups: dict[str, str], progress: Progress
) -> dict[str, Histogram]:
    """Histogram of ``|x|`` of every scale group over its nodes that compute (views repeat them)."""
    peaks = dict.fromkeys(groups.values(), 0.0)
    passes = 2 * len(images)
    for name, values in _values(network, images, lambda done: progress("calibrate", done, passes)):
        peaks[groups[name]] = max(peaks[groups[name]], float(values.abs().max()))
    peaks = {root: peak if peak > _SMALLEST_PEAK else _DEAD_PEAK for root, peak in peaks.items()}
    counts = {root: torch.zeros(BINS, dtype=torch.float64) for root in peaks}
    half = len(images)
    for name, values in _values(
        network, images, lambda done: progress("calibrate", half + done, passes)
    ):
        root = groups[name]
        found = values.abs().flatten()
        found = found[found > 0]  # zeros are exact at any scale
        counts[root] += torch.histc(found, BINS, 0.0, peaks[root]).double()
    return {root: Histogram(counts[root], peaks[root]) for root in peaks}


def _values(
    network: Network, images: Tensor, finished: Callable[[int], None]
) -> Iterator[tuple[str, Tensor]]:
    """Nodes that compute and their output, batch by batch (views repeat what they look at)."""
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        with torch.inference_mode():
            for node, values in network.walk(batch):
                if not isinstance(node, VIEWS):
                    yield node.name, values
        finished(start + len(batch))
