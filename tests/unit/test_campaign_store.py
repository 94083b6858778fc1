import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rasp.campaign import reader, store
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
    trials=25,
)
STRATA = [StratumFacts("conv1", "RD_BFLIP", 0.75), StratumFacts("fc", "RD_BFLIP", 0.25)]
IMAGES = [ImageFacts(1, 1, 0.9, 2.0), ImageFacts(2, 2, 0.8, 1.0), ImageFacts(3, 1, 0.4, 0.1)]


def rows_of(span):
    """Rows that depend on the trial's number alone."""
    trial = np.arange(span.start, span.stop)
    rows = np.random.default_rng(0).integers(0, 2, size=(1000, len(COLUMNS)))[trial]
    rows[:, 0], rows[:, 1], rows[:, 2] = trial, trial % 2, trial % 3
    return rows


def weight_of(span):
    return np.random.default_rng(1).uniform(0.5, 2, 1000)[span.start : span.stop]


def put(opened, *chunks):
    """Commit chunks as a campaign would."""
    for chunk in chunks:
        span = opened.span(chunk)
        opened.commit(chunk, rows_of(span), weight_of(span))


def fill(path, chunks=None, spec=SPEC):
    with open_or_create(path, spec, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        put(opened, *(opened.missing() if chunks is None else chunks))
    return path


class Rounds(CampaignSpec):
    """A campaign of three rounds, as adaptive sampling has them."""

    def rounds(self):
        return range(12), range(12, 20), range(20, 25)


@pytest.fixture
def rounds(monkeypatch):
    """A specification whose store is cut at the ends of its rounds, also when it is read."""
    monkeypatch.setattr("rasp.campaign.reader.CampaignSpec", Rounds)
    return Rounds(**SPEC.model_dump())


def trials_in(path):
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT * FROM injections ORDER BY trial").fetchall()
    connection.close()
    return rows


def fingerprint(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if not p.name.endswith(("-shm", ".lock"))
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "campaign.sqlite"


def test_what_is_committed_is_read_back_row_for_row(path):
    fill(path)
    span = range(25)
    assert trials_in(path) == [
        (*row, weight) for row, weight in zip(rows_of(span).tolist(), weight_of(span), strict=True)
    ]


def test_the_trials_view_names_layer_and_model(path):
    fill(path)
    connection = sqlite3.connect(path)
    [first] = connection.execute("SELECT trial, layer, model, image FROM trials WHERE trial = 1")
    connection.close()
    assert first == (1, "fc", "RD_BFLIP", 1)


def test_missing_chunks_are_what_was_not_committed_the_last_one_short(path):
    fill(path, chunks=[1])
    with open_or_create(path, SPEC, chunk=999) as opened:
        assert opened.missing() == (0, 2)
        assert opened.chunk == 10
        assert opened.span(2) == range(20, 25)


def test_a_chunk_committed_twice_is_there_once(path):
    fill(path, chunks=[0, 0, 1, 0])
    assert len(trials_in(path)) == 20


def test_a_chunk_of_the_wrong_trials_is_a_programming_error(path):
    span = range(10)
    with open_or_create(path, SPEC, chunk=10) as opened:
        for columns, weight in (
            (rows_of(span), weight_of(span)),
            (rows_of(range(10, 20)), weight_of(range(9))),
        ):
            with pytest.raises(ValueError, match="chunk 1"):
                opened.commit(1, columns, weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stratum", -1), ("image", 2**24), ("bit", -2), ("bit", 254), ("sdc1", 2)],
)
def test_a_value_that_no_summary_can_hold_is_a_programming_error(path, name, value):
    columns = rows_of(range(10))
    columns[3, COLUMNS.index(name)] = value
    with open_or_create(path, SPEC, chunk=10) as opened:
        with pytest.raises(ValueError, match="must be at least 0 and below"):
            opened.commit(0, columns, weight_of(range(10)))
        assert opened.missing() == (0, 1, 2)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_weight_is_a_programming_error(path, weight):
    with (
        open_or_create(path, SPEC, chunk=10) as opened,
        pytest.raises(ValueError, match="positive and finite"),
    ):
        opened.commit(0, rows_of(range(10)), np.full(10, weight))


def test_a_commit_that_fails_half_way_leaves_no_row(path):
    with open_or_create(path, SPEC, chunk=10) as opened:
        opened._connection.execute(
            "CREATE TEMP TRIGGER half_way BEFORE INSERT ON injections WHEN NEW.trial = 7 "
            "BEGIN SELECT RAISE(ABORT, 'half way'); END"
        )
        with pytest.raises(sqlite3.IntegrityError):
            put(opened, 0)
        assert opened.missing() == (0, 1, 2)
    assert trials_in(path) == []


def test_tallies_add_up_to_the_rows(path):
    contents = store.read(fill(path))
    rows = rows_of(range(25))
    assert contents.spec == SPEC
    assert contents.strata == tuple(STRATA)
    assert contents.images == tuple(IMAGES)
    assert contents.tallies.trials.sum() == 25
    for name in store.OUTCOMES:
        events, column = contents.tallies.events(name), rows[:, COLUMNS.index(name)]
        assert events.sum() == column.sum()
        chosen = contents.tallies.image == 2
        assert events[chosen].sum() == column[rows[:, 2] == 2].sum()


@pytest.mark.parametrize("batch", [16, 48, 2**20])
def test_tallies_sum_up_every_combination(path, monkeypatch, batch):
    monkeypatch.setattr("rasp.campaign.contents._BATCH", batch)
    tallies = store.read(fill(path)).tallies
    rows, weight = rows_of(range(25)), weight_of(range(25))
    kernel, pixel = (rows[:, COLUMNS.index(name)] for name in ("kernel", "pixel"))
    flags = [*rows[:, -len(store.OUTCOMES) :].T, (kernel >= 0) | (pixel >= 0)]
    outcomes = sum(flag.astype(int) << i for i, flag in enumerate(flags))
    expected = {}
    keys = zip(rows[:, 1], rows[:, COLUMNS.index("bit")], rows[:, 2], outcomes, strict=True)
    for key, w in zip(keys, weight, strict=True):
        expected.setdefault(key, []).append(w)
    assert list(zip(*tallies[:4], strict=True)) == sorted(expected)
    for index, key in enumerate(sorted(expected)):
        weights = np.array(expected[key])
        assert tallies.trials[index] == len(weights)
        assert tallies.weight[index] == pytest.approx(weights.sum(), rel=1e-14)
        assert tallies.square[index] == pytest.approx((weights**2).sum(), rel=1e-14)


def test_tallies_do_not_depend_on_the_size_of_a_chunk(path, monkeypatch):
    monkeypatch.setattr("rasp.campaign.contents._BATCH", 7 * 16)
    expected = store.read(fill(path)).tallies
    other = path.with_name("other.sqlite")
    with open_or_create(other, SPEC, chunk=4) as opened:
        opened.describe(STRATA, IMAGES)
        put(opened, *reversed(opened.missing()))
    for one, two in zip(expected, store.read(other).tallies, strict=True):
        np.testing.assert_array_equal(one, two)


def test_chunks_are_cut_at_the_ends_of_rounds(path, rounds):
    fill(path, chunks=[1, 2], spec=rounds)
    with open_or_create(path, rounds) as opened:
        assert opened.missing() == (0, 3)
        assert [opened.span(chunk) for chunk in range(4)] == [
            *(range(10), range(10, 12)),
            *(range(12, 20), range(20, 25)),
        ]
        with pytest.raises(ValueError, match="chunks 0 to 3"):
            opened.span(4)


def test_a_plan_is_recorded_once(path, rounds):
    with open_or_create(path, rounds, chunk=10) as opened:
        assert opened.plan(1) is None
        opened.record_plan(1, b"so many of each")
        opened.record_plan(1, b"so many of each")
        with pytest.raises(StoreMismatchError, match="round 1"):
            opened.record_plan(1, b"other")
    with open_or_create(path, rounds) as opened:
        assert opened.plan(1) == b"so many of each"


def test_tallies_of_the_first_rounds_leave_out_later_trials(path, rounds):
    fill(path, chunks=[0, 1, 3], spec=rounds)
    with open_or_create(path, rounds) as opened:
        assert opened.tallies(0).trials.sum() == 0
        assert opened.tallies(1).trials.sum() == 12
        assert opened.tallies().trials.sum() == 17
        with pytest.raises(ValueError, match="not complete"):
            opened.tallies(2)


def test_a_campaign_that_stopped_early_misses_nothing(path, rounds):
    fill(path, chunks=[0, 1, 2], spec=rounds)
    assert store.read(path).stopped is None
    with open_or_create(path, rounds) as opened:
        opened.finish(20)
        opened.finish(20)
        assert opened.missing() == ()
        assert opened.trials == 20
        with pytest.raises(ValueError, match="stopped after 20"):
            put(opened, 3)
    assert store.read(path).stopped == 20


@pytest.mark.parametrize(("chunks", "trials"), [([0, 1], 20), ([0, 1, 2], 12), ([0], 10)])
def test_a_campaign_stops_only_where_its_trials_end_with_a_round(path, rounds, chunks, trials):
    fill(path, chunks=chunks, spec=rounds)
    with open_or_create(path, rounds) as opened, pytest.raises(ValueError, match=str(trials)):
        opened.finish(trials)


def test_a_store_can_be_read_while_it_is_filled(path):
    with open_or_create(path, SPEC, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        put(opened, 0)
        assert store.read(path).tallies.trials.sum() == 10
        put(opened, 1)
        assert store.read(path).tallies.trials.sum() == 20


def test_reading_leaves_nothing_behind(path):
    fill(path)
    before = sorted(p.name for p in path.parent.iterdir())
    store.read(path)
    assert sorted(p.name for p in path.parent.iterdir()) == before


def test_a_missing_store_is_a_missing_prerequisite(path):
    with pytest.raises(PrerequisiteError, match="No campaign store"):
        store.read(path)


@pytest.mark.parametrize(
    "change", [{"trials": 26}, {"seed": 1}, {"network_digest": "other"}, {"format": "fp32"}]
)
def test_a_store_of_another_spec_is_refused_and_untouched(path, change):
    fill(path, chunks=[0])
    before = fingerprint(path.parent)
    other = SPEC.model_copy(update=change)
    with pytest.raises(StoreMismatchError, match=next(iter(change))):
        open_or_create(path, other)
    assert fingerprint(path.parent) == before


def test_a_store_with_rows_still_in_its_log_is_refused_and_untouched(path):
    with open_or_create(path, SPEC, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        put(opened, 0)
        before = fingerprint(path.parent)
        assert f"{path.name}-wal" in before
        with pytest.raises(StoreMismatchError, match="seed"):
            open_or_create(path, SPEC.model_copy(update={"seed": 1}))
        assert fingerprint(path.parent) == before


@pytest.mark.parametrize(
    ("strata", "images"),
    [
        ([StratumFacts("conv1", "RD_BFLIP", 1.0)], IMAGES),
        (STRATA, [ImageFacts(1, 2, 0.9, 2.0), *IMAGES[1:]]),
        (STRATA, IMAGES[:2]),
    ],
)
def test_a_store_of_other_images_or_strata_is_refused(path, strata, images):
    fill(path, chunks=[0])
    with (
        open_or_create(path, SPEC) as opened,
        pytest.raises(StoreMismatchError, match="another campaign"),
    ):
        opened.describe(strata, images)


def garbage(path):
    path.write_bytes(b"not a database at all " * 1000)


def empty(path):
    path.write_bytes(b"")


def sql(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def foreign(path):
    sql(path, "CREATE TABLE meta (key, value)")


def other_schema(path):
    sql(fill(path), "PRAGMA user_version = 99")


def first_schema(path):
    sql(fill(path), "PRAGMA user_version = 1")


def cut_short(path):
    fill(path)
    os.truncate(path, path.stat().st_size - 4096)


def cut_inside_a_page(path):
    fill(path)
    os.truncate(path, 5000)


def cut_by_a_byte(path):
    fill(path)
    os.truncate(path, path.stat().st_size - 1)


def cut_inside_the_header(path):
    fill(path)
    os.truncate(path, 50)


def bad_spec(path):
    sql(fill(path), "UPDATE meta SET value = '{}' WHERE key = 'spec'")


def bad_chunk_size(path):
    sql(fill(path), "UPDATE meta SET value = 'ten' WHERE key = 'chunk'")


def short_summary(path):
    sql(fill(path), "UPDATE chunks SET summary = substr(summary, 1, 150) WHERE chunk = 1")


def summary_of_another_stratum(path):
    entry = np.array([(2 << 40, 1.0)] * 10, dtype="<i8,<f8")
    sql(fill(path), "UPDATE chunks SET summary = ? WHERE chunk = 1", entry.tobytes())


def summary_without_weights(path):
    entry = np.array([(1 << 32, 0.0)] * 10, dtype="<i8,<f8")
    sql(fill(path), "UPDATE chunks SET summary = ? WHERE chunk = 1", entry.tobytes())


def overwritten_summary(path):
    sql(fill(path), "UPDATE chunks SET summary = ? WHERE chunk = 1", b"\xff" * 160)


def chunk_that_cannot_be(path):
    sql(fill(path), "INSERT INTO chunks VALUES (7, 10, zeroblob(160))")


DAMAGES = [
    *(garbage, empty, foreign, other_schema, first_schema, bad_spec, bad_chunk_size),
    *(cut_short, cut_inside_a_page, cut_by_a_byte, cut_inside_the_header),
    *(short_summary, summary_of_another_stratum, summary_without_weights, overwritten_summary),
    chunk_that_cannot_be,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_whole_store_is_refused_and_untouched(path, damage):
    damage(path)
    before = fingerprint(path.parent)
    with pytest.raises(StoreMismatchError) as caught:
        open_or_create(path, SPEC)
    assert str(path) in str(caught.value)
    with pytest.raises(StoreMismatchError):
        store.read(path)
    assert fingerprint(path.parent) == before


def overwritten(path):
    fill(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096)
        file.write(b"\xff" * 4096)


def changed_row(path):
    sql(fill(path), "UPDATE injections SET sdc1 = 1 - sdc1 WHERE trial = 13")


def changed_weight(path):
    sql(fill(path), "UPDATE injections SET weight = weight + 0.001 WHERE trial = 13")


def lost_row(path):
    sql(fill(path), "DELETE FROM injections WHERE trial = 13")


@pytest.mark.parametrize("damage", [overwritten, changed_row, changed_weight, lost_row])
def test_a_store_whose_rows_are_not_its_summary_is_not_filled_on(path, damage):
    damage(path)
    before = fingerprint(path.parent)
    with pytest.raises(StoreMismatchError, match="damaged"):
        open_or_create(path, SPEC)
    with pytest.raises(StoreMismatchError, match="damaged"), reader.opened(path) as source:
        list(map(source.rows, source.present()))
    assert fingerprint(path.parent) == before


def test_a_second_driver_is_refused_until_the_first_is_done(path):
    with open_or_create(path, SPEC, chunk=10), pytest.raises(StoreMismatchError, match="another"):
        open_or_create(path, SPEC)
    with open_or_create(path, SPEC):
        pass


def test_a_killed_driver_leaves_its_chunks_and_no_lock(path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_campaign_store import *
        opened = open_or_create({str(path)!r}, SPEC, chunk=10)
        opened.describe(STRATA, IMAGES)
        put(opened, 0)
        opened._connection.execute("INSERT INTO chunks VALUES (1, 10, x'')")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    with open_or_create(path, SPEC) as opened:
        assert opened.missing() == (1, 2)
    assert len(trials_in(path)) == 10


def test_a_store_killed_while_it_is_made_is_made_anew(path):
    path.with_name(f"{path.name}.new").write_bytes(b"half a file")
    fill(path)
    assert len(trials_in(path)) == 25


def test_a_store_can_be_moved(path):
    fill(path, chunks=[0])
    moved = path.parent / "elsewhere" / "a.sqlite"
    moved.parent.mkdir()
    shutil.move(path, moved)
    fill(moved)
    assert len(trials_in(moved)) == 25


def test_a_place_that_cannot_hold_a_store_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="Cannot write"):
        open_or_create(tmp_path / "file" / "campaign.sqlite", SPEC)
    with pytest.raises(ConfigError, match="at least one trial"):
        open_or_create(tmp_path / "campaign.sqlite", SPEC, chunk=0)
    with pytest.raises(StoreMismatchError):
        open_or_create(tmp_path, SPEC)


@pytest.mark.parametrize(
    "module",
    [
        "rasp.statistics",
        "rasp.campaign.spec",
        "rasp.campaign.store",
        "rasp.campaign.result",
        "rasp.analysis.exposure",
    ],
)
def test_reading_results_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
