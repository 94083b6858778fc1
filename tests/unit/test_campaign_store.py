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

from rasp.campaign import store
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


def fill(path, chunks=None, spec=SPEC):
    with open_or_create(path, spec, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        for chunk in opened.missing() if chunks is None else chunks:
            opened.commit(chunk, rows_of(opened.span(chunk)))
    return path


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
    assert trials_in(path) == [tuple(row) for row in rows_of(range(25)).tolist()]


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
    with open_or_create(path, SPEC, chunk=10) as opened, pytest.raises(ValueError, match="chunk 1"):
        opened.commit(1, rows_of(range(10)))


def test_a_commit_that_fails_half_way_leaves_no_row(path):
    broken = rows_of(range(10)).astype(object)
    broken[7, 5] = "not a number"
    with open_or_create(path, SPEC, chunk=10) as opened:
        with pytest.raises(sqlite3.IntegrityError):
            opened.commit(0, broken)
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


def test_a_store_can_be_read_while_it_is_filled(path):
    with open_or_create(path, SPEC, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        opened.commit(0, rows_of(opened.span(0)))
        assert store.read(path).tallies.trials.sum() == 10
        opened.commit(1, rows_of(opened.span(1)))
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
        opened.commit(0, rows_of(opened.span(0)))
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


def foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
    connection.close()


def other_schema(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def cut_short(path):
    fill(path)
    os.truncate(path, path.stat().st_size - 4096)


def cut_inside_a_page(path):
    fill(path)
    os.truncate(path, 5000)


def overwritten(path):
    fill(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096)
        file.write(b"\xff" * 4096)


def bad_spec(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '{}' WHERE key = 'spec'")
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [garbage, empty, foreign, other_schema, cut_short, cut_inside_a_page, overwritten, bad_spec],
)
def test_a_file_that_is_no_whole_store_is_refused_and_untouched(path, damage):
    damage(path)
    before = fingerprint(path.parent)
    with pytest.raises(StoreMismatchError) as caught:
        open_or_create(path, SPEC)
    assert str(path) in str(caught.value)
    with pytest.raises(StoreMismatchError):
        store.read(path)
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
        opened.commit(0, rows_of(opened.span(0)))
        opened._connection.execute("INSERT INTO chunks VALUES (1, 10)")
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


def test_a_full_disk_keeps_what_was_finished(path):
    with open_or_create(path, SPEC, chunk=10) as opened:
        opened.describe(STRATA, IMAGES)
        opened.commit(0, rows_of(opened.span(0)))
        [(pages,)] = opened._connection.execute("PRAGMA page_count")
        opened._connection.execute(f"PRAGMA max_page_count = {pages}")
        big = SPEC.model_copy(update={"trials": 4000})
        opened.spec, opened.chunk = big, 1000
        block = np.zeros((1000, len(COLUMNS)), dtype=np.int64)
        block[:, 0] = np.arange(1000, 2000)
        with pytest.raises(PrerequisiteError, match="full"):
            opened.commit(1, block)
    with open_or_create(path, SPEC) as opened:
        assert opened.missing() == (1, 2)


def test_a_place_that_cannot_hold_a_store_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="Cannot write a store"):
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
