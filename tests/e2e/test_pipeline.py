"""The whole road from the command line, on digits, in little time."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from rasp import checkpoint
from rasp.cli.app import app
from rasp.demo import CRITERIA, FORMATS, KEPT_MACS, STEPS, demo
from rasp.report import arms

RASP = [sys.executable, "-c", "from rasp.cli.app import main; main()"]


def rasp(*arguments):
    """Run a command in this process and return its JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dense(home):
    rasp("train", "--model", "lenet5", "--data", "digits", "--epochs", "6", "--out", home / "dense")
    return home / "dense"


@pytest.fixture(scope="module")
def pruned(home, dense):
    found = rasp(
        "prune",
        "--model",
        dense,
        "--criterion",
        "taylor",
        "--macs",
        "0.5",
        "--epochs",
        "1",
        "--out",
        home / "pruned",
    )
    assert found["macs"] == pytest.approx(found["dense_macs"] / 2, rel=0.1)
    return home / "pruned"


def test_training_again_returns_the_finished_network(dense):
    before = (dense / "model.safetensors").stat().st_mtime_ns
    rasp("train", "--model", "lenet5", "--data", "digits", "--epochs", "6", "--out", dense)

    assert (dense / "model.safetensors").stat().st_mtime_ns == before


def test_training_over_another_run_is_refused(dense):
    before = {path.name: path.read_bytes() for path in dense.iterdir() if path.is_file()}
    result = CliRunner().invoke(
        app,
        ["train", "--model", "lenet5", "--data", "digits", "--seed", "1", "--out", str(dense)],
    )

    assert result.exit_code == 4
    assert "seed" in result.stderr
    assert {path.name: path.read_bytes() for path in dense.iterdir() if path.is_file()} == before


def test_pruned_network_is_not_pruned_again(pruned):
    result = CliRunner().invoke(
        app, ["prune", "--model", str(pruned), "--criterion", "random", "--macs", "0.5"]
    )

    assert result.exit_code == 2
    assert "pruned already" in result.stderr


def test_quantised_checkpoint_is_evaluated_in_int8(home, pruned):
    saved = rasp("quantize", "--model", pruned, "--out", home / "int8")
    direct = rasp("evaluate", "--model", pruned, "--split", "validation", "--format", "int8")
    own = rasp("evaluate", "--model", home / "int8", "--split", "validation")

    assert own["format"] == "int8"
    assert own["accuracy"] == direct["accuracy"] == saved["int8"]


def test_campaigns_and_their_report(home, dense, pruned):
    runs = []
    for net in (dense, pruned):
        runs.append(home / f"{net.name}-faults")
        found = rasp(
            "inject",
            "--model",
            net,
            "--format",
            "int8",
            "--trials",
            "600",
            "--images",
            "30",
            "--out",
            runs[-1],
        )
        assert found["arm"]["trials"] == 600
        with sqlite3.connect(runs[-1] / "campaign.sqlite") as store:
            [(events,)] = store.execute("SELECT sum(sdc1) FROM trials")
        assert found["arm"]["outcomes"]["sdc1"]["events"] == events
    written = rasp("report", *runs, "--out", home / "report.html")

    assert (home / "report.html").read_text().startswith("<!doctype html>")
    assert written["verdict"] in (home / "report.html").read_text()
    assert arms.read(runs[1]).criterion == "taylor"


def test_networks_are_compared_on_the_same_images(home, dense, pruned):
    """The dense network's campaign twice is a ratio of 1; the pruned one by hand."""
    runs, arguments = [], ("--format", "fp32", "--trials", "3000", "--images", "40")
    for number, net in enumerate((dense, dense, pruned)):
        runs.append(home / f"compare-{number}")
        rasp("inject", "--model", net, *arguments, "--out", runs[-1])

    found = rasp("compare", *runs)

    first, same, other = found["networks"]
    assert first["per_fault"] is None
    assert same["per_fault"] == {"estimate": 1.0, "low": 1.0, "high": 1.0, "confidence": 0.95}
    assert same["common_answers"] == 1.0
    quotient = other["rate"]["estimate"] / first["rate"]["estimate"]
    assert other["per_fault"]["estimate"] == pytest.approx(quotient)
    scaled = other["per_fault"]["estimate"] * other["cycles"] / first["cycles"]
    assert other["per_inference"]["estimate"] == pytest.approx(scaled)
    assert other["failures"][0] / first["failures"][0] == pytest.approx(scaled)
    lost = other["accuracy"]["estimate"] - first["accuracy"]["estimate"]
    assert other["accuracy_difference"]["estimate"] == pytest.approx(lost)
    assert other["name"] in found["verdict"] or "No network" in found["verdict"]
    shown = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert found["verdict"] in shown.stdout.replace("\n", " ")


def test_widths_are_traded_for_failures(home, dense):
    options = ("--criterion", "reliability", "--macs", "0.5", "--epochs", "0", "--faults", "nvdla")
    prune = ("prune", "--model", dense, *options, "--scope", "failures")
    even = rasp(*prune, "--lambda", "1", "--out", home / "traded")
    plain = rasp(*prune, "--lambda", "0", "--out", home / "ranked")
    taylor = rasp(
        *("prune", "--model", dense, "--criterion", "taylor", "--macs", "0.5", "--epochs", "0"),
        *("--scope", "global", "--out", home / "taylor"),
    )
    assert plain["widths"] == taylor["widths"]
    states = [checkpoint.read(home / name).state for name in ("ranked", "taylor")]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    assert even["macs"] <= even["dense_macs"] / 2
    assert even["widths"] != plain["widths"]


def test_names_say_how_a_network_was_pruned_and_hardened(home, dense):
    pruned, bounded, scaled = (home / f"named-{kind}" for kind in ("pruned", "bounded", "scaled"))
    rasp(
        *("prune", "--model", dense, "--criterion", "taylor", "--macs", "0.5", "--epochs", "1"),
        *("--scope", "failures", "--upset-rate", "0.05", "--distill", "0.5", "--out", pruned),
    )
    rasp("harden", "--model", pruned, "--upset-rate", "0.001", "--out", bounded)
    rasp("quantize", "--model", bounded, "--upset-rate", "0.002", "--out", scaled)
    few = ("--trials", "20", "--images", "5")
    name = rasp("inject", "--model", scaled, *few, "--out", home / "named")["arm"]["name"]
    first, *rest = name.split(", ")
    assert first.startswith("taylor ")
    assert rest == [
        "widths by failures",
        "fine-tuned under upsets 0.05",
        "distilled 0.5",
        "clip per layer for upsets 0.001",
        "scales for upsets 0.002",
    ]
    plan = checkpoint.read(pruned).plan
    assert (plan["upset_rate"], plan["distill"]) == (0.05, 0.5)


def test_images_of_the_validation_split_are_injected_for_choices(home, dense):
    found = rasp(
        *("inject", "--model", dense, "--trials", "300", "--images", "40"),
        *("--split", "validation", "--out", home / "choice"),
    )
    assert found["arm"]["accuracy_split"] == "validation"
    assert found["arm"]["spec"]["split"] == "validation"
    assert "--split validation" in found["arm"]["command"]


def test_campaigns_that_differ_in_more_than_the_network_are_not_compared(home, dense):
    runs = []
    for images, seed in ((40, 0), (30, 0), (40, 1)):
        runs.append(home / f"differ-{images}-{seed}")
        arguments = ("--trials", "200", "--images", images, "--seed", seed, "--out", runs[-1])
        rasp("inject", "--model", dense, "--format", "fp32", *arguments)
    [_, same] = rasp("compare", runs[0], runs[0])["networks"]
    assert 0 < same["rate"]["events"] < 20
    assert same["per_fault"]["low"] < 0.7 < 1.4 < same["per_fault"]["high"]
    for other, word in zip(runs[1:], ("images", "seed"), strict=True):
        result = CliRunner().invoke(app, ["compare", str(runs[0]), str(other)])
        assert result.exit_code == 2
        assert f"'{word}'" in result.stderr


def test_bounds_lower_the_rate_and_are_measured_anew_after_pruning(home, dense):
    bounded = home / "bounded"
    found = rasp("harden", "--model", dense, "--mode", "zero", "--out", bounded)
    assert found["nodes"] == 4
    assert found["after"] == found["before"]
    rates = []
    for net in (dense, bounded):
        out = home / f"{net.name}-fp32"
        arguments = ("--format", "fp32", "--trials", "3000", "--images", "30", "--out", out)
        rates.append(rasp("inject", "--model", net, *arguments)["arm"]["outcomes"])
    assert rates[0]["due"]["events"] > rates[1]["due"]["events"] == 0
    assert rates[1]["sdc1"]["high"] < rates[0]["sdc1"]["low"]

    half = ("--criterion", "random", "--macs", "0.5", "--epochs", "0")
    rasp("prune", "--model", bounded, *half, "--out", home / "bounded-half")
    rasp("quantize", "--model", home / "bounded-half", "--out", home / "bounded-int8")

    kept = [checkpoint.read(home / name).hardening for name in ("bounded", "bounded-half")]
    assert [record["mode"] for record in kept] == ["zero", "zero"]
    assert kept[0]["high"] != kept[1]["high"]
    assert checkpoint.read(home / "bounded-int8").hardening == kept[1]
    again = CliRunner().invoke(app, ["harden", "--model", str(home / "bounded-int8")])
    assert again.exit_code == 2
    assert "quantised already" in again.stderr


def test_a_store_of_another_spec_is_refused_and_untouched(home, dense):
    out = home / "store"
    arguments = [
        "inject",
        "--model",
        str(dense),
        "--trials",
        "64",
        "--images",
        "8",
        "--out",
        str(out),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = (out / "campaign.sqlite").read_bytes()
    result = CliRunner().invoke(app, [*arguments, "--seed", "5"])

    assert result.exit_code == 4
    assert (out / "campaign.sqlite").read_bytes() == before


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_prints_the_line_that_goes_on(home, dense):
    out = home / "interrupted"
    arguments = [
        "inject",
        "--model",
        str(dense),
        "--trials",
        "400000",
        "--images",
        "50",
        "--out",
        str(out),
    ]
    process = subprocess.Popen([*RASP, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "campaign.sqlite").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130, error
    assert "Go on with: rasp inject" in error
    assert str(out) in error
    assert "Traceback" not in error


def test_demo_in_small_and_again(tmp_path):
    stages = []

    def hear(stage, done, total, detail=""):
        stages.append(stage)

    first = demo(tmp_path, trials=200, images=20, epochs=3, fine_tuning=1, progress=hear)

    assert len(first.arms) == len(FORMATS) * (1 + len(CRITERIA) * len(KEPT_MACS))
    assert stages[0].startswith(f"[1/{STEPS}] train")
    assert stages[-1].startswith(f"[{STEPS}/{STEPS}] inject")
    for kept in KEPT_MACS:
        names = [f"{criterion}-{100 * kept:.0f}" for criterion in CRITERIA]
        widths = [
            json.loads((tmp_path / name / "model.json").read_text())["plan"]["widths"]
            for name in names
        ]
        assert widths[0] == widths[1] == widths[2]

    (tmp_path / "report.html").unlink()
    (tmp_path / "dense" / "int8" / "campaign.sqlite").unlink()
    again = demo(tmp_path, trials=200, images=20, epochs=3, fine_tuning=1)

    assert again.rows == first.rows
    assert (tmp_path / "report.html").exists()
    assert "cells" not in again.to_dict()["arms"][0]


def test_labels_name_the_scales_that_allow_for_upsets(home, dense):
    scaled = home / "scaled"
    rasp("quantize", "--model", dense, "--upset-rate", "0.002", "--out", scaled)
    found = rasp(
        *("inject", "--model", scaled, "--trials", "200", "--images", "20"),
        *("--out", home / "scaled-faults"),
    )
    assert found["arm"]["name"] == "dense, scales for upsets 0.002"
