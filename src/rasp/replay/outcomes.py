"""What became of an injection, read off the logits."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Outcomes of ``n`` injections (Li et al., SC 2017, with DUE apart).

    DUE excludes every SDC: an answer that is not finite is seen, not silent. What is none of
    these is benign: other bits, the same answer.

    Attributes:
        changed: number of elements of the layer's output that changed.
        masked: the logits are bit-identical to the golden run's.
        sdc1: the top-1 class differs from golden.
        sdc5: the golden top-1 class is not among the faulty top 5 (always false below 6 classes).
        sdc10, sdc20: the softmax confidence of the golden top-1 class moved by more than 10 % or
            20 % of its golden value.
        critical: golden was right, the faulty top-1 is wrong.
        due: NaN or an infinity among the logits.
    """

    changed: NDArray[np.int64]
    masked: Flags
    sdc1: Flags
    sdc5: Flags
    sdc10: Flags
    sdc20: Flags
    critical: Flags
    due: Flags


OUTCOMES = tuple(field.name for field in fields(Outcomes) if field.name != "changed")


def classify(golden: Tensor, faulty: Tensor, labels: Tensor, changed: Tensor) -> Outcomes:
    """Outcomes from logits.

    Args:
        golden: fp32 ``(n, classes)``.
        faulty: likewise.
        labels: int64 ``(n,)``.
        changed: int64 ``(n,)``, for :attr:`Outcomes.changed`.
    """
    masked = (golden.view(torch.int32) == faulty.view(torch.int32)).all(dim=1)
    due = ~torch.isfinite(faulty).all(dim=1)
    top = golden.argmax(dim=1)
    answer = faulty.argmax(dim=1)
    moved = ~due & (answer != top)
    before = golden.softmax(dim=1).gather(1, top[:, None]).squeeze(1)
    after = faulty.softmax(dim=1).gather(1, top[:, None]).squeeze(1)
    shift = (after - before).abs() / before
    better = (faulty > faulty.gather(1, top[:, None])).sum(dim=1)
    flags = {
        "masked": masked,
        "sdc1": moved,
        "sdc5": ~due & (better >= 5),
        "sdc10": ~due & (shift > 0.10),
        "sdc20": ~due & (shift > 0.20),
        "critical": moved & (top == labels) & (answer != labels),
        "due": due,
    }
    return Outcomes(
        changed=changed.cpu().numpy(),
        **{name: flag.cpu().numpy() for name, flag in flags.items()},
    )
