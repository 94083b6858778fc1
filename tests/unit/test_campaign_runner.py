"""The runner with an executor whose rows are plain arithmetic on the random words of a trial."""

import sqlite3

import numpy as np
import pytest

from rasp.campaign.job import COLUMNS, OUTCOMES, Rows, Task
from rasp.campaign.result import read
from rasp.campaign.runner import run_chunks
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import ImageFacts, StratumFacts, open_or_create
from rasp.faults.population import Stratum
from rasp.faults.sampling import draw
from rasp.replay import outcomes as replay_outcomes

SPEC = CampaignSpec(
    network_digest="n",
    model="tiny",
    data="digits",
    images=7,
    format="int8",
    accelerator="nv_small",
    accelerator_digest="a",
    fault_models={"RD": 1.0, "RD_BFLIP": 1.0},
    trials=1000,
    seed=3,
)
POPULATION = (
    Stratum("conv1", "RD", 0.5),
    Stratum("conv1", "RD_BFLIP", 0.3),
    Stratum("fc", "RD", 0.2),
)


class FakeExecutor:
    """Injects nothing: site and outcome are functions of the trial, as a worker's must be.

    Tasks come back in the order of ``arrange``; ``ran`` counts the trials.
    """

    def __init__(self, stop_after=None, arrange=list):
        self.ran = 0
        self.calls = 0
        self.stop_after = stop_after
        self.arrange = arrange

    def run(self, tasks, *, progress=lambda *_: None):
        for task in self.arrange(list(tasks)):
            if self.calls == self.stop_after:
                raise KeyboardInterrupt
            self.calls += 1
            rows = self.rows(task)
            self.ran += len(task.trials)
            progress("replay", len(task.trials), len(task.trials), "conv1")
            yield task, rows

    @staticmethod
    def rows(task):
        trials = draw(POPULATION, images=SPEC.images, seed=SPEC.seed, trials=task.trials)
        low = trials.words.astype(np.int64) & 0xFFFF
        whole = np.array([len(stratum.layer) for stratum in POPULATION])[trials.stratum]
        random = np.array([stratum.model == "RD" for stratum in POPULATION])[trials.stratum]
        columns = {"trial": trials.index, "stratum": trials.stratum, "image": trials.image}
        for i, name in enumerate(("kernel", "channel", "r", "s", "pixel", "value")):
            columns[name] = low[:, i] + whole
        columns["bit"] = np.where(random, -1, low[:, 7] % 8)
        columns["changed"] = trials.image + 1
        for i, name in enumerate(OUTCOMES):
            columns[name] = low[:, i % 8] % (i + 2) == 0
        table = np.column_stack([columns[name] for name in COLUMNS]).astype(np.int64)
        return Rows(table, trials.weight)


def facts():
    return (
        [StratumFacts(stratum.layer, stratum.model, stratum.weight) for stratum in POPULATION],
        [ImageFacts(i, i, 0.5, 1.0) for i in range(SPEC.images)],
    )


def run(path, *, chunk=100, executor=None, progress=None):
    with open_or_create(path, SPEC, chunk=chunk) as store:
        store.describe(*facts())
        tasks = [Task(number, store.span(number)) for number in store.missing()]
        extra = {} if progress is None else {"progress": progress}
        run_chunks(executor or FakeExecutor(), store, tasks, **extra)


def rows(path):
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT * FROM injections ORDER BY trial").fetchall()
    connection.close()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runner") / "a.sqlite"
    run(path)
    return rows(path)


def test_every_trial_is_there_once_in_its_own_row(undisturbed):
    assert [row[0] for row in undisturbed] == list(range(SPEC.trials))
    assert {row[COLUMNS.index("image")] for row in undisturbed} == set(range(SPEC.images))
    changed, image = COLUMNS.index("changed"), COLUMNS.index("image")
    assert all(row[changed] == row[image] + 1 for row in undisturbed)


@pytest.mark.parametrize("chunk", [1, 37, 999, 1000, 5000])
def test_rows_do_not_depend_on_the_size_of_a_chunk(tmp_path, undisturbed, chunk):
    run(tmp_path / "a.sqlite", chunk=chunk)
    assert rows(tmp_path / "a.sqlite") == undisturbed


@pytest.mark.parametrize("calls", [0, 1, 5, 9])
def test_an_interrupted_run_resumes_to_the_same_rows(tmp_path, undisturbed, calls):
    path = tmp_path / "a.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, executor=FakeExecutor(stop_after=calls))
    kept = len(rows(path))
    assert kept == 100 * calls
    assert not read(path).complete
    resumed = FakeExecutor()
    run(path, executor=resumed)
    assert rows(path) == undisturbed
    assert resumed.ran == SPEC.trials - kept


@pytest.mark.parametrize(
    "arrange",
    [lambda tasks: tasks[::-1], lambda tasks: tasks[1::2] + tasks[::2]],
    ids=["backwards", "odd first"],
)
def test_chunks_may_come_back_in_any_order(tmp_path, undisturbed, arrange):
    path = tmp_path / "a.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, executor=FakeExecutor(stop_after=4, arrange=arrange))
    assert len(rows(path)) == 400
    run(path, executor=FakeExecutor(arrange=arrange))
    assert rows(path) == undisturbed


def test_a_finished_campaign_injects_nothing_more(tmp_path):
    run(tmp_path / "a.sqlite")
    again = FakeExecutor()
    run(tmp_path / "a.sqlite", executor=again)
    assert again.calls == 0


def test_progress_counts_trials_from_where_the_store_stands(tmp_path):
    path = tmp_path / "a.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, executor=FakeExecutor(stop_after=3))
    events = []
    run(path, progress=lambda stage, done, total, detail="": events.append((stage, done, total)))
    done = [event[1] for event in events]
    assert done[0] == 300
    assert done == sorted(done)
    assert events[-1] == ("inject tiny int8", 1000, 1000)


def test_trials_follow_the_shares_of_their_strata(undisturbed):
    """Counts stay within 4.5 standard deviations: another seed fails with probability 2e-5."""
    counts = np.bincount([row[1] for row in undisturbed], minlength=len(POPULATION))
    for count, stratum in zip(counts, POPULATION, strict=True):
        deviation = np.sqrt(SPEC.trials * stratum.weight * (1 - stratum.weight))
        assert abs(count - SPEC.trials * stratum.weight) < 4.5 * deviation


def test_the_store_keeps_every_outcome_the_replay_measures():
    assert set(OUTCOMES) == set(replay_outcomes.OUTCOMES)
