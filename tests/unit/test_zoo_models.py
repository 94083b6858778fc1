from __future__ import annotations

import pytest
import torch
from torch import nn

from rasp import zoo
from rasp.errors import ConfigError
from rasp.zoo.lenet import LeNet5
from rasp.zoo.resnet import PadShortcut


def built(name: str, *, classes: int = 10, shape=None, seed: int = 0) -> nn.Module:
    shape = shape or zoo.MODELS[name].input_shape
    return zoo.build(
        zoo.ModelSpec(model=name, num_classes=classes, input_shape=shape), seed=seed
    ).eval()


# He et al. 2016, table 6, for the thin family; kuangliu/pytorch-cifar for the wide one.
PARAMETERS = {
    "lenet5": 44_426,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_network_has_the_published_number_of_parameters(name):
    assert sum(p.numel() for p in built(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "resnet50", "resnet20"])
@pytest.mark.parametrize(("classes", "channels"), [(10, 1), (7, 3)])
def test_logits_have_one_column_a_class_for_any_number_of_channels(name, classes, channels):
    shape = (channels, *zoo.MODELS[name].input_shape[1:])
    net = built(name, classes=classes, shape=shape)
    assert net(torch.zeros(2, *shape)).shape == (2, classes)


def test_every_weight_of_every_network_reaches_the_logits():
    for name in ("lenet5", "resnet18", "resnet50", "resnet20"):
        net = built(name).train()
        generator = torch.Generator().manual_seed(0)
        net(torch.randn(4, *zoo.MODELS[name].input_shape, generator=generator)).norm().backward()
        dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead


def test_lenet_computes_what_its_layers_say():
    net = built("lenet5")
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    f = nn.functional
    y = f.max_pool2d(f.conv2d(x, net.conv1.weight, net.conv1.bias).clamp(min=0), 2)
    y = f.max_pool2d(f.conv2d(y, net.conv2.weight, net.conv2.bias).clamp(min=0), 2).flatten(1)
    assert y.shape[1] == 256
    for layer in (net.fc1, net.fc2):
        y = f.linear(y, layer.weight, layer.bias).clamp(min=0)
    torch.testing.assert_close(net(x), f.linear(y, net.fc3.weight, net.fc3.bias))


def test_lenet_takes_other_image_sizes_and_names_the_smallest():
    assert LeNet5(10, (3, 16, 20))(torch.zeros(1, 3, 16, 20)).shape == (1, 10)
    with pytest.raises(ConfigError, match="at least 16x16 pixels, got 12x12"):
        LeNet5(10, (1, 12, 12))


def test_pad_shortcut_keeps_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4) + 1
    y = PadShortcut(1, 2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert not y[:, [0, 3, 4]].any()
    assert y[0, 1].tolist() == [[1, 3], [9, 11]]


def test_thin_resnets_shortcuts_have_no_parameters_and_halve_twice():
    net = built("resnet20")
    pads = [m for m in net.modules() if isinstance(m, PadShortcut)]
    assert [(p.before, p.after) for p in pads] == [(8, 8), (16, 16)]
    assert not any("shortcut" in name for name in net.state_dict())


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = built("resnet20", seed=5).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(4)
    again = built("resnet20", seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], built("resnet20", seed=6).conv1.weight)
    torch.manual_seed(3)
    assert torch.equal(state, torch.get_rng_state())
