"""Lowering keeps a module's function and leaves only what the engines do."""

import weakref

import pytest
import torch
from torch import nn

from rasp import zoo
from rasp.errors import ConfigError, UnsupportedModelError
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Activation, Add, Concat, Conv, Host, PadChannels, Pool, Scale
from rasp.network.lower import lower


def randomise_norms(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "resnet20", "resnet50"])
def test_zoo_networks_lower_without_host_work(name):
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    model = zoo.build(zoo.ModelSpec(model=name, num_classes=10, input_shape=shape))
    randomise_norms(model)
    images = torch.randn(5, *shape)

    network = lower(model, images)

    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(node, Host | Scale | Activation) for node in network.nodes)
    weighted = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(layer.name for layer in network.layers) == sorted(weighted)


def test_known_multiply_accumulates_of_resnet18():
    model = zoo.build(zoo.ModelSpec(model="resnet18", num_classes=10, input_shape=(3, 32, 32)))

    network = lower(model, torch.zeros(1, 3, 32, 32))

    assert network.macs == 555_422_720


def test_lowering_does_not_change_the_module():
    model = zoo.build(zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32)))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    lower(model, torch.randn(2, 3, 32, 32))

    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class PreActivation(nn.Module):
    """Clamps and norms that no convolution can take in, and a host operation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.act = nn.Hardtanh(-0.5, 0.75)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.relu6(self.norm(x))
        y = self.act(self.conv(x))
        y = torch.cat([y, torch.sigmoid(y)], dim=1)
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


def test_what_engines_cannot_do_is_marked_as_the_hosts():
    model = randomise_norms(PreActivation())

    network = lower(model, torch.randn(4, 3, 9, 7))

    kinds = {type(node) for node in network.nodes}
    assert {Scale, Conv, Host, Concat, Pool} <= kinds
    (host,) = [node for node in network.nodes if isinstance(node, Host)]
    assert host.op == "sigmoid"
    images = torch.randn(9, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)


def test_clamps_fuse_into_the_node_before_them():
    network = lower(randomise_norms(PreActivation()), torch.randn(1, 3, 9, 7))

    assert network["conv"].clip == (-0.5, 0.75)
    (scale,) = [node for node in network.nodes if isinstance(node, Scale)]
    assert scale.clip == (0.0, 6.0)


def test_a_tensor_read_twice_is_not_fused_away():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.fc((torch.relu(y) + y).mean((2, 3)))

    model = Twice()
    network = lower(model, torch.randn(3, 1, 4, 4))

    assert network["conv"].clip is None
    assert any(isinstance(node, Activation) for node in network.nodes)


def test_option_a_shortcut_is_a_subsampling_and_unwritten_channels():
    model = zoo.build(zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32)))

    network = lower(model, torch.zeros(1, 3, 32, 32))

    (pool, pad) = [n for n in network.nodes if n.name.startswith("layer2.0.shortcut")]
    assert isinstance(pool, Pool)
    assert (pool.kernel, pool.stride) == ((1, 1), (2, 2))
    assert isinstance(pad, PadChannels)
    assert (pad.before, pad.after) == (8, 8)
    assert any(isinstance(n, Add) and pad.name in n.inputs for n in network.nodes)


class DataDependent(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 2:4]


class Doubles(nn.Module):
    def forward(self, x):
        return x.flatten(1), x.flatten(1)


class Maps(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DataDependent(), "cannot be exported"),
        (Doubles(), "cannot be exported|logits"),
        (Maps(), r"must map images .* it gave \(2, 3, 4, 4\)"),
        (nn.Sequential(nn.Conv2d(5, 2, 1), nn.Flatten()), "cannot be exported.*channels"),
    ],
)
def test_unsupported_models_are_refused_with_a_reason(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        lower(model, torch.randn(2, 3, 4, 4))


def test_a_refusal_prints_nothing_but_the_error(capfd):
    with pytest.raises(UnsupportedModelError):
        lower(DataDependent(), torch.randn(2, 3, 4, 4))

    assert capfd.readouterr() == ("", "")


def test_nan_weights_are_refused_by_name():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")

    with pytest.raises(ConfigError, match=r"'1\.weight' holds NaN"):
        lower(model, torch.zeros(1, 1, 2, 2))


def test_images_of_a_wrong_shape_are_refused():
    network = lower(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2))

    with pytest.raises(ConfigError, match=r"must have shape \(N, 1, 2, 2\), got \(3, 1, 4, 1\)"):
        network(torch.zeros(3, 1, 4, 1))


def test_fp16_rounds_operands_and_results_and_sums_in_fp32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    images = torch.randn(4, 1, 8, 8)
    network = lower(model, images).with_arithmetic(FloatArithmetic("fp16"))

    logits = network.trace(images)[network.output]

    x, w = images.flatten(1).half().float(), model[1].weight.detach().half().float()
    expected = (x @ w.T + model[1].bias.detach().half().float()).half()
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert (logits == expected).float().mean() > 0.9


def test_a_walk_lets_go_of_what_no_later_node_reads():
    images = torch.randn(2, 3, 32, 32)
    spec = zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32))
    network = lower(randomise_norms(zoo.build(spec)), images)
    trace = {name: value.clone() for name, value in network.trace(images).items()}
    last = {name: index for index, node in enumerate(network.nodes) for name in node.inputs}
    seen = {}

    with torch.inference_mode():
        for index, (node, value) in enumerate(network.walk(images)):
            assert torch.equal(value, trace[node.name])
            seen[node.name] = weakref.ref(value)
            del value
            alive = {name for name, values in seen.items() if values() is not None} - {"input"}
            assert alive <= {name for name in seen if last.get(name, 0) >= index} | {node.name}

    assert list(seen) == [node.name for node in network.nodes]
