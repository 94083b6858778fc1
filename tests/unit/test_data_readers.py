from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rasp import data
from rasp.data import cifar10, mnist
from rasp.data.digits import enlarge, load_digits
from rasp.errors import ConfigError, PrerequisiteError

needs_data = pytest.mark.skipif(
    not os.environ.get("RASP_DATA"), reason="RASP_DATA does not name a folder with the data sets"
)


def bytes_of(split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_digits_are_three_parts_of_the_1797_images_that_share_none():
    digits = load_digits()
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part) for part in parts] == [1197, 150, 450]
    assert len(set.union(*map(bytes_of, parts))) == sum(len(bytes_of(part)) for part in parts)
    assert np.bincount(np.concatenate([part.labels for part in parts])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    x = digits.tensor(digits.train)
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_enlarging_agrees_with_torch():
    small = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small[:, None].astype(float)), size=28, mode="bilinear"
    )
    np.testing.assert_allclose(enlarge(small, 28), expected[:, 0], atol=1e-12)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path) -> Path:
    """Files of the right form: 5,010 training and 10 test images, one of them plain."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in [("train", 5010), ("t10k", 10)]:
        pixels = np.arange(n * 4).reshape(n, 2, 2) % 251
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    return tmp_path


def test_mnist_reads_plain_and_packed_files(small_mnist):
    read = data.load("mnist", data_dir=small_mnist, download=False)
    assert (len(read.train), len(read.validation), len(read.test)) == (10, 5000, 10)
    assert read.test.images[1].ravel().tolist() == [4, 5, 6, 7]
    assert read.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"\0\0\x0d" + content[3:],
        lambda _: b"",
    ],
)
def test_a_damaged_idx_file_is_named(small_mnist, damage):
    path = small_mnist / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match="t10k-labels-idx1-ubyte' is not an idx file"):
        mnist.read(small_mnist)


@pytest.mark.parametrize("cut", [0, 3, 40])
def test_a_damaged_gzip_file_is_named(small_mnist, cut):
    path = small_mnist / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte"):
        mnist.read(small_mnist)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch) -> Path:
    """Batches of 1,200 records whose label is 7 and whose planes are constant."""
    monkeypatch.setattr(cifar10, "_IMAGES", 1200)
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for number, name in enumerate(
        [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    ):
        records = np.zeros((1200, 3073), np.uint8)
        records[:, 0] = 7
        for plane in range(3):
            records[:, 1 + 1024 * plane : 1025 + 1024 * plane] = 10 * plane + number
        records[:, 1] = np.arange(1200) % 256
        (folder / name).write_bytes(records.tobytes())
    return tmp_path


def test_cifar_records_are_a_label_and_three_planes(small_cifar):
    read = data.load("cifar10", data_dir=small_cifar, download=False)
    assert (len(read.train), len(read.validation), len(read.test)) == (1000, 5000, 1200)
    assert set(read.test.labels.tolist()) == {7}
    assert read.test.images[3, :, 5, 5].tolist() == [5, 15, 25]
    assert read.test.images[3, :, 0, 0].tolist() == [3, 15, 25]


def test_stand_ins_are_in_no_part(small_cifar):
    note = small_cifar / cifar10.FOLDER / "not-original.txt"
    note.write_text("# why\n\ntrain:0\ntrain:5999\ntest:3\ntest:1199\n")
    read = cifar10.read(small_cifar)
    assert len(read.train) + len(read.validation) == 5998
    assert len(read.test) == 1198
    assert read.test.images[2:4, 0, 0, 0].tolist() == [2, 4]
    note.write_text("test 3\n")
    with pytest.raises(ConfigError, match="'test 3' is not of the form train:INDEX or test:INDEX"):
        cifar10.read(small_cifar)


def test_a_batch_of_another_size_is_named(small_cifar):
    path = small_cifar / cifar10.FOLDER / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"test_batch\.bin' has 3687599 bytes"):
        cifar10.read(small_cifar)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_absent_data_says_what_was_looked_for_and_where(tmp_path, name, monkeypatch):
    monkeypatch.setenv("RASP_DATA", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="--data-dir or RASP_DATA") as error:
        data.load(name, download=False)
    assert str(tmp_path) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'cifar10'"):
        data.load("cifar")


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (40, 6, 6)),
        "train_labels": np.arange(40) % 4,
        "test_images": generator.integers(0, 256, (8, 6, 6)),
        "test_labels": np.arange(8) % 4,
    }


def test_an_npz_file_is_a_data_set(tmp_path, arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    read = data.load(str(tmp_path / "mine.npz"))
    assert (len(read.train), len(read.validation), len(read.test)) == (36, 4, 8)
    assert (read.classes, read.input_shape) == (4, (1, 6, 6))
    x = read.tensor(read.train)
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train_images": None}, "has no array 'train_images'"),
        ({"test_images": np.full((8, 6, 6), 300)}, "from 0 to 255"),
        ({"test_images": np.zeros((8, 6))}, r"must have shape \(N, C, H, W\)"),
        ({"train_labels": np.array([{}] * 40)}, "not an .npz file of plain number arrays"),
        ({"train_images": np.zeros((1, 6, 6)), "train_labels": np.zeros(1)}, "at least two"),
    ],
)
def test_an_npz_file_of_something_else_is_refused(tmp_path, arrays, change, text):
    merged = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    np.savez(tmp_path / "mine.npz", **merged)
    with pytest.raises(ConfigError, match=text):
        data.load(str(tmp_path / "mine.npz"))


def test_a_file_that_is_no_npz_or_absent_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"not an \.npz file"):
        data.load(str(tmp_path / "x.npz"))
    with pytest.raises(PrerequisiteError, match="There is no data file"):
        data.load(str(tmp_path / "y.npz"))


@needs_data
def test_mnist_has_its_published_class_counts():
    read = data.load("mnist", download=False)
    assert (len(read.train), len(read.validation)) == (55_000, 5_000)
    assert np.bincount(read.test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


@needs_data
def test_cifar_has_its_published_mean_and_no_stand_in():
    read = data.load("cifar10", download=False)
    assert len(read.train) + len(read.validation) <= 50_000
    mean = read.train.images.mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    if (Path(os.environ["RASP_DATA"]) / cifar10.FOLDER / "not-original.txt").is_file():
        assert len(read.test) == 9_977
