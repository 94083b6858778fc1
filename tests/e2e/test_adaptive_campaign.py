"""Adaptive campaigns and stopping rules on a tiny network: the same rows however they are run."""

import sqlite3
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from rasp.campaign import spec as campaign_spec
from rasp.campaign.rates import overall
from rasp.campaign.reader import opened
from rasp.campaign.result import read
from rasp.campaign.runner import inject, specify
from rasp.campaign.store import Store
from rasp.errors import StoreMismatchError
from rasp.network.lower import lower
from rasp.nvdla import config
from rasp.quantization.calibrate import quantize

IMAGES, TRIALS, CHUNK = 24, 1100, 100
SEED = 5  # of a campaign whose intervals are narrower after every round
ENDS = (200, 400, 800, 1100)  # of the rounds
CHUNKS = 11
NEVER = 1e-6  # margin that no campaign here reaches
LEVEL = 1.96
SIGMAS = 4.0


@pytest.fixture(scope="module", autouse=True)
def _short_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign_spec, "_FIRST_ROUND", ENDS[0])
        yield


@pytest.fixture(scope="module")
def parts():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2), nn.Flatten(),
            nn.Linear(16, 7),
        ).eval()  # fmt: skip
        images = torch.randn(IMAGES, 2, 8, 8)
        labels = torch.randint(0, 7, (IMAGES,))
    network, _ = quantize(lower(model, images[:1]), images)
    return network, images, labels, config.load("nv_small")


def spec_of(parts, **asked):
    network, images, _, accelerator = parts
    spec = specify(
        network, images, accelerator, model="tiny", data="noise", split="given", trials=TRIALS,
        fault_models={"RD_BFLIP": 1.0, "WEIGHT16": 1.0, "RD": 3.0, "MAC_SUM": 0.1}, seed=SEED,
    )  # fmt: skip
    return type(spec).model_validate({**spec.model_dump(), "sampling": "adaptive", **asked})


def kept(path):
    """Rows with their weights, plans, and where the campaign stopped."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM injections ORDER BY trial").fetchall()
    with opened(path) as reader:
        return rows, reader.plans, reader.stopped


def half_widths(path):
    """Of the interval after each round that is complete."""
    found = []
    with opened(path) as reader:
        for number in range(len(reader.spec.rounds())):
            try:
                seen = reader.tallies(number + 1)
            except ValueError:
                break
            found.append(overall(reader.spec, seen, reader.spec.outcome).half_width)
    return found


@pytest.fixture(scope="module")
def undisturbed(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("adaptive") / "a.sqlite"
    result = inject(*parts, spec_of(parts), path, chunk=CHUNK)
    assert result.complete
    return path


@pytest.fixture(scope="module")
def uniform(parts, tmp_path_factory):
    """The rounds of a uniform campaign that asks for a margin it does not reach."""
    path = tmp_path_factory.mktemp("uniform") / "a.sqlite"
    inject(*parts, spec_of(parts, sampling="uniform", margin=NEVER), path, chunk=CHUNK)
    return path


@contextmanager
def interrupted(method, calls):
    """A method of the store raises before its call number ``calls``, counted from 0."""
    real, seen = getattr(Store, method), []

    def broken(self, *arguments):
        seen.append(None)
        if len(seen) == calls + 1:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, method, broken)
        yield


def test_rows_are_weighted_and_rounds_are_recorded(undisturbed):
    rows, plans, stopped = kept(undisturbed)

    assert len(rows) == TRIALS
    assert stopped is None
    assert list(plans) == [0, 1, 2, 3]
    probabilities = [np.frombuffer(plan, "<f8") for plan in plans.values()]
    assert all(p.sum() == pytest.approx(1) for p in probabilities)
    assert len(set(plans.values())) == len(plans)
    weight = np.array([row[-1] for row in rows])
    assert weight[:200] == pytest.approx(0.1)
    assert weight[200:400].max() <= 0.5 * 10 + 1e-9
    assert weight[400:].max() <= 10 + 1e-9
    assert len(np.unique(weight[400:])) > 10


@pytest.mark.parametrize("commits", range(CHUNKS))
def test_a_campaign_cut_before_any_chunk_resumes_to_the_same_rows(
    parts, undisturbed, tmp_path, commits
):
    path = tmp_path / "a.sqlite"
    with interrupted("commit", commits), pytest.raises(KeyboardInterrupt):
        inject(*parts, spec_of(parts), path, chunk=CHUNK)
    assert len(kept(path)[0]) == commits * CHUNK
    assert not read(path).complete

    assert inject(*parts, spec_of(parts), path, chunk=CHUNK).complete

    assert kept(path) == kept(undisturbed)


def test_a_campaign_cut_over_and_over_resumes_to_the_same_rows(parts, undisturbed, tmp_path):
    path = tmp_path / "a.sqlite"
    for _ in range(CHUNKS - 1):
        with interrupted("commit", 1), pytest.raises(KeyboardInterrupt):
            inject(*parts, spec_of(parts), path, chunk=CHUNK)
    inject(*parts, spec_of(parts), path, chunk=CHUNK)
    assert kept(path) == kept(undisturbed)


@pytest.mark.parametrize("options", [{"chunk": 37}, {"chunk": 5000}, {"chunk": 60, "workers": 2}])
def test_chunks_and_workers_change_no_row(parts, undisturbed, tmp_path, options):
    inject(*parts, spec_of(parts), tmp_path / "a.sqlite", **options)

    assert kept(tmp_path / "a.sqlite") == kept(undisturbed)


def test_a_store_whose_plan_is_another_is_refused(parts, tmp_path):
    path = tmp_path / "a.sqlite"
    with interrupted("commit", 3), pytest.raises(KeyboardInterrupt):
        inject(*parts, spec_of(parts), path, chunk=CHUNK)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE rounds SET plan = zeroblob(length(plan)) WHERE round = 1")

    with pytest.raises(StoreMismatchError, match="round 1 draws its trials in another way"):
        inject(*parts, spec_of(parts), path, chunk=CHUNK)


@pytest.mark.parametrize(
    ("sampling", "number"), [("uniform", 0), ("uniform", 1), ("uniform", 2), ("adaptive", 2)]
)
def test_a_campaign_stops_after_the_round_that_reaches_the_margin(
    parts, undisturbed, uniform, tmp_path, sampling, number
):
    whole = undisturbed if sampling == "adaptive" else uniform
    widths = half_widths(whole)
    assert sorted(widths, reverse=True) == widths
    path, spec = tmp_path / "a.sqlite", spec_of(parts, sampling=sampling, margin=widths[number])

    result = inject(*parts, spec, path, chunk=CHUNK)

    rows, plans, stopped = kept(path)
    assert stopped == ENDS[number]
    assert rows == kept(whole)[0][:stopped]
    assert list(plans) == (list(range(number + 1)) if sampling == "adaptive" else [])
    assert result.complete
    assert result.trials == stopped
    assert result.overall["sdc1"].half_width <= spec.margin
    assert (np.array(half_widths(path)[:-1]) > spec.margin).all()
    with interrupted("commit", 0):
        again = inject(*parts, spec, path, chunk=CHUNK)
    assert again.overall == result.overall
    assert kept(path) == (rows, plans, stopped)


def test_rounds_drawn_before_the_rates_are_known_do_not_end_a_campaign(
    parts, undisturbed, tmp_path
):
    path, spec = tmp_path / "a.sqlite", spec_of(parts, margin=half_widths(undisturbed)[0])

    inject(*parts, spec, path, chunk=CHUNK)

    assert kept(path)[2] == ENDS[2]


@pytest.mark.parametrize("sampling", ["adaptive", "uniform"])
def test_a_margin_that_is_never_reached_ends_at_the_trials(parts, undisturbed, tmp_path, sampling):
    path = tmp_path / "a.sqlite"

    result = inject(*parts, spec_of(parts, sampling=sampling, margin=NEVER), path, chunk=CHUNK)

    assert result.complete
    assert result.trials == TRIALS
    rows, _, stopped = kept(path)
    assert stopped is None
    assert (rows == kept(undisturbed)[0]) == (sampling == "adaptive")


@pytest.mark.parametrize("method", ["finish", "commit"])
def test_a_stopped_campaign_cut_before_it_is_recorded_stops_there_all_the_same(
    parts, undisturbed, tmp_path, method
):
    path, spec = tmp_path / "a.sqlite", spec_of(parts, margin=half_widths(undisturbed)[2])
    with interrupted(method, 3 if method == "commit" else 0), pytest.raises(KeyboardInterrupt):
        inject(*parts, spec, path, chunk=CHUNK)
    assert not read(path).complete

    assert inject(*parts, spec, path, chunk=CHUNK).complete

    rows, _, stopped = kept(path)
    assert stopped == ENDS[2]
    assert rows == kept(undisturbed)[0][:stopped]


@pytest.mark.parametrize("split", ["given", "test"])
def test_the_margin_is_about_the_interval_of_the_outcome_that_is_reported(parts, tmp_path, split):
    """Images that stand for others have wider intervals."""
    spec = spec_of(parts, outcome="sdc10", margin=0.05, split=split)

    result = inject(*parts, spec, tmp_path / "a.sqlite", chunk=CHUNK)

    widths = half_widths(tmp_path / "a.sqlite")
    assert widths[-1] == pytest.approx(result.overall["sdc10"].half_width)
    assert widths[-1] <= 0.05
    assert all(width > 0.05 for width in widths[2:-1])


def test_every_split_agrees_with_a_large_uniform_campaign(parts, tmp_path):
    """About 150 differences at 4 standard errors: another seed fails with probability 1 %."""
    adaptive = inject(*parts, spec_of(parts, trials=12_000), tmp_path / "a.sqlite")
    uniform = inject(
        *parts, spec_of(parts, trials=24_000, sampling="uniform", seed=6), tmp_path / "u.sqlite"
    )

    for outcome in ("masked", "sdc1", "sdc10"):
        for split in ("by_layer", "by_model", "by_bit"):
            one, other = getattr(adaptive, split)[outcome], getattr(uniform, split)[outcome]
            assert one.keys() == other.keys()
            for key, rate in one.items():
                error = np.hypot(rate.half_width, other[key].half_width) / LEVEL
                assert abs(rate.estimate - other[key].estimate) < SIGMAS * error, (split, key)
        one, other = adaptive.overall[outcome], uniform.overall[outcome]
        error = np.hypot(one.half_width, other.half_width) / LEVEL
        assert abs(one.estimate - other.estimate) < SIGMAS * error
    assert adaptive.overall["sdc1"].half_width < uniform.overall["sdc1"].half_width * 2**0.5
