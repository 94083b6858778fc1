"""The effect engine against upsets simulated in the RTL, value by value.

A sample of the records is part of the repository; set RASP_RTL to the folder of the whole set.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from rasp.errors import ConfigError
from rasp.faults.records import read_layers
from rasp.faults.rtl import check

SAMPLE = Path(__file__).parents[1] / "data" / "rtl"
FOLDER = os.environ.get("RASP_RTL")


def files(folder):
    return sorted(Path(folder).glob("nv_small-layer-*.jsonl.gz"))


def lines(layer="D"):
    with gzip.open(SAMPLE / f"nv_small-layer-{layer}.jsonl.gz", "rt") as text:
        return text.read().splitlines()


@pytest.fixture
def edited(tmp_path):
    """Write changed lines of the sample beside its layers.json; returns the file."""
    shutil.copy(SAMPLE / "layers.json", tmp_path)

    def write(found):
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(found) + "\n")
        return path

    return write


def test_every_modelled_record_of_the_sample_is_exact():
    report = check(files(SAMPLE))
    assert report.ok
    assert report.total.records == 3 * 51 * 30 + 1
    assert report.total.exact == report.total.modelled > 0.53 * report.total.records
    assert report.total.mismatches == 0
    full = {count.name for count in report.classes if count.modelled == count.records}
    assert {"cbuf_dat_rd", "cmac_dat_actv", "cmac_wt_sd", "cmac_nz_mask", "cacc_sum"} <= full


@pytest.mark.skipif(not FOLDER, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz")
def test_every_modelled_record_is_exact():
    report = check(files(FOLDER))
    assert not report.mismatches
    assert not report.malformed
    if len(report.files) == 3:
        assert report.total.records == 34_170
        assert report.total.exact == 19_867


def test_registers_of_the_sdp_that_steer_the_stream_are_named():
    report = check(files(FOLDER or SAMPLE))
    named = {entry.register for entry in report.unmodelled if entry.register_class[:4] == "sdp_"}
    assert named <= {
        "",
        "pipe_skid_cacc2sdp_pd",
        "pipe_skid_cmux2dp_pd",
        "pipe_skid_dmaif_wr_req_pd",
    }
    by_class = {count.name: count for count in report.classes}
    for name in ("sdp_data", "sdp_wdma_data"):
        assert by_class[name].exact > 0.98 * by_class[name].records


@pytest.mark.parametrize("cycles", [-1, 1])
def test_a_result_is_in_each_register_of_the_sdp_in_one_cycle_only(edited, cycles):
    """Shifted in time, changes are predicted where there are none and the other way round."""
    records = [json.loads(line) for line in lines()]
    moved = [
        record | {"cycle": record["cycle"] + cycles}
        for record in records
        if record["cls"] in ("sdp_data", "sdp_wdma_data") and record["n_out"]
    ]
    kept = [record for record in records if record["atom"]]
    report = check([edited([json.dumps(r) for r in (*kept, *moved)])])
    assert report.total.mismatches >= len(moved) / 2


@pytest.mark.skipif(not FOLDER, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz")
def test_every_record_of_the_authors_closed_form_is_modelled():
    records = []
    for path in files(FOLDER):
        with gzip.open(path, "rt") as text:
            records += [r for r in map(json.loads, text) if r["model_exact"] is not None]
    by_class = {count.name: count for count in check(files(FOLDER)).classes}
    for name in {record["cls"] for record in records}:
        theirs = sum(record["cls"] == name for record in records)
        assert by_class[name].exact >= theirs


DIGESTS = {
    "A": "d91abbcc652c1544 8060f149adb01982 1a3acf5fe225d9b5 52325c3c37999527 bfda3527666170f5",
    "B": "0a279b4ecfa2eab6 6ef1513e16fc7783 f80332044c524a3e 6dad6739fd14cc24 d93b7a5ddf96b7f2",
    "D": "b9c8fea5271d48b8 2cf46a200e12df6e 20e98e436d898034 0b6adea317853b1a 883e79ba15c14bba",
}
"""SHA-256, 16 digits each, of input, weight, bias, sums and outputs of the simulated layers."""


@pytest.mark.parametrize("name", DIGESTS)
def test_the_network_computes_the_tensors_of_the_simulation(name):
    layer = read_layers(SAMPLE / "any.jsonl")[1][name]
    integers = layer.network.arithmetic.layers[name]
    output = layer.network.trace(layer.x.float())[name]
    sums = layer.network.arithmetic.accumulate(layer.conv, layer.x)
    arrays = [
        layer.x.numpy(),
        integers.weight.numpy(),
        integers.bias[: layer.conv.conv.K].numpy().astype("int16"),
        sums.numpy().astype("int32"),
        output.numpy(),
    ]
    found = [hashlib.sha256(a.tobytes(order="C")).hexdigest()[:16] for a in arrays]
    assert found == DIGESTS[name].split()


def test_rows_add_up_and_the_report_is_json():
    report = check(files(SAMPLE))
    *classes, total = report.rows
    for column in range(1, 5):
        assert sum(row[column] for row in classes) == total[column]
    missing = sum(entry.records for entry in report.unmodelled)
    assert total.records == total.modelled + missing
    found = json.loads(json.dumps(report.to_dict()))
    assert found["modelled"] == total.modelled
    assert len(found["classes"]) == len(classes)


@pytest.mark.parametrize("field", ["acc", "out"])
def test_one_wrong_value_is_a_mismatch_with_its_line(edited, field):
    records = [json.loads(line) for line in lines()]
    number, record = next(
        (i, r) for i, r in enumerate(records) if r["cls"] == "cacc_sum" and r["n_out"] == 1
    )
    record[field][0][4] += 1
    report = check([edited([json.dumps(r) for r in records])])
    assert not report.ok
    (mismatch,) = report.mismatches
    assert mismatch.place == f"records.jsonl:{number + 1}"
    assert mismatch.register_class == "cacc_sum"
    assert next(c for c in report.classes if c.name == "cacc_sum").mismatches == 1


@pytest.mark.parametrize(
    "change",
    [
        {"n_acc": 2},
        {"acc": [], "n_acc": 0, "out": [], "n_out": 0},
        {"outcome": "hang"},
        {"acc": [], "truncated": True},
    ],
)
def test_a_missing_or_surplus_change_is_a_mismatch(edited, change):
    records = [json.loads(line) for line in lines()]
    record = next(r for r in records if r["cls"] == "cmac_sum" and r["n_acc"] == 1)
    record.update(change)
    report = check([edited([json.dumps(r) for r in records])])
    assert report.total.mismatches == 1


def test_malformed_lines_are_named_by_number(edited):
    good = lines()
    missing = json.loads(good[0])
    del missing["cycle"]
    text = json.loads(good[0]) | {"bit": "7"}
    bad = [good[0], "{", "", "[]", json.dumps(missing), json.dumps(text), "\x00\x01"]
    report = check([edited([*bad, *good[1:]])])
    assert not report.ok
    assert [line.split(": ")[0] for line in report.malformed] == [
        f"records.jsonl:{number}" for number in (2, 4, 5, 6, 7)
    ]
    assert "cycle" in report.malformed[2]
    assert report.total.records == len(good)
    assert not report.mismatches


def test_a_cut_off_file_keeps_what_could_be_read(tmp_path):
    shutil.copy(SAMPLE / "layers.json", tmp_path)
    whole = (SAMPLE / "nv_small-layer-A.jsonl.gz").read_bytes()
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    report = check([path])
    assert report.total.records > 100
    assert len(report.malformed) >= 1
    assert f"cut.jsonl.gz:{report.total.records + 1}" in report.malformed[0]
    assert not report.mismatches


def test_unknown_classes_and_layers_are_counted_and_listed(edited):
    records = [json.loads(line) for line in lines()]
    records[0]["cls"] = "pdp_data"
    records[1]["layer"] = "Z"
    report = check([edited([json.dumps(r) for r in records])])
    assert report.ok
    listed = {(e.layer, e.register_class, e.reason): e.records for e in report.unmodelled}
    assert listed["D", "pdp_data", "unknown register class"] == 1
    assert any(layer == "Z" and "layers.json" in why for layer, _, why in listed)
    assert next(c for c in report.classes if c.name == "pdp_data").modelled == 0


def test_a_bit_the_register_does_not_have_is_not_modelled(edited):
    records = [json.loads(line) for line in lines()]
    record = next(r for r in records if r["cls"] == "cmac_dat_pre")
    record["bit"] = 64
    report = check([edited([json.dumps(r) for r in records])])
    assert any("beyond" in entry.reason for entry in report.unmodelled)


def test_records_without_any_atom_cannot_be_placed_in_time(edited):
    records = [json.loads(line) | {"atom": None} for line in lines()]
    report = check([edited([json.dumps(r) for r in records])])
    assert report.ok
    assert report.total.modelled == 0
    assert any("names an atom" in entry.reason for entry in report.unmodelled)


def test_atoms_in_another_order_are_mismatches(edited):
    records = [json.loads(line) for line in lines()]
    record = next(r for r in records if r["atom"])
    record["atom"]["n"] += 1
    report = check([edited([json.dumps(r) for r in records])])
    assert report.total.mismatches == report.total.modelled > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "layers.json"),
        ("{", "layers.json"),
        ("[]", "object of layers"),
        ('{"D": {"C": 64}}', "layer 'D': H"),
        ('{"D": 5}', "layer 'D'"),
    ],
)
def test_layers_that_are_not_described_are_refused(edited, text, said):
    path = edited(lines())
    described = path.parent / "layers.json"
    described.unlink()
    if text is not None:
        described.write_text(text)
    with pytest.raises(ConfigError, match=said):
        check([path])


def test_a_missing_file_is_refused(tmp_path):
    shutil.copy(SAMPLE / "layers.json", tmp_path)
    with pytest.raises(ConfigError, match="Cannot read"):
        check([tmp_path / "none.jsonl.gz"])
