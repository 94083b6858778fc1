"""Which operands and outputs meet in which atom: NVDLA's direct-convolution sequence.

An atom is one cycle of the MAC array: one output pixel x ``atomic_c`` channels x ``atomic_k``
kernels. The sequence, outermost loop first, is::

    channel group -> kernel group -> stripe -> channel block -> r -> s -> pixel of the stripe

and atoms are numbered in that order. One pass of the innermost loop is a package: one load of the
weight registers, used by every pixel of the stripe. Measured on the RTL of nv_small; images are not
run in NVDLA's image mode, and the buffer is assumed to hold the layer's input in one piece.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rasp.errors import UnsupportedModelError

if TYPE_CHECKING:
    from rasp.nvdla.config import AcceleratorConfig, StripeRule
    from rasp.nvdla.shapes import ConvShape

Indices = NDArray[np.int64]

Reach = Literal[
    "group", "interleaved", "half", "interleaved_half", "cell", "stripe", "suffix", "element"
]
"""What one upset can touch, by where the register sits (see :meth:`Mapping.reach`)."""

REACHES: tuple[Reach, ...] = (
    "group",
    "interleaved",
    "half",
    "interleaved_half",
    "cell",
    "stripe",
    "suffix",
    "element",
)

# Fields of the CSC and CDMA configuration registers; n bits hold n + 1 of the quantity.
_LIMITS = {
    "input channels": 8192,
    "input rows": 8192,
    "input columns": 8192,
    "kernels": 8192,
    "kernel rows": 32,
    "kernel columns": 32,
    "stride": 8,
    "padding": 31,
    "dilation": 32,
}


class Span(NamedTuple):
    """``size`` consecutive indices from ``start``."""

    start: int
    size: int


class Stripe(NamedTuple):
    """``length`` consecutive raster pixels from ``start``."""

    start: int
    length: int


class Atom(NamedTuple):
    """Coordinates of atoms, arrays of one shape.

    ``group`` is the channel group of a grouped convolution, ``kgroup`` and ``cblock`` count within
    it; ``pixel`` is the raster index of the output pixel, ``position`` its place in the stripe of
    ``length`` pixels.
    """

    group: Indices
    kgroup: Indices
    cblock: Indices
    r: Indices
    s: Indices
    pixel: Indices
    position: Indices
    length: Indices


class Operand(NamedTuple):
    """Input element of an atom's lane; ``inside`` is false for padding and unused lanes."""

    channel: Indices
    y: Indices
    x: Indices
    inside: NDArray[np.bool_]


class Outputs(NamedTuple):
    """Output elements in reach: a rectangle of kernels x raster pixels.

    Kernels ``kernel, kernel + step, ...`` (``kernels`` of them, 0 where the lane carries none) and
    pixels ``pixel .. pixel + pixels - 1``.
    """

    kernel: Indices
    kernels: Indices
    step: Indices
    pixel: Indices
    pixels: Indices


def stripes(pixels: int, config: AcceleratorConfig) -> tuple[Stripe, ...]:
    """Cut ``pixels`` raster pixels into stripes by the accelerator's rule.

    Example:
        >>> from rasp.nvdla.config import load
        >>> [stripe.length for stripe in stripes(42, load("nv_small"))]
        [16, 8, 8, 10]
    """
    return _stripes(pixels, config.stripe)


@lru_cache(maxsize=256)
def _stripes(pixels: int, rule: StripeRule) -> tuple[Stripe, ...]:
    found = []
    start = 0
    while (left := pixels - start) > 0:
        if left <= rule.upper:
            length = left
        elif rule.upper_first and left >= 2 * rule.upper:
            length = rule.upper
        else:
            length = rule.lower
        found.append(Stripe(start, length))
        start += length
    return tuple(found)


def kernel_groups(
    shape: ConvShape,
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> tuple[Span, ...]:
    """Kernels of one channel group in portions of ``atomic_k``; the last may be smaller."""
    return _portions(shape.K // shape.groups, config.atoms(format).kernels)


def channel_blocks(
    shape: ConvShape,
    config: AcceleratorConfig,
    format: str = "int8",  # noqa: A002
) -> tuple[Span, ...]:
    """Channels that one kernel reads in portions of ``atomic_c``; the last may be smaller."""
    return _portions(shape.C // shape.groups, config.atoms(format).channels)


def _portions(count: int, portion: int) -> tuple[Span, ...]:
    return tuple(Span(at, min(portion, count - at)) for at in range(0, count, portion))


def check(shape: ConvShape, config: AcceleratorConfig, format: str = "int8") -> None:  # noqa: A002
    """Refuse a layer that does not fit the accelerator's registers or buffer.

    A grouped convolution runs as one hardware layer per channel group, depthwise included.

    Raises:
        UnsupportedModelError: naming the layer, the quantity and the limit.
    """
    sizes = {
        "input channels": shape.C,
        "input rows": shape.H,
        "input columns": shape.W,
        "kernels": shape.K,
        "kernel rows": shape.R,
        "kernel columns": shape.S,
        "stride": max(shape.stride),
        "padding": max(shape.padding),
        "dilation": max(shape.dilation),
    }
    for what, got in sizes.items():
        if got > _LIMITS[what]:
            raise UnsupportedModelError(
                f"Layer '{shape.name}' cannot run on {config.name}: {what} {got}, "
                f"allowed are at most {_LIMITS[what]}."
            )
    path = config.datapath(format)
    channels = -(-shape.C // shape.groups // path.atomic_c) * path.atomic_c
    rows = min(shape.dilation[0] * (shape.R - 1) + 1, shape.H)
    kernels = min(path.atomic_k, shape.K // shape.groups)
    elements = channels * (rows * shape.W + kernels * shape.R * shape.S)
    if (needed := elements * path.operand_bits // 8) > config.cbuf_bytes:
        raise UnsupportedModelError(
            f"Layer '{shape.name}' cannot run on {config.name}: the weights of one kernel group "
            f"and the input rows of one output row take {needed} bytes, "
            f"the convolution buffer has {config.cbuf_bytes}. Choose a larger accelerator."
        )


class Mapping:
    """The atoms of one layer on one accelerator.

    Args:
        shape: the layer.
        config: the accelerator.
        format: number format; int8 geometry stands in where it is not native.

    Attributes:
        taps: atoms one output element accumulates.
        count: atoms of the layer.

    Raises:
        UnsupportedModelError: the layer does not fit (:func:`check`).

    Example:
        >>> from rasp.nvdla.config import load
        >>> from rasp.nvdla.shapes import ConvShape
        >>> shape = ConvShape("A", C=16, H=6, W=7, K=16, R=3, S=3, padding=(1, 1))
        >>> mapping = Mapping(shape, load("nv_small"))
        >>> mapping.count, mapping.taps
        (1512, 18)
        >>> atom = mapping.atom(16)
        >>> int(atom.pixel), int(atom.s), int(atom.length)
        (0, 1, 16)
    """

    def __init__(
        self,
        shape: ConvShape,
        config: AcceleratorConfig,
        format: str = "int8",  # noqa: A002
    ) -> None:
        check(shape, config, format)
        self.shape = shape
        self.config = config
        self.format = format
        self.atoms = config.atoms(format)
        self.stripes = stripes(shape.pixels, config)
        self.kernel_groups = kernel_groups(shape, config, format)
        self.channel_blocks = channel_blocks(shape, config, format)
        self.taps = len(self.channel_blocks) * shape.R * shape.S
        self.count = shape.groups * len(self.kernel_groups) * shape.pixels * self.taps

    @cached_property
    def _edges(self) -> tuple[Indices, Indices]:
        table = np.array(self.stripes, dtype=np.int64)
        return table[:, 0], table[:, 1]

    def atom(self, n: ArrayLike) -> Atom:
        """Coordinates of the atoms numbered ``n``, ``0 <= n < count``."""
        index = np.asarray(n, dtype=np.int64)
        starts, lengths = self._edges
        pass_, rest = np.divmod(index, self.shape.pixels * self.taps)
        group, kgroup = np.divmod(pass_, len(self.kernel_groups))
        # every pixel before a stripe has taken `taps` atoms, so stripe i begins at starts[i] * taps
        stripe = np.searchsorted(starts, rest // self.taps, side="right") - 1
        length = lengths[stripe]
        package, position = np.divmod(rest - starts[stripe] * self.taps, length)
        block_row, s = np.divmod(package, self.shape.S)
        cblock, r = np.divmod(block_row, self.shape.R)
        return Atom(group, kgroup, cblock, r, s, starts[stripe] + position, position, length)

    def index(
        self,
        kgroup: ArrayLike,
        cblock: ArrayLike,
        r: ArrayLike,
        s: ArrayLike,
        pixel: ArrayLike,
        *,
        group: ArrayLike = 0,
    ) -> Indices:
        """Numbers of the atoms at these coordinates; inverse of :meth:`atom`."""
        raster = np.asarray(pixel, dtype=np.int64)
        starts, lengths = self._edges
        stripe = np.searchsorted(starts, raster, side="right") - 1
        package = (np.asarray(cblock) * self.shape.R + np.asarray(r)) * self.shape.S + np.asarray(s)
        pass_ = np.asarray(group) * len(self.kernel_groups) + np.asarray(kgroup)
        within = package * lengths[stripe] + raster - starts[stripe]
        return np.asarray(
            (pass_ * self.shape.pixels + starts[stripe]) * self.taps + within, dtype=np.int64
        )

    def operand(self, atom: Atom, lane: ArrayLike) -> Operand:
        """Input element that lane ``0 <= lane < atomic_c`` of an atom multiplies."""
        shape = self.shape
        per_group = shape.C // shape.groups
        offset = atom.cblock * self.atoms.channels + np.asarray(lane)
        row, column = np.divmod(atom.pixel, shape.Wo)
        y = row * shape.stride[0] + atom.r * shape.dilation[0] - shape.padding[0]
        x = column * shape.stride[1] + atom.s * shape.dilation[1] - shape.padding[1]
        inside = (offset < per_group) & (y >= 0) & (y < shape.H) & (x >= 0) & (x < shape.W)
        return Operand(atom.group * per_group + offset, y, x, inside)

    def reach(self, reach: Reach, n: ArrayLike, kernel: ArrayLike = 0) -> Outputs:
        """Outputs that an upset can touch while atom ``n`` is in the register.

        Args:
            reach: where the register sits:

                - ``"group"``: activation before the A/B split, all kernels of the group;
                - ``"interleaved"``: duplicated activation (nv_full, INT8), even or odd kernels;
                - ``"half"``: activation of CMAC A or B, half of the kernels;
                - ``"interleaved_half"``: both, even or odd kernels of a half;
                - ``"cell"``: activation copy of one MAC cell, one kernel;
                - ``"stripe"``: weight being loaded or waiting, one kernel x the atom's stripe;
                - ``"suffix"``: weight in use, one kernel x the rest of the stripe;
                - ``"element"``: anything after the multipliers.
            n: atom numbers; for ``"stripe"`` any atom of the package the weight is used in.
            kernel: lane within the kernel group, ``0 <= kernel < atomic_k``; for ``"half"`` and
                ``"interleaved"`` any lane that shares the register; ignored for ``"group"``.

        Returns:
            A rectangle per atom, empty where the group has no such kernel.
        """
        atom = self.atom(n)
        per_group = self.shape.K // self.shape.groups
        lanes = self.atoms.kernels
        size = np.minimum(lanes, per_group - atom.kgroup * lanes)
        lane = np.asarray(kernel, dtype=np.int64)
        one = np.ones_like(atom.pixel)
        first, kernels, step = lane, (lane < size).astype(np.int64), one
        pixel, pixels = atom.pixel, one
        if reach == "group":
            first, kernels = np.zeros_like(lane), size
        elif reach == "half":
            first = lane // (lanes // 2) * (lanes // 2)
            kernels = np.clip(size - first, 0, lanes // 2)
        elif reach == "interleaved":
            first, step = lane % 2, 2 * one
            kernels = (size - first + 1) // 2
        elif reach == "interleaved_half":
            half = lane // (lanes // 2) * (lanes // 2)
            first, step = half + lane % 2, 2 * one
            kernels = (np.clip(size - half, 0, lanes // 2) - lane % 2 + 1) // 2
        elif reach == "stripe":
            pixel, pixels = pixel - atom.position, atom.length
        elif reach == "suffix":
            pixels = atom.length - atom.position
        base = atom.group * per_group + atom.kgroup * lanes
        return Outputs(*np.broadcast_arrays(base + first, kernels, step, pixel, pixels))

    def atoms_of_output(self, kernel: int, pixel: int) -> Indices:
        """Numbers of the ``taps`` atoms that output element (kernel, raster pixel) accumulates."""
        group, within = divmod(kernel, self.shape.K // self.shape.groups)
        cblock, r, s = np.indices((len(self.channel_blocks), self.shape.R, self.shape.S))
        kgroup = within // self.atoms.kernels
        return self.index(kgroup, cblock, r, s, pixel, group=group).ravel()

    def atoms_of_weight(self, kernel: int, channel: int, r: int, s: int) -> Indices:
        """Numbers of the atoms that use one weight, one per output pixel.

        Args:
            kernel: kernel of the layer.
            channel: channel within the kernel, ``0 <= channel < C / groups``.
            r: kernel row.
            s: kernel column.
        """
        group, within = divmod(kernel, self.shape.K // self.shape.groups)
        return self.index(
            within // self.atoms.kernels,
            channel // self.atoms.channels,
            r,
            s,
            np.arange(self.shape.pixels),
            group=group,
        )

    def atoms_of_input(self, channel: int, y: int, x: int) -> Indices:
        """Numbers of the atoms that read one input element, ascending."""
        shape = self.shape
        group, within = divmod(channel, shape.C // shape.groups)
        r, s, kgroup = np.indices((shape.R, shape.S, len(self.kernel_groups)))
        rows = y + shape.padding[0] - r * shape.dilation[0]
        columns = x + shape.padding[1] - s * shape.dilation[1]
        row, off_row = np.divmod(rows, shape.stride[0])
        column, off_column = np.divmod(columns, shape.stride[1])
        used = (off_row == 0) & (row >= 0) & (row < shape.Ho)
        used &= (off_column == 0) & (column >= 0) & (column < shape.Wo)
        pixel = (row * shape.Wo + column)[used]
        block = within // self.atoms.channels
        return np.sort(self.index(kgroup[used], block, r[used], s[used], pixel, group=group))
