"""The operands that meet in the multipliers, gathered for a few output elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from rasp.faults.context import LayerContext
    from rasp.faults.sites import Integers
    from rasp.faults.values import LayerValues


class Activation(NamedTuple):
    """Stored inputs and whether they are elements of the input map; 0 where they are not."""

    value: Tensor
    inside: Tensor


def tensor(values: Integers, like: Tensor | LayerValues) -> Tensor:
    """Indices as an int64 tensor on the device of ``like``."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(like.device)


def wide(context: LayerContext) -> torch.dtype:
    """Type that sums are computed in."""
    return torch.int64 if context.arithmetic.format == "int8" else torch.float32


class Operands:
    """Inputs and weights of one layer, by output element.

    Args:
        values: golden values of the layer.
    """

    def __init__(self, values: LayerValues) -> None:
        context = values.context
        self._values = values
        self._shape = context.conv.conv
        self._weights = context.arithmetic.operands(context.conv).to(values.device)
        self._lanes = context.mapping.atoms.channels
        self.wide = wide(context)

    def activation(
        self, row: Tensor, group: Tensor, channel: Tensor, r: Tensor, s: Tensor, pixel: Tensor
    ) -> Activation:
        """Stored inputs that taps read; all arguments int64 of shapes that broadcast.

        Args:
            row: number of the trial.
            group: channel group.
            channel: channel within the group.
            r: kernel row.
            s: kernel column.
            pixel: raster pixel of the output.
        """
        shape = self._shape
        per_group = shape.C // shape.groups
        y = pixel // shape.Wo * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        x = pixel % shape.Wo * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        inside = (y >= 0) & (y < shape.H) & (x >= 0) & (x < shape.W)
        inside = inside & (channel < per_group)
        at = torch.where(inside, y * shape.W + x, -1)
        of_group = group * per_group + channel.clamp(max=per_group - 1)
        return Activation(self._values.input(row, of_group, at), inside)

    def weight(self, kernel: Tensor, channel: Tensor, r: Tensor, s: Tensor) -> Tensor:
        """Stored weights, 0 in lanes beyond the kernels or channels of the layer."""
        kernels, channels = self._weights.shape[:2]
        found = self._weights[kernel.clamp(max=kernels - 1), channel.clamp(max=channels - 1), r, s]
        exists = (kernel < kernels) & (channel < channels)
        return torch.where(exists, found, torch.zeros_like(found))

    def product(self, change: Tensor, partner: Tensor) -> Tensor:
        """Wide products; a partner of 0 gives 0 whatever it meets, as gated multipliers do."""
        partner = partner.to(self.wide)
        return torch.where(partner == 0, torch.zeros_like(partner), change * partner)

    def tap_sums(self, row: Tensor, kernel: Tensor, pixel: Tensor) -> Tensor:
        """Sums of the MAC cell over all atoms of output elements, in the order they are added.

        Args:
            row: ``(m,)`` number of the trial.
            kernel: ``(m,)`` kernel; beyond the layer's all sums are 0.
            pixel: ``(m,)`` raster pixel.

        Returns:
            ``(m, taps)`` int64, or float32 in floating point.
        """
        shape = self._shape
        kernels, channels, rows, columns = self._weights.shape
        known = kernel.clamp(max=kernels - 1)
        group = known // (shape.K // shape.groups)
        r, s = (
            index.flatten().view(1, 1, -1)
            for index in torch.meshgrid(
                torch.arange(rows, device=row.device),
                torch.arange(columns, device=row.device),
                indexing="ij",
            )
        )
        channel = torch.arange(channels, device=row.device).view(1, -1, 1)
        i, g, p = (values[:, None, None] for values in (row, group, pixel))
        a = self.activation(i, g, channel, r, s, p).value
        weights = self._weights.flatten(2)[known]
        narrow = torch.int32 if self.wide == torch.int64 else torch.float32
        products = a.to(narrow) * weights.to(narrow)
        products[kernel >= kernels] = 0
        products = F.pad(products, (0, 0, 0, -channels % self._lanes))
        blocks = products.view(len(row), -1, self._lanes, rows * columns)
        return blocks.sum(2, dtype=self.wide).flatten(1)
