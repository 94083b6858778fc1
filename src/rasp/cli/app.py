"""The command line: one thin command a verb.

Exit codes: 0 done, 1 a gate failed, 2 usage, 3 something is missing, 4 another store or schema,
130 interrupted and resumable.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rasp.cli.console import Console, Table
from rasp.errors import ConfigError, RaspError
from rasp.runs import Interrupted

if TYPE_CHECKING:
    from rasp.statistics import Rate
    from rasp.verbs import LayerInjected

GATE_FAILED = 1
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

Model = Annotated[
    str,
    typer.Option(
        help="Zoo name, checkpoint directory, package.module:factory, torchvision:NAME, timm:NAME."
    ),
]
Injectable = Annotated[
    str,
    typer.Option(
        help="Zoo name, checkpoint directory, package.module:factory, torchvision:NAME, timm:NAME; "
        "rtl:FOLDER#LAYER for a layer of RTL records with its one input."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weight file (.safetensors, .pt, .pth, .th) for a name.")
]
Data = Annotated[
    str | None,
    typer.Option(help="Data set; a checkpoint knows its own. See 'rasp ls data'."),
]
DataDir = Annotated[
    Path | None, typer.Option(envvar="RASP_DATA", help="Where data sets lie or are put.")
]
Out = Annotated[
    Path | None, typer.Option(help="Directory to write or to go on in; a new one under runs/.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Trust = Annotated[
    bool, typer.Option(help="Let a checkpoint import the package.module:factory it names.")
]
Device = Annotated[str, typer.Option(help="Torch device.")]
Format = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or int8; by default int8 for a quantised checkpoint, else fp32."),
]
Calibration = Annotated[int, typer.Option(help="Training images to calibrate on.")]
Accelerator = Annotated[
    str, typer.Option(help="Configuration name or TOML file. See 'rasp ls accelerators'.")
]


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
        _facts(
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
        _facts(
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
    scope: Annotated[str, typer.Option(help="uniform or global.")] = "uniform",
    round_to: Annotated[int, typer.Option(help="Widths are multiples of it.")] = 1,
    iterations: Annotated[int, typer.Option(help="Steps to the budget.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(help="Fine-tuning after every step, 0 for none; a third of training's."),
    ] = None,
    lam: Annotated[
        float, typer.Option("--lambda", help="Weight of the vulnerability in 'reliability'.")
    ] = 0.5,
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
            lam=lam,
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
        _facts(
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
        _facts(
            ("checkpoint", found.out),
            ("top-1 fp32, validation", found.fp32),
            ("top-1 int8, validation", found.int8),
        ),
    )


@app.command()
def inject(
    *,
    model: Injectable,
    format: Format = None,  # noqa: A002
    trials: Annotated[int, typer.Option(help="Faults to inject.")] = 10_000,
    images: Annotated[int, typer.Option(help="Test images to inject them in.")] = 200,
    faults: Annotated[
        str,
        typer.Option(
            help="fidelity, nvdla (every datapath flip-flop of the accelerator) or memory "
            "(its convolution buffer)."
        ),
    ] = "fidelity",
    fault_model: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME=WEIGHT, repeatable; instead of --faults."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer to inject in, repeatable; by default all.")
    ] = None,
    layer_weights: Annotated[
        str | None,
        typer.Option(
            help="cycles, window, storage, macs, neurons or uniform; by default window for "
            "nvdla, storage for memory, else cycles."
        ),
    ] = None,
    accelerator: Accelerator = "nv_small",
    name: Annotated[str | None, typer.Option(help="Label in reports.")] = None,
    weights: Weights = None,
    data: Data = None,
    calibration: Calibration = 256,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    shard: Annotated[
        str | None,
        typer.Option(help="k/N: run part k of N in its own --out; 'rasp merge' joins them."),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Processes of this machine that inject.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Inject on a Ray cluster: local starts one here, auto joins the running one, or "
            "HOST:PORT.",
            metavar="ADDRESS",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Inject single-bit upsets and count what becomes of the answers."""
    from rasp import verbs

    models = dict(map(_fault_model, fault_model)) if fault_model else None
    if model.startswith("rtl:"):
        own = {"--weights": weights, "--data": data, "--layer": layer, "--name": name}
        if given := [option for option, value in own.items() if value]:
            raise ConfigError(f"A recorded layer has its own tensors. Leave {given[0]} out.")
        with Console(json_output=json) as console:
            result = verbs.inject_layer(
                model,
                format=format,
                trials=trials,
                faults=faults,
                fault_models=models,
                accelerator=accelerator,
                confidence=confidence,
                out=out,
                seed=seed,
                device=device,
                progress=console.progress,
            )
        _show_layer(console, result)
        return
    with Console(json_output=json) as console:
        found = verbs.inject(
            model,
            format=format,
            trials=trials,
            images=images,
            faults=faults,
            fault_models=models,
            layers=layer,
            layer_weights=layer_weights,
            accelerator=accelerator,
            name=name,
            weights=weights,
            data=data,
            calibration=calibration,
            confidence=confidence,
            shard=shard,
            out=out,
            seed=seed,
            data_dir=data_dir,
            trust_factory=trust_factory,
            device=device,
            workers=workers,
            ray=ray,
            progress=console.progress,
        )
    arm = found.arm
    part = (
        f"Shard {found.shard} only: {found.missing:,} trials of other shards are missing until "
        f"'rasp merge OUT RUN...' joins them."
    )
    console.result(
        found.to_dict(),
        Table(
            ["outcome", ">per fault"],
            [[name, str(rate)] for name, rate in arm.outcomes.items()],
            notes=["", *((part, "") if found.shard else ())],
        ),
        _facts(
            ("run", found.out),
            ("top-1, test", arm.accuracy),
            ("MACs", f"{arm.macs:,}"),
            (f"cycles on {arm.accelerator}", f"{arm.cycles:,}"),
            ("seed", seed),
        ),
    )


@app.command()
def merge(
    *,
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    runs: Annotated[
        list[Path], typer.Argument(help="Directories 'rasp inject' wrote, shards of one campaign.")
    ],
    json: Json = False,
) -> None:
    """Join shards, or other runs of one campaign, into one."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.merge(out, runs, progress=console.progress)
    missing = f"{found.asked - found.trials:,}"
    if found.shards:
        missing += f", of shard {', '.join(found.shards)}"
    console.result(
        found.to_dict(),
        _facts(
            ("run", found.out),
            ("trials", f"{found.trials:,} of {found.asked:,}"),
            ("missing", missing),
            ("summary", f"the same 'rasp inject' without --shard and with --out {found.out}"),
        ),
    )


@app.command()
def export(
    *,
    run: Annotated[Path, typer.Argument(help="Directory 'rasp inject' wrote.")],
    file: Annotated[Path, typer.Argument(help="The .parquet file to write.")],
    json: Json = False,
) -> None:
    """Write every trial of a campaign as a row of a Parquet file."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.export(run, file, progress=console.progress)
    console.result(found.to_dict(), _facts(("file", found.out), ("trials", f"{found.trials:,}")))


@app.command()
def report(
    *,
    runs: Annotated[list[Path], typer.Argument(help="Directories 'rasp inject' wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Directory for every figure as PDF and PNG.")
    ] = None,
    title: Annotated[
        str, typer.Option(help="Heading.")
    ] = "Reliability of pruned and quantised networks",
    json: Json = False,
) -> None:
    """Write one self-contained HTML page from finished campaigns."""
    from rasp import verbs

    found = verbs.report(runs, out=out, figures=figures, title=title)
    Console(json_output=json).result(
        found.to_dict(),
        _facts(
            ("verdict", found.verdict),
            ("report", found.out),
            *(("figure", path) for path in found.figures),
        ),
    )


@app.command()
def fit(
    *,
    run: Annotated[Path, typer.Argument(help="Directory of 'rasp inject --faults nvdla'.")],
    raw_fit_per_mbit: Annotated[
        float, typer.Option(help="Upsets per 10^9 hours and 10^6 flip-flops.")
    ],
    memory_run: Annotated[
        Path | None,
        typer.Option(help="Directory of 'rasp inject --faults memory': count the buffer too."),
    ] = None,
    memory_raw_fit_per_mbit: Annotated[
        float | None, typer.Option(help="The same for memory; the flip-flops' rate by default.")
    ] = None,
    clock_mhz: Annotated[float | None, typer.Option(help="Clock, for a frame rate.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second.")] = None,
    json: Json = False,
) -> None:
    """Failures in time: raw rate, activity, failure rate, FIT; datapath and control apart."""
    from rasp import verbs

    found = verbs.fit(
        run,
        raw_fit_per_mbit=raw_fit_per_mbit,
        memory_run=memory_run,
        memory_raw_fit_per_mbit=memory_raw_fit_per_mbit,
        clock_mhz=clock_mhz,
        fps=fps,
    )
    Console(json_output=json).result(
        found.to_dict(),
        Table([*found.headings], found.rows, notes=["", *found.footnotes]),
    )


@app.command("rtl-check")
def rtl_check(
    *,
    files: Annotated[
        list[Path], typer.Argument(help="Records (JSON lines, gzipped or not); layers.json beside.")
    ],
    accelerator: Accelerator = "nv_small",
    json: Json = False,
) -> None:
    """Compare the fault models with upsets simulated in NVDLA's RTL; exit 1 on a mismatch."""
    from rasp.faults.rtl import check

    found = check(files, accelerator=accelerator)
    Console(json_output=json).result(
        found.to_dict(),
        Table(
            ["register class", ">records", ">modelled", ">exact", ">mismatches"],
            [[str(value) for value in row] for row in found.rows],
            notes=["", *found.footnotes],
        ),
    )
    if not found.ok:
        raise typer.Exit(GATE_FAILED)


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


def _facts(*facts: tuple[str, Path | str | int | Rate]) -> Table:
    return Table(["", ""], [[name, str(value)] for name, value in facts])


def _show_layer(console: Console, found: LayerInjected) -> None:
    rows = [[name, str(rate)] for name, rate in found.by_model.items()]
    console.result(
        found.to_dict(),
        Table(
            ["fault model", ">changes an output"], [*rows, ["all", str(found.changed)]], notes=[""]
        ),
        _facts(
            ("run", found.out),
            (f"cycles of layer {found.layer} on {found.accelerator}", f"{found.window:,}"),
            ("hits a live value", found.activity),
            ("intervals", "about this one input"),
            ("seed", found.spec["seed"]),
        ),
    )


def _fault_model(text: str) -> tuple[str, float]:
    name, separator, weight = text.partition("=")
    if not separator:
        return name, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ConfigError(
            f"--fault-model takes NAME or NAME=WEIGHT, got '{text}'. Example: WEIGHT16=0.3."
        ) from None
