"""A user's own images in one ``.npz`` file."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from rasp.data.dataset import Dataset, Split, hold_out
from rasp.errors import ConfigError, PrerequisiteError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_VALIDATION_SHARE = 0.1


def load_npz(path: Path) -> Dataset:
    """Read a data set from ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Images are ``(N, C, H, W)`` or ``(N, H, W)``, 0 to 255. A tenth of the training images is held
    out for validation; the normalisation is the training images' own mean and deviation.

    Raises:
        PrerequisiteError: there is no such file.
        ConfigError: not such a file, or arrays that are no images and labels.
    """
    if not path.is_file():
        raise PrerequisiteError(f"There is no data file '{path}'. Check the path.")
    arrays = _arrays(path)
    everything = _split(arrays["train_images"], arrays["train_labels"])
    test = _split(arrays["test_images"], arrays["test_labels"])
    held = max(1, round(len(everything) * _VALIDATION_SHARE))
    if held == len(everything):
        raise ConfigError(f"'{path}' needs at least two training images, one for validation.")
    train, validation = hold_out(everything, held, "npz")
    scaled = train.images.astype(np.float32) / 255
    return Dataset(
        str(path),
        train,
        validation,
        test,
        classes=int(max(everything.labels.max(), test.labels.max())) + 1,
        mean=tuple(scaled.mean((0, 2, 3), dtype=np.float64).tolist()),
        std=tuple(np.maximum(scaled.std((0, 2, 3), dtype=np.float64), 1 / 255).tolist()),
    )


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            absent = [name for name in _ARRAYS if name not in stored]
            if absent:
                raise ConfigError(
                    f"'{path}' has no array '{absent[0]}'. Needed: {', '.join(_ARRAYS)}."
                )
            return {name: stored[name] for name in _ARRAYS}
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError, TypeError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"'{path}' is not an .npz file of plain number arrays that fit the memory. "
            "Write it with numpy.savez."
        ) from error


def _split(images: NDArray[np.generic], labels: NDArray[np.generic]) -> Split:
    return Split(images[:, None] if images.ndim == 3 else images, labels)  # type: ignore[arg-type]
