"""Hand trials and networks to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasp import loading, provenance, runs
from rasp.errors import ConfigError
from rasp.progress import Progress, silent
from rasp.verbs._shared import STORE, Result

if TYPE_CHECKING:
    from rasp.loading import Loaded

CHECKED_IMAGES = 256
"""Validation images that a written network is run on beside the original, at most."""


class Exported(Result):
    """A written file.

    Attributes:
        out: the file.
        trials: rows of a Parquet file.
        format: number format of a network.
        images: that the file and the network were run on.
        same_class: how many of them got the same class.
        largest_difference: of a logit.
    """

    out: Path
    trials: int | None = None
    format: str | None = None
    images: int | None = None
    same_class: int | None = None
    largest_difference: float | None = None


def export(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    batch: int | None = None,
    data: str | None = None,
    weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a campaign's trials as Parquet or a network as ONNX, by the file's name.

    Args:
        source: for ``.parquet`` a directory that :func:`rasp.verbs.inject` wrote, finished or not;
            for ``.onnx`` a checkpoint directory or a model's name.
        out: the file; its name ends with ``.parquet`` or ``.onnx``.
        format: of a network, ``fp32`` or ``int8``; by default its own.
        batch: images of an inference of a network, by default 1.
        data: data set of a network; a checkpoint knows its own.
        weights: weight file for a name.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint import the ``package.module:factory`` it names.
        progress: hears about trials.

    Raises:
        ConfigError: another kind of file, or an option of networks for trials.
        PrerequisiteError: the packages for it are not installed.
    """
    file = Path(out)
    if file.suffix not in (".parquet", ".onnx") or file.is_dir():
        raise ConfigError(f"Name a file that ends with .parquet or .onnx, got '{out}'.")
    runs.check_writable(file.parent)
    if file.suffix == ".parquet":
        ours = {"format": format, "batch": batch, "data": data, "weights": weights}
        if odd := [f"--{name}" for name, value in ours.items() if value is not None]:
            raise ConfigError(
                f"{', '.join(odd)}: of networks, got '{out}'. Drop it, or name an .onnx file."
            )
        from rasp.campaign.parquet import write

        return Exported(out=file, trials=write(Path(source) / STORE, file, progress=progress))
    loaded = loading.open_model(
        source,
        data,
        weights=weights,
        data_dir=data_dir,
        trust_factory=trust_factory,
        progress=progress,
    )
    return _network(loaded, file, format or loaded.own_format, 1 if batch is None else batch)


def _network(loaded: Loaded, file: Path, number_format: str, batch: int) -> Exported:
    from rasp.export import onnx

    network = loading.network_of(loaded, number_format)
    onnx.write(network, file, batch=batch, metadata=_facts(loaded, number_format, batch))
    images = loaded.dataset.validation[:CHECKED_IMAGES]
    found = onnx.agreement(file, network, loaded.dataset.tensor(images))
    return Exported(
        out=file,
        format=number_format,
        images=found.images,
        same_class=found.same_class,
        largest_difference=found.largest,
    )


def _facts(loaded: Loaded, number_format: str, batch: int) -> dict[str, Any]:
    """What the file says of its origin."""
    hardening = loaded.hardening
    facts = {
        "provenance": provenance.collect({"format": number_format, "batch": batch}),
        "model": loaded.spec.model,
        "data": loaded.dataset.name,
        "label": loaded.label,
        "weights_sha256": loaded.identity,
        "mean": list(loaded.dataset.mean),
        "std": list(loaded.dataset.std),
        "hardening": None if hardening is None else f"{hardening['mode']} {hardening['scope']}",
    }
    return {name: value for name, value in facts.items() if value is not None}
