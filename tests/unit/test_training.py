from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import rel_entr, softmax
from torch import nn

from rasp import training, zoo
from rasp.data import Dataset, Split, load
from rasp.errors import ConfigError, StoreMismatchError
from rasp.training import (
    STATE_FILE,
    Teacher,
    TrainingConfig,
    accuracy,
    augmented,
    default_config,
    fit,
)

CONFIG = TrainingConfig(epochs=3, batch=16, lr=0.05, precision="fp32")


def squares(n: int, seed: int = 0) -> Split:
    """A bright square in one of the four corners; the label says which."""
    labels = np.arange(n) % 4
    images = np.random.default_rng(seed).integers(0, 60, (n, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return Split(images, labels)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset(
        "squares",
        squares(130),
        squares(20, 1),
        squares(20, 2),
        classes=4,
        mean=(0.3,),
        std=(0.3,),
        augment="crop",
    )


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(288, 4),
        )  # fmt: skip


def identical(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[name], y[name]) for name in x)


class StoppedError(Exception):
    """Raised in the middle of a run, as a signal would."""


def stop_at(step: int):
    def progress(stage, done, total, detail=""):
        if done == step:
            raise StoppedError

    return progress


def test_a_network_learns_and_ends_in_evaluation_mode(dataset):
    result = fit(net(), dataset, CONFIG)
    assert result.validation_accuracy.value == 1
    assert result.history[-1].loss < result.history[0].loss / 2
    assert len(result.history) == 3
    assert not result.model.training
    assert result.model[0].weight.is_contiguous()
    assert accuracy(result.model, dataset, dataset.test) == (20, 20)


@pytest.mark.parametrize("step", [1, 9, 10, 18, 27])
def test_a_run_stopped_anywhere_and_resumed_gives_the_same_weights(dataset, tmp_path, step):
    whole = fit(net(), dataset, CONFIG)
    with pytest.raises(StoppedError):
        fit(net(), dataset, CONFIG, checkpoint_dir=tmp_path, progress=stop_at(step))
    torch.manual_seed(99)
    events = []
    resumed = fit(
        net(), dataset, CONFIG, checkpoint_dir=tmp_path, progress=lambda *e: events.append(e[1])
    )
    assert identical(whole.model, resumed.model)
    assert whole.history == resumed.history
    assert events[0] == (step - 1) // 9 * 9 + 1


def test_a_finished_run_is_read_back_and_not_repeated(dataset, tmp_path):
    first = fit(net(), dataset, CONFIG, checkpoint_dir=tmp_path)
    events = []
    again = fit(
        net(), dataset, CONFIG, checkpoint_dir=tmp_path, progress=lambda *e: events.append(e[1])
    )
    assert identical(first.model, again.model)
    assert events == [27]


def test_runs_repeat_for_a_seed_and_leave_torchs_generator_alone(dataset):
    torch.manual_seed(1)
    first = fit(net(), dataset, CONFIG)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert identical(first.model, fit(net(), dataset, CONFIG).model)
    assert not identical(first.model, fit(net(), dataset, replace(CONFIG, seed=1)).model)


def test_the_state_of_another_run_is_refused_and_left_alone(dataset, tmp_path):
    fit(net(), dataset, CONFIG, checkpoint_dir=tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    other_data = replace(dataset, train=squares(130, 5))
    for model, data, config, teacher in [
        (net(), dataset, replace(CONFIG, lr=0.06), None),
        (net(1), dataset, CONFIG, None),
        (net(), other_data, CONFIG, None),
        (net(), dataset, CONFIG, Teacher(net(2), 0.5)),
    ]:
        with pytest.raises(StoreMismatchError, match="another training run"):
            fit(model, data, config, teacher=teacher, checkpoint_dir=tmp_path)
    assert (tmp_path / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage" * 10,
        safetensors.torch.save({"a": torch.zeros(1)}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"rasp": "{"}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"rasp": json.dumps([1])}),
    ],
)
def test_a_file_that_is_no_training_state_is_refused(dataset, tmp_path, content):
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(StoreMismatchError, match="not the state of a training run"):
        fit(net(), dataset, CONFIG, checkpoint_dir=tmp_path)


def test_one_step_is_sgd_with_nesterov_momentum_and_decay_of_weights_only(dataset):
    config = replace(
        CONFIG, epochs=2, batch=130, warmup=0.0, augment=False, weight_decay=0.1, momentum=0.8
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    expected = [p.detach().clone() for p in model.parameters()]
    fit(model, dataset, config)
    x, y = dataset.tensor(dataset.train).flatten(1), torch.from_numpy(dataset.train.labels)
    velocity = [torch.zeros_like(p) for p in expected]
    for place in (0.5, 1.0):
        rate = 0.05 * 0.5 * (1 + np.cos(np.pi * place))
        leaves = [p.clone().requires_grad_() for p in expected]
        loss = nn.functional.cross_entropy(x @ leaves[0].T + leaves[1], y)
        gradients = list(torch.autograd.grad(loss, leaves))
        gradients[0] = gradients[0] + 0.1 * expected[0]
        for index, gradient in enumerate(gradients):
            velocity[index] = 0.8 * velocity[index] + gradient
            expected[index] -= rate * (gradient + 0.8 * velocity[index])
    for found, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_a_step_with_a_teacher_follows_the_gradient_of_both_losses(dataset):
    """The first of two steps, at half the rate (the second's is 0), by the bias of the logits."""
    teacher = Teacher(net(5).eval(), 0.25, temperature=2.0)
    config = replace(CONFIG, epochs=2, batch=130, warmup=0.0, augment=False, momentum=0.8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    before = model[1].bias.detach().clone()
    x, y = dataset.tensor(dataset.train), dataset.train.labels
    with torch.no_grad():
        logits = model(x).double().numpy()
        wanted = softmax(teacher.model(x).double().numpy() / 2, axis=1)
    fit(model, dataset, config, teacher=teacher)

    def loss(bias):
        surprise = -np.log(softmax(logits + bias, axis=1)[np.arange(len(y)), y]).mean()
        apart = 2**2 * rel_entr(wanted, softmax((logits + bias) / 2, axis=1)).sum(1).mean()
        return 0.75 * surprise + 0.25 * apart

    ends = 1e-5 * np.eye(4)
    gradient = np.array([loss(end) - loss(-end) for end in ends]) / 2e-5
    step = (model[1].bias.detach() - before).numpy()
    assert step == pytest.approx(-0.05 * 0.5 * 1.8 * gradient, rel=1e-3, abs=1e-7)


def test_a_student_learns_what_its_teacher_knows_and_the_labels_do_not(dataset):
    teacher = fit(net(), dataset, CONFIG).model
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    wrong = Split(dataset.train.images, (dataset.train.labels + 1) % 4)
    taught = fit(net(3), replace(dataset, train=wrong), CONFIG, teacher=Teacher(teacher, 1.0))
    assert taught.validation_accuracy.value == 1
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_the_rate_climbs_to_its_highest_value_and_falls_to_zero():
    config = replace(CONFIG, lr=0.4, warmup=0.25)
    rates = [training._rate(step, 100, config) for step in range(100)]
    assert max(rates) == pytest.approx(0.4)
    assert np.argmax(rates) == 24
    assert rates[0] == pytest.approx(0.4 / 25)
    assert rates[-1] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[24:]))


def test_an_epoch_sees_every_image_once_in_a_new_order():
    first, second = (
        torch.cat(training._batches(130, epoch, replace(CONFIG, batch=64))) for epoch in (0, 1)
    )
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(130))
    assert first.tolist() != second.tolist()
    assert [len(b) for b in training._batches(129, 0, replace(CONFIG, batch=64))] == [64, 64]


def test_a_shifted_image_is_a_window_of_the_image_with_a_black_frame():
    images = torch.arange(1, 17 * 17 + 1).view(1, 1, 17, 17).repeat(200, 2, 1, 1) % 256
    images = images.to(torch.uint8)
    shifted = augmented(images, "crop")
    frame = nn.functional.pad(images, (2, 2, 2, 2))
    windows = [frame[0, :, y : y + 17, x : x + 17] for y in range(5) for x in range(5)]
    found = {next(i for i, w in enumerate(windows) if torch.equal(w, s)) for s in shifted}
    assert found == set(range(25))


def test_half_of_the_images_are_mirrored_and_none_where_it_would_change_the_class():
    images = torch.arange(7, dtype=torch.uint8).expand(400, 1, 7, 7)  # too small to be shifted
    mirrored = augmented(images, "crop+flip")
    kinds = {tuple(row): 0 for row in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0])}
    for image in mirrored:
        kinds[tuple(image[0, 3].tolist())] += 1
    assert sum(kinds.values()) == 400
    assert min(kinds.values()) > 140  # 6 standard deviations below 200
    assert torch.equal(augmented(images, "crop"), images)
    assert augmented(images, "none") is images


def test_accuracy_counts_right_answers_and_none_that_are_not_finite(dataset):
    def oracle(x):
        assert x.shape[1:] == (1, 8, 8)
        corners = nn.functional.avg_pool2d(x, 4).flatten(1)
        corners[0, :] = torch.nan
        return corners

    assert accuracy(oracle, dataset, dataset.test, batch=7) == (17, 20)
    assert accuracy(oracle, dataset, dataset.test, limit=9) == (8, 9)
    assert accuracy(oracle, dataset, dataset.test).value == 0.95


def test_training_never_looks_at_the_test_part(dataset, monkeypatch):
    class Forbidden:
        def __getattr__(self, name):
            raise AssertionError(name)

    copy = replace(dataset)
    object.__setattr__(copy, "test", Forbidden())
    fit(net(), copy, replace(CONFIG, epochs=1))


def test_bfloat16_trains_weights_that_stay_fp32(dataset):
    result = fit(net(), dataset, replace(CONFIG, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.validation_accuracy.value > 0.9


def test_frozen_parameters_stay_and_a_wholly_frozen_network_is_refused(dataset):
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, dataset, replace(CONFIG, epochs=1))
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ConfigError, match="nothing to fit"):
        fit(net().requires_grad_(False), dataset, CONFIG)


def test_a_run_that_diverges_says_so(dataset, tmp_path):
    with pytest.raises(ConfigError, match="diverged in epoch 1"):
        fit(net(), dataset, replace(CONFIG, lr=1e30), checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1),
        ("label_smoothing", 1.0),
        ("warmup", 1.0),
        ("seed", -1),
        ("precision", "fp8"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ConfigError, match=f"{field} must be .*, got"):
        replace(CONFIG, **{field: value})


@pytest.mark.timeout(120)
def test_lenet_reaches_98_percent_on_the_embedded_digits():
    digits = load("digits")
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=digits.input_shape)
    result = fit(zoo.build(spec), digits, default_config("lenet5", "digits"))
    assert accuracy(result.model, digits, digits.test).value >= 0.98
