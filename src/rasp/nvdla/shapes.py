"""The shape of one convolution as NVDLA sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConvShape:
    """Shape of a convolution; a fully connected layer is 1 x 1 on a 1 x 1 map.

    Attributes:
        name: layer name.
        C, H, W: input channels, rows, columns.
        K, R, S: kernels, kernel rows, kernel columns.
        stride, padding, dilation: (vertical, horizontal) each.
        groups: channel groups; kernel k reads C / groups channels.
    """

    name: str
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def Ho(self) -> int:
        """Output rows."""
        span = self.dilation[0] * (self.R - 1) + 1
        return (self.H + 2 * self.padding[0] - span) // self.stride[0] + 1

    @property
    def Wo(self) -> int:
        """Output columns."""
        span = self.dilation[1] * (self.S - 1) + 1
        return (self.W + 2 * self.padding[1] - span) // self.stride[1] + 1

    @property
    def pixels(self) -> int:
        """Output pixels per kernel."""
        return self.Ho * self.Wo

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, padding included."""
        return self.K * self.pixels * (self.C // self.groups) * self.R * self.S
