"""Rows of a campaign in one SQLite file that survives being killed.

A chunk of trials is one transaction, so a store holds whole chunks only. The file is written by one
driver at a time (an advisory lock beside it) and can be read meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rasp import locks
from rasp.campaign import database, reader
from rasp.campaign.chunks import TRIALS, Chunks, Shard, check_shard
from rasp.campaign.contents import (
    COLUMNS,
    OUTCOMES,
    Contents,
    ImageFacts,
    StratumFacts,
    Tallies,
    pack,
)
from rasp.errors import ConfigError, StoreMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from rasp.campaign.spec import CampaignSpec

__all__ = [
    "COLUMNS",
    "OUTCOMES",
    "Contents",
    "ImageFacts",
    "Store",
    "StratumFacts",
    "Tallies",
    "open_or_create",
    "read",
]


class Store(reader.Reader):
    """The one driver's handle on a store; from :func:`open_or_create`, closed by ``with``."""

    def __init__(self, path: Path, connection: database.Connection, lock: int) -> None:
        super().__init__(path, connection)
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next driver in."""
        self._connection.close()
        os.close(self._lock)

    @property
    def chunk(self) -> int:
        """Trials of a whole chunk."""
        return self.chunks.size

    def span(self, chunk: int) -> range:
        """Trials of a chunk; it never reaches over the end of a round."""
        return self.chunks.span(chunk)

    def describe(self, strata: Sequence[StratumFacts], images: Sequence[ImageFacts]) -> None:
        """Record what the trials refer to, or hold it against what was recorded before.

        Raises:
            StoreMismatchError: the store was filled with other strata or other images.
            PrerequisiteError: the disk is full or the file cannot be written.
        """
        if not self.strata:
            with database.writing(self.path), self._connection:
                self._connection.executemany(
                    "INSERT INTO strata VALUES (?, ?, ?, ?, ?)",
                    [(index, *facts) for index, facts in enumerate(strata)],
                )
                self._connection.executemany(
                    "INSERT INTO images VALUES (?, ?, ?, ?, ?)",
                    [(index, *facts) for index, facts in enumerate(images)],
                )
        self.check_facts(strata, images)

    def commit(self, chunk: int, columns: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Write a chunk in one transaction; a chunk that is there already stays as it is.

        Args:
            chunk: number of the chunk.
            columns: ``(n, len(COLUMNS))`` int64, columns in that order, a row for each of the ``n``
                trials of :meth:`span`.
            weight: ``(n,)`` population share of each trial over the probability it was drawn with.

        Raises:
            ValueError: these are not the chunk's trials, or a value is out of range.
            PrerequisiteError: the disk is full or the file cannot be written.
        """
        span = self.span(chunk)
        if columns[:, 0].tolist() != list(span) or weight.shape != (len(span),):
            raise ValueError(f"chunk {chunk} must hold the trials {span} in order")
        if self.stopped is not None and span.stop > self.stopped:
            raise ValueError(f"the campaign stopped after {self.stopped} trials")
        summary = pack(columns, weight)
        places = ", ".join("?" * (len(COLUMNS) + 1))
        with database.writing(self.path), self._connection:
            fresh = self._connection.execute(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?)", (chunk, len(span), summary)
            )
            if fresh.rowcount:
                self._connection.executemany(
                    f"INSERT INTO injections VALUES ({places})",  # noqa: S608
                    zip(*columns.T.tolist(), weight.tolist(), strict=True),
                )

    def record_plan(self, number: int, plan: bytes) -> None:
        """Record how a round draws its trials, before its first chunk.

        Raises:
            StoreMismatchError: another plan is recorded for the round.
            PrerequisiteError: the disk is full or the file cannot be written.
        """
        with database.writing(self.path), self._connection:
            self._connection.execute("INSERT OR IGNORE INTO rounds VALUES (?, ?)", (number, plan))
        if self.plan(number) != plan:
            raise database.another(self.path, f"round {number} draws its trials in another way")

    def plan(self, number: int) -> bytes | None:
        """What was recorded for a round, if anything."""
        return self.plans.get(number)

    def finish(self, trials: int) -> None:
        """Record that the stopping rule ended the campaign, at the end of a round.

        Args:
            trials: all trials there are; every one of them is in the store.

        Raises:
            ValueError: no round ends there, or the store holds fewer or more trials.
            StoreMismatchError: the campaign stopped after another number of trials.
            PrerequisiteError: the disk is full or the file cannot be written.
        """
        if self.present() != tuple(range(self.chunks.before(self.chunks.ending(trials)))):
            raise ValueError(f"the store does not hold exactly the first {trials} trials")
        if self.stopped not in (None, trials):
            raise database.another(self.path, f"it stopped after {self.stopped} trials")
        with database.writing(self.path), self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO meta VALUES ('stopped', ?)", (str(trials),)
            )


def open_or_create(
    path: str | Path,
    spec: CampaignSpec,
    *,
    chunk: int | None = None,
    shard: Shard | None = None,
) -> Store:
    """Open the store of a campaign for its one driver, made new if there is none.

    Args:
        path: the SQLite file; its folder is created.
        spec: what the store must hold.
        chunk: trials of one transaction in a new store, by default those of
            :data:`~rasp.campaign.chunks.TRIALS`; an existing one keeps its own.
        shard: the part of the campaign the store is for; ``None`` for the whole.

    Raises:
        StoreMismatchError: the file belongs to another specification, shard or schema, is damaged
            or is no campaign store (it is left as it is), or another process is filling it.
        ConfigError: nothing can be written at ``path``, ``chunk < 1``, or the campaign cannot be
            cut into these shards.
        PrerequisiteError: the disk is full.
    """
    path = Path(path)
    chunk = TRIALS[spec.format] if chunk is None else chunk
    if chunk < 1:
        raise ConfigError(f"A chunk must hold at least one trial, got {chunk}.")
    there = path.exists()
    if there:
        _check(path, spec, shard)
    elif shard is not None:
        check_shard(shard, spec, Chunks(spec.rounds(), chunk))
    lock = locks.claim(path)
    try:
        if not path.exists():
            meta = {"spec": spec.to_json(), "chunk": str(chunk)}
            database.create(path, meta | ({} if shard is None else {"shard": str(shard)}))
        elif not there:
            _check(path, spec, shard)
        with database.writing(path):
            return Store(path, database.connect(path), lock)
    except BaseException:
        os.close(lock)
        raise


def read(path: str | Path) -> Contents:
    """Read a store, finished or not, without changing it; a driver may be filling it.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file is no campaign store of this schema, or is damaged.
    """
    with reader.opened(path) as source:
        return source.contents()


def _check(path: Path, spec: CampaignSpec, shard: Shard | None) -> None:
    """Refuse a file that is not the whole, undamaged store of ``spec`` and ``shard``."""
    if not path.is_file():
        raise database.damaged(path, "it is no file")
    with reader.opened(path) as source:
        source.check_spec(spec)
        if source.shard != shard:
            raise StoreMismatchError(
                f"Store '{path}' is for {_part(source.shard)} of the campaign, asked is "
                f"{_part(shard)}. Name another file."
            )
        source.check_whole()


def _part(shard: Shard | None) -> str:
    return "the whole" if shard is None else f"shard {shard}"
