"""One test for each fault found in other pruners, reference/pruning.md B.1 numbers 1 to 12."""

import copy

import pytest
import torch
from torch import nn

from rasp.complexity import count
from rasp.pruning.allocation import Budget
from rasp.pruning.importance import Activation, CalibrationBatch, Magnitude, Random, Taylor
from rasp.pruning.pruner import prune, replay
from rasp.zoo import ModelSpec, build

HALF = Budget("channels", 0.5)


def zoo(name, shape=(3, 32, 32)):
    return build(ModelSpec(model=name, num_classes=10, input_shape=shape)).eval()


@pytest.fixture(scope="module")
def lenet():
    return zoo("lenet5", (1, 28, 28))


@pytest.fixture
def digits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 1, 28, 28, generator=generator)


@pytest.fixture
def batch(digits):
    return CalibrationBatch(digits, torch.arange(40) % 10)


class Given:
    """Scores chosen by the test."""

    name = "given"

    def __init__(self, score):
        self.score = score

    def __call__(self, model, groups, batch):
        return {group.root: self.score(group) for group in groups}


def widths(result):
    return {name: width.after for name, width in result.plan.widths.items()}


def test_1_widths_round_to_the_nearest_atom_and_small_groups_are_pruned_unrounded(lenet, digits):
    result = prune(lenet, example=digits, importance=Magnitude(), budget=HALF, round_to=8)
    assert widths(result) == {"conv1": 3, "conv2": 8, "fc1": 64, "fc2": 40, "fc3": 10}


def test_1_coarse_atoms_leave_no_group_of_resnet18_whole():
    budget = Budget("channels", 0.4)
    result = prune(
        zoo("resnet18"),
        example=torch.randn(2, 3, 32, 32),
        importance=Magnitude(),
        budget=budget,
        round_to=32,
    )
    kept = widths(result)
    assert (kept["conv1"], kept["layer2.0.conv1"], kept["layer4.1.conv2"]) == (32, 64, 192)
    assert result.plan.kept_macs < 0.25
    assert [note.split(":")[0] for note in result.plan.notes] == ["linear"]


def test_1_a_group_the_rounding_leaves_whole_is_noted(lenet, digits):
    budget = Budget("channels", 0.97)
    result = prune(lenet, example=digits, importance=Magnitude(), budget=budget, round_to=4)
    assert widths(result)["conv2"] == 16
    assert any(note.startswith("conv2: left whole by the budget") for note in result.plan.notes)


def test_2_global_ranking_never_empties_a_layer(lenet, digits):
    first = Given(lambda group: torch.full((group.width,), 1.0 if group.root != "fc1" else 0.0))
    result = prune(
        lenet, example=digits, importance=first, budget=Budget("channels", 0.2), scope="global"
    )
    assert min(widths(result).values()) >= 1
    assert widths(result)["fc1"] == 1
    assert result.model(digits).shape == (40, 10)


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_3_ties_are_cut_at_the_budget_lowest_channel_first(lenet, digits, scope):
    flat = Given(lambda group: torch.zeros(group.width))
    result = prune(lenet, example=digits, importance=flat, budget=HALF, scope=scope)
    total = sum(len(step.channels) for step in result.plan.steps)
    assert total == (6 + 16 + 120 + 84) // 2
    for step in result.plan.steps:
        assert step.channels == tuple(range(len(step.channels)))
    tied = [note for note in result.plan.notes if "every channel scored alike" in note]
    assert [note.split(":")[0] for note in tied] == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize(("classes", "noted"), [(1, True), (2, False)])
def test_calibration_images_of_one_class_are_noted(lenet, digits, classes, noted):
    images = CalibrationBatch(digits, torch.arange(40) % classes + 3)
    notes = prune(
        lenet, example=digits, importance=Taylor(), budget=HALF, calibration=images
    ).plan.notes
    assert ("40 calibration images are of class 3" in " ".join(notes)) == noted


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_4_each_group_loses_its_own_lowest_channels(lenet, digits, scope):
    chosen = {
        group: set(torch.randperm(n)[: n // 2].tolist())
        for group, n in {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84}.items()
    }
    marked = Given(
        lambda group: torch.tensor([float(c not in chosen[group.root]) for c in range(group.width)])
    )
    result = prune(lenet, example=digits, importance=marked, budget=HALF, scope=scope)
    assert {step.module: set(step.channels) for step in result.plan.steps} == chosen


def scores_of(importance, model, batch):
    """Scores as the pruner gets them, tied to the groups of the model."""
    caught = {}

    class Spy:
        name = "spy"

        def __call__(self, model, groups, batch):
            caught.update(importance(model, groups, batch))
            return caught

    prune(model, example=batch.images, importance=Spy(), budget=HALF, calibration=batch)
    return caught


@pytest.mark.parametrize("importance", [Taylor(), Activation(), Activation(class_max=True)])
def test_5_and_7_every_image_counts_alike_whatever_the_batches(lenet, batch, importance):
    order = torch.randperm(len(batch.images))
    shuffled = CalibrationBatch(batch.images[order], batch.labels[order])
    twice = CalibrationBatch(batch.images.repeat(2, 1, 1, 1), batch.labels.repeat(2))
    reference = scores_of(importance, lenet, batch)
    for other in (shuffled, twice):
        scores = scores_of(importance, lenet, other)
        for root, score in reference.items():
            torch.testing.assert_close(scores[root], score)


def test_5_taylor_is_the_mean_over_images(lenet, batch):
    whole = scores_of(Taylor(), lenet, batch)
    single = [
        scores_of(
            Taylor(), lenet, CalibrationBatch(batch.images[i : i + 1], batch.labels[i : i + 1])
        )
        for i in range(40)
    ]
    for root, score in whole.items():
        torch.testing.assert_close(score, torch.stack([s[root] for s in single]).mean(0))


def test_6_batch_norm_scales_count():
    model = zoo("resnet20")
    images = CalibrationBatch(torch.randn(4, 3, 32, 32), torch.arange(4))
    before = {i: scores_of(i, model, images)["layer1.0.conv1"] for i in (Magnitude(), Taylor())}
    with torch.no_grad():
        model.layer1[0].bn1.weight[3] = 0
        model.layer1[0].bn1.bias[3] = 0
    for importance, old in before.items():
        new = scores_of(importance, model, images)["layer1.0.conv1"]
        assert new[3] < old[3]
    assert new[3] == 0


def test_8_kept_means_kept(lenet, digits):
    result = prune(lenet, example=digits, importance=Random(), budget=Budget("channels", 0.25))
    assert widths(result) == {"conv1": 2, "conv2": 4, "fc1": 30, "fc2": 21, "fc3": 10}


def test_9_frozen_parameters_and_disabled_gradients_do_not_stop_pruning(lenet, digits):
    free = prune(lenet, example=digits, importance=Magnitude(), budget=HALF)
    frozen = copy.deepcopy(lenet).requires_grad_(requires_grad=False)
    with torch.no_grad():
        result = prune(frozen, example=digits, importance=Magnitude(), budget=HALF)
    with torch.inference_mode():
        inferred = prune(lenet, example=digits, importance=Magnitude(), budget=HALF)
    assert result.plan == free.plan == inferred.plan
    assert not any(p.requires_grad for p in result.model.parameters())
    assert all(p.requires_grad for p in free.model.parameters())


class Clipped(nn.Module):
    """A bound for every channel, held in a buffer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.linear = nn.Linear(8, 5)
        self.register_buffer("bounds", torch.linspace(0.1, 1.0, 8).view(1, 8, 1, 1))
        self.register_buffer("late", torch.linspace(0.1, 1.0, 8).view(1, 8, 1, 1), persistent=False)

    def forward(self, x):
        x = torch.minimum(self.conv1(x).relu(), self.bounds)
        x = torch.minimum(self.conv2(x).relu(), self.late)
        return self.linear(x.mean((2, 3)))


def test_10_buffers_with_a_value_per_channel_are_pruned_with_their_channels():
    model = Clipped().eval()
    example = torch.randn(2, 3, 9, 9)
    low = Given(lambda group: (torch.arange(group.width) % 2).float())
    result = prune(model, example=example, importance=low, budget=HALF)
    assert set(dict(result.model.named_buffers())) == {"bounds", "late"}
    assert "late" not in result.model.state_dict()
    for name in ("bounds", "late"):
        assert torch.equal(getattr(result.model, name), getattr(model, name)[:, 1::2])
    again = replay(model, result.plan, example)
    assert torch.equal(again(example), result.model(example))


@pytest.mark.parametrize(("name", "macs"), [("resnet18", 555_422_720), ("resnet50", 1_297_829_888)])
def test_11_macs_are_those_of_convolutions_and_linear_layers(name, macs):
    assert count(zoo(name), torch.zeros(1, 3, 32, 32)).macs == macs


def test_12_runs_share_no_state_and_leave_the_dense_network_alone(lenet, digits, batch):
    before = copy.deepcopy(lenet.state_dict())
    lenet.train()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    plans = [
        prune(lenet, example=digits, importance=i, budget=HALF, calibration=batch).plan
        for i in (Taylor(), Random(), Taylor(), Random())
    ]
    assert plans[:2] == plans[2:]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in lenet.modules())
    for name, value in lenet.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in lenet.parameters())
    lenet.eval()
