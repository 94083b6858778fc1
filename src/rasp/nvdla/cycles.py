"""How long a convolution occupies the accelerator.

A package (one weight load) takes as many cycles as it has atoms, but no fewer than the sequencer's
minimum and than its kernels need to load; the SDP drains the lanes of every pixel. The slower of
the two sets the time. Memory bandwidth and the fixed start-up (about 50 cycles a layer on nv_small)
are left out: layers run from a filled convolution buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from rasp.nvdla.mapping import channel_blocks, kernel_groups, stripes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.shapes import ConvShape

LEAST_WEIGHT_CYCLES = 2
"""Cycles of the weights of a package with a single kernel, CSC_sg.v."""

LEAD_IN = 25
"""Cycles from the issue of a layer's first package to its first atom in stage 0."""

_DRAIN = 54  # last result in the delivery buffer to layer done


class LayerCycles(NamedTuple):
    """Clock cycles of one layer for one image.

    ``mac`` is the time of the packages in the MAC array, ``sdp`` that of the outputs through the
    SDP, ``total`` the greater of the two and ``bound`` its name.
    """

    total: int
    mac: int
    sdp: int
    bound: Literal["mac", "sdp"]


def layer_cycles(
    shape: ConvShape,
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> LayerCycles:
    """Cycles of one convolution, first to last atom.

    Equal to the RTL of nv_small where the MAC array is the limit, within 5 % of it elsewhere.

    Args:
        shape: the layer; every channel group runs as a layer of its own.
        config: the accelerator.
        format: number format; int8 geometry stands in where it is not native.

    Example:
        >>> from rasp.nvdla.config import load
        >>> from rasp.nvdla.shapes import ConvShape
        >>> a = ConvShape("A", C=16, H=6, W=7, K=16, R=3, S=3, padding=(1, 1))
        >>> layer_cycles(a, load("nv_small"))
        LayerCycles(total=1512, mac=1512, sdp=672, bound='mac')
    """
    path = config.datapath(format)
    groups = kernel_groups(shape, config, format)
    packages = len(channel_blocks(shape, config, format)) * shape.R * shape.S
    mac = packages * sum(
        package_cycles(stripe.length, group.size, config, format)
        for group in groups
        for stripe in stripes(shape.pixels, config)
    )
    lanes = -(-path.atomic_k // config.sdp_throughput)
    sdp = lanes * len(groups) * shape.pixels
    mac, sdp = mac * shape.groups, sdp * shape.groups
    return LayerCycles(max(mac, sdp), mac, sdp, "mac" if mac >= sdp else "sdp")


def layer_window(
    shape: ConvShape,
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> int:
    """Cycles in which a layer's registers can be struck: first package issued to layer done.

    :func:`layer_cycles` plus :data:`LEAD_IN`, the last stripe through the SDP, and the way to
    memory. Against the RTL of nv_small: A 1671 (1678), B 1255 (1252), C 751 (774), D 279 (268),
    E 9423 (9419).
    """
    lanes = -(-config.atoms(format).kernels // config.sdp_throughput)
    last = stripes(shape.pixels, config)[-1].length
    return LEAD_IN + layer_cycles(shape, config, format).total + lanes * last + _DRAIN


def network_cycles(
    shapes: Iterable[ConvShape],
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> int:
    """Cycles of one image through layers that run one after the other."""
    return sum(layer_cycles(shape, config, format).total for shape in shapes)


def package_cycles(
    atoms: int,
    kernels: int,
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> int:
    """Cycles between the start of a package of ``atoms`` pixels and that of the next.

    Args:
        atoms: stripe length.
        kernels: kernels in the group whose weights are loaded meanwhile.
        config: the accelerator.
        format: number format.
    """
    load = -(-kernels // config.datapath(format).kernels_per_cycle)
    return max(atoms, config.minimum_package, load, LEAST_WEIGHT_CYCLES)
