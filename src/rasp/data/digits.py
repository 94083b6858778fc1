"""The embedded handwritten digits: 1,797 images of the UCI set, see ``README.md`` beside this."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from rasp.data.dataset import Dataset, Split, hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDE = 28
_FULL = 16  # counts of set pixels in a 4x4 block
_TEST, _VALIDATION = 450, 150


def load_digits() -> Dataset:
    """1,197 training, 150 validation and 450 test images, 1x28x28, ten classes.

    The 8x8 counts are enlarged bilinearly and scaled to grey levels 0 to 255.

    Example:
        >>> load_digits().train.images.shape
        (1197, 1, 28, 28)
    """
    with (
        files("rasp.data").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        counts, labels = stored["images"], stored["labels"]
    grey = np.rint(enlarge(counts, _SIDE) * (255 / _FULL)).astype(np.uint8)
    rest, test = hold_out(Split(grey[:, None], labels), _TEST, "digits test")
    train, validation = hold_out(rest, _VALIDATION, "digits")
    return Dataset(
        "digits", train, validation, test, classes=10, mean=(0.306,), std=(0.325,), augment="crop"
    )


def enlarge(images: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Bilinear enlargement of square images ``(N, h, h)`` to ``(N, side, side)``.

    Pixel centres are aligned as in ``torch.nn.functional.interpolate(align_corners=False)``.
    """
    old = images.shape[-1]
    position = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, old - 1)
    low = np.minimum(position.astype(np.int64), old - 2)
    weights = np.zeros((side, old))
    weights[np.arange(side), low] = 1 - (position - low)
    weights[np.arange(side), low + 1] = position - low
    return weights @ images @ weights.T
