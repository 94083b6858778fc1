"""`rasp inject --shard`, `rasp merge` and `rasp export` on LeNet-5, against one whole run."""

import json
import sqlite3
from contextlib import closing

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from rasp import zoo
from rasp.campaign import runner as campaign
from rasp.cli.app import app
from rasp.report import arms

TRIALS = 300


@pytest.fixture
def inject(tmp_path, monkeypatch):
    """Run the command in chunks of 100 trials, so that a short campaign has some to share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(campaign.inject.__kwdefaults__, "chunk", 100)
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    save_file(zoo.build(spec).state_dict(), "weights.safetensors")

    def run(*more):
        return rasp(
            *(
                "inject",
                "--model",
                "lenet5",
                "--data",
                "digits",
                "--weights",
                "weights.safetensors",
            ),
            *("--trials", TRIALS, "--images", 10, "--format", "fp32", *more),
        )

    return run


def rasp(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def rows(folder):
    with closing(sqlite3.connect(folder / "campaign.sqlite")) as connection:
        return connection.execute("SELECT * FROM trials ORDER BY trial").fetchall()


def test_shards_merge_to_the_run_and_its_summary(inject, tmp_path):
    assert inject("--out", "whole").exit_code == 0
    first = inject("--out", "a", "--shard", "1/2")
    assert first.exit_code == 0, first.output
    assert "Shard 1/2 only: 100 trials of other shards are missing" in first.stdout
    assert not (tmp_path / "a" / arms.SUMMARY).exists()

    part = rasp("merge", "all", "a")
    assert part.exit_code == 0, part.output
    assert "200 of 300" in part.stdout
    assert "100, of shard 2/2" in part.stdout

    assert inject("--out", "b", "--shard", "2/2").exit_code == 0
    merged = rasp("merge", "all", "b", "--json")
    assert json.loads(merged.stdout) == {"out": "all", "trials": 300, "asked": 300, "shards": []}
    assert rows(tmp_path / "all") == rows(tmp_path / "whole")

    assert inject("--out", "all").exit_code == 0
    assert rows(tmp_path / "all") == rows(tmp_path / "whole")
    whole, joined = (arms.read(tmp_path / name) for name in ("whole", "all"))
    assert joined.outcomes == whole.outcomes


def test_a_shard_and_what_it_is_not_are_told_apart(inject):
    assert inject("--out", "a", "--shard", "1/2").exit_code == 0
    for arguments, code, words in (
        (("--shard", "2/2"), 4, "is for shard 1/2 of the campaign, asked is shard 2/2"),
        ((), 4, "is for shard 1/2 of the campaign, asked is the whole"),
        (("--shard", "3/2"), 2, "1 <= k <= N"),
    ):
        refused = inject("--out", "a", *arguments)
        assert refused.exit_code == code
        assert words in refused.stderr
    refused = inject("--out", "c", "--shard", "1/4")
    assert refused.exit_code == 2
    assert "3 chunk(s) of 100" in refused.stderr


def test_merging_another_campaign_names_the_difference(inject):
    inject("--out", "a", "--shard", "1/2")
    inject("--out", "b", "--shard", "2/2", "--seed", 1)
    refused = rasp("merge", "all", "a", "b")
    assert refused.exit_code == 4
    assert "its seed is" in refused.stderr


def test_export_writes_every_trial(inject, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    inject("--out", "a")
    done = rasp("export", "a", "trials.parquet")
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "trials.parquet").drop_columns("stratum")
    assert [tuple(row[name] for name in ORDER) for row in table.to_pylist()] == rows(tmp_path / "a")
    refused = rasp("export", "a", "more.parquet", "--batch", "1", "--format", "int8")
    assert refused.exit_code == 2
    assert "--format, --batch" in refused.stderr
    assert not (tmp_path / "more.parquet").exists()


ORDER = (
    *("trial", "layer", "model", "image", "kernel", "channel", "r", "s", "pixel", "bit", "value"),
    *("changed", "masked", "sdc1", "sdc5", "sdc10", "sdc20", "critical", "due", "weight"),
)
