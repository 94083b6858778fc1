"""MNIST (LeCun, Cortes and Burges) from its four original idx files, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import numpy as np

from rasp.data.dataset import Dataset, Split, hold_out
from rasp.data.download import Published
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = "MNIST/raw"
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FILES = {
    "train-images-idx3-ubyte": (
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte": (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte": (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte": (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}
_VALIDATION = 5_000
_UBYTE = 8  # type code of unsigned bytes in an idx file


def missing(folder: Path) -> list[str]:
    """Names of the files that are in ``folder`` neither plain nor as ``.gz``."""
    return [
        f"{FOLDER}/{name}.gz"
        for name in _FILES
        if not (folder / FOLDER / name).is_file() and not (folder / FOLDER / f"{name}.gz").is_file()
    ]


def published(names: Sequence[str]) -> tuple[Published, ...]:
    """Where the files of :func:`missing` are published."""
    return tuple(
        Published(f"{_MIRROR}{name}.gz", f"{FOLDER}/{name}.gz", *facts)
        for name, facts in _FILES.items()
        if f"{FOLDER}/{name}.gz" in names
    )


def read(folder: Path) -> Dataset:
    """55,000 training, 5,000 validation and 10,000 test images, 1x28x28.

    Raises:
        ConfigError: a file is damaged or not an idx file of the right shape.
    """
    parts = {}
    for part in ("train", "t10k"):
        images = _read_idx(folder / FOLDER / f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / FOLDER / f"{part}-labels-idx1-ubyte", 1)
        parts[part] = Split(images[:, None], labels)  # type: ignore[arg-type]
    train, validation = hold_out(parts["train"], _VALIDATION, "mnist")
    return Dataset(
        "mnist",
        train,
        validation,
        parts["t10k"],
        classes=10,
        mean=(0.1307,),
        std=(0.3081,),
        augment="crop",
    )


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"'{packed}' is damaged: {error}. Delete it and run again.") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4")
    if content[:4] != bytes([0, 0, _UBYTE, dimensions]) or len(content) != start + shape.prod():
        raise ConfigError(
            f"'{path}' is not an idx file of bytes with {dimensions} dimensions, or it is cut "
            "short. Delete it and run again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
