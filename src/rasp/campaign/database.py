"""The SQLite file behind a campaign store: its schema, how it is opened, what is refused.

The file is in WAL mode: one driver writes it while others may read.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING

from rasp.campaign.contents import COLUMNS
from rasp.errors import PrerequisiteError, RaspError, StoreMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "SCHEMA_VERSION",
    "Connection",
    "another",
    "connect",
    "create",
    "damaged",
    "reading",
    "staged",
    "writing",
]

SCHEMA_VERSION = 2
APPLICATION_ID = 0x52415350  # "RASP"

_INTEGERS = ", ".join(f"{name} INTEGER NOT NULL" for name in COLUMNS[1:])
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE strata (
  stratum INTEGER PRIMARY KEY, layer TEXT NOT NULL, model TEXT NOT NULL, weight REAL NOT NULL,
  bits TEXT NOT NULL
) STRICT;
CREATE TABLE images (
  image INTEGER PRIMARY KEY, label INTEGER NOT NULL, top1 INTEGER NOT NULL,
  confidence REAL NOT NULL, margin REAL NOT NULL
) STRICT;
CREATE TABLE rounds (round INTEGER PRIMARY KEY, plan BLOB NOT NULL) STRICT;
CREATE TABLE chunks (
  chunk INTEGER PRIMARY KEY, trials INTEGER NOT NULL, summary BLOB NOT NULL
) STRICT;
CREATE TABLE injections (
  trial INTEGER PRIMARY KEY, {_INTEGERS}, weight REAL NOT NULL
) STRICT;
CREATE VIEW trials AS
  SELECT trial, layer, model, {", ".join(COLUMNS[2:])}, injections.weight AS weight
  FROM injections JOIN strata USING (stratum);
"""  # noqa: S608


def create(path: Path, meta: Mapping[str, str]) -> None:
    """Build an empty store beside its place and move it there whole.

    Raises:
        PrerequisiteError: the disk is full or the file cannot be written.
    """
    with staged(path) as new, writing(path), closing(sqlite3.connect(new)) as connection:
        connection.executescript(_SCHEMA)
        with connection:
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())


def connect(path: Path) -> Connection:
    """A connection that writes; a power cut may cost the last chunks, but never damages."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


@contextmanager
def reading(path: Path) -> Iterator[Connection]:
    """A connection that changes nothing, to a store of this schema.

    Raises:
        PrerequisiteError: there is no such file.
        StoreMismatchError: the file is no campaign store of this schema, or, now or in the body of
            the ``with``, turns out to be damaged.
    """
    if not path.is_file():
        raise PrerequisiteError(f"No campaign store at '{path}'. Run 'rasp inject' to make one.")
    frozen = "" if Path(f"{path}-wal").exists() else "&immutable=1"  # no log: the file is all
    uri = f"{path.absolute().as_uri()}?mode=ro{frozen}"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            _check_schema(path, connection)
            [(page,)] = connection.execute("PRAGMA page_size")
            if frozen and path.stat().st_size % page:
                raise damaged(path, "it ends inside a page")
            yield connection
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what SQLite says when nothing can be written into one sentence.

    Raises:
        PrerequisiteError: the disk is full or the file cannot be written.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise PrerequisiteError(
            f"Cannot write to '{path}': {error}. What was finished is kept; make room "
            f"and run the same command to resume."
        ) from error


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to build a store in, which takes that place if the body succeeds."""
    new = path.with_name(f"{path.name}.new")
    beside = (new, *(Path(f"{new}{suffix}") for suffix in ("-wal", "-shm", "-journal", ".lock")))
    for leftover in beside:
        leftover.unlink(missing_ok=True)
    try:
        yield new
        new.replace(path)
    finally:
        for unfinished in beside:
            unfinished.unlink(missing_ok=True)


def _check_schema(path: Path, connection: Connection) -> None:
    [(application,)] = connection.execute("PRAGMA application_id")
    if application != APPLICATION_ID:
        raise StoreMismatchError(f"'{path}' is not a campaign store. Name another file.")
    [(version,)] = connection.execute("PRAGMA user_version")
    if version != SCHEMA_VERSION:
        raise StoreMismatchError(
            f"Store '{path}' has schema version {version}, this rasp reads version "
            f"{SCHEMA_VERSION}. Use the rasp that made it, or name another file."
        )


def another(path: Path, reason: str) -> RaspError:
    """The error for a store that belongs to another campaign."""
    return StoreMismatchError(
        f"Store '{path}' belongs to another campaign: {reason}. Name another file."
    )


def damaged(path: Path, reason: str) -> RaspError:
    """The error for a store that cannot be trusted."""
    return StoreMismatchError(
        f"Store '{path}' is damaged or not a campaign store ({reason}). It was left as it is; "
        f"restore a copy or name another file."
    )
