"""CIFAR-10 (Krizhevsky, 2009) from the six files of its binary version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rasp.data.dataset import Dataset, Split, hold_out
from rasp.data.download import Published
from rasp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32
_IMAGES = 10_000
_VALIDATION = 5_000
_STAND_INS = "not-original.txt"


def missing(folder: Path) -> list[str]:
    """Names of the files that are not in ``folder``."""
    names = [f"{FOLDER}/{name}" for name in (*_TRAIN, _TEST)]
    return [name for name in names if not (folder / name).is_file()]


def published(names: Sequence[str]) -> tuple[Published, ...]:
    """Where the files of :func:`missing` are published: in one archive."""
    return (
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            members=tuple(names),
        ),
    )


def read(folder: Path) -> Dataset:
    """45,000 training, 5,000 validation and 10,000 test images, 3x32x32.

    Images listed in ``not-original.txt`` beside the files (lines ``train:INDEX`` or
    ``test:INDEX`` in the official order) are left out. Images are normalised with ImageNet's mean
    and deviation, as the public akamaster ResNets were trained.

    Raises:
        ConfigError: a file of the wrong size, or a list that cannot be read.
    """
    folder = folder / FOLDER
    doubtful = _stand_ins(folder / _STAND_INS)
    records = [_read_batch(folder / name) for name in _TRAIN]
    train, validation = hold_out(
        _split(np.concatenate(records)), _VALIDATION, "cifar10", without=doubtful["train"]
    )
    test = _split(_read_batch(folder / _TEST))
    return Dataset(
        "cifar10",
        train,
        validation,
        test[np.setdiff1d(np.arange(len(test)), doubtful["test"])],
        classes=10,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment="crop+flip",
    )


def _split(records: NDArray[np.uint8]) -> Split:
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def _read_batch(path: Path) -> NDArray[np.uint8]:
    records = np.fromfile(path, dtype=np.uint8)
    if records.size != _IMAGES * _RECORD:
        raise ConfigError(
            f"'{path}' has {records.size} bytes, a batch of CIFAR-10's binary version has "
            f"{_IMAGES * _RECORD}. Delete it and run again."
        )
    return records.reshape(_IMAGES, _RECORD)


def _stand_ins(path: Path) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[int]] = {"train": [], "test": []}
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.strip() and not line.startswith("#"):
            split, _, index = line.strip().partition(":")
            if split not in found or not index.isdecimal():
                raise ConfigError(
                    f"'{path}': '{line}' is not of the form train:INDEX or test:INDEX."
                )
            found[split].append(int(index))
    return {split: np.array(indices, dtype=np.int64) for split, indices in found.items()}
