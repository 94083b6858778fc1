"""torchvision and timm networks: built, lowered, and missed clearly where they are not there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rasp import errors, zoo
from rasp.network.lower import lower


def spec(model, channels=3):
    return zoo.ModelSpec(model=model, num_classes=7, input_shape=(channels, 32, 32))


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_resnet"])
def test_a_network_of_the_packages_is_lowered_to_the_same_function(name):
    model = zoo.build(spec(name), seed=3).eval()
    images = torch.rand(4, 3, 32, 32)
    network = lower(model, images[:2])

    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-3, atol=1e-3)
    assert network(images).shape == (4, 7)
    assert {layer.name for layer in network.layers} <= {name for name, _ in model.named_modules()}


@pytest.mark.usefixtures("vision")
def test_fresh_weights_are_a_function_of_the_seed():
    first, again, other = (
        zoo.build(spec("timm:test_resnet"), seed=seed).state_dict()["fc.weight"]
        for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("vision")
def test_timm_networks_take_as_many_channels_as_the_images_have():
    model = zoo.build(spec("timm:test_resnet", channels=1)).eval()

    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


@pytest.mark.usefixtures("vision")
def test_a_misspelt_name_gets_the_nearest_and_not_a_thousand_others():
    with pytest.raises(errors.ConfigError, match="Did you mean 'resnet18'") as caught:
        zoo.build(spec("torchvision:resnet19"))
    assert len(str(caught.value)) < 300
    with pytest.raises(errors.ConfigError, match="Unknown timm model 'hf_hub:someone/net'"):
        zoo.build(spec("timm:hf_hub:someone/net"))


@pytest.mark.usefixtures("vision")
def test_a_detector_which_would_fetch_weights_is_no_model_here():
    with pytest.raises(errors.ConfigError, match="Unknown torchvision model"):
        zoo.build(spec("torchvision:maskrcnn_resnet50_fpn"))


@pytest.mark.parametrize(
    ("model", "package"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision.models")],
)
def test_an_absent_package_is_missed_with_the_line_that_installs_it(monkeypatch, model, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.PrerequisiteError, match=r"pip install 'torch-rasp\[vision\]'"):
        zoo.build(spec(model))


def test_a_torchvision_of_another_torch_is_told_from_an_absent_one():
    broken = (
        "import sys, types\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision':\n"
        "            raise RuntimeError('operator torchvision::nms does not exist')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from rasp.cli.app import main\n"
        "sys.argv = ['rasp', 'train', '--model', 'torchvision:resnet18', '--data', 'digits']\n"
        "main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", broken], check=False, capture_output=True, text=True, timeout=120
    )

    assert found.returncode == 3
    assert "operator torchvision::nms does not exist" in found.stderr
    assert "pairs with this torch" in found.stderr
    assert "Traceback" not in found.stderr
