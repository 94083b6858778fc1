"""Range restriction: results of a layer that no training image gave are a fault's doing.

Bounds are what each node's output spans on training images; they are kept as a record and put on
the lowered network, so that pruning and fine-tuning only mean measuring them again. On NVDLA they
cost no cycle: the SDP has a minimum and a maximum on the way of every result. In INT8 the output
converter saturates in the same place.

A clip leaves the bound itself in place of a wild value, so tighter bounds leave less. How much
tighter is learned from the values: the least squared error of what is clipped of right ones and of
upsets that end on the bound.

Source:
    Z. Chen, G. Li, K. Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks through
    Range Restriction" (Ranger), DSN 2021.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rasp.errors import ConfigError, unknown_name
from rasp.network.graph import Activation, Add, Bound, Conv, Network, Node, Scale
from rasp.progress import Progress, silent
from rasp.quantization.observers import BINS, Histogram, clipping

if TYPE_CHECKING:
    from collections.abc import Mapping

_BATCH = 64
_TINY = 1e-30
_SLACK = 1 / 64  # of the span: other formats round, other images go a little further
_RESULTS = (Conv, Add, Scale, Activation)  # of the SDP; others only move values
MODES, SCOPES = ("clip", "zero"), ("layer", "channel")


class HardeningRecord(BaseModel):
    """Bounds of a network's nodes, and how they were found.

    Attributes:
        mode: what becomes of a value outside: ``"clip"`` the nearest bound, ``"zero"`` 0.
        scope: bounds of a ``"layer"`` or of each ``"channel"``.
        images: number of images they were measured on.
        upset_rate: share of values on the bound that they were made tight for, 0 for the span.
        low, high: of each node one value or one a channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["clip", "zero"]
    scope: Literal["layer", "channel"]
    images: int = Field(ge=1)
    upset_rate: float = Field(default=0.0, ge=0, le=1)
    low: dict[str, list[float]]
    high: dict[str, list[float]]

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.low.keys() != self.high.keys():
            raise ValueError("low and high must name the same nodes")
        for name, low in self.low.items():
            high = self.high[name]
            if (
                not low
                or len(low) != len(high)
                or any(a > b for a, b in zip(low, high, strict=True))
            ):
                raise ValueError(f"'{name}' needs as many low as high ends, none above its high")
        return self


def measure(
    network: Network,
    images: Tensor,
    *,
    mode: str = "clip",
    scope: str = "layer",
    upset_rate: float = 0.0,
    progress: Progress = silent,
) -> HardeningRecord:
    """Bounds of every result of the SDP but the logits, which two classes may share at a bound.

    A bound is the least or greatest value seen and a little slack; 0, which a ReLU gives, is exact.

    Args:
        network: lowered, in fp32; bounds that it has are not applied anew.
        images: normalised training images ``(N, C, H, W)``.
        mode: ``"clip"`` or ``"zero"``.
        scope: ``"layer"`` or ``"channel"``.
        upset_rate: share of values that upsets are expected to throw onto the bound; above 0 the
            bounds of mode ``"clip"`` are tighter than the span.
        progress: hears about batches.

    Raises:
        ConfigError: no images, images that are not finite, a network that is not fp32, or a name
            or a rate that is not allowed.

    Example:
        >>> from torch import nn
        >>> from rasp.network.lower import lower
        >>> images = torch.rand(8, 1, 4, 4)
        >>> network = lower(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(),
        ...                               nn.Linear(8, 3)), images)
        >>> list(measure(network, images).high)
        ['0']
    """
    _check(network, images, mode, scope, upset_rate)
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        with torch.inference_mode():
            for node, values in network.walk(batch):
                if _bounded(node, network):
                    span = _span(values, scope)
                    low, high = ends.get(node.name, span)
                    ends[node.name] = torch.minimum(low, span[0]), torch.maximum(high, span[1])
        progress("measure bounds", start + len(batch), len(images))
    slack = {name: _SLACK * (high - low) for name, (low, high) in ends.items()}
    lows = {name: low - slack[name] * (low != 0) for name, (low, _) in ends.items()}
    highs = {name: high + slack[name] * (high != 0) for name, (_, high) in ends.items()}
    if upset_rate:
        reach = {name: torch.maximum(-lows[name], highs[name]) for name in ends}
        tight = _tight(network, images, reach, upset_rate)
        lows = {name: torch.maximum(low, -tight[name]) for name, low in lows.items()}
        highs = {name: torch.minimum(high, tight[name]) for name, high in highs.items()}
    return HardeningRecord(
        mode=mode,
        scope=scope,
        images=len(images),
        upset_rate=upset_rate,
        low={name: low.tolist() for name, low in lows.items()},
        high={name: high.tolist() for name, high in highs.items()},
    )


def _check(network: Network, images: Tensor, mode: str, scope: str, upset_rate: float) -> None:
    if mode not in MODES:
        raise unknown_name("hardening mode", mode, MODES)
    if scope not in SCOPES:
        raise unknown_name("hardening scope", scope, SCOPES)
    if network.format != "fp32":
        raise ConfigError(f"Bounds are measured on an fp32 network, got {network.format}.")
    if not len(images):
        raise ConfigError("Bounds need at least one training image, got none.")
    if not bool(torch.isfinite(images).all()):
        raise ConfigError("The images that bounds are measured on hold NaN or infinite values.")
    if not 0 <= upset_rate <= 1:
        raise ConfigError(f"The upset rate must lie from 0 to 1, got {upset_rate}.")
    if upset_rate and mode != "clip":
        raise ConfigError(f"Bounds can allow for upsets that mode 'clip' leaves, got '{mode}'.")


def _tight(
    network: Network, images: Tensor, reach: Mapping[str, Tensor], upset_rate: float
) -> dict[str, Tensor]:
    """Largest magnitude of each node, or of its channels, that leaves the least error."""
    counts = {name: torch.zeros(len(ends) * BINS).double() for name, ends in reach.items()}
    for start in range(0, len(images), _BATCH):
        with torch.inference_mode():
            for node, values in network.walk(images[start : start + _BATCH]):
                if node.name in counts:
                    ends = reach[node.name].clamp(min=_TINY)[:, None]
                    rows = _rows(values, len(ends)).abs()
                    place = (rows / ends * BINS).long().clamp(max=BINS - 1)
                    place += torch.arange(len(ends))[:, None] * BINS
                    counts[node.name] += torch.bincount(place[rows > 0], minlength=len(ends) * BINS)
    return {
        name: torch.tensor(
            [
                clipping(Histogram(row, peak), upset_rate)
                for row, peak in zip(counts[name].view(-1, BINS), ends.tolist(), strict=True)
            ]
        )
        for name, ends in reach.items()
    }


def harden(network: Network, record: HardeningRecord) -> Network:
    """The network with the bounds of a record, in fp32 or fp16; quantise it after this.

    Raises:
        ConfigError: the record belongs to another network, or the network is INT8 already.
    """
    if network.format == "int8":
        raise ConfigError("Harden the network before it is quantised, so that scales know it.")
    wanted = {node.name: node.shape[0] for node in network.nodes if _bounded(node, network)}
    for ends in (record.low, record.high):
        for name in sorted(wanted.keys() | ends.keys()):
            if len(ends.get(name, ())) not in {1, wanted.get(name, 0)} or name not in wanted:
                raise ConfigError(
                    f"The bounds do not belong to this network: node '{name}' has "
                    f"{len(ends.get(name, ()))} of them and {wanted.get(name, 0)} channels. "
                    f"Measure them on this network; pruning and fine-tuning make old ones void."
                )
    return replace(network, nodes=tuple(_with_bound(node, record) for node in network.nodes))


def _with_bound(node: Node, record: HardeningRecord) -> Node:
    if node.name not in record.low:
        return node
    low, high = (torch.tensor(ends[node.name]) for ends in (record.low, record.high))
    return replace(node, bound=Bound(low, high, zero=record.mode == "zero"))


def _bounded(node: Node, network: Network) -> bool:
    return isinstance(node, _RESULTS) and node.name != network.output


def _span(values: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """Least and greatest value, ``(1,)`` or ``(C,)``."""
    low, high = _rows(values, 1 if scope == "layer" else values.shape[1]).aminmax(dim=1)
    return low, high


def _rows(values: Tensor, count: int) -> Tensor:
    """``(N, C, ...)`` as one row, or one a channel."""
    return values.movedim(1, 0).reshape(count, -1)
