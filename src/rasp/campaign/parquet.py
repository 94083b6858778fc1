"""Trials as a Parquet file, for pandas, Polars, DuckDB or R."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rasp import _lazy, checkpoint
from rasp.campaign import reader
from rasp.campaign.contents import COLUMNS, OUTCOMES
from rasp.campaign.database import SCHEMA_VERSION
from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from rasp.campaign.reader import Reader
    from rasp.progress import Progress

GROUP = 2**17
"""Trials of a row group at least, the most that is held in memory with one chunk more."""


def write(store: Path, out: Path, *, progress: Progress = silent) -> int:
    """Write a store's trials, finished or not; the file appears whole or not at all.

    Columns are ``layer`` and ``model`` (dictionary-encoded), :data:`rasp.campaign.store.COLUMNS`
    (outcomes as booleans, the rest as int64) and ``weight``. The file's metadata has ``rasp.spec``,
    the campaign's specification as JSON, and ``rasp.schema_version``.

    Args:
        store: the SQLite file; it is not changed, and a driver may be filling it.
        out: the file to write.
        progress: hears of written trials.

    Returns:
        Rows in the file.

    Raises:
        PrerequisiteError: there is no such store, pyarrow is not installed, or the disk is full.
        StoreMismatchError: the store is damaged, or of another schema.
    """
    arrow = _lazy.require("pyarrow", extra="parquet", feature="The Parquet export")
    parquet = _lazy.require("pyarrow.parquet", extra="parquet", feature="The Parquet export")
    rows = 0
    with reader.opened(store) as source, checkpoint.staged(out) as new:
        labels = [
            arrow.array([getattr(facts, name) for facts in source.strata], arrow.string())
            for name in ("layer", "model")
        ]
        schema = _schema(arrow, source)
        with parquet.ParquetWriter(new, schema, compression="zstd") as writer:
            for columns, weight in _groups(source):
                stratum = arrow.array(columns[:, COLUMNS.index("stratum")].astype(np.int32))
                named = [arrow.DictionaryArray.from_arrays(stratum, names) for names in labels]
                values = [
                    arrow.array(column.astype(bool) if name in OUTCOMES else column)
                    for name, column in zip(COLUMNS, columns.T, strict=True)
                ]
                arrays = [*named, *values, arrow.array(weight)]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
                rows += len(weight)
                progress("export", rows, source.trials)
    return rows


def _groups(source: Reader) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Rows of many chunks at once, in the order of the trials."""
    waiting: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    chunks = source.present()
    for chunk in chunks:
        waiting.append(source.rows(chunk))
        if chunk == chunks[-1] or sum(len(weight) for _, weight in waiting) >= GROUP:
            columns, weights = zip(*waiting, strict=True)
            yield np.concatenate(columns), np.concatenate(weights)
            waiting = []


def _schema(arrow: Any, source: Reader) -> Any:
    name = arrow.dictionary(arrow.int32(), arrow.string())
    types = {column: arrow.int64() for column in COLUMNS}
    types |= dict.fromkeys(OUTCOMES, arrow.bool_())
    fields = {"layer": name, "model": name, **types, "weight": arrow.float64()}
    metadata = {"rasp.spec": source.spec.to_json(), "rasp.schema_version": str(SCHEMA_VERSION)}
    return arrow.schema(list(fields.items()), metadata=metadata)
