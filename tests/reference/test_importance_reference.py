"""Criteria against torch-pruning's, against weight gradients and against really removing."""

import pytest
import torch
import torch_pruning as tp
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from rasp.data import load
from rasp.errors import ConfigError
from rasp.network.lower import lower
from rasp.nvdla.config import load as accelerator
from rasp.pruning.allocation import Budget
from rasp.pruning.importance import (
    CRITERIA,
    Activation,
    CalibrationBatch,
    KeepVulnerable,
    Magnitude,
    Placebo,
    Reliability,
    Taylor,
)
from rasp.pruning.injection import injected_vulnerability
from rasp.pruning.pruner import prune
from rasp.pruning.vulnerability import channel_vulnerability
from rasp.quantization.calibrate import quantize
from rasp.zoo import ModelSpec, build


def scored(importance, model, batch=None, example=None):
    """Groups and scores as the pruner sees them."""
    seen = {}

    class Spy:
        name = "spy"

        def __call__(self, model, groups, batch):
            seen["groups"] = {group.root: group for group in groups}
            seen["scores"] = importance(model, groups, batch)
            return seen["scores"]

    example = batch.images[:2] if example is None else example
    prune(model, example=example, importance=Spy(), budget=Budget("macs", 0.5), calibration=batch)
    return seen["groups"], seen["scores"]


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_group_norm_of_torch_pruning(name, p):
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    model = build(ModelSpec(model=name, num_classes=10, input_shape=shape)).eval()
    example = torch.randn(2, *shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 1)
    groups, scores = scored(Magnitude(p=p), model, example=example)
    graph = tp.DependencyGraph().build_dependency(model, example, forward_fn=lambda m, x: m(x))
    theirs = tp.importance.GroupMagnitudeImportance(p=p, group_reduction="sum", normalizer=None)
    for root, group in groups.items():
        layer = model.get_submodule(root)
        cut = graph.get_pruner_of_module(layer).prune_out_channels
        expected = theirs(graph.get_pruning_group(layer, cut, list(range(group.width))))
        torch.testing.assert_close(scores[root].pow(p), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    dataset = load("digits")
    images, labels = dataset.tensor(dataset.train), torch.from_numpy(dataset.train.labels)
    spec = ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    model = build(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval(), CalibrationBatch(images[:96], labels[:96])


def test_taylor_by_the_loss_is_the_sum_of_weight_times_gradient(trained):
    model, batch = trained
    single = CalibrationBatch(batch.images[:1], batch.labels[:1])
    _, scores = scored(Taylor(of="loss"), model, single)
    model.zero_grad()
    cross_entropy(model(single.images), single.labels).backward()
    for root, reader in [("conv1", model.conv2), ("fc1", model.fc2), ("fc2", model.fc3)]:
        change = (reader.weight * reader.weight.grad).detach().transpose(0, 1).flatten(1).sum(1)
        torch.testing.assert_close(scores[root], change.abs(), rtol=1e-4, atol=1e-7)
    change = (model.fc1.weight * model.fc1.weight.grad).detach().sum(0).view(16, 16).sum(1)
    torch.testing.assert_close(scores["conv2"], change.abs(), rtol=1e-4, atol=1e-7)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("root", ["conv2", "fc2"])
def test_taylor_ranks_channels_as_the_margin_lost_without_them(trained, root):
    model, batch = trained
    _, scores = scored(Taylor(), model, batch)

    def margin(logits, top):
        own = logits.gather(1, top[:, :1]) - logits.gather(1, top[:, 1:])
        return own[:, 0]

    layer = model.get_submodule(root)
    with torch.no_grad():
        whole = model(batch.images)
        top = whole.topk(2, dim=1).indices
        lost = []
        for channel in range(len(layer.weight)):
            saved = layer.weight[channel].clone(), layer.bias[channel].clone()
            layer.weight[channel], layer.bias[channel] = 0, 0
            change = margin(model(batch.images), top) - margin(whole, top)
            lost.append(float(change.abs().mean()))
            layer.weight[channel], layer.bias[channel] = saved
    assert spearmanr(scores[root], lost).statistic > 0.8


def test_activation_is_the_mean_of_what_the_readers_read(trained):
    model, batch = trained
    _, scores = scored(Activation(), model, batch)
    _, peaks = scored(Activation(class_max=True), model, batch)
    with torch.no_grad():
        first = model.pool(model.relu(model.conv1(batch.images)))
        second = model.pool(model.relu(model.conv2(first)))
        third = model.relu(model.fc1(second.flatten(1)))
    for root, tensor in [("conv1", first), ("conv2", second), ("fc1", third[:, :, None, None])]:
        torch.testing.assert_close(scores[root], tensor.mean((0, 2, 3)))
        classes = [tensor[batch.labels == c].mean((0, 2, 3)) for c in range(10)]
        torch.testing.assert_close(peaks[root], torch.stack(classes).amax(0))


def test_reliability_without_vulnerability_is_taylor(trained):
    model, batch = trained
    plans = [
        prune(
            model,
            example=batch.images[:2],
            importance=importance,
            budget=Budget("macs", 0.5),
            calibration=batch,
            scope="global",
        ).plan
        for importance in (Reliability(lam=0.0), Taylor())
    ]
    assert plans[0].steps == plans[1].steps


def vulnerability(model, batch, style):
    """First order in floating point; 100 injections a channel of the quantised network."""
    network = lower(model, batch.images[:1])
    if style != "int8":
        return channel_vulnerability(network, batch.images, format=style)
    rates = injected_vulnerability(
        quantize(network, batch.images)[0],
        accelerator("nv_full"),
        batch.images,
        trials=100 * sum(layer.conv.K for layer in network.layers),
        seed=0,
    )
    return {name: rate.float() for name, rate in rates.items()}


@pytest.mark.parametrize("style", ["fp32", "fp16", "int8"])
def test_reliability_is_the_rank_of_taylor_less_the_rank_of_the_failures(trained, style):
    from scipy.stats import rankdata

    model, batch = trained
    _, scores = scored(Reliability(lam=0.7, format=style), model, batch)
    _, taylor = scored(Taylor(), model, batch)
    rates = vulnerability(model, batch, style)
    for root, score in scores.items():
        ranks = [(rankdata(v.numpy()) - 1) / (len(v) - 1) for v in (taylor[root], rates[root])]
        expected = torch.from_numpy(ranks[0] - 0.7 * ranks[1]).float()
        torch.testing.assert_close(score, expected)


@pytest.mark.parametrize("style", ["fp32", "int8"])
def test_the_least_vulnerable_go_first_where_vulnerability_is_kept(trained, style):
    model, batch = trained
    _, scores = scored(KeepVulnerable(format=style), model, batch)
    rates, network = vulnerability(model, batch, style), lower(model, batch.images[:1])
    for root, score in scores.items():
        torch.testing.assert_close(score, rates[root] * network[root].conv.pixels)


def test_a_placebo_is_taylor_less_the_same_ranks_in_another_order(trained):
    from scipy.stats import rankdata

    model, batch = trained
    _, taylor = scored(Taylor(), model, batch)
    _, real = scored(Reliability(lam=0.5), model, batch)
    _, scores = scored(Placebo(lam=0.5), model, batch)
    _, plain = scored(Placebo(lam=0.0), model, batch)
    for root, score in scores.items():
        rank = torch.from_numpy((rankdata(taylor[root].numpy()) - 1) / (len(score) - 1))
        taken = [rank - other[root] for other in (real, scores)]
        torch.testing.assert_close(*[one.sort().values for one in taken], atol=1e-6, rtol=0)
        assert len(score) < 4 or not torch.equal(score, real[root])
        assert torch.equal(plain[root], taylor[root])


def test_every_criterion_is_built_by_name_and_says_its_name(trained):
    model, batch = trained
    for name, kind in CRITERIA.items():
        assert kind().name == name
        groups, scores = scored(kind(), model, batch)
        assert {root: len(score) for root, score in scores.items()} == {
            root: group.width for root, group in groups.items()
        }


def test_calibration_sets_and_options_are_checked():
    images, labels = torch.zeros(2, 1, 28, 28), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="empty"):
        CalibrationBatch(images[:0], labels[:0])
    with pytest.raises(ConfigError, match="NaN"):
        CalibrationBatch(images * float("nan"), labels)
    with pytest.raises(ConfigError, match="one label an image"):
        CalibrationBatch(images, labels[:1])
    with pytest.raises(ConfigError, match="lambda"):
        Reliability(lam=-1.0)
    with pytest.raises(ConfigError, match="1 or 2"):
        Magnitude(p=3)
    with pytest.raises(ConfigError, match="margin"):
        Taylor(of="logit")


def test_labels_that_no_logit_stands_for_are_refused(trained):
    model, batch = trained
    wrong = CalibrationBatch(batch.images, batch.labels + 5)
    with pytest.raises(ConfigError, match=r"0\.\.9, got 5\.\.14"):
        scored(Taylor(of="loss"), model, wrong)
