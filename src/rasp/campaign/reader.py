"""Reading a store: its facts, the rows of a chunk, tallies of all of them."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rasp.campaign import database
from rasp.campaign.chunks import Chunks, Shard
from rasp.campaign.contents import (
    COLUMNS,
    ENTRY_BYTES,
    TOTALS,
    Contents,
    ImageFacts,
    StratumFacts,
    Tallies,
    pack,
    tally,
    totals,
)
from rasp.campaign.spec import CampaignSpec
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rasp.errors import RaspError


class Reader:
    """A store that is open for reading; from :func:`opened`.

    Attributes:
        path: the SQLite file.
        spec: what the campaign asks.
        chunks: how its trials are cut.
        shard: the part of the campaign that this store is for; ``None`` for the whole.
    """

    def __init__(self, path: Path, connection: database.Connection) -> None:
        self.path = path
        self._connection = connection
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        try:
            self.spec = CampaignSpec.from_json(meta["spec"])
            self.chunks = Chunks(self.spec.rounds(), int(meta["chunk"]))
            self.shard = Shard.parse(meta["shard"]) if "shard" in meta else None
        except (ConfigError, KeyError, ValueError) as error:
            raise database.damaged(path, str(error)) from error

    @property
    def stopped(self) -> int | None:
        """Trials after which the campaign stopped early, by its stopping rule."""
        found = self._connection.execute("SELECT value FROM meta WHERE key = 'stopped'").fetchone()
        return None if found is None else int(found[0])

    @property
    def strata(self) -> tuple[StratumFacts, ...]:
        """What the trials' ``stratum`` refers to; empty before a driver described it."""
        rows = self._connection.execute(
            "SELECT layer, model, weight, bits FROM strata ORDER BY stratum"
        )
        return tuple(StratumFacts(*row) for row in rows)

    @property
    def images(self) -> tuple[ImageFacts, ...]:
        """What the trials' ``image`` refers to; empty before a driver described it."""
        rows = self._connection.execute(
            "SELECT label, top1, confidence, margin FROM images ORDER BY image"
        )
        return tuple(ImageFacts(*row) for row in rows)

    @property
    def plans(self) -> dict[int, bytes]:
        """Recorded plan of each round that has one."""
        return dict(self._connection.execute("SELECT round, plan FROM rounds ORDER BY round"))

    def present(self) -> tuple[int, ...]:
        """Chunks in the store, in order."""
        rows = self._connection.execute("SELECT chunk FROM chunks ORDER BY chunk")
        return tuple(chunk for (chunk,) in rows)

    def missing(self) -> tuple[int, ...]:
        """Chunks the store is for but does not hold, in order; none if the campaign stopped."""
        if self.stopped is not None:
            return ()
        done = set(self.present())
        return tuple(c for c in range(len(self.chunks)) if c not in done and self._owns(c))

    @property
    def trials(self) -> int:
        """Trials the store is for: of its shard, up to where it stopped."""
        if self.stopped is not None:
            return self.stopped
        if self.shard is None:
            return self.spec.trials
        return sum(len(self.chunks.span(c)) for c in range(len(self.chunks)) if self._owns(c))

    def rows(self, chunk: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Columns ``(n, len(COLUMNS))`` and weights ``(n,)`` of a chunk that is present.

        Raises:
            StoreMismatchError: the rows are not those that were summed up.
        """
        span = self.chunks.span(chunk)
        within = "FROM injections WHERE trial BETWEEN ? AND ? ORDER BY trial"
        ends = (span.start, span.stop - 1)
        values = self._connection.execute(f"SELECT {', '.join(COLUMNS)} {within}", ends)
        columns = np.fromiter(chain.from_iterable(values), np.int64).reshape(-1, len(COLUMNS))
        values = self._connection.execute(f"SELECT weight {within}", ends)
        weight = np.fromiter(chain.from_iterable(values), np.float64)
        [(summary,)] = self._connection.execute(
            "SELECT summary FROM chunks WHERE chunk = ?", (chunk,)
        )
        try:
            agree = len(columns) == len(span) and pack(columns, weight) == summary
        except ValueError:
            agree = False
        if not agree:
            raise self._disagreement(chunk)
        return columns, weight

    def tallies(self, rounds: int | None = None) -> Tallies:
        """Trials of the first ``rounds`` rounds, or all there are, counted from the summaries.

        Raises:
            StoreMismatchError: a summary is damaged.
            ValueError: one of these rounds is not complete.
        """
        end = len(self.chunks) if rounds is None else self.chunks.before(rounds)
        if rounds is not None and sum(chunk < end for chunk in self.present()) < end:
            raise ValueError(f"the first {rounds} rounds are not complete")
        summaries = (summary for chunk, summary in self._summaries() if chunk < end)
        try:
            return tally(summaries, strata=len(self.strata), images=self.spec.images)
        except ValueError as error:
            raise database.damaged(self.path, str(error)) from error

    def contents(self) -> Contents:
        """All a summary needs."""
        return Contents(self.spec, self.strata, self.images, self.tallies(), self.stopped)

    def check_spec(self, spec: CampaignSpec) -> None:
        """Refuse a store of another campaign.

        Raises:
            StoreMismatchError: a field of the specification differs; the message names it.
        """
        if differing := self.spec.differences(spec):
            name = differing[0]
            raise database.another(
                self.path,
                f"its {name} is {getattr(self.spec, name)!r}, asked is {getattr(spec, name)!r}",
            )

    def check_facts(self, strata: Sequence[StratumFacts], images: Sequence[ImageFacts]) -> None:
        """Refuse a store whose trials refer to other strata or images.

        Confidences may differ in their last digits between machines and are not compared.

        Raises:
            StoreMismatchError: they differ.
        """
        if self.strata != tuple(strata):
            raise database.another(
                self.path, "its layers and fault models have other shares of the trials"
            )
        if [facts[:2] for facts in self.images] != [facts[:2] for facts in images]:
            raise database.another(
                self.path, "its images have other labels or other fault-free answers"
            )

    def check_whole(self) -> None:
        """Read the whole file and hold sums over the rows against the summary of each chunk.

        Raises:
            StoreMismatchError: the file is damaged.
        """
        [(verdict,)] = self._connection.execute("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise database.damaged(self.path, verdict)
        query = f"SELECT {', '.join(TOTALS)} FROM injections WHERE trial BETWEEN ? AND ?"  # noqa: S608
        for chunk, summary in self._summaries():
            span = self.chunks.span(chunk)
            [(*found, weight)] = self._connection.execute(query, (span.start, span.stop - 1))
            *expected, total = totals(summary)
            if found != expected or not isclose(weight, total):
                raise self._disagreement(chunk)

    def _summaries(self) -> Iterator[tuple[int, bytes]]:
        """Chunks in order, each with its summary."""
        found = self._connection.execute("SELECT chunk, trials, summary FROM chunks ORDER BY chunk")
        for chunk, trials, summary in found:
            there = 0 <= chunk < len(self.chunks) and self._owns(chunk)
            if (
                not there
                or not trials == len(self.chunks.span(chunk)) == len(summary) / ENTRY_BYTES
            ):
                raise database.damaged(
                    self.path, f"a summary of {len(summary)} bytes for chunk {chunk}"
                )
            yield chunk, summary

    def _disagreement(self, chunk: int) -> RaspError:
        return database.damaged(self.path, f"rows of chunk {chunk} differ from their summary")

    def _owns(self, chunk: int) -> bool:
        return self.shard is None or self.shard.owns(chunk)


@contextmanager
def opened(path: str | Path) -> Iterator[Reader]:
    """Open a store, finished or not, without changing it; a driver may be filling it.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file is no campaign store of this schema, or is damaged.
    """
    path = Path(path)
    with database.reading(path) as connection:
        yield Reader(path, connection)
