"""How long steps report: the library emits events, the command line draws them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callable that hears about progress.

    ``stage`` names the step ("train lenet5"), ``done`` of ``total`` units are finished, and
    ``detail`` is a short text on the state ("loss 0.12"). Calls arrive from one thread.
    """

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Take one event."""


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """Ignore every event."""
