"""A real campaign on a tiny network: rows against the network itself, errors before any work."""

import sqlite3

import numpy as np
import pytest
import torch
from torch import nn

from rasp.campaign.result import read
from rasp.campaign.runner import inject, specify
from rasp.errors import ConfigError, StoreMismatchError
from rasp.network.lower import lower
from rasp.nvdla import config
from rasp.quantization.calibrate import quantize

IMAGES, TRIALS = 12, 600


@pytest.fixture(scope="module")
def parts():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, stride=2),
            nn.Flatten(),
            nn.Linear(16, 7),
        ).eval()
    images = torch.randn(IMAGES, 2, 8, 8, generator=generator)
    labels = torch.randint(0, 7, (IMAGES,), generator=generator)
    return lower(model, images[:1]), images, labels, config.load("nv_small")


def spec_of(parts, **asked):
    network, images, _, accelerator = parts
    given = {
        "layer_weights": "uniform",
        "fault_models": {"RD_BFLIP": 1.0, "WEIGHT16": 1.0, "RD": 1.0},
        "trials": TRIALS,
    }
    return specify(network, images, accelerator, model="tiny", data="noise", **{**given, **asked})


def table(path):
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM trials ORDER BY trial")]
    connection.close()
    return found


@pytest.fixture(scope="module")
def campaign(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("inject") / "a.sqlite"
    result = inject(*parts, spec_of(parts), path, chunk=250)
    return result, path


def test_the_result_is_what_the_rows_add_up_to(campaign):
    result, path = campaign
    rows = table(path)
    assert len(rows) == result.trials == TRIALS
    assert result.complete
    for outcome, rate in result.overall.items():
        assert rate.events == sum(row[outcome] for row in rows)
    for layer, rate in result.by_layer["sdc1"].items():
        assert rate.n == sum(row["layer"] == layer for row in rows)


def test_a_flipped_output_bit_changes_the_answer_as_the_row_says(campaign, parts):
    """Every RD_BFLIP row of the last layer, whose outputs are the logits, flipped by hand."""
    _, path = campaign
    network, images, _, _ = parts
    logits = network(images).numpy()
    rows = [row for row in table(path) if (row["layer"], row["model"]) == ("4", "RD_BFLIP")]
    assert len(rows) > 20
    for row in rows:
        faulty = logits[row["image"]].copy()
        bits = faulty.view(np.uint32)
        bits[row["kernel"]] ^= np.uint32(1) << np.uint32(row["bit"])
        due = not np.isfinite(faulty).all()
        moved = not due and faulty.argmax() != logits[row["image"]].argmax()
        assert (row["due"], row["sdc1"]) == (due, moved)
        assert (row["changed"], row["masked"]) == (1, 0)


def test_the_store_knows_the_fault_free_answers(campaign, parts):
    result, _ = campaign
    network, images, labels, _ = parts
    top1 = network(images).argmax(dim=1)
    assert [image.top1 for image in result.contents.images] == top1.tolist()
    assert [image.label for image in result.contents.images] == labels.tolist()
    assert result.accuracy.events == int((top1 == labels).sum())


@pytest.mark.parametrize(("number_format", "batch"), [("fp32", 64), ("int8", 3)])
def test_rows_do_not_depend_on_how_the_work_is_cut(parts, tmp_path, number_format, batch):
    network, images, labels, accelerator = parts
    if number_format == "int8":
        network, _ = quantize(network, images)
    objects = network, images, labels, accelerator
    inject(*objects, spec_of(objects), tmp_path / "a.sqlite", chunk=250)
    inject(*objects, spec_of(objects), tmp_path / "b.sqlite", chunk=77, batch=batch)
    assert table(tmp_path / "a.sqlite") == table(tmp_path / "b.sqlite")


def test_a_finished_store_is_read_without_replay(campaign, parts, monkeypatch):
    _, path = campaign
    monkeypatch.setattr("rasp.campaign.job.Replay", None)
    again = inject(*parts, spec_of(parts), path)
    assert again.overall == read(path).overall


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"seed": 1}, "seed"), ({"trials": TRIALS + 1}, "trials"), ({"layers": ("0",)}, "layers")],
)
def test_another_campaign_on_the_same_store_is_refused(campaign, parts, asked, field):
    _, path = campaign
    with pytest.raises(StoreMismatchError, match=field):
        inject(*parts, spec_of(parts, **asked), path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"network_digest": "x"}, "network_digest"),
        ({"images": 5}, "images"),
        ({"format": "int8"}, "format"),
        ({"accelerator": "nv_full"}, "accelerator"),
        ({"accelerator_digest": "x"}, "accelerator_digest"),
    ],
)
def test_a_spec_of_other_objects_is_refused_before_anything_is_written(
    parts, tmp_path, change, field
):
    spec = spec_of(parts).model_copy(update=change)
    with pytest.raises(ConfigError, match=field):
        inject(*parts, spec, tmp_path / "new" / "a.sqlite")
    assert not (tmp_path / "new").exists()


def test_an_unknown_fault_model_is_refused_before_anything_is_written(parts, tmp_path):
    spec = spec_of(parts, fault_models={"RD_BFLOP": 1.0})
    with pytest.raises(ConfigError, match="RD_BFLIP"):
        inject(*parts, spec, tmp_path / "a.sqlite")
    assert list(tmp_path.iterdir()) == []
