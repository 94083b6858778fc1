"""Join stores of one campaign, such as its shards, into one store."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rasp import locks
from rasp.campaign import database, reader, store
from rasp.campaign.chunks import Shard
from rasp.errors import ConfigError, StoreMismatchError
from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasp.campaign.reader import Reader
    from rasp.progress import Progress


class Merged(NamedTuple):
    """What a joined store holds.

    Attributes:
        trials: trials in it.
        asked: trials it is for.
        missing: chunks that are still to run.
        shards: shards that those chunks belong to, if the stores were shards of one number.
    """

    trials: int
    asked: int
    missing: tuple[int, ...]
    shards: tuple[Shard, ...]


def merge(out: str | Path, inputs: Sequence[str | Path], *, progress: Progress = silent) -> Merged:
    """Join stores of one specification and chunk size; ``out`` appears whole or not at all.

    A store that is at ``out`` already is one of the inputs. Every row is held against the summary
    of its chunk on the way.

    Args:
        out: the SQLite file to write.
        inputs: the stores, finished or not; they are not changed.
        progress: hears of copied trials.

    Raises:
        ConfigError: there is no input.
        PrerequisiteError: an input does not exist, or the disk is full.
        StoreMismatchError: an input is damaged or of another campaign (the message says what
            differs), two hold different rows for a trial, or ``out`` is in use.
    """
    out = Path(out)
    if not inputs:
        raise ConfigError("Nothing to merge: name at least one store.")
    with ExitStack() as stack:
        if not out.exists():
            _open(stack, inputs)  # refuse what cannot be joined before anything is made
        lock = locks.claim(out)
        stack.callback(os.close, lock)
        sources = _open(stack, [*([out] if out.exists() else []), *inputs])
        new = stack.enter_context(database.staged(out))
        first = sources[0]
        with store.open_or_create(new, first.spec, chunk=first.chunks.size) as target:
            target.describe(first.strata, first.images)
            _copy(sources, target, progress)
            missing = target.missing()
            trials = sum(len(target.span(chunk)) for chunk in target.present())
            asked = target.trials
    counts = {source.shard.count for source in sources if source.shard is not None}
    shards: set[Shard] = set()
    if len(counts) == 1:
        [count] = counts
        shards = {Shard(chunk % count + 1, count) for chunk in missing}
    return Merged(trials, asked, missing, tuple(sorted(shards)))


def _open(stack: ExitStack, paths: Sequence[str | Path]) -> list[Reader]:
    """Stores of one campaign, those that nothing was written to yet left out."""
    sources = [stack.enter_context(reader.opened(path)) for path in paths]
    first, *others = [source for source in sources if source.strata] or sources
    for other in others:
        other.check_spec(first.spec)
        if other.chunks.size != first.chunks.size:
            raise StoreMismatchError(
                f"Store '{other.path}' is cut into chunks of {other.chunks.size} trials, "
                f"'{first.path}' into chunks of {first.chunks.size}. Merge stores of one size."
            )
        other.check_facts(first.strata, first.images)
    return [first, *others]


def _copy(sources: Sequence[Reader], target: store.Store, progress: Progress) -> None:
    held = [set(source.present()) for source in sources]
    for source in sources:
        for number, plan in source.plans.items():
            if target.plan(number) not in (None, plan):
                raise _disagree(source, f"draws the trials of round {number} in another way")
            target.record_plan(number, plan)
    for chunk in sorted(set[int]().union(*held)):
        having = [s for s, chunks in zip(sources, held, strict=True) if chunk in chunks]
        columns, weight = having[0].rows(chunk)
        for other in having[1:]:
            theirs, weights = other.rows(chunk)
            if not (np.array_equal(columns, theirs) and np.array_equal(weight, weights)):
                raise _disagree(other, f"has other rows for chunk {chunk} than {having[0].path}")
        target.commit(chunk, columns, weight)
        progress("merge", target.span(chunk).stop, target.spec.trials)
    for source in sources:
        if (stopped := source.stopped) is not None:
            if target.present() != tuple(
                range(target.chunks.before(target.chunks.ending(stopped)))
            ):
                raise _disagree(source, f"stopped after {stopped} trials")
            target.finish(stopped)


def _disagree(source: Reader, how: str) -> StoreMismatchError:
    return StoreMismatchError(
        f"Store '{source.path}' {how}, so the stores are not of one campaign. Nothing was written."
    )
