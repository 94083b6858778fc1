"""How likely an upset is to be of each fault model in each layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from rasp.errors import ConfigError, UnsupportedModelError, unknown_name
from rasp.faults.context import LayerContext
from rasp.faults.models import FIDELITY_MIX, fault_model, nvdla_mix
from rasp.network.graph import Host
from rasp.nvdla.cycles import layer_cycles, layer_window
from rasp.nvdla.mapping import check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rasp.faults.context import BitGroup
    from rasp.network.graph import Conv, Network
    from rasp.nvdla.config import AcceleratorConfig

LayerWeights = Literal["cycles", "window", "storage", "macs", "neurons", "uniform"]
Mix = Literal["fidelity", "nvdla", "memory"]
MIXES: tuple[str, ...] = get_args(Mix)
_PRODUCTS = ("conv", "linear", "matmul", "mm", "einsum", "attention", "bilinear")


class Stratum(NamedTuple):
    """Faults of one model, and perhaps of neighbouring bits, in one layer.

    Attributes:
        layer: name of the layer.
        model: name of the fault model.
        weight: probability of the stratum; those of all strata sum to 1.
        group: number of the model's :class:`~rasp.faults.context.BitGroup`, -1 for all bits.
        bits: the bits, as a reader writes them; ``"idle"`` where no fault changes anything.
    """

    layer: str
    model: str
    weight: float
    group: int = -1
    bits: str = ""


def mix(name: str, accelerator: AcceleratorConfig) -> dict[str, float]:
    """Fault models and weights of a named population.

    Args:
        name: ``"fidelity"`` (FIdelity's models by its public flip-flop shares and activity),
            ``"nvdla"`` (every datapath and gate flip-flop of the accelerator, dead time included)
            or ``"memory"`` (inputs and weights in the convolution buffer, to be drawn with the
            layer weights ``"storage"``).
        accelerator: what it runs on.

    Raises:
        ConfigError: no mix has that name.
    """
    match name:
        case "fidelity":
            return dict(FIDELITY_MIX)
        case "nvdla":
            return nvdla_mix(accelerator)
        case "memory":
            return {"INPUT": 1.0, "WEIGHT": 1.0}
        case _:
            raise unknown_name("fault population", name, MIXES)


def occupancy(network: Network, accelerator: AcceleratorConfig) -> float:
    """Share of the convolution buffer that holds a layer's inputs and weights, by cycles."""
    filled = [sum(_stored(layer, network, accelerator).values()) for layer in network.layers]
    cycles = [
        layer_cycles(layer.conv, accelerator, network.format).total for layer in network.layers
    ]
    return float(np.average(filled, weights=cycles))


def _stored(layer: Conv, network: Network, config: AcceleratorConfig) -> dict[str, float]:
    """Shares of the buffer that hold a layer's inputs and weights; what does not fit waits."""
    room = config.cbuf_bytes * 8 / config.datapath(network.format).operand_bits
    inputs, weights = layer.conv.C * layer.conv.H * layer.conv.W, layer.weight.numel()
    fits = min(1.0, room / (inputs + weights))
    return {"INPUT": fits * inputs / room, "WEIGHT": fits * weights / room}


def strata(
    network: Network,
    accelerator: AcceleratorConfig,
    *,
    models: Mapping[str, float],
    layer_weights: str = "cycles",
    layers: Sequence[str] | None = None,
) -> tuple[Stratum, ...]:
    """The population of a campaign.

    An upset strikes a layer while it runs, so a layer's share is that of its cycles unless asked
    otherwise; a fault model's share is that of its flip-flops times their activity.

    Args:
        network: what runs.
        accelerator: what it runs on; every layer must fit it.
        models: weight of each fault model, any positive scale.
        layer_weights: ``"cycles"`` (first to last atom), ``"window"`` (with lead-in and drain, the
            time register models draw a cycle from), ``"storage"`` (cycles times what the layer
            keeps in the convolution buffer, for ``INPUT`` and ``WEIGHT`` apart), ``"macs"``,
            ``"neurons"`` or ``"uniform"``.
        layers: names of the layers to draw in; all if ``None``.

    Raises:
        ConfigError: unknown fault model, layer or weighting, or weights that are not positive.
        UnsupportedModelError: a layer or operation the accelerator cannot run, or no layer.
    """
    if layer_weights not in get_args(LayerWeights):
        raise unknown_name("layer weighting", layer_weights, get_args(LayerWeights))
    for name, weight in models.items():
        fault_model(name)
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"Fault model '{name}' needs a positive weight, got {weight}.")
    if not models:
        raise ConfigError("Give at least one fault model.")
    names = [layer.name for layer in network.layers]
    for name in layers or ():
        if name not in names:
            raise unknown_name("layer", name, names)
    chosen = [layer for layer in network.layers if layers is None or layer.name in layers]
    if not chosen:
        raise ConfigError("The network has no convolution or linear layer to draw faults in.")
    _refuse_products_on_the_host(network, accelerator)
    if layer_weights == "storage":
        if not set(models) <= {"INPUT", "WEIGHT"}:
            raise ConfigError(
                "Layer weights 'storage' are for the fault models INPUT and WEIGHT, got "
                f"{', '.join(models)}."
            )
        stored = {layer.name: _stored(layer, network, accelerator) for layer in chosen}
    sizes = {
        (layer.name, model): _share(layer, network.format, accelerator, layer_weights)
        * weight
        * (stored[layer.name][model] if layer_weights == "storage" else 1.0)
        for layer in chosen
        for model, weight in models.items()
    }
    total = sum(sizes.values())
    return tuple(Stratum(*key, size / total) for key, size in sizes.items())


def by_bits(
    population: Sequence[Stratum], network: Network, accelerator: AcceleratorConfig
) -> tuple[Stratum, ...]:
    """The population with every stratum cut into its groups of bits.

    Example:
        >>> import torch
        >>> from rasp.network.lower import lower
        >>> from rasp.nvdla.config import load
        >>> network = lower(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)),
        ...                 torch.rand(1, 1, 2, 2))
        >>> whole = strata(network, load("nv_small"), models={"RD_BFLIP": 1.0})
        >>> [part.bits for part in by_bits(whole, network, load("nv_small"))][-2:]
        ['30', '31']
    """
    contexts = {
        layer.name: LayerContext(layer, network.arithmetic, accelerator) for layer in network.layers
    }
    return tuple(
        stratum._replace(weight=stratum.weight * part.share, group=index, bits=_label(part))
        for stratum in population
        for index, part in enumerate(fault_model(stratum.model).bit_groups(contexts[stratum.layer]))
        if part.share > 0
    )


def _label(group: BitGroup) -> str:
    if group.idle:
        return "idle"
    first, last = group.bits[0], group.bits[-1]
    return "" if first < 0 else str(first) if first == last else f"{first}-{last}"


def _refuse_products_on_the_host(network: Network, config: AcceleratorConfig) -> None:
    """Convolutions and matrix products the lowering could not map: a rate would leave them out."""
    for node in network.nodes:
        if isinstance(node, Host) and any(word in node.op for word in _PRODUCTS):
            raise UnsupportedModelError(
                f"Layer '{node.name}' cannot run on {config.name}: '{node.op}' is none of its "
                "operations. Convolutions must be 2-D with constant weights."
            )


def _share(layer: Conv, number_format: str, config: AcceleratorConfig, weights: str) -> float:
    check(layer.conv, config, number_format)
    match weights:
        case "cycles" | "storage":
            return layer_cycles(layer.conv, config, number_format).total
        case "window":
            return layer_window(layer.conv, config, number_format)
        case "macs":
            return layer.conv.macs
        case "neurons":
            return layer.conv.K * layer.conv.pixels
        case _:
            return 1.0
