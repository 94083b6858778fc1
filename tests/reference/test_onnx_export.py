"""Written networks against the networks they came from, in onnxruntime."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from rasp import verbs, zoo
from rasp.cli.app import app
from rasp.errors import ConfigError, PrerequisiteError
from rasp.export import onnx as exported
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Bound, Conv
from rasp.network.lower import lower
from rasp.pruning.hardening import harden, measure
from rasp.quantization.calibrate import quantize

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


class Branches(nn.Module):
    """Grouped, strided and dilated convolutions, a sum, a concatenation, both pools, a view."""

    def __init__(self, pool=nn.functional.avg_pool2d):
        super().__init__()
        self.pool = pool
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.right = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(16, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12 * 2 * 2, 5)

    def forward(self, x):
        x = self.stem(x).clamp(0, 6)
        x = torch.cat([torch.relu(self.left(x)) + self.right(x), x], dim=1)
        x = nn.functional.max_pool2d(torch.relu(self.down(x)), 2)
        return self.head(self.pool(x, 2).flatten(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(images):
    torch.manual_seed(2)
    return lower(Branches().eval(), images[:1])


def session(file):
    return runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def logits(file, images):
    [entry] = (run := session(file)).get_inputs()
    parts = torch.split(images, entry.shape[0])
    return np.concatenate([run.run(None, {entry.name: part.numpy()})[0] for part in parts])


def operators(file):
    return [node.op_type for node in onnx.load(file).graph.node]


@pytest.mark.parametrize("batch", [1, 8])
def test_fp32_gives_the_networks_logits(network, images, tmp_path, batch):
    exported.write(network, tmp_path / "a.onnx", batch=batch)
    assert np.allclose(logits(tmp_path / "a.onnx", images), network(images), rtol=1e-5, atol=1e-5)
    assert session(tmp_path / "a.onnx").get_inputs()[0].shape == [batch, 3, 16, 16]
    assert exported.agreement(tmp_path / "a.onnx", network, images).same_class == 64


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_bounds_hold_in_the_written_network(network, images, tmp_path, scope, zero):
    """Bounds of half the images' range bite on images ten times as large."""
    record = measure(network, images, mode="zero" if zero else "clip", scope=scope)
    hardened = halved(harden(network, record))
    wild = 10 * images
    assert not torch.allclose(hardened(wild), network(wild), rtol=0.1)

    exported.write(hardened, tmp_path / "a.onnx")

    assert np.allclose(logits(tmp_path / "a.onnx", wild), hardened(wild), rtol=1e-4, atol=1e-4)
    found = operators(tmp_path / "a.onnx")
    held = {(False, "layer"): "Clip", (False, "channel"): "Min", (True, "layer"): "Where"}
    bounded = sum(node.bound is not None for node in hardened.nodes)
    assert found.count(held.get((zero, scope), "Where")) >= bounded > 4


def halved(network):
    nodes = [
        node
        if node.bound is None
        else dataclasses.replace(
            node, bound=Bound(node.bound.low / 2, node.bound.high / 2, zero=node.bound.zero)
        )
        for node in network.nodes
    ]
    return dataclasses.replace(network, nodes=tuple(nodes))


POOLS = [(nn.functional.max_pool2d, 1, 0.03), (nn.functional.avg_pool2d, 5, 0.9)]


@pytest.mark.parametrize(("pool", "steps", "share"), POOLS)
def test_int8_differs_by_rounding_alone(images, tmp_path, pool, steps, share):
    """Halves round to even in ONNX and away from zero on NVDLA: rare but in means of four."""
    torch.manual_seed(2)
    network = lower(Branches(pool).eval(), images[:1])
    int8, _ = quantize(network, images)
    exported.write(int8, tmp_path / "a.onnx")
    step = int8.arithmetic.scales[int8.output]
    off = np.abs(logits(tmp_path / "a.onnx", images) - int8(images).numpy()) / step
    assert off.max() < steps + 0.01
    assert np.mean(off > 0.5) < share
    assert (int8(images) - network(images)).abs().max() > step / 4


def test_int8_stores_int8_weights_between_pairs(network, images, tmp_path):
    exported.write(quantize(network, images)[0], tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    stored = {entry.name: entry for entry in graph.initializer}
    convolutions = [node for node in network.nodes if isinstance(node, Conv)]
    for node in convolutions:
        weight = stored[f"{node.name}.weight"]
        assert weight.data_type == onnx.TensorProto.INT8
        assert weight.dims[0] == node.weight.shape[0]
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("DequantizeLinear") == kinds.count("QuantizeLinear") + len(convolutions)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert makers[node.input[1]] == "DequantizeLinear"


def test_operators_are_named_after_modules_and_the_file_says_what_it_is(network, images, tmp_path):
    exported.write(network, tmp_path / "a.onnx", metadata={"model": "branches", "std": [1, 2]})
    model = onnx.load(tmp_path / "a.onnx")
    names = {node.op_type: node.name for node in model.graph.node}
    assert names["Gemm"].startswith("head/")
    assert {"stem.weight", "left.bias"} <= {entry.name for entry in model.graph.initializer}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["rasp.model"] == "branches"
    assert json.loads(properties["rasp.std"]) == [1, 2]


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnet20"])
def test_models_of_the_zoo(tmp_path, model, images):
    spec = zoo.ModelSpec(model=model, num_classes=10, input_shape=(3, 32, 32))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = lower(zoo.build(spec).eval(), x[:1])
    exported.write(network, tmp_path / "a.onnx")
    largest = exported.agreement(tmp_path / "a.onnx", network, x).largest
    assert largest < 1e-5 * network(x).abs().max()


class Gated(nn.Module):
    """Operations of the host."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.silu(self.conv(x)).mean((2, 3))
        return self.head(x * torch.sigmoid(x))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("squeezed", [False, True])
def test_operations_of_the_host(images, tmp_path, batch, squeezed):
    """One that means something else on a batch of one is written as it runs beside another."""
    torch.manual_seed(2)
    network = lower(Gated().eval(), images[:1])
    if squeezed:
        nodes = [
            dataclasses.replace(node, call=lambda a, b: torch.squeeze(a * b))
            if node.name == "mul"
            else node
            for node in network.nodes
        ]
        network = dataclasses.replace(network, nodes=tuple(nodes))
    exported.write(network, tmp_path / "a.onnx", batch=batch)
    assert np.allclose(logits(tmp_path / "a.onnx", images), network(images), atol=1e-6)
    kinds = operators(tmp_path / "a.onnx")
    assert kinds.count("Sigmoid") == 2
    assert ("Concat" in kinds or "Slice" in kinds) == (squeezed and batch == 1)


def test_what_cannot_be_written_leaves_the_old_file(network, tmp_path, monkeypatch):
    file = tmp_path / "a.onnx"
    file.write_text("old")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        exported.write(network, file, batch=0)
    half = network.with_arithmetic(FloatArithmetic("fp16"))
    with pytest.raises(ConfigError, match="fp32 or int8, got fp16"):
        exported.write(half, file)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(PrerequisiteError, match=r"pip install 'torch-rasp\[export\]'"):
                exported.write(network, file)
    assert file.read_text() == "old"


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    """A LeNet-5 of digits whose layers are held to bounds."""
    place = tmp_path_factory.mktemp("lenet5")
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    torch.manual_seed(4)
    save_file(zoo.build(spec).state_dict(), place / "weights.safetensors")
    verbs.harden("lenet5", data="digits", weights=place / "weights.safetensors", out=place / "net")
    return place / "net"


def test_the_command_writes_and_checks(hardened, tmp_path):
    file = tmp_path / "a.onnx"
    done = CliRunner().invoke(app, ["export", str(hardened), str(file), "--batch", "4", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["same_class"] == found["images"] > 100
    assert found["largest_difference"] < 1e-4
    properties = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert properties["rasp.hardening"] == "clip layer"
    assert operators(file).count("Clip") >= 4


@pytest.mark.parametrize("batch", [3, 100])
def test_images_that_do_not_fill_batches_are_checked(network, images, tmp_path, batch):
    exported.write(network, tmp_path / "a.onnx", batch=batch)
    found = exported.agreement(tmp_path / "a.onnx", network, images)
    assert found.images == found.same_class == len(images)


def test_the_command_refuses_what_it_cannot_write(hardened, tmp_path):
    for more, word in ((["--format", "fp16"], "got fp16"), (["--batch", "0"], "got 0")):
        line = ["export", str(hardened), str(tmp_path / "a.onnx"), *more]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 2
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []
