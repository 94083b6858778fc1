"""Campaigns in real processes that meet a full disk, a second driver, a cut file or a leftover log.

The executor injects nothing: rows are arithmetic on the trial's number, so that what is left on
disk can be held against what should be there.
"""

import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from rasp.campaign import store
from rasp.errors import StoreMismatchError

CHUNK, TRIALS = 500, 20_000

CAMPAIGN = f"""
import sys
import numpy as np
from rasp.campaign.job import Rows, Task
from rasp.campaign.runner import run_chunks
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, ImageFacts, StratumFacts, open_or_create
from rasp.errors import RaspError

SPEC = CampaignSpec(
    network_digest="n", model="none", data="none", images=3, format="int8",
    accelerator="nv_small", accelerator_digest="a", fault_models={{"RD": 1.0}}, trials={TRIALS},
)

class Arithmetic:
    def __init__(self, before):
        self.before = before

    def run(self, tasks, *, progress):
        for task in tasks:
            self.before(task)
            trial = np.arange(task.trials.start, task.trials.stop)
            columns = trial[:, None] * np.arange(1, len(COLUMNS) + 1) // 7 % 2
            columns[:, 0], columns[:, 1], columns[:, 2] = trial, 0, trial % 3
            columns[:, COLUMNS.index("value")] = trial * 2654435761 % 2**32
            yield task, Rows(columns, 1 + trial % 5 / 10)

def campaign(path, before=lambda task: None):
    with open_or_create(path, SPEC, chunk={CHUNK}) as store:
        images = [ImageFacts(i, i, 0.5, 1.0) for i in range(3)]
        store.describe([StratumFacts("fc", "RD", 1.0)], images)
        tasks = [Task(chunk, store.span(chunk)) for chunk in store.missing()]
        run_chunks(Arithmetic(before), store, tasks)

def main(path, before=lambda task: None):
    try:
        campaign(path, before)
    except RaspError as error:
        sys.exit(f"exit {{error.exit_code}}: {{error}}")
"""


def run(code, *arguments, **options):
    """Run a script that knows ``campaign`` and ``main`` in a process of its own."""
    script = CAMPAIGN + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def finish(path):
    done = run("main(sys.argv[1])", path)
    assert done.returncode == 0, done.stderr


def tables(path):
    with closing(sqlite3.connect(path)) as connection:
        return [
            connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("strata", "images", "chunks", "injections")
        ]


def rows(path):
    return tables(path)[-1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "a.sqlite"
    finish(path)
    return path


def stopped_by_a_full_disk(process, path, expected, *words):
    """Hold what a run left against the sentence it ended with and the rows it should keep."""
    assert process.returncode == 1, process.stderr
    assert process.stderr.startswith(f"exit 3: Cannot write to '{path}'")
    for word in (*words, "make room and run the same command to resume"):
        assert word in process.stderr
    assert "Traceback" not in process.stderr
    kept = rows(path)
    assert 0 < len(kept) < TRIALS
    assert len(kept) % CHUNK == 0
    assert kept == expected[: len(kept)]


@pytest.mark.parametrize("kilobytes", [300, 500, 700])
def test_a_file_that_may_not_grow_stops_the_run_and_resumes(tmp_path, undisturbed, kilobytes):
    """The operating system refuses to write beyond a size, in the log or in the store itself."""
    path = tmp_path / "a.sqlite"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))

    process = run("main(sys.argv[1])", path, preexec_fn=limit)
    stopped_by_a_full_disk(process, path, rows(undisturbed), "disk I/O error")
    again = run("main(sys.argv[1])", path, preexec_fn=limit)
    assert again.returncode == 1
    assert "make room" in again.stderr
    finish(path)
    assert tables(path) == tables(undisturbed)


def test_a_database_that_is_full_stops_the_run_and_resumes(tmp_path, undisturbed):
    path = tmp_path / "a.sqlite"
    process = run(
        """
        from rasp.campaign import database
        open_connection = database.connect
        def connect(path):
            connection = open_connection(path)
            connection.execute("PRAGMA max_page_count = 100")
            return connection
        database.connect = connect
        main(sys.argv[1])
        """,
        path,
    )
    stopped_by_a_full_disk(process, path, rows(undisturbed), "database or disk is full")
    finish(path)
    assert tables(path) == tables(undisturbed)


def test_a_full_file_system_stops_the_run_and_resumes(tmp_path, undisturbed):
    """A tmpfs of one megabyte that a neighbour's file fills; then the neighbour goes."""
    unshare = shutil.which("unshare")
    mount = [unshare or "", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"']
    (tmp_path / "disk").mkdir()
    probe = [*mount, str(tmp_path / "disk"), "true"]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs may be mounted here")
    disk, out = tmp_path / "disk", tmp_path / "out"
    script = CAMPAIGN + textwrap.dedent(
        """
        import os, shutil, subprocess
        disk, out = sys.argv[1:]
        os.mkdir(out)
        for attempt in (1, 2):
            try:
                campaign(f"{disk}/a.sqlite")
            except RaspError as error:
                print(f"exit {error.exit_code}: {error}", file=sys.stderr)
            for name in os.listdir(disk):
                shutil.copy(f"{disk}/{name}", f"{out}/{attempt}-{name}")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        campaign(f"{disk}/a.sqlite")
        shutil.copy(f"{disk}/a.sqlite", f"{out}/a.sqlite")
        """
    )
    process = subprocess.run(
        [*mount, str(disk), sys.executable, "-c", script, str(disk), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    errors = process.stderr.strip().splitlines()
    assert len(errors) == 2
    assert all(line.startswith("exit 3: Cannot write") for line in errors)
    assert "full" in errors[0]
    for attempt in (1, 2):
        kept = rows(out / f"{attempt}-a.sqlite")
        assert 0 < len(kept) < TRIALS
        assert kept == rows(undisturbed)[: len(kept)]
    assert tables(out / "a.sqlite") == tables(undisturbed)


def test_a_second_process_is_refused_and_the_first_unharmed(tmp_path, undisturbed):
    path = tmp_path / "a.sqlite"
    wait = """
        def wait(task):
            if task.chunk == 3:
                print("here", flush=True)
                input()
        main(sys.argv[1], wait)
        """
    first = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            CAMPAIGN + textwrap.dedent(wait),
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "here\n"
    second = run("main(sys.argv[1])", path)
    assert second.returncode == 1
    assert second.stderr.startswith("exit 4: ")
    assert "being filled by another process" in second.stderr
    assert store.read(path).tallies.trials.sum() == 3 * CHUNK
    first.communicate("\n", timeout=60)
    assert first.returncode == 0
    assert tables(path) == tables(undisturbed)


def killed(path):
    """A store whose driver was killed with rows in its log."""
    process = run(
        """
        import os, signal
        def kill(task):
            if task.chunk == 6:
                os.kill(os.getpid(), signal.SIGKILL)
        main(sys.argv[1], kill)
        """,
        path,
    )
    assert process.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 0
    return path


@pytest.mark.parametrize("lost", [(), ("-shm",)])
def test_a_leftover_log_is_read_and_gone_on_from(tmp_path, undisturbed, lost):
    path = killed(tmp_path / "a.sqlite")
    for suffix in lost:
        Path(f"{path}{suffix}").unlink()
    assert store.read(path).tallies.trials.sum() == 6 * CHUNK
    finish(path)
    assert tables(path) == tables(undisturbed)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.99])
def test_of_a_log_that_was_cut_whole_chunks_are_left(tmp_path, undisturbed, share):
    """The log was never moved into the store, so that what is left of it is a prefix."""
    path = killed(tmp_path / "a.sqlite")
    log = Path(f"{path}-wal")
    os.truncate(log, int(log.stat().st_size * share))
    kept = store.read(path).tallies.trials.sum()
    assert kept % CHUNK == 0
    assert kept < 6 * CHUNK
    finish(path)
    assert tables(path) == tables(undisturbed)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.25, 0.5, 0.75, 0.9999])
def test_a_store_that_was_cut_is_refused_and_untouched(tmp_path, undisturbed, share):
    path = tmp_path / "a.sqlite"
    shutil.copy(undisturbed, path)
    os.truncate(path, int(path.stat().st_size * share))
    before = hashlib.sha256(path.read_bytes()).digest()
    process = run("main(sys.argv[1])", path)
    assert process.returncode == 1
    assert process.stderr.startswith("exit 4: ")
    assert str(path) in process.stderr
    with pytest.raises(StoreMismatchError):
        store.read(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
