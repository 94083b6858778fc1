"""Join the stores of campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rasp import runs
from rasp.progress import Progress, silent
from rasp.verbs._shared import STORE, Result

if TYPE_CHECKING:
    from collections.abc import Sequence


class Merged(Result):
    """A joined campaign.

    Attributes:
        out: the directory.
        trials: trials in it.
        asked: trials the campaign asks for.
        shards: shards that the missing trials belong to, such as ``"2/4"``, if shards of one number
            were joined.
    """

    out: Path
    trials: int
    asked: int
    shards: tuple[str, ...]


def merge(out: str | Path, inputs: Sequence[str | Path], *, progress: Progress = silent) -> Merged:
    """Join the stores of shards, or of any runs of one campaign, into one run directory.

    :func:`rasp.verbs.inject` on ``out`` with the arguments of the shards but ``shard`` runs what is
    missing and writes the summary.

    Args:
        out: directory to write; a store of the campaign that is there already is joined too.
        inputs: directories that :func:`rasp.verbs.inject` wrote; they are not changed.
        progress: hears about trials.
    """
    from rasp.campaign.merge import merge as join

    target = runs.directory(out, "merge")
    found = join(target / STORE, [Path(run) / STORE for run in inputs], progress=progress)
    shards = tuple(map(str, found.shards))
    return Merged(out=target, trials=found.trials, asked=found.asked, shards=shards)
