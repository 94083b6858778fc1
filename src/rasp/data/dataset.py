"""Images with labels, validated once, and the three parts of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rasp import rng
from rasp.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Augment = Literal["none", "crop", "crop+flip"]
_FARTHEST = 1000.0  # from black and white, where normalisations are near 0 and 1
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 ``(N, C, H, W)``, grey levels 0 to 255.
        labels: int64 ``(N,)``, classes from 0.

    Raises:
        ConfigError: wrong shapes, no image, values that are not grey levels or classes. Arrays of
            other types are taken if every value is a whole number in range.

    Example:
        >>> len(Split(np.zeros((2, 1, 4, 4)), np.array([0, 1])))
        2
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4 or not all(images.shape[1:]):
            raise ConfigError(f"Images must have shape (N, C, H, W), got {images.shape}.")
        if labels.shape != images.shape[:1]:
            raise ConfigError(
                f"{len(images)} images need labels of shape ({len(images)},), got {labels.shape}."
            )
        if not len(images):
            raise ConfigError("A set of images is empty. Give at least one image.")
        object.__setattr__(self, "images", _whole(images, np.uint8, 255, "Grey levels"))
        object.__setattr__(self, "labels", _whole(labels, np.int64, 65_535, "Labels"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __getitem__(self, index: NDArray[np.int64] | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def take(self, n: int, seed: int = 0) -> Split:
        """A random subset with the classes in the proportions of the whole.

        The subset of ``m < n`` images is the first ``m`` of the subset of ``n``.

        Raises:
            ConfigError: ``n`` is not between 1 and the number of images.
        """
        if not 1 <= n <= len(self):
            raise ConfigError(f"Cannot take {n} of {len(self)} images. Allowed: 1 to {len(self)}.")
        draw = rng.uniform(rng.words(seed, "take images", 0, len(self), 4)[:, 0])
        place = np.empty(len(self))
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            order = members[np.argsort(draw[members], kind="stable")]
            place[order] = (np.arange(len(order)) + draw[members]) / len(order)
        return self[np.argsort(place, kind="stable")[:n]]


def _whole(values: NDArray[Any], dtype: type[np.generic], top: int, what: str) -> NDArray[Any]:
    if values.dtype.kind not in "uif" or not (values.min() >= 0 and values.max() <= top):
        raise ConfigError(f"{what} must be numbers from 0 to {top}, got {_extent(values)}.")
    whole = np.require(values.astype(dtype, copy=False), requirements=["C", "W"])
    if values.dtype != dtype and np.any(whole != values):
        raise ConfigError(f"{what} must be whole numbers from 0 to {top}, got fractions.")
    return whole


def _extent(values: NDArray[Any]) -> str:
    if values.dtype.kind not in "uif":
        return f"values of type {values.dtype}"
    if np.isnan(values).any():
        return "NaN"
    return f"{values.min()} to {values.max()}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three parts that share no image.

    Attributes:
        name: the name it is loaded by.
        train: what weights are fitted and activations calibrated on.
        validation: held out of the training images, for choices.
        test: for the numbers that are reported, once.
        classes: number of classes; labels are below it.
        mean: mean of each channel that :meth:`tensor` subtracts, in units of 255 grey levels.
        std: standard deviation of each channel it then divides by, same unit.
        augment: what a training step may do to an image without changing its class.

    Raises:
        ConfigError: parts of different image shapes, a label out of range, or a normalisation that
            does not fit the channels.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = "none"

    def __post_init__(self) -> None:
        for name in SPLITS:
            split = self.split(name)
            if split.image_shape != self.input_shape:
                raise ConfigError(
                    f"Data set '{self.name}': {name} images have shape {split.image_shape}, "
                    f"training images {self.input_shape}. They must agree."
                )
            if split.labels.max() >= self.classes:
                raise ConfigError(
                    f"Data set '{self.name}': {name} label {split.labels.max()} is not below "
                    f"the number of classes, {self.classes}."
                )
        fits = len(self.mean) == len(self.std) == self.input_shape[0] and all(
            abs(mean) <= _FARTHEST and 1 / _FARTHEST <= std <= _FARTHEST
            for mean, std in zip(self.mean, self.std, strict=True)
        )
        if not fits:
            raise ConfigError(
                f"Data set '{self.name}': mean and std need {self.input_shape[0]} values each, "
                f"mean within +-{_FARTHEST:g}, std from {1 / _FARTHEST:g} to {_FARTHEST:g}; "
                f"got {self.mean} and {self.std}."
            )

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return self.train.image_shape

    def split(self, name: str) -> Split:
        """The part called ``train``, ``validation`` or ``test``."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        part: Split = getattr(self, name)
        return part

    def tensor(self, split: Split) -> Tensor:
        """Normalised float32 images ``(N, C, H, W)`` of a split, on the CPU."""
        import torch

        return self.normalise(torch.from_numpy(split.images))

    def normalise(self, images: Tensor) -> Tensor:
        """Grey levels ``(N, C, H, W)``, 0 to 255, to the float32 values a network sees."""
        mean, std = (self._column(values, images) for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        import torch

        return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)


def hold_out(
    images: Split, n: int, name: str, *, without: NDArray[np.int64] | None = None
) -> tuple[Split, Split]:
    """Divide training images into ``(train, validation)`` the same way on every machine.

    Args:
        images: all training images.
        n: number of validation images, those in ``without`` counted.
        name: of the data set; names the fixed random order.
        without: indices of images that go into neither part.
    """
    keys = rng.words(0, f"hold out {name}", 0, len(images), 4)[:, 0]
    order = np.argsort(keys, kind="stable")
    held, kept = (
        np.setdiff1d(part, [] if without is None else without) for part in (order[:n], order[n:])
    )
    return images[kept], images[held]
