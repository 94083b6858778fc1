"""The command line: one thin command a verb.

Exit codes: 0 done, 1 a gate failed, 2 usage, 3 something is missing, 4 another store or schema,
130 interrupted and resumable.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rasp.cli.campaigns import campaigns
from rasp.cli.console import Console, Table, facts
from rasp.cli.options import (
    Accelerator,
    Calibration,
    Data,
    DataDir,
    Device,
    Format,
    Json,
    Model,
    Out,
    Seed,
    Trust,
    Weights,
)
from rasp.cli.studies import studies
from rasp.errors import RaspError
from rasp.runs import Interrupted

MISSING = 3
INTERRUPTED = 130


class Group(TyperGroup):
    """Turns errors a user can act on into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RaspError as error:
            Console().note(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"'{error.filename}': " if error.filename else ""
            Console().note(f"error: {where}{error.strerror or error}.")
            raise typer.Exit(MISSING) from None
        except Interrupted as interruption:
            words = ["rasp", *sys.argv[1:]]
            if "--out" not in words:
                words += ["--out", str(interruption.out)]
            Console().note(f"interrupted, finished work is kept. Go on with: {shlex.join(words)}")
            raise typer.Exit(INTERRUPTED) from None
        except KeyboardInterrupt:
            Console().note("interrupted, nothing was written.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Prune a CNN, quantise it, and measure how single-bit upsets in an NVDLA accelerator's "
    "datapath corrupt its answers.",
)


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write or to go on in.")] = Path(
        "runs/demo"
    ),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train, prune, quantise, inject and report LeNet-5 on digits, in under three minutes."""
    from rasp.demo import demo as run

    with Console(json_output=json) as console:
        found = run(out, seed=seed, progress=console.progress)
    console.result(
        found.to_dict(),
        Table(
            [">" + heading if i > 1 else heading for i, heading in enumerate(found.headings)],
            found.rows,
            notes=["", *found.footnotes, "", found.verdict, f"Report: {found.report}"],
        ),
    )


@app.command()
def train(
    *,
    model: Model,
    data: Annotated[str, typer.Option(help="Data set. See 'rasp ls data'.")],
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    out: Out = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train a network from fresh weights."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.train(
            model,
            data,
            epochs=epochs,
            out=out,
            seed=seed,
            data_dir=data_dir,
            device=device,
            progress=console.progress,
        )
    console.result(
        found.to_dict(),
        facts(
            ("checkpoint", found.out),
            ("epochs", found.epochs),
            ("top-1, validation", found.validation),
            ("top-1, test", found.test),
            ("seed", seed),
        ),
    )


@app.command()
def evaluate(
    *,
    model: Model,
    weights: Weights = None,
    data: Data = None,
    format: Format = None,  # noqa: A002
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Images to take.")] = None,
    calibration: Calibration = 256,
    seed: Seed = 0,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    json: Json = False,
) -> None:
    """Measure top-1 with its interval."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.evaluate(
            model,
            weights=weights,
            data=data,
            format=format,
            split=split,
            limit=limit,
            calibration=calibration,
            seed=seed,
            data_dir=data_dir,
            trust_factory=trust_factory,
            progress=console.progress,
        )
    console.result(
        found.to_dict(),
        facts(
            ("model", found.model),
            ("data", f"{found.data}, {found.split} split"),
            ("format", found.format),
            ("top-1", found.accuracy),
        ),
    )


@app.command()
def prune(
    *,
    model: Model,
    criterion: Annotated[str, typer.Option(help="See 'rasp ls criteria'.")],
    channels: Annotated[float | None, typer.Option(help="Share of channels to remove.")] = None,
    macs: Annotated[float | None, typer.Option(help="Share of MACs to keep.")] = None,
    cycles: Annotated[float | None, typer.Option(help="Share of NVDLA cycles to keep.")] = None,
    scope: Annotated[str, typer.Option(help="uniform, global or failures.")] = "uniform",
    round_to: Annotated[int, typer.Option(help="Widths are multiples of it.")] = 1,
    iterations: Annotated[int, typer.Option(help="Steps to the budget.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(help="Fine-tuning after every step, 0 for none; a third of training's."),
    ] = None,
    upset_rate: Annotated[
        float, typer.Option(help="Share of images an upset strikes in a layer in fine-tuning.")
    ] = 0.0,
    distill: Annotated[
        float, typer.Option(help="Share of the dense network's answers in fine-tuning's loss.")
    ] = 0.0,
    lam: Annotated[
        float,
        typer.Option(
            "--lambda", help="Weight of vulnerability in 'reliability', of failures in that scope."
        ),
    ] = 0.5,
    faults: Annotated[
        str, typer.Option(help="Population that --scope failures predicts: fidelity or nvdla.")
    ] = "fidelity",
    format: Annotated[str, typer.Option(help="Format the network is meant for.")] = "int8",  # noqa: A002
    accelerator: Accelerator = "nv_small",
    weights: Weights = None,
    data: Data = None,
    calibration: Calibration = 256,
    out: Out = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Remove whole channels to a budget, then fine-tune."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.prune(
            model,
            criterion=criterion,
            channels=channels,
            macs=macs,
            cycles=cycles,
            scope=scope,
            round_to=round_to,
            iterations=iterations,
            epochs=epochs,
            upset_rate=upset_rate,
            distill=distill,
            lam=lam,
            faults=faults,
            format=format,
            accelerator=accelerator,
            weights=weights,
            data=data,
            calibration=calibration,
            out=out,
            seed=seed,
            data_dir=data_dir,
            trust_factory=trust_factory,
            device=device,
            progress=console.progress,
        )
    widths = [[name, str(before), str(after)] for name, (before, after) in found.widths.items()]
    console.result(
        found.to_dict(),
        Table(["layer", ">channels", ">kept"], widths, notes=[*found.notes, ""]),
        facts(
            ("checkpoint", found.out),
            (
                "MACs",
                f"{found.macs:,} of {found.dense_macs:,} ({found.macs / found.dense_macs:.1%})",
            ),
            ("parameters", f"{found.parameters:,}"),
            ("top-1, validation", found.validation),
            ("seed", seed),
        ),
    )


@app.command()
def quantize(
    *,
    model: Model,
    observer: Annotated[str, typer.Option(help="mse, minmax or percentile.")] = "mse",
    upset_rate: Annotated[
        float,
        typer.Option(
            help="Probability of a bit flip in a value that mse weighs: values saturate earlier."
        ),
    ] = 0.0,
    weights: Weights = None,
    data: Data = None,
    calibration: Calibration = 256,
    out: Out = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    json: Json = False,
) -> None:
    """Calibrate a network for INT8 and save it with its scales."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.quantize(
            model,
            observer=observer,
            upset_rate=upset_rate,
            weights=weights,
            data=data,
            calibration=calibration,
            out=out,
            seed=seed,
            data_dir=data_dir,
            trust_factory=trust_factory,
            progress=console.progress,
        )
    console.result(
        found.to_dict(),
        facts(
            ("checkpoint", found.out),
            ("top-1 fp32, validation", found.fp32),
            ("top-1 int8, validation", found.int8),
        ),
    )


@app.command()
def harden(
    *,
    model: Model,
    mode: Annotated[str, typer.Option(help="clip, or zero for what is outside.")] = "clip",
    scope: Annotated[str, typer.Option(help="Bounds of a layer or of each channel.")] = "layer",
    upset_rate: Annotated[
        float,
        typer.Option(help="Share of values that upsets throw onto a clip's bound: tighter bounds."),
    ] = 0.0,
    weights: Weights = None,
    data: Data = None,
    calibration: Annotated[
        int, typer.Option(help="Training images the bounds are measured on.")
    ] = 1024,
    out: Out = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    json: Json = False,
) -> None:
    """Hold every layer's results to the range they have on training images."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.harden(
            model,
            mode=mode,
            scope=scope,
            upset_rate=upset_rate,
            weights=weights,
            data=data,
            calibration=calibration,
            out=out,
            seed=seed,
            data_dir=data_dir,
            trust_factory=trust_factory,
            progress=console.progress,
        )
    console.result(
        found.to_dict(),
        facts(
            ("checkpoint", found.out),
            ("nodes with bounds", found.nodes),
            ("top-1 without, validation", found.before),
            ("top-1 with, validation", found.after),
        ),
    )


app.add_typer(campaigns)
app.add_typer(studies)


@app.command("ls")
def list_names(
    *,
    what: Annotated[
        str | None,
        typer.Argument(
            help="models, criteria, fault-models, accelerators, registers or data; all if absent."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the names that other commands take."""
    from rasp.cli.listing import listing

    found = listing(what)
    console = Console(json_output=json)
    console.result(
        found,
        *[
            Table(["name", ""], list(names.items()), title=kind, notes=[""])
            for kind, names in found.items()
        ],
    )


def main() -> None:
    """Run the command line and exit with its code."""
    app()
