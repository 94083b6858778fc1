"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
