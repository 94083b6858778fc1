"""Run directories: names, recognition, interruption."""

from __future__ import annotations

import json

import pytest
from torch import nn

from rasp import data, runs, zoo
from rasp.errors import StoreMismatchError
from rasp.loading import Loaded


@pytest.fixture
def loaded():
    dataset = data.load("digits")
    spec = zoo.ModelSpec(
        model="lenet5", num_classes=dataset.classes, input_shape=dataset.input_shape
    )
    return Loaded(zoo.build(spec), spec, dataset)


def test_directories_count_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.directory(None, "train-x").name == "train-x-001"
    (tmp_path / "runs" / "train-x-007").mkdir(parents=True)
    (tmp_path / "runs" / "train-x-y-009").mkdir()

    assert runs.directory(None, "train-x").name == "train-x-008"
    assert runs.directory("here", "train-x").name == "here"


def test_naming_a_directory_makes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.directory(None, "train-x")

    assert list(tmp_path.iterdir()) == []


def test_finished_work_is_recognised_by_its_arguments(tmp_path, loaded):
    arguments = {"verb": "train", "seed": 0, "widths": (1, 2)}
    assert runs.finished(tmp_path, arguments) is None
    runs.save(tmp_path, loaded, arguments, {"n": 1})

    found = runs.finished(tmp_path, arguments)
    assert found is not None
    assert found.metrics == {"n": 1}


def test_other_arguments_are_refused_and_nothing_changes(tmp_path, loaded):
    runs.save(tmp_path, loaded, {"verb": "train", "seed": 0}, {})
    before = (tmp_path / "model.json").read_bytes()
    with pytest.raises(StoreMismatchError, match="seed differ"):
        runs.finished(tmp_path, {"verb": "train", "seed": 1})

    assert (tmp_path / "model.json").read_bytes() == before


def test_saving_removes_the_state_of_training(tmp_path, loaded):
    (tmp_path / runs.TRAINING).mkdir()
    runs.save(tmp_path, loaded, {}, {})

    assert not (tmp_path / runs.TRAINING).exists()


def test_checkpoint_holds_no_pickle_and_plain_json(tmp_path, loaded):
    runs.save(tmp_path, loaded, {}, {})

    assert json.loads((tmp_path / "model.json").read_text())["spec"]["model"] == "lenet5"
    assert isinstance(loaded.model, nn.Module)


def test_ctrl_c_says_where_to_go_on(tmp_path):
    with pytest.raises(runs.Interrupted) as caught, runs.resumable(tmp_path):
        raise KeyboardInterrupt

    assert caught.value.out == tmp_path
