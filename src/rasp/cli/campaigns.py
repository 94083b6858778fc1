"""Commands on campaigns: inject, merge, export, report, fit, rtl-check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rasp.cli.console import Console, Table, facts
from rasp.cli.options import (
    Accelerator,
    Calibration,
    Data,
    DataDir,
    Device,
    Format,
    Injectable,
    Json,
    Out,
    Seed,
    Trust,
    Weights,
)
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from rasp.verbs import LayerInjected

GATE_FAILED = 1

campaigns = typer.Typer()


@campaigns.command()
def inject(
    *,
    model: Injectable,
    format: Format = None,  # noqa: A002
    trials: Annotated[int, typer.Option(help="Faults to inject.")] = 10_000,
    images: Annotated[int, typer.Option(help="Images to inject them in.")] = 200,
    split: Annotated[str, typer.Option(help="test, or validation for what is to be chosen.")] = (
        "test"
    ),
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
    sampling: Annotated[
        str,
        typer.Option(help="uniform, or adaptive to draw most where failures are, with weights."),
    ] = "uniform",
    margin: Annotated[
        float | None,
        typer.Option(help="Stop when the interval of --outcome is this narrow, plus or minus."),
    ] = None,
    outcome: Annotated[
        str, typer.Option(help="Outcome that --margin and adaptive sampling are about.")
    ] = "sdc1",
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
            split=split,
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
            sampling=sampling,
            margin=margin,
            outcome=outcome,
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
        facts(
            ("run", found.out),
            ("top-1, test", arm.accuracy),
            ("MACs", f"{arm.macs:,}"),
            (f"cycles on {arm.accelerator}", f"{arm.cycles:,}"),
            ("seed", seed),
        ),
    )


@campaigns.command()
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
        facts(
            ("run", found.out),
            ("trials", f"{found.trials:,} of {found.asked:,}"),
            ("missing", missing),
            ("summary", f"the same 'rasp inject' without --shard and with --out {found.out}"),
        ),
    )


@campaigns.command()
def export(
    *,
    source: Annotated[
        str, typer.Argument(help="Directory 'rasp inject' wrote, or a network as in --model.")
    ],
    file: Annotated[
        Path, typer.Argument(help="The .parquet file of its trials, or the network's .onnx file.")
    ],
    format: Format = None,  # noqa: A002
    batch: Annotated[
        int | None, typer.Option(help="Images of an inference of the ONNX network, 1 by default.")
    ] = None,
    weights: Weights = None,
    data: Data = None,
    data_dir: DataDir = None,
    trust_factory: Trust = False,
    json: Json = False,
) -> None:
    """Write a campaign's trials as Parquet, or a network as ONNX."""
    from rasp import verbs

    with Console(json_output=json) as console:
        found = verbs.export(
            source,
            file,
            format=format,
            batch=batch,
            data=data,
            weights=weights,
            data_dir=data_dir,
            trust_factory=trust_factory,
            progress=console.progress,
        )
    if found.trials is not None:
        rest = [("trials", f"{found.trials:,}")]
    else:
        rest = [
            ("format", str(found.format)),
            ("same class", f"{found.same_class} of {found.images} validation images"),
            ("logits differ", f"by {found.largest_difference:.2g} at most"),
        ]
    console.result(found.to_dict(), facts(("file", found.out), *rest))


@campaigns.command()
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
        facts(
            ("verdict", found.verdict),
            ("report", found.out),
            *(("figure", path) for path in found.figures),
        ),
    )


@campaigns.command()
def compare(
    *,
    runs: Annotated[
        list[Path], typer.Argument(help="Directories 'rasp inject' wrote; ratios are to the first.")
    ],
    outcome: Annotated[
        str, typer.Option(help="What counts as a failure: sdc1, sdc5, sdc10, sdc20, critical, due.")
    ] = "sdc1",
    json: Json = False,
) -> None:
    """Compare networks injected on the same images with the same options, image by image."""
    from rasp import verbs

    found = verbs.compare(runs, outcome=outcome)
    Console(json_output=json).result(
        found.to_dict(),
        Table(
            ["network", ">top-1", ">cycles", f">{outcome} per fault", ">failures per inference"],
            [
                [
                    entry.name,
                    str(entry.accuracy),
                    f"{entry.cycles:,}",
                    str(entry.rate),
                    "{:.3g} [{:.3g}, {:.3g}]".format(*entry.failures) if entry.failures else "",
                ]
                for entry in found.networks
            ],
            notes=["failures per upset rate of one bit in one cycle", ""],
        ),
        Table(
            [f"against {found.networks[0].name}", ">top-1", ">per fault", ">per inference"],
            [
                [
                    entry.name,
                    *(
                        str(x or "")
                        for x in (entry.accuracy_difference, entry.per_fault, entry.per_inference)
                    ),
                ]
                for entry in found.networks[1:]
            ],
            notes=[""],
        ),
        facts(("verdict", found.verdict)),
    )


@campaigns.command()
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


@campaigns.command("rtl-check")
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


def _show_layer(console: Console, found: LayerInjected) -> None:
    rows = [[name, str(rate)] for name, rate in found.by_model.items()]
    console.result(
        found.to_dict(),
        Table(
            ["fault model", ">changes an output"], [*rows, ["all", str(found.changed)]], notes=[""]
        ),
        facts(
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
