"""Golden values of one layer, as fault models read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.network.maps import Maps
from rasp.network.windows import Window, conv_reach, filled

if TYPE_CHECKING:
    from rasp.faults.context import LayerContext

_PLACES = 2048  # sums of all kernels that are computed at once


@dataclass(frozen=True, slots=True, eq=False)
class LayerValues:
    """Golden input and output of a layer for ``n`` trials.

    Attributes:
        context: the layer.
        x: stored input of the images.
        y: stored output of the images.
        image: ``(n,)`` int64 image of each trial.
    """

    context: LayerContext
    x: Maps
    y: Maps
    image: Tensor

    @classmethod
    def of(cls, context: LayerContext, x: Tensor) -> LayerValues:
        """One trial on each stored input ``(n, C, H, W)`` or ``(n, F)``."""
        y = context.arithmetic.run(context.conv, [x])
        return cls(context, Maps.of(x), Maps.of(y), torch.arange(len(x), device=x.device))

    def __len__(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.image.device

    def input(self, trial: Tensor, channel: Tensor, pixel: Tensor) -> Tensor:
        """Stored inputs; int64 of shapes that broadcast, ``pixel`` -1 reads padding."""
        return self.x.at(self.image[trial], channel, pixel)

    def output(self, trial: Tensor, kernel: Tensor, pixel: Tensor) -> Tensor:
        """Stored outputs; int64 of shapes that broadcast."""
        return self.y.at(self.image[trial], kernel, pixel)

    def sums(self, trial: Tensor, kernel: Tensor, pixel: Tensor) -> Tensor:
        """Sums of products as the accumulator holds them in the end, bias left out.

        Args:
            trial: int64 ``(m,)``.
            kernel: int64 ``(m,)``, below the layer's number of kernels.
            pixel: int64 ``(m,)`` raster pixel.

        Returns:
            ``(m,)``, fp32 with the bits of the golden run, or int32.
        """
        if not len(trial):
            return self.context.arithmetic.accumulate(
                self.context.conv, self.x.images(self.image[:1])
            ).flatten()[:0]
        shape = self.context.conv.conv
        places, inverse = torch.unique(
            self.image[trial] * shape.pixels + pixel, return_inverse=True
        )
        images = torch.unique(places // shape.pixels)
        few = 2 * len(places) < len(images) * shape.pixels
        if few and self.context.exact_pixels:
            found = torch.cat([self._at(part) for part in places.split(_PLACES)])
            return found[inverse, kernel]
        size = max(1, _PLACES // shape.pixels)
        whole = torch.cat([self._whole(part) for part in images.split(size)])
        of_image = torch.searchsorted(images, self.image[trial])
        return whole[of_image, kernel, pixel]

    def _at(self, places: Tensor) -> Tensor:
        """Sums of all kernels at a few places, ``(m, K)``."""
        conv, arithmetic = self.context.conv, self.context.arithmetic
        m = len(places)
        places = places[filled(torch.arange(m, device=self.device), arithmetic)]
        image, pixel = places // conv.conv.pixels, places % conv.conv.pixels
        window = Window(pixel // conv.conv.Wo, pixel % conv.conv.Wo, 1, 1)
        patch = self.x.window(image, conv_reach(conv.conv).needs(window)).permute(0, 3, 1, 2)
        return arithmetic.accumulate(conv, patch, padded=True)[:m, :, 0, 0]

    def _whole(self, images: Tensor) -> Tensor:
        """Sums of whole maps, ``(m, K, Ho * Wo)``."""
        conv, arithmetic = self.context.conv, self.context.arithmetic
        chosen = images[filled(torch.arange(len(images), device=self.device), arithmetic)]
        sums = arithmetic.accumulate(conv, self.x.images(chosen))[: len(images)]
        return sums.reshape(len(images), conv.conv.K, conv.conv.pixels)
