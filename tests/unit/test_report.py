"""Arms, verdict, figures and the page, on arms that are made up."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from rasp.analysis.exposure import Exposure
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError
from rasp.report import arms, figures, html, matplotlib_figures, plotly_figures
from rasp.report.layers import layer_table
from rasp.report.verdict import verdict
from rasp.statistics import clustered_rate, wilson


def make_arm(name="dense", *, number_format="int8", events=200, cycles=10_000, correct=440, **more):
    """An arm of lenet5 on digits with ``events`` SDCs among 20 000 faults."""
    bits = 8 if number_format == "int8" else 32
    sdc = clustered_rate([events // 100] * 100, [200] * 100)
    values = {
        "name": name,
        "network": "lenet5",
        "criterion": None if name.startswith("dense") else name.split()[0],
        "data": "digits",
        "format": number_format,
        "native": number_format == "int8",
        "accelerator": "nv_small",
        "accuracy": wilson(correct, 450),
        "accuracy_split": "test",
        "macs": 281_640 * cycles // 10_000,
        "parameters": 44_426,
        "cycles": cycles,
        "outcomes": {"sdc1": sdc, "masked": wilson(9_000, 20_000)},
        "by_layer": {"conv1": wilson(events // 2, 10_000), "fc1": wilson(events // 2, 10_000)},
        "layer_cycles": {"conv1": cycles // 4, "fc1": cycles - cycles // 4},
        "by_model": {"RD": wilson(30, 900), "WEIGHT": wilson(events, 4_000)},
        "cells": tuple(
            arms.Cell(layer=layer, bit=bit, rate=wilson(bit, 200))
            for layer in ("conv1", "fc1")
            for bit in range(bits)
        ),
        "activity": wilson(1, 1),
        "buffer_occupancy": 0.5,
        "exposure": Exposure(register_bits=30_000, cycles=cycles, rate=sdc),
        "images": 100,
        "trials": 20_000,
        "spec": {"fault_models": {"RD": 1.0, "WEIGHT": 3.0}, "seed": 0},
        "spec_digest": "0" * 64,
        "command": "rasp inject --model runs/x",
        "provenance": {"rasp": "0.1.0", "argv": ["rasp"]},
    }
    return arms.Arm(**(values | more))


STUDY = (
    make_arm("dense", number_format="fp32", events=300),
    make_arm("magnitude 50 %", number_format="fp32", events=100, cycles=5_000),
    make_arm("dense", events=200),
    make_arm("magnitude 50 %", events=300, cycles=5_000),
    make_arm("reliability 50 %", events=200, cycles=5_000, correct=438),
    make_arm("taylor 5 %", events=100, cycles=500, correct=300),
)


class Outline(HTMLParser):
    """Collects ids, tags that load something, and the text of table cells."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.loads, self.open = [], [], []
        self.rows = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if attributes.get("src"):
            self.loads.append(attributes["src"])
        if tag == "link":
            self.loads.append(attributes.get("href"))
        if tag == "tr":
            self.rows.append([])
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th") and data.strip():
            self.rows[-1].append(data.strip())


@pytest.fixture(scope="module")
def page():
    return html.render(STUDY, title="A <study>", commands=["rasp demo"])


def test_arm_survives_its_file(tmp_path):
    (tmp_path / arms.SUMMARY).write_text(STUDY[1].to_json())

    assert arms.read(tmp_path) == STUDY[1]


def test_reading_says_what_is_wrong_with_a_file(tmp_path):
    file = tmp_path / arms.SUMMARY
    with pytest.raises(PrerequisiteError, match="rasp inject"):
        arms.read(tmp_path)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        arms.read(tmp_path)
    file.write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(StoreMismatchError, match="version 9"):
        arms.read(tmp_path)
    file.write_text(json.dumps({"schema_version": 1, "name": "x"}))
    with pytest.raises(ConfigError, match="network"):
        arms.read(tmp_path)
    content = json.loads(make_arm().to_json()) | {"layer_cycles": {"conv1": 9}}
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="layer_cycles has no 'fc1'"):
        arms.read(tmp_path)


def test_relative_failures_compare_with_the_dense_arm_of_the_same_format():
    ratio = arms.relative_failures(STUDY[3], STUDY)

    assert ratio is not None
    assert ratio.estimate == pytest.approx(300 / 200 * 5_000 / 10_000)
    assert arms.relative_failures(STUDY[1], STUDY).estimate == pytest.approx(100 / 300 / 2)
    assert arms.relative_failures(STUDY[2], STUDY) is None


def test_verdict_prefers_native_formats_and_refuses_lost_accuracy():
    found = verdict(STUDY)

    assert found.arm is STUDY[4]
    assert "0.50x" in found.sentence
    assert "50 % of its cycles on nv_small" in found.sentence


def test_verdict_says_when_the_interval_holds_one():
    even = (STUDY[2], make_arm("magnitude 50 %", events=400, cycles=5_000))

    assert "no pruned network is shown to fail less" in verdict(even).sentence


def test_verdict_without_a_candidate():
    assert "No pruned network" in verdict((STUDY[2], STUDY[5])).sentence
    assert "probability" in verdict((STUDY[2],)).sentence


def test_pareto_info_has_a_panel_a_format_with_dense_at_one():
    info = figures.pareto_info(STUDY)

    assert list(info.panels) == ["fp32", "int8"]
    assert info.criteria == ("dense", "magnitude", "reliability", "taylor")
    assert [p.failures for p in info.panels["int8"] if p.criterion == "dense"] == [1.0]
    for point in info.points:
        assert point.low <= point.failures <= point.high
        assert not point.bound
    assert info.note == "Bars: 95 % intervals; n = 20 000 faults each."


def test_pareto_info_draws_networks_of_the_same_widths_beside_each_other():
    dense, magnitude, reliability, _ = figures.pareto_info(STUDY).panels["int8"]

    assert dense.place == dense.cycles
    assert magnitude.cycles == reliability.cycles == 5_000
    assert magnitude.place < reliability.place == 5_000


def test_pareto_info_keeps_many_criteria_near_their_cycles():
    many = [make_arm(f"{letter} 50 %", cycles=5_000) for letter in "abcdefghijkl"]
    points = figures.pareto_info([make_arm("dense"), *many]).panels["int8"]
    assert len({point.place for point in points}) == 13
    assert max(abs(point.place - point.cycles) for point in points) == pytest.approx(300)
    assert len(plotly_figures.SYMBOLS) == len(matplotlib_figures.SYMBOLS) > len(points)


def test_pareto_info_shows_the_bound_where_nothing_failed():
    never = make_arm("magnitude 50 %", events=0, cycles=5_000)
    info = figures.pareto_info((STUDY[2], never))
    [_, point] = info.points

    assert point.bound
    assert point.failures == point.high == arms.relative_failures(never, (STUDY[2], never)).high
    assert "nothing failed" in info.note


def test_pareto_info_names_what_it_leaves_out():
    never = make_arm("dense", events=0)
    info = figures.pareto_info((never, STUDY[3]))

    assert info.left_out == ("magnitude 50 %, INT8",)
    assert "no ratio for magnitude 50 %, INT8" in info.note


def test_models_info_keeps_networks_apart_and_models_in_order():
    info = figures.models_info(STUDY[2:4])

    assert info.models == ("RD", "WEIGHT")
    assert info.networks["dense, INT8"][0] == ("RD", *(100 * x for x in _rd()), 900)
    heights = [info.height(network, model) for model in info.models for network in (0, 1)]
    assert heights == sorted(set(heights))
    assert info.note == "Bars: 95 % intervals; n = 900 to 4 000 faults a point."


def _rd():
    rate = wilson(30, 900)
    return rate.estimate, rate.low, rate.high


def test_study_shows_dense_beside_the_network_of_the_verdict():
    study = figures.study_figures(STUDY)

    assert [[info.title for info in row] for row in study.heat] == [
        ["dense, INT8", "reliability 50 %, INT8"]
    ]
    assert list(study.models.networks) == ["dense, INT8", "reliability 50 %, INT8"]
    assert figures.study_figures(STUDY[2:3]).pareto is None


def test_heat_map_info_keeps_layers_in_order_and_bits_from_the_top():
    info = figures.heat_map_info(STUDY[2])

    assert info.layers == ("conv1", "fc1")
    assert info.bits == tuple(range(7, -1, -1))
    assert info.percent[0][0] == pytest.approx(100 * 7 / 200)
    assert info.trials[1][7] == 200


def test_heat_map_info_leaves_cells_without_faults_empty():
    arm = make_arm(
        cells=(
            arms.Cell(layer="a", bit=3, rate=wilson(1, 10)),
            arms.Cell(layer="b", bit=2, rate=wilson(2, 10)),
        )
    )
    info = figures.heat_map_info(arm)

    assert info.percent == ((10.0, None), (None, 20.0))
    assert info.trials == ((10, 0), (0, 10))
    assert info.note == "n = 10 faults a cell."


def test_page_figures_show_the_numbers_of_their_info():
    study = figures.study_figures(STUDY)
    drawn = plotly_figures.pareto(study.pareto)
    failures = sorted(y for trace in drawn.data for y in trace.y)
    assert failures == sorted(point.failures for point in study.pareto.points)
    drawn = plotly_figures.heat_map(study.heat[0][0])
    assert tuple(map(tuple, drawn.data[0].z)) == study.heat[0][0].percent
    dots = plotly_figures.fault_models(study.models).data[1]
    assert list(dots.x) == [p.percent for p in study.models.networks["reliability 50 %, INT8"]]


def test_page_has_its_sections_in_order(page):
    ids = [name for name in Outline(page).ids if not name.startswith("figure-")]

    assert ids == [
        "verdict",
        "table",
        "pareto",
        "heat",
        "layers",
        "models",
        "statistics",
        "limits",
        "provenance",
    ]


def test_page_loads_nothing_from_elsewhere(page):
    assert Outline(page).loads == []


def test_page_table_shows_every_arm_with_interval_and_n(page):
    rows = Outline(page).rows

    assert tuple(rows[0]) == html.HEADINGS
    assert [row[0] for row in rows[1 : len(STUDY) + 2]] == [
        *(arm.name for arm in STUDY),
        "dense, INT8",
    ]
    assert rows[4][0] == "magnitude 50 %"
    assert str(STUDY[3].sdc1) in rows[4]
    assert "5 000 (50 %)" in rows[4]


def test_layers_failures_are_parts_of_the_dense_networks():
    """Dense: 1 % of 20,000 in both layers; magnitude: 1.5 % in half the cycles."""
    table = layer_table((STUDY[2], STUDY[3]), STUDY)
    (conv, cells), (fc, more) = table.rows
    assert (conv, fc) == ("conv1", "fc1")
    assert cells[0] == "2 500"
    assert cells[1] == str(STUDY[2].by_layer["conv1"])
    parts = [float(cell.split(" %")[0]) for cell in (cells[2], more[2], cells[5], more[5])]
    assert parts == [25, 75, 18.8, 56.2]
    low, high = (float(end) for end in cells[2].split("[")[1].rstrip("]").split(", "))
    assert 20 < low < 25 < high < 31


def test_layers_without_cycles_make_no_table():
    bare = make_arm().model_copy(update={"layer_cycles": {}})
    assert layer_table((bare,), (bare,)) is None
    assert "layers" not in Outline(html.render([bare], title="one")).ids
    nothing = make_arm(events=0)
    assert layer_table((nothing,), (nothing,)) is None


def test_a_layer_that_a_network_lacks_leaves_its_cells_empty():
    other = make_arm("magnitude 50 %").model_copy(
        update={"layer_cycles": {"fc2": 9}, "by_layer": {"fc2": wilson(1, 9)}}
    )
    table = layer_table((STUDY[2], other), (STUDY[2], other))
    assert [(row[0], row[1][3:] == ("",) * 3, row[1][:3] == ("",) * 3) for row in table.rows] == [
        ("conv1", True, False),
        ("fc1", True, False),
        ("fc2", False, True),
    ]


def test_page_shows_sections_above_the_networks():
    section = html.Section("A <table>", "what it is", ("arm", "ratio"), (("ours", "0.5x"),))
    outline = Outline(page := html.render(STUDY[:2], title="one", sections=[section]))
    assert outline.ids.index("section-1") < outline.ids.index("table")
    assert outline.rows[:2] == [["arm", "ratio"], ["ours", "0.5x"]]
    assert "A &lt;table&gt;" in page


def test_page_escapes_what_users_write(page):
    assert "A &lt;study&gt;" in page
    assert "<h1>A <study>" not in page


def test_page_says_that_fp32_is_a_model(page):
    assert "FP32 is an arithmetic model" in page
    assert html.footnotes(STUDY[2:]) == ()


def test_page_of_a_single_campaign_has_no_pareto_figure():
    assert "pareto" not in Outline(html.render(STUDY[2:3], title="one")).ids


def test_answers_of_an_arm_are_kept_bit_by_bit():
    right = np.random.default_rng(1).random(203) < 0.9
    changed = make_arm().model_copy(
        update={"accuracy": wilson(int(right.sum()), 203), "right": arms.pack(right)}
    )
    again = arms.Arm.model_validate_json(changed.to_json())
    assert np.array_equal(again.answers, right)
    assert changed.model_copy(update={"right": None}).answers is None
    assert changed.model_copy(update={"right": "ff"}).answers is None
