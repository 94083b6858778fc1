"""Data sets by name, from a folder or from the address their authors publish them at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rasp.data import cifar10, mnist
from rasp.data.arrays import load_npz
from rasp.data.digits import load_digits
from rasp.data.download import fetch
from rasp.errors import PrerequisiteError, unknown_name
from rasp.progress import silent

if TYPE_CHECKING:
    from rasp.data.dataset import Dataset
    from rasp.progress import Progress

DATASETS: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8x8 enlarged to 28x28, embedded",
    "mnist": "70,000 handwritten digits, 28x28",
    "cifar10": "60,000 colour photographs of ten things, 32x32",
}
"""What each name stands for."""

_ON_DISK = {"mnist": mnist, "cifar10": cifar10}


def data_folder(data_dir: Path | None = None) -> Path:
    """``data_dir``, else the environment's ``RASP_DATA``, else ``~/.cache/rasp/data``."""
    named = data_dir or os.environ.get("RASP_DATA")
    return Path(named) if named else Path.home() / ".cache" / "rasp" / "data"


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    download: bool = True,
    progress: Progress = silent,
) -> Dataset:
    """Load a data set.

    Args:
        name: a name of :data:`DATASETS`, or a path ending in ``.npz`` to a file with the arrays
            ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``.
        data_dir: folder that holds ``MNIST/raw`` and ``cifar-10-batches-bin``; see
            :func:`data_folder` for the default. ``digits`` needs none.
        download: fetch files that are not there into that folder, size and SHA-256 verified.
            Files found there are not compared with the published ones.
        progress: hears how far a download is.

    Raises:
        ConfigError: an unknown name or a damaged file.
        PrerequisiteError: files are missing and could not be fetched.

    Example:
        >>> len(load("digits").test)
        450
    """
    if name.endswith(".npz"):
        return load_npz(Path(name))
    if name == "digits":
        return load_digits()
    if name not in _ON_DISK:
        raise unknown_name("data set", name, [*DATASETS, "PATH.npz"])
    source, folder = _ON_DISK[name], data_folder(data_dir)
    missing = source.missing(folder)
    advice = "Put the files there, or name their folder with --data-dir or RASP_DATA."
    if missing and not download:
        raise PrerequisiteError(
            f"Data set '{name}' is not complete in '{folder}': no '{missing[0]}'. {advice}"
        )
    if missing:
        try:
            fetch(source.published(missing), folder, progress=progress)
        except PrerequisiteError as error:
            raise PrerequisiteError(
                f"Data set '{name}' is not complete in '{folder}': no '{missing[0]}'. "
                f"{error} {advice}"
            ) from error
    dataset: Dataset = source.read(folder)
    return dataset
