from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rasp.data import Dataset, Split
from rasp.data.dataset import hold_out
from rasp.errors import ConfigError


def numbered(n: int, classes: int = 3) -> Split:
    """Images whose first two pixels tell their index."""
    images = np.zeros((n, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return Split(images, np.arange(n) % classes)


def indices(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0] + 256 * split.images[:, 0, 0, 1].astype(int)).tolist()


def images(value=0.0, n=2):
    return np.full((n, 1, 2, 2), value)


@pytest.mark.parametrize(
    ("pictures", "labels", "text"),
    [
        (np.zeros((2, 4, 4)), [0, 1], r"must have shape \(N, C, H, W\), got \(2, 4, 4\)"),
        (np.zeros((2, 1, 0, 4)), [0, 1], r"must have shape \(N, C, H, W\)"),
        (images(), [0], r"2 images need labels of shape \(2,\), got \(1,\)"),
        (images(n=0), [], "is empty"),
        (images(256), [0, 1], "from 0 to 255, got 256 to 256"),
        (images(-1), [0, 1], "from 0 to 255, got -1 to -1"),
        (images(0.5), [0, 1], "whole numbers from 0 to 255, got fractions"),
        (images(np.nan), [0, 1], "got NaN"),
        (images(), [0, -1], "Labels must be numbers from 0"),
        (images(), [0, 0.5], "Labels must be whole numbers"),
        (images(), ["a", "b"], "got values of type <U1"),
        (images(True).astype(bool), [0, 1], "got values of type bool"),
    ],
)
def test_what_is_no_image_or_label_is_named(pictures, labels, text):
    with pytest.raises(ConfigError, match=text):
        Split(pictures, np.array(labels))


def test_values_of_other_types_become_bytes_and_stay_the_same():
    split = Split(images(255.0), np.array([1, 2], np.uint8))
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert split.images.max() == 255


def test_read_only_arrays_are_taken(recwarn):
    frozen = np.frombuffer(bytes(8), np.uint8).reshape(2, 1, 2, 2)
    torch.from_numpy(Split(frozen, np.zeros(2, np.int64)).images)
    assert not recwarn.list


@given(n=st.integers(1, 300), taken=st.integers(1, 300), seed=st.integers(0, 5))
def test_a_subset_has_no_image_twice_and_each_class_in_proportion(n, taken, seed):
    split = numbered(n)
    if taken > n:
        with pytest.raises(ConfigError, match=f"Allowed: 1 to {n}"):
            split.take(taken, seed)
        return
    subset = split.take(taken, seed)
    found = indices(subset)
    assert len(set(found)) == taken
    assert all(index % 3 == label for index, label in zip(found, subset.labels, strict=True))
    expected = np.bincount(split.labels, minlength=3) * taken / n
    assert np.abs(np.bincount(subset.labels, minlength=3) - expected).max() <= 2


def test_a_smaller_subset_begins_a_larger_one_and_seeds_differ():
    split = numbered(500)
    assert indices(split.take(40)) == indices(split.take(200))[:40]
    assert indices(split.take(40)) != indices(split.take(40, seed=1))


def test_every_image_is_as_likely_to_be_taken():
    counts = np.zeros(60)
    for seed in range(400):
        counts[indices(numbered(60).take(15, seed))] += 1
    # Mean 100, standard deviation at most 8.7; 5 deviations fail by chance once in 30,000 runs.
    assert np.abs(counts - 100).max() < 44


def test_holding_out_divides_all_images_but_those_left_out():
    left_out = np.array([3, 4, 5, 50, 51])
    train, validation = hold_out(numbered(100), 20, "x", without=left_out)
    assert sorted(indices(train) + indices(validation)) == sorted(set(range(100)) - set(left_out))
    whole = hold_out(numbered(100), 20, "x")
    assert set(indices(validation)) == set(indices(whole[1])) - set(left_out)
    assert indices(whole[1]) != indices(hold_out(numbered(100), 20, "y")[1])


def dataset(**change) -> Dataset:
    parts = dict.fromkeys(("train", "validation", "test"), numbered(6))
    fields = {"name": "x", **parts, "classes": 3, "mean": (0.5,), "std": (0.25,)}
    return Dataset(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"test": Split(np.zeros((1, 3, 2, 2)), np.array([0]))}, "test images have shape"),
        ({"classes": 2}, "train label 2 is not below the number of classes, 2"),
        ({"mean": (0.5, 0.5)}, "mean and std need 1 values each"),
        ({"std": (0.0,)}, "std from 0.001 to 1000"),
        ({"std": (float("inf"),)}, "std from 0.001 to 1000"),
        ({"mean": (float("nan"),)}, "mean within"),
        ({"mean": (1e30,)}, "mean within"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(change, text):
    with pytest.raises(ConfigError, match=text):
        dataset(**change)


def test_normalised_images_are_grey_levels_shifted_and_scaled():
    data = dataset()
    x = data.tensor(data.test)
    expected = (data.test.images / 255 - 0.5) / 0.25
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)
    assert x.dtype == torch.float32
    assert data.test.images.max() == 5  # the bytes themselves are left alone


def test_a_split_is_found_by_name():
    data = dataset()
    assert data.split("test") is data.test
    with pytest.raises(ConfigError, match="Did you mean 'validation'"):
        data.split("validaton")
