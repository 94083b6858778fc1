"""A study from its file to its summary, on digits."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from itertools import product

import pytest
from typer.testing import CliRunner

from rasp import locks
from rasp.analysis.compare import compare
from rasp.campaign import result
from rasp.cli.app import app
from rasp.report import arms

STUDY = """
name = "small"
model = "lenet5"
data = "digits"
epochs = 3
fine_tuning = 1
seeds = [0, 1]
cost = "macs"
budgets = [0.5]
upset_rates = [0.0, 0.002]
restrictions = ["clip layer", "zero channel"]
loss = 0.05
choice = { trials = 500, images = 60 }
campaign = { trials = 3000, images = 450 }
[[arms]]
name = "magnitude"
criterion = "magnitude"
[[arms]]
name = "ours"
criterion = "reliability"
format = "fp32"
scope = "failures"
lam = [0.5, 1.0]
"""


def rasp(*arguments, code=0):
    found = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert found.exit_code == code, found.output
    return json.loads(found.stdout) if code == 0 else found.output


def compared(summary, arm, baseline):
    """The comparison of two arms in fp32."""
    [entry] = [
        one
        for one in summary["comparisons"]
        if (one["arm"], one["baseline"], one["format"]) == (arm, baseline, "fp32")
    ]
    return entry


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("study")
    (home / "study.toml").write_text(STUDY)
    return home


@pytest.fixture(scope="module")
def places(home):
    return "--out", home / "nets", "--results", home / "results"


@pytest.fixture(scope="module")
def summary(home, places):
    part = rasp("study", home / "study.toml", *places, "--seed", 1)
    assert part["summary"] is None
    assert not (home / "results").exists()
    found = rasp("study", home / "study.toml", *places)
    assert found == json.loads((home / "results" / "summary.json").read_text())
    return found


def test_every_network_is_measured_on_test_images(summary):
    kinds = {(n["seed"], n["arm"], n["hardened"], n["format"]) for n in summary["networks"]}
    names, formats = ("dense", "magnitude", "ours"), ("fp32", "int8")
    assert kinds == set(product((0, 1), names, (False, True), formats))
    assert {n["accuracy"]["n"] for n in summary["networks"]} == {450}


def test_the_page_shows_every_comparison_and_the_first_seeds_networks(home, summary):
    page = (home / "nets" / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    texts = [re.sub(r"<[^>]+>", "|", row).replace("\N{NO-BREAK SPACE}", " ") for row in rows]
    assert sum("|magnitude + hardening|" in text for text in texts) == 4
    entry = compared(summary, "ours", "magnitude")
    [row] = [text for text in texts if text.startswith("|ours||magnitude||fp32|")]
    assert f"|{entry['ratio']:.2f}x [{entry['low']:.2f}, {entry['high']:.2f}]|" in row
    names = [text.split("|")[1] for text in texts]
    assert names.count("ours 50 % + hardening") == names.count("dense") == 2


def test_each_seed_chose_on_validation_images(home, summary):
    for choice in summary["choices"]:
        folder = home / "nets" / f"seed-{choice['seed']}"
        mode = choice["restriction"].replace(" ", "-")
        tried = {
            place.parents[1].name: arms.read(place.parent)
            for place in folder.glob("50/magnitude/*/fp32-validation/summary.json")
        }
        assert set(tried) == {"clip-layer", "zero-channel"}
        assert all(arm.accuracy_split == "validation" for arm in tried.values())
        base = arms.read(folder / "50/magnitude/fp32-validation").accuracy.estimate
        near = {k: a for k, a in tried.items() if a.accuracy.estimate >= base - 0.05}
        assert mode == min(near, key=lambda k: near[k].sdc1.estimate)
        rate = choice["upset_rate"]
        scaled = folder / "50/magnitude" / f"scales-{rate:g}"
        record = json.loads((scaled / "model.json").read_text())["quantization"]
        assert record["upset_rate"] == rate
        assert (scaled / "int8-test" / "summary.json").is_file()
        lam, upset_rate = choice["arms"]["ours"]
        assert (folder / f"50/ours-lambda-{lam:g}" / "fp32-test" / "summary.json").is_file()
        assert upset_rate == 0


def test_ratios_are_of_sums_over_the_seeds(home, summary):
    entry = compared(summary, "ours", "magnitude")
    lams = {choice["seed"]: choice["arms"]["ours"][0] for choice in summary["choices"]}
    sums, each = [0.0, 0.0], []
    for seed in (0, 1):
        folder = home / "nets" / f"seed-{seed}" / "50"
        runs = [folder / "magnitude/fp32-test", folder / f"ours-lambda-{lams[seed]:g}/fp32-test"]
        both = [arms.read(run).exposure for run in runs]
        sums = [total + one.failures for total, one in zip(sums, both, strict=True)]
        campaigns = [result.read(run / "campaign.sqlite") for run in runs]
        each.append(compare(*campaigns, tuple(both)).per_inference.estimate)
    assert entry["ratio"] == pytest.approx(sums[1] / sums[0], rel=1e-6)
    assert entry["low"] < entry["ratio"] < entry["high"]
    assert entry["by_seed"] == pytest.approx(each)
    middle = math.sqrt(each[0] * each[1])
    assert math.sqrt(entry["seeds_low"] * entry["seeds_high"]) == pytest.approx(middle)
    assert entry["seeds"] == 2
    assert entry["trials"] == 4 * 3000


def test_bounds_keep_failures_away(summary):
    entry = compared(summary, "magnitude + hardening", "magnitude")
    assert entry["high"] < 0.3
    assert entry["accuracy_delta"] > -0.02
    assert entry["low_accuracy_delta"] < entry["accuracy_delta"]


def test_without_the_report_extra_nothing_is_begun(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    line = "study", home / "study.toml", "--out", tmp_path / "nets"
    assert "torch-rasp[report]" in rasp(*line, code=3)
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_does_nothing_anew(home, places, summary):
    stores = {path: path.stat().st_mtime_ns for path in (home / "nets").rglob("*.sqlite")}
    assert rasp("study", home / "study.toml", *places) == summary
    assert {path: path.stat().st_mtime_ns for path in stores} == stores


def test_a_second_driver_of_a_seed_is_refused(home, places, summary):
    lock = locks.claim(home / "nets" / "seed-1")
    line = "study", home / "study.toml", *places
    assert "another process" in rasp(*line, code=4)
    assert rasp(*line, "--seed", 0) == summary
    os.close(lock)
    assert rasp(*line) == summary


def test_another_study_is_kept_out_of_the_directory(home, places, summary):
    del summary
    (home / "other.toml").write_text(STUDY.replace("trials = 3000", "trials = 2000"))
    assert "campaign differ" in rasp("study", home / "other.toml", *places, code=4)
    for file in ("study.json", "seed-1/choices.json"):
        kept = (home / "nets" / file).read_bytes()
        (home / "nets" / file).write_text("[1]")
        assert "nets" in rasp("study", home / "study.toml", *places, "--seed", 0, code=4)
        (home / "nets" / file).write_bytes(kept)
    assert "Allowed: 0, 1" in rasp("study", home / "study.toml", *places, "--seed", 5, code=2)
