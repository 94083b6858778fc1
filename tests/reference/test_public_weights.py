from __future__ import annotations

import os
from pathlib import Path

import pytest

from rasp import data, zoo
from rasp.training import accuracy

FOLDER = Path(os.environ.get("RASP_WEIGHTS", ""))
FILES = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}

needs_weights = pytest.mark.skipif(
    not os.environ.get("RASP_WEIGHTS"),
    reason="RASP_WEIGHTS does not name a folder with the public akamaster checkpoints",
)
needs_data = pytest.mark.skipif(
    not os.environ.get("RASP_DATA"), reason="RASP_DATA does not name a folder with CIFAR-10"
)


def loaded(name):
    net = zoo.build(zoo.ModelSpec(model=name, num_classes=10, input_shape=(3, 32, 32)))
    zoo.load_weights(net, FOLDER / FILES[name])
    return net.eval()


@needs_weights
@pytest.mark.parametrize("name", FILES)
def test_public_checkpoints_fit_the_zoo_by_name(name):
    assert float(loaded(name).bn1.running_var.mean()) != 1  # no longer the fresh value


@needs_weights
@needs_data
def test_resnet20_has_its_published_accuracy():
    cifar10 = data.load("cifar10", download=False)
    count = accuracy(loaded("resnet20"), cifar10, cifar10.test)
    assert count.value == pytest.approx(0.917, abs=0.001)
