"""The runner with an injector whose outcomes are plain arithmetic on the random words."""

import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest

from rasp.campaign.result import read
from rasp.campaign.runner import run_chunks
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, OUTCOMES, ImageFacts, StratumFacts, open_or_create
from rasp.faults.population import Stratum
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


class FakeReplay:
    """Injects nothing: site and outcome are functions of the arguments, as a replay's must be."""

    def __init__(self, stop_after=None):
        self.calls = 0
        self.stop_after = stop_after

    def run(self, stratum, image, words):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        low = words.astype(np.int64) & 0xFFFF
        sites = {
            name: low[:, i] + len(stratum.layer)
            for i, name in enumerate(("kernel", "channel", "r", "s", "pixel", "value"))
        }
        happened = {name: low[:, i % 8] % (i + 2) == 0 for i, name in enumerate(OUTCOMES)}
        return (
            SimpleNamespace(**sites, bit=low[:, 7] % 8 - (stratum.model == "RD") * 8),
            SimpleNamespace(changed=image + 1, **happened),
        )


def facts():
    return (
        [StratumFacts(*stratum) for stratum in map(as_tuple, POPULATION)],
        [ImageFacts(i, i, 0.5, 1.0) for i in range(SPEC.images)],
    )


def as_tuple(stratum):
    return stratum.layer, stratum.model, stratum.weight


def run(path, *, chunk=100, injector=None, progress=None):
    with open_or_create(path, SPEC, chunk=chunk) as store:
        store.describe(*facts())
        extra = {} if progress is None else {"progress": progress}
        run_chunks(injector or FakeReplay(), POPULATION, store, **extra)


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


@pytest.mark.parametrize("calls", [0, 1, 5, 14])
def test_an_interrupted_run_resumes_to_the_same_rows(tmp_path, undisturbed, calls):
    path = tmp_path / "a.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, injector=FakeReplay(stop_after=calls))
    kept = len(rows(path))
    assert kept == 100 * (calls // len(POPULATION))
    assert not read(path).complete
    resumed = FakeReplay()
    run(path, injector=resumed)
    assert rows(path) == undisturbed
    assert resumed.calls == len(POPULATION) * (SPEC.trials - kept) // 100


def test_a_finished_campaign_injects_nothing_more(tmp_path):
    run(tmp_path / "a.sqlite")
    again = FakeReplay()
    run(tmp_path / "a.sqlite", injector=again)
    assert again.calls == 0


def test_progress_counts_trials_from_where_the_store_stands(tmp_path):
    path = tmp_path / "a.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, injector=FakeReplay(stop_after=9))
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
