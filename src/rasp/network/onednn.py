"""What has to be kept from oneDNN, the library below convolutions on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from rasp.nvdla.shapes import ConvShape


def two_channels(shape: ConvShape, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Input and weight of a floating-point convolution, with a channel of zeros where it is needed.

    Maps ``(N, 1, H, W)`` of one channel in channels-last order that are read with a stride along
    columns were seen to be read beyond their end (torch 2.13); maps of two channels are not.
    """
    if shape.C > 1 or shape.stride[1] == 1:
        return x, weight
    return F.pad(x, (0, 0, 0, 0, 0, 1)), F.pad(weight, (0, 0, 0, 0, 0, 1))
