"""`rasp inject` on a recorded layer against `rasp rtl-check` on its records, by the commands."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rasp.cli.app import app

SAMPLE = Path(__file__).parents[1] / "data" / "rtl"
FOLDER = Path(os.environ.get("RASP_RTL", SAMPLE))
SIGMAS = 4.0
"""Standard errors apart at most; the chance that a correct model fails is 6e-5 a layer."""


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def standard_error(rate):
    p = (rate["events"] + 0.5) / (rate["n"] + 1)
    return (p * (1 - p) / rate["n_effective"]) ** 0.5


@pytest.mark.parametrize("layer", ["A", "B", "D"])
def test_a_campaign_on_a_recorded_layer_changes_outputs_as_often_as_its_records(layer, tmp_path):
    name = f"rtl:{FOLDER / 'layers.json'}#{layer}"
    arguments = ("--faults", "nvdla", "--trials", 20_000, "--out", tmp_path / "run", "--json")

    found = json.loads(run("inject", "--model", name, *arguments).stdout)
    records = FOLDER / f"nv_small-layer-{layer}.jsonl.gz"
    recorded = json.loads(run("rtl-check", records, "--json").stdout)["changed"][layer]

    changed = found["changed"]
    assert changed["method"] == "wilson"
    assert changed["n"] == found["trials"] == 20_000
    assert changed["n_effective"] == pytest.approx(20_000)
    apart = changed["estimate"] - recorded["estimate"]
    allowed = SIGMAS * (standard_error(changed) ** 2 + standard_error(recorded) ** 2) ** 0.5
    assert abs(apart) < allowed
    assert changed["estimate"] > 4 * standard_error(changed)
    assert json.loads((tmp_path / "run" / "layer.json").read_text())["changed"] == changed
    again = json.loads(run("inject", "--model", name, *arguments).stdout)
    assert again["changed"] == changed


def test_the_table_names_the_share_and_what_its_interval_is_about(tmp_path):
    found = run(
        *("inject", "--model", f"rtl:{SAMPLE}#D", "--fault-model", "WEIGHT_ACTIVE"),
        *("--trials", 300, "--out", tmp_path / "run"),
    )
    assert "changes an output" in found.stdout
    assert "about this one input" in found.stdout
    assert "top-1" not in found.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "rtl:nowhere"), "rtl:FOLDER#LAYER"),
        (("--model", "rtl:nowhere#A"), "needs a layers.json"),
        (("--model", f"rtl:{SAMPLE}#Z"), "Allowed: A, B, D"),
        (("--model", f"rtl:{SAMPLE}#A", "--format", "fp16"), "Recorded layers are int8"),
        (("--model", f"rtl:{SAMPLE}#A", "--data", "digits"), "Leave --data out"),
        (("--model", f"rtl:{SAMPLE}#A", "--trials", 0), "--trials must be at least 1"),
    ],
)
def test_what_a_recorded_layer_cannot_be_is_refused(words, message, tmp_path):
    result = run("inject", *words, "--out", tmp_path / "run", code=2)
    assert message in result.output
    assert not (tmp_path / "run").exists()
