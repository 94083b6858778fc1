"""`rasp fit` and `rasp rtl-check` from the command line."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rasp.cli.app import app
from rasp.nvdla.config import load
from rasp.nvdla.registers import registers

SAMPLE = Path(__file__).parents[1] / "data" / "rtl"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("fit")
    run("train", "--model", "lenet5", "--data", "digits", "--epochs", 1, "--out", home / "net")
    for faults in ("nvdla", "memory", "fidelity"):
        run(
            *("inject", "--model", home / "net", "--format", "int8", "--faults", faults),
            *("--trials", 3000, "--images", 40, "--out", home / faults),
        )
    return home


def test_fit_follows_from_bits_rate_and_raw_rate(runs):
    arm = json.loads((runs / "nvdla" / "summary.json").read_text())
    arguments = ("--raw-fit-per-mbit", 600, "--clock-mhz", 100, "--fps", 50, "--json")

    found = json.loads(run("fit", runs / "nvdla", *arguments).stdout)

    datapath, silent, hang = found["lines"]
    counted = registers(load("nv_small"))
    assert datapath["bits"] == sum(arm["spec"]["fault_models"].values())
    assert datapath["bits"] + silent["bits"] == sum(r.flip_flops for r in counted)
    rate = arm["outcomes"]["sdc1"]["estimate"]
    assert datapath["fit"][0] == pytest.approx(600e-6 * datapath["bits"] * rate)
    assert 0.05 < datapath["activity"] < 0.9
    assert datapath["activity"] == arm["activity"]["estimate"]
    share = arm["cycles"] * 50 / 100e6
    assert found["duty"] == pytest.approx(share)
    assert silent["fit_at_rate"][0] == pytest.approx(share * silent["fit"][0])
    assert (silent["failure"], hang["failure"]) == ("output", "hang")
    assert not any(line["part"] == "memory" for line in found["lines"])


def test_memory_is_counted_only_when_asked_for(runs):
    text = run(
        "fit", runs / "nvdla", "--raw-fit-per-mbit", 600, "--memory-run", runs / "memory", "--json"
    ).stdout

    memory = json.loads(text)["lines"][-1]
    arm = json.loads((runs / "memory" / "summary.json").read_text())
    assert memory["bits"] == 128 * 1024 * 8
    assert memory["activity"] == pytest.approx(arm["buffer_occupancy"])
    expected = arm["buffer_occupancy"] * arm["outcomes"]["sdc1"]["estimate"]
    assert memory["rate"]["estimate"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fidelity", "--raw-fit-per-mbit", 600), "--faults nvdla"),
        (("nvdla", "--raw-fit-per-mbit", -1), "raw rate must be positive"),
        (("nvdla", "--raw-fit-per-mbit", 600, "--fps", 30), "both --fps and --clock-mhz"),
        (
            ("nvdla", "--raw-fit-per-mbit", 600, "--fps", 1e6, "--clock-mhz", 1),
            "Lower the frame rate",
        ),
        (("nvdla", "--raw-fit-per-mbit", 600, "--memory-run", "fidelity"), "--faults memory"),
    ],
)
def test_fit_refuses_what_it_cannot_answer(runs, words, message):
    paths = [runs / word if word in ("fidelity", "nvdla") else word for word in words]

    result = run("fit", *paths, code=2)

    assert message in result.output


def test_the_sample_of_rtl_records_is_reproduced_exactly():
    files = sorted(SAMPLE.glob("*.jsonl.gz"))

    found = json.loads(run("rtl-check", *files, "--json").stdout)

    assert found["records"] > 4000
    assert found["exact"] == found["modelled"] > 0.35 * found["records"]
    assert found["mismatches"] == []


def test_a_wrong_record_is_a_failed_gate(tmp_path):
    shutil.copy(SAMPLE / "layers.json", tmp_path)
    [source] = SAMPLE.glob("*layer-A*")
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    for number, line in enumerate(lines):
        record = json.loads(line)
        if record["cls"] == "cmac_sum" and record["acc"]:
            record["acc"][0][4] += 1
            lines[number] = json.dumps(record)
            break
    (tmp_path / "records.jsonl").write_text("\n".join([*lines, '{"layer": "A", "cls"']) + "\n")

    result = run("rtl-check", tmp_path / "records.jsonl", "--json", code=1)

    found = json.loads(result.stdout)
    assert len(found["mismatches"]) == 1
    assert f"records.jsonl:{len(lines) + 1}" in found["malformed"][0]


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ([], 2, "There is no record in"),
        (["[]"], 1, "a record must be dict"),
        (['{"atom": {"n": 99999999}}'], 1, "atom 99999999 of a layer with 1512"),
        (['{"bit": 9223372036854775808}'], 1, "there is no bit 9223372036854775808"),
        (['{"layer": "Z"}'], 0, "layer Z is not in layers.json"),
        (['{"cls": "cmac_sum", "var": "sum_out_d0_d1", "bit": 40}'], 0, "bit beyond the registers"),
    ],
)
def test_impossible_records_are_named(tmp_path, lines, code, message):
    shutil.copy(SAMPLE / "layers.json", tmp_path)
    [source] = SAMPLE.glob("*layer-A*")
    first = next(
        record
        for line in gzip.decompress(source.read_bytes()).splitlines()
        if (record := json.loads(line))["cls"] == "cmac_sum" and record["atom"]
    )
    made = []
    for line in lines:
        change = json.loads(line)
        made.append(json.dumps({**first, **change} if isinstance(change, dict) else change))
    (tmp_path / "records.jsonl").write_text("".join(line + "\n" for line in made))

    result = run("rtl-check", tmp_path / "records.jsonl", code=code)

    assert message in result.output
    assert "Traceback" not in result.output
