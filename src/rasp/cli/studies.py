"""The command that runs a whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rasp.cli.console import Console, Table, facts
from rasp.cli.options import DataDir, Device, Json

studies = typer.Typer()


@studies.command()
def study(
    *,
    file: Annotated[Path, typer.Argument(help="TOML file, such as studies/lenet5-mnist.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of networks and campaigns to write or to go on in."),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Directory of the summary.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Work on this seed of the study only, repeatable; by default all."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Processes of this machine that inject.")] = 1,
    json: Json = False,
) -> None:
    """Train, prune, choose, inject and compare, as a TOML file asks."""
    from rasp.study import load
    from rasp.study import study as run
    from rasp.study.page import COLUMNS, cells

    with Console(json_output=json) as console:
        found = run(
            load(file),
            out=out,
            results=results,
            seeds=seed,
            data_dir=data_dir,
            device=device,
            workers=workers,
            progress=console.progress,
        )
    if found.found is None:
        console.result(
            {"out": str(found.out), "summary": None},
            facts(("networks and campaigns", found.out), ("summary", "when all seeds are done")),
        )
        return
    console.result(
        found.found.model_dump(mode="json"),
        Table(
            [*COLUMNS[:3], *(f">{name}" for name in COLUMNS[3:])],
            [cells(entry) for entry in found.found.comparisons],
            notes=["", f"Summary: {found.summary}", f"Report: {found.report}"],
        ),
    )
