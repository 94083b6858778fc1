"""Stored feature maps as tables of pixels, from which windows of any trial are gathered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rasp.network.windows import Window


_RANK = 3  # of a feature map


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Stored maps of ``N`` images, the channels of a pixel together.

    Whatever has no rows and columns - vectors ``(F,)``, and what host operations give - is a map of
    one pixel.

    Attributes:
        pixels: ``(N * H * W + 1, C)``; the last row is zero, which padding reads.
        shape: of one image, ``(C, H, W)``, ``(F,)`` or any other.

    Example:
        >>> maps = Maps.of(torch.arange(8.0).view(1, 2, 2, 2))
        >>> maps.at(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([3, -1])).tolist()
        [7.0, 0.0]
    """

    pixels: Tensor
    shape: tuple[int, ...]

    @classmethod
    def empty(cls, n: int, like: Tensor) -> Maps:
        """Room for ``n`` images of the type, shape and device of ``like`` ``(N, *shape)``."""
        shape = tuple(like.shape[1:])
        rows = n * math.prod(_size(shape))
        channels = math.prod(shape) // math.prod(_size(shape))
        pixels = torch.empty((rows + 1, channels), dtype=like.dtype, device=like.device)
        pixels[rows] = 0
        return cls(pixels, shape)

    @classmethod
    def of(cls, values: Tensor) -> Maps:
        """Maps of stored values ``(N, *shape)``."""
        maps = cls.empty(len(values), values)
        maps.store(slice(None), values)
        return maps

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return _size(self.shape)

    def store(self, rows: slice, values: Tensor) -> None:
        """Put the images ``rows`` in."""
        images = self.pixels[:-1].view(-1, *self.size, self.pixels.shape[1])
        images[rows] = by_pixel(values)

    def images(self, image: Tensor) -> Tensor:
        """Whole maps ``(n, *shape)`` of images ``(n,)``, in channels-last order."""
        whole = self.pixels[:-1].view(-1, math.prod(self.shape)).index_select(0, image)
        if len(self.shape) != _RANK:
            return whole.view(-1, *self.shape)
        return whole.view(-1, *self.size, self.shape[0]).permute(0, 3, 1, 2)

    def at(self, image: Tensor, channel: Tensor, pixel: Tensor) -> Tensor:
        """Single values; indices int64 of shapes that broadcast, ``pixel`` -1 reads padding."""
        height, width = self.size
        row = torch.where(pixel < 0, len(self.pixels) - 1, image * (height * width) + pixel)
        return self.pixels[row, channel]

    def window(self, image: Tensor, window: Window) -> Tensor:
        """Values in a window of each image, ``(n, height, width, C)``; zero outside the map."""
        height, width = self.size
        y, x = window.rows(), window.columns()
        row = (image[:, None] * height + y) * width
        index = row[:, :, None] + x[:, None, :]
        outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        index = index.masked_fill_(outside, len(self.pixels) - 1)
        found = self.pixels.index_select(0, index.view(-1))
        return found.view(*index.shape, self.pixels.shape[1])


def by_pixel(values: Tensor) -> Tensor:
    """Values ``(N, *shape)`` as ``(N, H, W, C)``."""
    if values.ndim == _RANK + 1:
        return values.permute(0, 2, 3, 1)
    return values.reshape(len(values), 1, 1, math.prod(values.shape[1:]))


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[2]) if len(shape) == _RANK else (1, 1)
