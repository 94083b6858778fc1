"""How many threads torch should use for a network."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = 10_000_000
"""Multiply-accumulates an image below which sharing out the work costs more than doing it."""


@contextmanager
def suited_to(macs: int) -> Iterator[None]:
    """Run a block with one torch thread if the network is small, else with what torch has.

    LeNet-sized tensors were measured 5 to 30 times slower with two threads than with one on a
    machine whose cores are busy, and no faster on an idle one.

    Args:
        macs: multiply-accumulates of one image.

    Example:
        >>> import torch
        >>> with suited_to(300_000):
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    if macs < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
