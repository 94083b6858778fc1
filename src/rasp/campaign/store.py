"""Rows of a campaign in one SQLite file that survives being killed.

A chunk of trials is one transaction, so a store holds whole chunks only. The file is written in
WAL mode by one driver at a time (an advisory lock beside it) and can be read meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from rasp.campaign.spec import CampaignSpec
from rasp.errors import ConfigError, PrerequisiteError, RaspError, StoreMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

SCHEMA_VERSION = 1
APPLICATION_ID = 0x52415350  # "RASP"
CHUNK = 4096
"""Trials of one transaction, the work a kill can cost."""

OUTCOMES = ("masked", "sdc1", "sdc5", "sdc10", "sdc20", "critical", "due")
"""Outcomes of an injection, 0 or 1 each."""

COLUMNS = (
    *("trial", "stratum", "image"),
    *("kernel", "channel", "r", "s", "pixel", "bit", "value", "changed"),
    *OUTCOMES,
)
"""Columns of a block of rows as :meth:`Store.commit` takes it."""

_INTEGERS = ", ".join(f"{name} INTEGER NOT NULL" for name in COLUMNS[1:])
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE strata (
  stratum INTEGER PRIMARY KEY, layer TEXT NOT NULL, model TEXT NOT NULL, weight REAL NOT NULL
) STRICT;
CREATE TABLE images (
  image INTEGER PRIMARY KEY, label INTEGER NOT NULL, top1 INTEGER NOT NULL,
  confidence REAL NOT NULL, margin REAL NOT NULL
) STRICT;
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, trials INTEGER NOT NULL) STRICT;
CREATE TABLE injections (trial INTEGER PRIMARY KEY, {_INTEGERS}) STRICT;
CREATE VIEW trials AS
  SELECT trial, layer, model, {", ".join(COLUMNS[2:])}
  FROM injections JOIN strata USING (stratum);
"""  # noqa: S608

# One integer a trial: stratum, bit + 1, image and a bit for each outcome. Reading a million of them
# and grouping in numpy is several times faster than GROUP BY.
_EXPRESSIONS = {name: name for name in OUTCOMES} | {"live": "(kernel >= 0 OR pixel >= 0)"}
_FLAGS = " | ".join(f"({sql} << {index})" for index, sql in enumerate(_EXPRESSIONS.values()))
_PACKED = f"(stratum << 40) | ((bit + 1) << 32) | (image << 8) | {_FLAGS}"


class StratumFacts(NamedTuple):
    """A layer and fault model, and the share of the trials it is drawn with."""

    layer: str
    model: str
    weight: float


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
        trials: ``(m,)`` trials.
    """

    stratum: NDArray[np.int64]
    bit: NDArray[np.int64]
    image: NDArray[np.int64]
    outcomes: NDArray[np.int64]
    trials: NDArray[np.int64]

    def events(self, outcome: str) -> NDArray[np.int64]:
        """``(m,)`` trials with an outcome, or ``"live"`` ones."""
        return self.trials * (self.outcomes >> list(_EXPRESSIONS).index(outcome) & 1)


class Contents(NamedTuple):
    """All a summary needs of a store."""

    spec: CampaignSpec
    strata: tuple[StratumFacts, ...]
    images: tuple[ImageFacts, ...]
    tallies: Tallies


class Store:
    """The one driver's handle on a store; from :func:`open_or_create`, closed by ``with``."""

    def __init__(
        self, path: Path, spec: CampaignSpec, connection: sqlite3.Connection, lock: int
    ) -> None:
        self.path = path
        self.spec = spec
        self._connection = connection
        self._lock = lock
        [(chunk,)] = connection.execute("SELECT value FROM meta WHERE key = 'chunk'")
        self.chunk = int(chunk)

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

    def span(self, chunk: int) -> range:
        """Trials of a chunk."""
        start = chunk * self.chunk
        return range(start, min(start + self.chunk, self.spec.trials))

    def missing(self) -> tuple[int, ...]:
        """Chunks that are not in the store, in order."""
        done = {chunk for (chunk,) in self._connection.execute("SELECT chunk FROM chunks")}
        return tuple(c for c in range(-(-self.spec.trials // self.chunk)) if c not in done)

    def describe(self, strata: Sequence[StratumFacts], images: Sequence[ImageFacts]) -> None:
        """Record what the trials refer to, or hold it against what was recorded before.

        Raises:
            StoreMismatchError: the store was filled with other strata or other images.
        """
        recorded = _strata(self._connection)
        if not recorded:
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO strata VALUES (?, ?, ?, ?)",
                    [(index, *facts) for index, facts in enumerate(strata)],
                )
                self._connection.executemany(
                    "INSERT INTO images VALUES (?, ?, ?, ?, ?)",
                    [(index, *facts) for index, facts in enumerate(images)],
                )
            return
        if recorded != tuple(strata):
            raise _other(self.path, "its layers and fault models have other shares of the trials")
        seen = [facts[:2] for facts in _images(self._connection)]
        if seen != [facts[:2] for facts in images]:
            raise _other(self.path, "its images have other labels or other fault-free answers")

    def commit(self, chunk: int, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Write a chunk in one transaction; a chunk that is there already stays as it is.

        Args:
            chunk: number of the chunk.
            rows: ``(len(span(chunk)), len(COLUMNS))`` int64, columns in that order.
            weight: population share of each trial over the probability it was drawn with.

        Raises:
            PrerequisiteError: the disk is full or the file cannot be written.
        """
        if rows[:, 0].tolist() != list(self.span(chunk)):
            raise ValueError(f"chunk {chunk} must hold the trials {self.span(chunk)} in order")
        places = ", ".join("?" * len(COLUMNS))
        try:
            with self._connection:
                fresh = self._connection.execute(
                    "INSERT OR IGNORE INTO chunks VALUES (?, ?)", (chunk, len(rows))
                )
                if fresh.rowcount:
                    self._connection.executemany(
                        f"INSERT INTO injections VALUES ({places})",  # noqa: S608
                        rows.tolist(),
                    )
        except sqlite3.OperationalError as error:
            raise PrerequisiteError(
                f"Cannot write to '{self.path}': {error}. What was finished is kept; make room "
                f"and run the same command to resume."
            ) from error


def open_or_create(path: str | Path, spec: CampaignSpec, *, chunk: int = CHUNK) -> Store:
    """Open the store of a campaign for its one driver, made new if there is none.

    Args:
        path: the SQLite file; its folder is created.
        spec: what the store must hold.
        chunk: trials of one transaction in a new store; an existing one keeps its own.

    Raises:
        StoreMismatchError: the file belongs to another specification or schema, is damaged or is
            no campaign store (it is left as it is), or another process is filling it.
        ConfigError: nothing can be written at ``path``, or ``chunk < 1``.
        PrerequisiteError: the disk is full.
    """
    path = Path(path)
    if chunk < 1:
        raise ConfigError(f"A chunk must hold at least one trial, got {chunk}.")
    there = path.exists()
    if there:
        _check(path, spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"Cannot write a store at '{path}': {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists():
            _create(path, spec, chunk)
        elif not there:
            _check(path, spec)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return Store(path, spec, connection, lock)
    except BlockingIOError:
        os.close(lock)
        raise StoreMismatchError(
            f"Store '{path}' is being filled by another process. Wait for it, or name another file."
        ) from None
    except BaseException:
        os.close(lock)
        raise


def read(path: str | Path) -> Contents:
    """Read a store, finished or not, without changing it; a driver may be filling it.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file is no campaign store of this schema, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise PrerequisiteError(f"No campaign store at '{path}'. Run 'rasp inject' to make one.")
    try:
        with closing(_reader(path)) as connection:
            spec = _spec(path, connection)
            packed = connection.execute(f"SELECT {_PACKED} FROM injections")  # noqa: S608
            tallies = _tallies(np.fromiter((key for (key,) in packed), dtype=np.int64))
            return Contents(spec, _strata(connection), _images(connection), tallies)
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _create(path: Path, spec: CampaignSpec, chunk: int) -> None:
    """Build the file beside its place and move it there whole."""
    new = path.with_name(f"{path.name}.new")
    beside = (new, Path(f"{new}-wal"), Path(f"{new}-shm"))
    for leftover in beside:
        leftover.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(new)) as connection:
            connection.executescript(_SCHEMA)
            with connection:
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("spec", spec.to_json()), ("chunk", str(chunk))],
                )
        new.replace(path)
    except sqlite3.OperationalError as error:
        for unfinished in beside:
            unfinished.unlink(missing_ok=True)
        raise PrerequisiteError(f"Cannot write a store at '{path}': {error}.") from error


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing: without a log beside it, the file is all there is."""
    frozen = "" if Path(f"{path}-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{frozen}", uri=True)


def _check(path: Path, spec: CampaignSpec) -> None:
    """Refuse a file that is not the whole store of ``spec``."""
    try:
        with closing(_reader(path)) as connection:
            stored = _spec(path, connection)
            if differing := stored.differences(spec):
                name = differing[0]
                raise _other(
                    path,
                    f"its {name} is {getattr(stored, name)!r}, asked is {getattr(spec, name)!r}",
                )
            [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error
    if verdict != "ok":
        raise _damaged(path, verdict)


def _spec(path: Path, connection: sqlite3.Connection) -> CampaignSpec:
    [(application,)] = connection.execute("PRAGMA application_id")
    if application != APPLICATION_ID:
        raise StoreMismatchError(f"'{path}' is not a campaign store. Name another file.")
    [(version,)] = connection.execute("PRAGMA user_version")
    if version != SCHEMA_VERSION:
        raise StoreMismatchError(
            f"Store '{path}' has schema version {version}, this rasp reads version "
            f"{SCHEMA_VERSION}. Use the rasp that made it, or name another file."
        )
    [(text,)] = connection.execute("SELECT value FROM meta WHERE key = 'spec'")
    try:
        return CampaignSpec.from_json(text)
    except ConfigError as error:
        raise _damaged(path, str(error)) from error


def _tallies(packed: NDArray[np.int64]) -> Tallies:
    keys, trials = np.unique(packed, return_counts=True)
    return Tallies(
        stratum=keys >> 40,
        bit=(keys >> 32 & 0xFF) - 1,
        image=keys >> 8 & 0xFFFFFF,
        outcomes=keys & 0xFF,
        trials=trials,
    )


def _strata(connection: sqlite3.Connection) -> tuple[StratumFacts, ...]:
    rows = connection.execute("SELECT layer, model, weight FROM strata ORDER BY stratum")
    return tuple(StratumFacts(*row) for row in rows)


def _images(connection: sqlite3.Connection) -> tuple[ImageFacts, ...]:
    rows = connection.execute("SELECT label, top1, confidence, margin FROM images ORDER BY image")
    return tuple(ImageFacts(*row) for row in rows)


def _other(path: Path, reason: str) -> RaspError:
    return StoreMismatchError(
        f"Store '{path}' belongs to another campaign: {reason}. Name another file."
    )


def _damaged(path: Path, reason: str) -> RaspError:
    return StoreMismatchError(
        f"Store '{path}' is damaged or not a campaign store ({reason}). It was left as it is; "
        f"restore a copy or name another file."
    )
