"""What a store holds: the columns of a trial, the facts they refer to, and tallies of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from rasp.campaign.spec import CampaignSpec

OUTCOMES = ("masked", "sdc1", "sdc5", "sdc10", "sdc20", "critical", "due")
"""Outcomes of an injection, 0 or 1 each."""

COLUMNS = (
    *("trial", "stratum", "image"),
    *("kernel", "channel", "r", "s", "pixel", "bit", "value", "changed"),
    *OUTCOMES,
)
"""Columns of a block of rows as :meth:`rasp.campaign.store.Store.commit` takes it."""

_FLAGS = (*OUTCOMES, "live")
TOTALS = (
    *("count(*)", "sum(stratum)", "sum(bit)", "sum(image)"),
    *(f"sum({name})" for name in OUTCOMES),
    *("sum(kernel >= 0 OR pixel >= 0)", "total(weight)"),
)
"""What :func:`totals` takes from a summary, as SQL takes it from the rows."""

_ENTRY = np.dtype([("key", "<i8"), ("weight", "<f8")])
ENTRY_BYTES = _ENTRY.itemsize
"""Bytes of a trial in a summary."""
_BITS, _IMAGES, _STRATA = 2**8 - 1, 2**24, 2**23
_BATCH = 2**20 * ENTRY_BYTES  # bytes that are sorted at once, no more than caches and memory like


class StratumFacts(NamedTuple):
    """A layer, fault model and group of bits, and the share of the population they are."""

    layer: str
    model: str
    weight: float
    bits: str = ""


class ImageFacts(NamedTuple):
    """Label of an image and what the fault-free network says of it."""

    label: int
    top1: int
    confidence: float
    margin: float


class Tallies(NamedTuple):
    """Trials counted by stratum, bit, image and outcome, one array entry a combination.

    Attributes:
        stratum, bit, image: ``(m,)`` int64; ``bit`` is -1 where a fault has none.
        outcomes: ``(m,)`` int64, bit ``i`` set if ``OUTCOMES[i]`` happened, the next if the fault
            was live: it hit a value, not an idle register or a cycle without one.
        trials: ``(m,)`` int64, trials.
        weight: ``(m,)`` float64, sum of the trials' weights.
        square: ``(m,)`` float64, sum of the squares of the trials' weights.
    """

    stratum: NDArray[np.int64]
    bit: NDArray[np.int64]
    image: NDArray[np.int64]
    outcomes: NDArray[np.int64]
    trials: NDArray[np.int64]
    weight: NDArray[np.float64]
    square: NDArray[np.float64]

    def happened(self, outcome: str) -> NDArray[np.bool_]:
        """``(m,)`` whether an outcome happened, or the fault was ``"live"``."""
        return (self.outcomes >> _FLAGS.index(outcome) & 1).astype(bool)

    def events(self, outcome: str) -> NDArray[np.int64]:
        """``(m,)`` trials with an outcome, or ``"live"`` ones."""
        return self.trials * self.happened(outcome)


class Contents(NamedTuple):
    """All a summary needs of a store; ``stopped`` is after how many trials it stopped early."""

    spec: CampaignSpec
    strata: tuple[StratumFacts, ...]
    images: tuple[ImageFacts, ...]
    tallies: Tallies
    stopped: int | None


def pack(columns: NDArray[np.int64], weight: NDArray[np.float64]) -> bytes:
    """The summary of a chunk: 16 bytes a trial, all that :func:`tally` needs of it.

    An entry is a little-endian int64 (stratum << 40 | bit + 1 << 32 | image << 8 | a flag for each
    outcome and for a live fault) and a little-endian float64, the trial's weight.

    Args:
        columns: ``(n, len(COLUMNS))`` int64.
        weight: ``(n,)`` float64.

    Raises:
        ValueError: a value does not fit, or a weight is not a positive finite number.
    """
    of = dict(zip(COLUMNS, columns.T, strict=True))
    flags = [*(of[name] for name in OUTCOMES), (of["kernel"] >= 0) | (of["pixel"] >= 0)]
    for what, values, end in (
        ("outcome", columns[:, -len(OUTCOMES) :], 2),
        ("image", of["image"], _IMAGES),
        ("bit + 1", of["bit"] + 1, _BITS),
        ("stratum", of["stratum"], _STRATA),
    ):
        if values.size and not 0 <= values.min() <= values.max() < end:
            raise ValueError(f"{what} must be at least 0 and below {end}")
    entries = np.empty(len(columns), _ENTRY)
    entries["key"] = of["stratum"] << 40 | of["bit"] + 1 << 32 | of["image"] << 8
    for index, flag in enumerate(flags):
        entries["key"] |= flag.astype(np.int64) << index
    entries["weight"] = weight
    _check_weight(entries["weight"])
    return entries.tobytes()


def tally(summaries: Iterable[bytes], *, strata: int, images: int) -> Tallies:
    """Add up the summaries of chunks; the sums do not depend on how trials were cut into chunks.

    Args:
        summaries: from :func:`pack`, in the order of the trials.
        strata: number of strata.
        images: number of images.

    Raises:
        ValueError: a summary is not one of these strata and images.

    Example:
        >>> row = [[0, 1, 5, 2, 0, 0, 0, 7, -1, 3, 1, 0, 1, 0, 0, 0, 0, 0]]
        >>> summary = pack(np.array(row * 3), np.array([1.0, 1.0, 0.5]))
        >>> found = tally([summary], strata=2, images=6)
        >>> found.trials.item(), found.weight.item(), found.square.item()
        (3, 2.5, 2.25)
        >>> found.events("sdc1").item(), found.bit.item(), found.image.item()
        (3, -1, 5)
    """
    keys, sums = np.empty(0, np.int64), [np.empty(0)] * 3
    for batch in _batches(summaries):
        weight = batch["weight"]
        _check_weight(weight)
        more, values = _sum(batch["key"], [np.ones(len(batch)), weight, weight * weight])
        keys, sums = _sum(
            np.concatenate([keys, more]),
            [np.concatenate(both) for both in zip(sums, values, strict=True)],
        )
    stratum, bit, image = keys >> 40, (keys >> 32 & 0xFF) - 1, keys >> 8 & 0xFFFFFF
    if len(keys) and not (
        stratum.min() >= 0
        and stratum.max() < strata
        and image.max() < images
        and bit.max() < _BITS - 1
    ):
        raise ValueError(f"a trial is of none of the {strata} strata and {images} images")
    return Tallies(stratum, bit, image, keys & 0xFF, sums[0].astype(np.int64), *sums[1:])


def totals(summary: bytes) -> tuple[int | float, ...]:
    """Trials of a chunk and sums over them, in the order of :data:`TOTALS`."""
    entries = np.frombuffer(summary, _ENTRY)
    keys = entries["key"]
    fields = (keys >> 40, (keys >> 32 & 0xFF) - 1, keys >> 8 & 0xFFFFFF)
    flags = (keys >> index & 1 for index in range(len(_FLAGS)))
    sums = (int(values.sum()) for values in (*fields, *flags))
    return len(entries), *sums, float(entries["weight"].sum())


def _sum(
    keys: NDArray[np.int64], values: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Distinct keys in order, and the sums of the values that each of them has."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return keys[starts], [np.add.reduceat(value[order], starts) for value in values]


def _batches(summaries: Iterable[bytes]) -> Iterator[NDArray[np.void]]:
    """Entries of the summaries, none empty, in batches whose ends no chunk decides."""
    waiting = bytearray()
    for summary in summaries:
        waiting += summary
        while len(waiting) >= _BATCH:
            yield np.frombuffer(bytes(waiting[:_BATCH]), _ENTRY)
            del waiting[:_BATCH]
    if waiting:
        yield np.frombuffer(waiting, _ENTRY)


def _check_weight(weight: NDArray[np.float64]) -> None:
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError("weights must be positive and finite")
