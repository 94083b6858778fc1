import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from rasp.complexity import count
from rasp.errors import ConfigError, StoreMismatchError, UnsupportedModelError
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.pruning.allocation import Budget
from rasp.pruning.importance import Activation, CalibrationBatch, Magnitude, Random, Taylor
from rasp.pruning.plan import PruningPlan
from rasp.pruning.pruner import prune, replay
from rasp.pruning.recalibrate import recalibrate
from rasp.pruning.selection import Trade
from rasp.zoo import MODELS, ModelSpec, build

HALF = Budget("macs", 0.5)


def zoo(name):
    shape = MODELS[name].input_shape
    model = build(ModelSpec(model=name, num_classes=10, input_shape=shape)).eval()
    return model, torch.randn(4, *shape)


def images_of(example):
    return CalibrationBatch(example, torch.arange(len(example)))


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "resnet56", "resnet18"])
@pytest.mark.parametrize("kept", [0.5, 0.25])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_macs_that_stay_are_those_asked_for_and_those_reported(name, kept, scope):
    model, example = zoo(name)
    budget = Budget("macs", kept)
    result = prune(model, example=example, importance=Magnitude(), budget=budget, scope=scope)
    part = count(result.model, example).macs / count(model, example).macs
    assert result.plan.kept_macs == pytest.approx(part, abs=1e-12)
    assert part == pytest.approx(kept, abs=0.02 if name != "lenet5" else 0.05)
    assert result.model(example).shape == (4, 10)


def test_every_criterion_gets_the_same_architecture_under_uniform_scope():
    model, example = zoo("resnet20")
    plans = [
        prune(
            model, example=example, importance=i, budget=HALF, calibration=images_of(example)
        ).plan
        for i in (Random(), Magnitude(), Magnitude(p=1), Activation(), Taylor())
    ]
    assert all(plan.widths == plans[0].widths for plan in plans)
    assert len({plan.steps for plan in plans}) == len(plans)


def test_iterations_end_at_the_widths_of_one_step_and_replay_in_one():
    model, example = zoo("resnet20")
    seen = []

    def tune(network, step):
        seen.append((step, count(network, example).macs))
        network.train()
        network(torch.randn(8, 3, 32, 32)).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)
        network.eval()

    once = prune(model, example=example, importance=Magnitude(), budget=HALF)
    stepped = prune(
        model, example=example, importance=Magnitude(), budget=HALF, iterations=3, fine_tune=tune
    )
    assert stepped.plan.widths == once.plan.widths
    assert [step for step, _ in seen] == [1, 2, 3]
    assert seen[0][1] > seen[1][1] > seen[2][1] == count(once.model, example).macs
    again = replay(model, stepped.plan, example)
    assert not torch.equal(again(example), stepped.model(example))
    again.load_state_dict(stepped.model.state_dict())
    assert torch.equal(again(example), stepped.model(example))


@pytest.mark.parametrize("name", ["nv_small", "nv_large"])
def test_a_budget_in_cycles_is_met_on_the_accelerator(name):
    model, example = zoo("resnet18")
    budget = Budget("cycles", 0.5, load(name))
    result = prune(model, example=example, importance=Magnitude(), budget=budget)
    assert PruningPlan.from_json(result.plan.to_json()) == result.plan
    parts = [
        budget.cost([layer.conv for layer in lower(net, example).layers])
        for net in (result.model, model)
    ]
    assert parts[0] / parts[1] == pytest.approx(0.5, abs=0.03)


def test_replay_refuses_a_plan_of_another_network():
    lenet, digits = zoo("lenet5")
    resnet, photos = zoo("resnet20")
    plan = prune(lenet, example=digits, importance=Magnitude(), budget=HALF).plan
    with pytest.raises(StoreMismatchError, match="The plan starts from"):
        replay(resnet, plan, photos)
    forged = json.loads(plan.to_json())
    forged["steps"][0]["channels"] = [0, 99]
    with pytest.raises(StoreMismatchError, match="removes channel 99 of 'conv1'"):
        replay(lenet, PruningPlan.from_json(json.dumps(forged)), digits)
    forged["steps"][0] = {"module": "fc3", "channels": [0]}
    with pytest.raises(StoreMismatchError, match="'fc3'"):
        replay(lenet, PruningPlan.from_json(json.dumps(forged)), digits)
    forged["steps"].pop(0)
    with pytest.raises(StoreMismatchError, match="The plan ends at"):
        replay(lenet, PruningPlan.from_json(json.dumps(forged)), digits)


class Joined(nn.Module):
    """Concatenation, an addition across it, a depthwise and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding="same", groups=12)
        self.mix = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        both = torch.cat([self.left(x), self.right(x)], 1).relu() + self.wide(x)
        both = self.grouped(self.mix(self.depthwise(both).relu()).relu())
        return self.head(both.relu()).mean((2, 3))


def test_concatenation_depthwise_and_a_convolution_as_head():
    model, example = Joined().eval(), torch.randn(3, 3, 8, 8)
    result = prune(model, example=example, importance=Magnitude(), budget=Budget("channels", 0.5))
    after = {name: width.after for name, width in result.plan.widths.items()}
    assert after == {
        "left": 2, "right": 4, "wide": 6, "depthwise": 6, "mix": 8, "grouped": 8, "head": 5
    }  # fmt: skip
    notes = {note.split(":")[0]: note for note in result.plan.notes}
    assert "grouped convolution 'grouped'" in notes["mix"]
    assert "network's output" in notes["head"]


class Padded(nn.Module):
    """An option-A shortcut written as a function."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.deep(self.inner(x).relu()) + pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.linear(x.relu().mean((2, 3)))


def test_a_padding_of_channels_outside_the_zoo_protects_its_stream():
    model, example = Padded().eval(), torch.randn(3, 3, 8, 8)
    result = prune(model, example=example, importance=Magnitude(), budget=HALF)
    assert [step.module for step in result.plan.steps] == ["inner"]
    assert any("padding of channels" in note for note in result.plan.notes)


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_a_network_without_inner_channels_is_refused():
    with pytest.raises(UnsupportedModelError, match="No channel can be removed"):
        prune(Single(), example=torch.randn(2, 3, 2, 2), importance=Magnitude(), budget=HALF)


class Broken:
    name = "broken"

    def __init__(self, value):
        self.value = value

    def __call__(self, model, groups, batch):
        return {group.root: self.value(group) for group in groups}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda g: torch.full((g.width,), float("nan")), "NaN or Inf for 'conv1'"),
        (lambda g: torch.zeros(g.width - 1), "shape \\(5,\\) for 'conv1', which has 6"),
    ],
)
def test_scores_that_make_no_sense_are_refused(value, message):
    model, example = zoo("lenet5")
    with pytest.raises(ConfigError, match=message):
        prune(model, example=example, importance=Broken(value), budget=HALF)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "local"}, "Unknown scope 'local'"),
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"importance": Taylor()}, "give a calibration set"),
        ({"budget": Budget("macs", 0.001)}, "cannot be reached"),
        ({"budget": Budget("channels", 0.99)}, "removes no channel"),
        ({"example": torch.randn(2, 3, 5, 5)}, "does not take an example of shape"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    model, example = zoo("lenet5")
    wide = {"round_to": 64} if "removes no" in message else {}
    with pytest.raises(ConfigError, match=message):
        prune(
            model,
            **{"example": example, "importance": Magnitude(), "budget": HALF, **wide, **arguments},
        )


def test_nan_weights_are_refused():
    model, example = zoo("lenet5")
    model.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(ConfigError, match=r"'fc1\.weight' hold NaN"):
        prune(model, example=example, importance=Magnitude(), budget=HALF)


def test_recalibration_gives_batch_norms_the_statistics_of_the_images():
    model, _ = zoo("resnet20")
    images = torch.randn(300, 3, 32, 32)
    recalibrate(model, images)
    first = model.conv1(images)
    torch.testing.assert_close(model.bn1.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in model.modules())
    assert model.bn1.momentum == 0.1
    with pytest.raises(ConfigError, match="at least 2"):
        recalibrate(model, images[:1])


def test_the_public_resnet20_is_pruned_saved_and_replayed_bit_identically(shared_weights):
    model, example = zoo("resnet20")
    from rasp.zoo import load_weights

    load_weights(model, shared_weights / "resnet20-12fca82f.th")
    batch = images_of(torch.randn(10, 3, 32, 32))
    for kept in (0.5, 0.25):
        result = prune(
            model,
            example=example,
            importance=Taylor(),
            budget=Budget("macs", kept),
            calibration=batch,
            fine_tune=lambda network, _: recalibrate(network, batch.images),
        )
        assert result.plan.kept_macs == pytest.approx(kept, abs=0.01)
        again = replay(model, PruningPlan.from_json(result.plan.to_json()), example)
        again.load_state_dict(result.model.state_dict())
        assert torch.equal(again(example), result.model(example))


@pytest.fixture
def shared_weights():
    import os

    folder = Path(os.environ.get("RASP_WEIGHTS", ""))
    if not (folder / "resnet20-12fca82f.th").is_file():
        pytest.skip("RASP_WEIGHTS does not point at the public ResNet-20 checkpoint")
    return folder


def test_a_network_without_layers_is_refused_by_what_it_lacks():
    class Corner(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    with pytest.raises(UnsupportedModelError, match="no convolution and no linear layer"):
        prune(
            Corner(), example=torch.rand(1, 1, 8, 8), importance=Random(),
            budget=Budget("macs", 0.5),
        )  # fmt: skip


def test_a_trade_belongs_to_the_scope_failures():
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(1, 1, 8, 8)
    for scope, trade in (("failures", None), ("global", Trade(len))):
        with pytest.raises(ConfigError, match="needs a trade"):
            prune(
                model, example=example, importance=Random(), budget=Budget("macs", 0.5),
                scope=scope, trade=trade,
            )  # fmt: skip
