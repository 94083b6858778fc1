"""Parquet files against the SQL rows they were written from."""

import json
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest

from rasp import verbs
from rasp.campaign import parquet
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, OUTCOMES, ImageFacts, StratumFacts, open_or_create
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError

SPEC = CampaignSpec(
    network_digest="n",
    model="lenet5",
    data="digits",
    images=3,
    format="int8",
    accelerator="nv_small",
    accelerator_digest="a",
    fault_models={"RD": 1.0, "RD_BFLIP": 1.0},
    trials=95,
)
STRATA = [StratumFacts("conv1", "RD", 0.75), StratumFacts("fc", "RD_BFLIP", 0.25)]


@pytest.fixture
def run(tmp_path):
    """A run directory whose campaign misses its fourth chunk."""
    generator = np.random.default_rng(0)
    with open_or_create(tmp_path / "run" / "campaign.sqlite", SPEC, chunk=10) as opened:
        opened.describe(STRATA, [ImageFacts(i, i, 0.9, 2.0) for i in range(3)])
        for chunk in opened.missing():
            span = opened.span(chunk)
            columns = generator.integers(0, 2, size=(len(span), len(COLUMNS)))
            columns[:, 0] = span
            columns[:, COLUMNS.index("value")] -= 2**40
            if chunk != 3:
                opened.commit(chunk, columns, generator.uniform(0.5, 2, len(span)))
    return tmp_path / "run"


def sql(run, statement="SELECT * FROM injections JOIN strata USING (stratum) ORDER BY trial"):
    with closing(sqlite3.connect(run / "campaign.sqlite")) as connection, connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


@pytest.mark.parametrize("group", [1, 25, 2**17])
def test_a_parquet_file_holds_the_sql_rows(run, tmp_path, monkeypatch, group):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "GROUP", group)
    heard = []
    found = verbs.export(run, tmp_path / "a.parquet", progress=lambda *event: heard.append(event))
    table = pq.read_table(found.out)
    assert table.column_names == ["layer", "model", *COLUMNS, "weight"]
    expected = sql(run, "SELECT * FROM trials ORDER BY trial")
    strata = [row["stratum"] for row in sql(run)]
    for row, like, stratum in zip(table.to_pylist(), expected, strata, strict=True):
        assert row == like | {"stratum": stratum}
    assert {str(table.schema.field(name).type) for name in OUTCOMES} == {"bool"}
    assert pq.ParquetFile(found.out).num_row_groups == {1: 9, 25: 3, 2**17: 1}[group]
    assert found.trials == heard[-1][1] == 85
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "run"]


def test_the_file_says_which_campaign_it_is_of(run, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    verbs.export(run, tmp_path / "a.parquet")
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    assert CampaignSpec.from_json(metadata[b"rasp.spec"].decode()) == SPEC
    assert json.loads(metadata[b"rasp.schema_version"]) == 2


def test_a_campaign_without_a_trial_is_an_empty_table(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    with open_or_create(tmp_path / "campaign.sqlite", SPEC):
        pass
    assert verbs.export(tmp_path, tmp_path / "a.parquet").trials == 0
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_a_damaged_store_leaves_the_old_file(run, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "GROUP", 1)
    (tmp_path / "a.parquet").write_text("old")
    sql(run, "UPDATE injections SET masked = 1 - masked WHERE trial = 60")
    with pytest.raises(StoreMismatchError, match="chunk 6 differ"):
        verbs.export(run, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "run"]


def test_without_pyarrow_the_error_has_the_line_that_installs_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'torch-rasp\[parquet\]'"):
        verbs.export(run, tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()


def test_files_that_cannot_be_written_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"ends with \.parquet"):
        verbs.export(run, tmp_path / "a.csv")
    (tmp_path / "b.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"ends with \.parquet"):
        verbs.export(run, tmp_path / "b.parquet")
