"""Shards and merging: rows of one run, whoever ran them; stores that do not belong are refused."""

import sqlite3

import numpy as np
import pytest

from rasp.campaign import store
from rasp.campaign.chunks import Chunks, Shard, check_shard
from rasp.campaign.merge import merge
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, ImageFacts, StratumFacts, open_or_create
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError

SPEC = CampaignSpec(
    network_digest="n",
    model="lenet5",
    data="digits",
    images=3,
    format="int8",
    accelerator="nv_small",
    accelerator_digest="a",
    fault_models={"RD_BFLIP": 1.0},
    trials=95,
)
STRATA = [StratumFacts("conv1", "RD_BFLIP", 0.75), StratumFacts("fc", "RD_BFLIP", 0.25)]
IMAGES = [ImageFacts(1, 1, 0.9, 2.0), ImageFacts(2, 2, 0.8, 1.0), ImageFacts(3, 1, 0.4, 0.1)]


def block(span, seed=0):
    trial = np.arange(span.start, span.stop)
    generator = np.random.default_rng(seed)
    columns = generator.integers(0, 2, size=(SPEC.trials, len(COLUMNS)))[trial]
    columns[:, 0], columns[:, 1], columns[:, 2] = trial, trial % 2, trial % 3
    return columns, generator.uniform(0.5, 2, SPEC.trials)[trial]


def fill(path, *, shard=None, chunks=None, spec=SPEC, size=10, facts=(STRATA, IMAGES), seed=0):
    part = None if shard is None else Shard.parse(shard)
    with open_or_create(path, spec, chunk=size, shard=part) as opened:
        opened.describe(*facts)
        for chunk in opened.missing() if chunks is None else chunks:
            opened.commit(chunk, *block(opened.span(chunk), seed))
    return path


def content(path):
    """All tables but the specification, which names the shard."""
    connection = sqlite3.connect(path)
    names = ("strata", "images", "rounds", "chunks", "injections")
    found = [connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names]
    connection.close()
    return found


@pytest.fixture
def whole(tmp_path):
    return content(fill(tmp_path / "whole" / "a.sqlite"))


@pytest.fixture
def folder(tmp_path):
    """Where tests look for files that should not be there."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_merged_shards_are_row_for_row_one_run(tmp_path, folder, whole, count):
    shards = [fill(tmp_path / f"{k}.sqlite", shard=f"{k}/{count}") for k in range(1, count + 1)]
    found = merge(folder / "all.sqlite", reversed_odd(shards))
    assert content(folder / "all.sqlite") == whole
    assert found == (95, 95, (), ())
    assert sorted(p.name for p in folder.iterdir()) == ["all.sqlite", "all.sqlite.lock"]
    with open_or_create(folder / "all.sqlite", SPEC) as opened:
        assert (opened.shard, opened.missing()) == (None, ())


def reversed_odd(paths):
    return paths[1::2][::-1] + paths[::2]


def test_an_incomplete_merge_says_what_is_missing_and_goes_on(tmp_path, folder, whole):
    one, three = (fill(tmp_path / f"{k}", shard=f"{k}/4", chunks=[k - 1]) for k in (1, 3))
    found = merge(folder / "all", [one, three])
    assert (found.trials, found.asked) == (20, 95)
    assert found.missing == (1, 3, 4, 5, 6, 7, 8, 9)
    assert found.shards == tuple(Shard(k, 4) for k in (1, 2, 3, 4))
    two = fill(tmp_path / "2", shard="2/4")
    found = merge(folder / "all", [fill(one, shard="1/4"), two])
    assert found.missing == (3, 6, 7)
    assert found.shards == (Shard(3, 4), Shard(4, 4))
    fill(folder / "all")
    assert content(folder / "all") == whole
    assert merge(folder / "all", [two]) == (95, 95, (), ())
    assert content(folder / "all") == whole


def test_a_shard_that_did_not_begin_is_merged_as_empty(tmp_path, folder):
    with open_or_create(tmp_path / "1", SPEC, chunk=10, shard=Shard(1, 2)):
        pass
    found = merge(folder / "all", [tmp_path / "1", fill(tmp_path / "2", shard="2/2")])
    assert (found.trials, found.shards) == (45, (Shard(1, 2),))


def test_runs_that_are_no_shards_merge_too(tmp_path, folder, whole):
    one = fill(tmp_path / "1", chunks=range(6))
    two = fill(tmp_path / "2", chunks=range(4, 10))
    assert merge(folder / "all", [one, two]) == (95, 95, (), ())
    assert content(folder / "all") == whole


OTHERS = {
    "seed": {"spec": SPEC.model_copy(update={"seed": 1})},
    "network_digest": {"spec": SPEC.model_copy(update={"network_digest": "m"})},
    "chunks of 11": {"size": 11},
    "shares": {"facts": ([StratumFacts("conv1", "RD_BFLIP", 1.0), STRATA[1]], IMAGES)},
    "labels": {"facts": (STRATA, [ImageFacts(1, 0, 0.9, 2.0), *IMAGES[1:]])},
    "other rows": {"seed": 1},
}


@pytest.mark.parametrize("word", OTHERS)
@pytest.mark.parametrize("exists", [False, True])
def test_what_is_of_another_campaign_is_refused_and_nothing_written(tmp_path, folder, word, exists):
    mine, other = fill(tmp_path / "mine"), fill(tmp_path / "other", **OTHERS[word])
    if exists:
        fill(folder / "all")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}
    with pytest.raises(StoreMismatchError, match=word) as caught:
        merge(folder / "all", [mine, other])
    assert str(other) in str(caught.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"} == before


def test_a_damaged_row_is_not_merged(tmp_path, folder):
    path = fill(tmp_path / "a")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE injections SET image = 2 - image WHERE trial = 50")
    connection.close()
    with pytest.raises(StoreMismatchError, match="chunk 5 differ"):
        merge(folder / "all", [path])
    assert not (folder / "all").exists()


def test_rounds_plans_and_an_early_stop_are_merged(tmp_path, folder, monkeypatch):
    class Rounds(CampaignSpec):
        def rounds(self):
            return range(40), range(40, 95)

    monkeypatch.setattr("rasp.campaign.reader.CampaignSpec", Rounds)
    spec = Rounds(**SPEC.model_dump())
    stopped, running = tmp_path / "a", tmp_path / "b"
    for path in (stopped, running):
        fill(path, spec=spec, chunks=range(4 if path == stopped else 2))
        with open_or_create(path, spec) as opened:
            opened.record_plan(0, b"plan")
            if path == stopped:
                opened.finish(40)
    assert merge(folder / "all", [running, stopped]) == (40, 40, (), ())
    assert store.read(folder / "all").stopped == 40
    with open_or_create(running, spec) as opened:
        opened.record_plan(1, b"plan")
    with open_or_create(tmp_path / "c", spec, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        opened.record_plan(1, b"other")
    with pytest.raises(StoreMismatchError, match="round 1"):
        merge(folder / "more", [running, tmp_path / "c"])


def test_merging_nothing_or_what_is_not_there_or_in_use(tmp_path, folder):
    with pytest.raises(ConfigError, match="at least one store"):
        merge(folder / "all", [])
    with pytest.raises(PrerequisiteError, match="No campaign store"):
        merge(folder / "all", [tmp_path / "nothing"])
    assert list(folder.iterdir()) == []
    one = fill(tmp_path / "1")
    with (
        open_or_create(folder / "all", SPEC, chunk=10),
        pytest.raises(StoreMismatchError, match="another process"),
    ):
        merge(folder / "all", [one])


def test_a_running_store_can_be_merged(tmp_path, folder):
    with open_or_create(tmp_path / "a", SPEC, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        opened.commit(3, *block(opened.span(3)))
        assert merge(folder / "all", [tmp_path / "a"]).trials == 10


@pytest.mark.parametrize(
    ("first", "then"), [("1/4", "2/4"), ("1/4", "1/2"), ("1/4", None), (None, "1/4")]
)
def test_a_store_is_of_one_shard(tmp_path, first, then):
    fill(tmp_path / "a", shard=first, chunks=[])
    with pytest.raises(StoreMismatchError, match="the campaign, asked is"):
        fill(tmp_path / "a", shard=then)


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "-1/4", "1 / 4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="1 <= k <= N"):
        Shard.parse(text)


def test_more_shards_than_chunks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="10 chunk"):
        fill(tmp_path / "a", shard="11/11")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", [{"sampling": "adaptive"}, {"margin": 0.001}])
def test_a_campaign_that_looks_at_its_outcomes_cannot_be_sharded(field):
    class Adaptive(CampaignSpec):
        sampling: str = "uniform"
        margin: float | None = None

    spec = Adaptive(**SPEC.model_dump() | field)
    with pytest.raises(ConfigError, match="decides by its own outcomes"):
        check_shard(Shard(1, 2), spec, Chunks(spec.rounds(), 10))
