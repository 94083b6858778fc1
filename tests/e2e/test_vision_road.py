"""A network of torchvision and one of timm on the whole road, on a user's own .npz file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rasp.cli.app import app

pytestmark = pytest.mark.usefixtures("vision")


def rasp(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten classes of 32x32 colour images: noise with a bright bar where the class says."""
    random = np.random.default_rng(0)

    def part(n):
        labels = np.arange(n) % 10
        images = random.integers(0, 60, (n, 3, 32, 32))
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 3 * label : 3 * label + 4] += 180
        return images.astype(np.uint8), labels

    file = tmp_path_factory.mktemp("data") / "bars.npz"
    (train_images, train_labels), (test_images, test_labels) = part(300), part(40)
    np.savez(
        file,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    return file


@pytest.mark.parametrize("model", ["torchvision:resnet18", "timm:test_resnet"])
def test_train_evaluate_prune_quantise_and_inject(tmp_path, data, model):
    dense, half, int8 = (tmp_path / name for name in ("dense", "half", "int8"))
    rasp("train", "--model", model, "--data", data, "--epochs", "1", "--out", dense)
    found = rasp("evaluate", "--model", dense)
    assert found["accuracy"]["n"] == 40

    pruned = rasp(
        *("prune", "--model", dense, "--criterion", "magnitude", "--macs", "0.5"),
        *("--epochs", "0", "--out", half),
    )
    assert pruned["macs"] == pytest.approx(pruned["dense_macs"] / 2, rel=0.05)
    assert pruned["widths"]["fc"] == [10, 10]

    rasp("quantize", "--model", half, "--calibration", "32", "--out", int8)
    assert rasp("evaluate", "--model", int8)["format"] == "int8"
    out = tmp_path / "faults"
    found = rasp("inject", "--model", int8, "--trials", "60", "--images", "3", "--out", out)
    arm = found["arm"]
    assert arm["trials"] == 60
    assert arm["macs"] == pruned["macs"]


def test_weights_of_the_package_are_loaded_by_their_own_names(tmp_path, data):
    rasp("train", "--model", "timm:test_resnet", "--data", data, "--epochs", "1", "--out", tmp_path)
    file = tmp_path / "model.safetensors"
    by_name = rasp("evaluate", "--model", "timm:test_resnet", "--weights", file, "--data", data)

    assert by_name["accuracy"] == rasp("evaluate", "--model", tmp_path)["accuracy"]


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_a_network_with_two_heads_is_refused_before_anything_is_written(tmp_path, data):
    result = CliRunner().invoke(
        app,
        [
            *("train", "--model", "torchvision:googlenet", "--data", str(data)),
            *("--epochs", "1", "--out", str(tmp_path / "out")),
        ],
    )

    assert result.exit_code == 2, result.output
    assert "one tensor of logits" in result.stderr
    assert not (tmp_path / "out").exists()
