"""Figures for papers: matplotlib draws what the info says, and the command writes the files."""

from __future__ import annotations

import json
import struct
import sys

import pytest
from typer.testing import CliRunner

from rasp.analysis.exposure import Exposure
from rasp.cli.app import app
from rasp.errors import PrerequisiteError
from rasp.report import arms, figures, matplotlib_figures
from rasp.statistics import clustered_rate, wilson

NAMES = {f"{name}.{kind}" for name in ("heat", "models", "pareto") for kind in ("pdf", "png")}


def make_arm(criterion, number_format, events, cycles):
    """An arm with a layer of each fate: faults in every cell, in one cell, in none that fails."""
    sdc = clustered_rate([events] * 50, [100] * 50)
    return arms.Arm(
        name="dense" if criterion is None else f"{criterion} 50 %",
        network="lenet5",
        criterion=criterion,
        data="digits",
        format=number_format,
        native=True,
        accelerator="nv_small",
        accuracy=wilson(440, 450),
        accuracy_split="test",
        macs=1000,
        parameters=100,
        cycles=cycles,
        outcomes={"sdc1": sdc},
        by_layer={"conv1": sdc},
        by_model={"RD": wilson(events, 900), "WEIGHT16": wilson(0, 4_000)},
        cells=tuple(
            arms.Cell(layer=layer, bit=bit, rate=wilson(min(events, bit), 90))
            for layer in ("conv1", "fc1")
            for bit in range(8)
            if layer == "conv1" or bit != 3
        ),
        activity=wilson(1, 1),
        buffer_occupancy=0.5,
        exposure=Exposure(register_bits=30_000, cycles=cycles, rate=sdc),
        images=50,
        trials=5_000,
        spec={},
        spec_digest="0" * 64,
        command="rasp inject",
        provenance={},
    )


STUDY = (
    make_arm(None, "int8", 10, 10_000),
    make_arm("random", "int8", 20, 5_000),
    make_arm("taylor", "int8", 0, 5_000),
    make_arm(None, "fp16", 10, 10_000),
    make_arm("taylor", "fp16", 5, 4_000),
)


@pytest.fixture(scope="module")
def study():
    return figures.study_figures(STUDY)


def test_every_figure_is_a_pdf_and_a_png_of_printable_size(study):
    files = matplotlib_figures.files(study)

    assert set(files) == NAMES
    for name, content in files.items():
        if name.endswith(".pdf"):
            assert content.startswith(b"%PDF")
            assert b"/Type3" not in content
        else:
            assert content.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", content[16:24])
            assert width == pytest.approx(matplotlib_figures.WIDTH * matplotlib_figures.DPI, abs=1)
            assert 200 < height < 1600


def test_the_same_study_gives_the_same_bytes(study):
    assert matplotlib_figures.files(study) == matplotlib_figures.files(study)


def test_pareto_draws_every_point_at_its_place_with_its_bar(study):
    drawn = matplotlib_figures.pareto(study.pareto)
    for axes, panel in zip(drawn.axes, study.pareto.panels.values(), strict=False):
        points = sorted(tuple(xy) for dots in axes.collections[1::2] for xy in dots.get_offsets())
        assert points == sorted((point.place, point.failures) for point in panel)
        bars = [line for bar in axes.collections[::2] for line in bar.get_segments()]
        ends = {(line[0][1], line[1][1]) for line in bars}
        assert ends == {(p.failures / 2 if p.bound else p.low, p.high) for p in panel}
    assert drawn.axes[0].get_ylabel() == figures.FAILURES
    assert drawn.axes[0].get_xlabel() == figures.CYCLES
    assert drawn.get_supxlabel() == study.pareto.note


def test_heat_map_leaves_cells_without_faults_empty(study):
    info = study.heat[0][0]
    values = matplotlib_figures.heat_maps(study.heat).axes[0].images[0].get_array()

    assert values.mask.sum() == 1
    assert values.mask[info.layers.index("fc1"), info.bits.index(3)]
    assert values[0, 0] == pytest.approx(info.percent[0][0])


def test_fault_models_print_n_beside_every_bar(study):
    axes = matplotlib_figures.fault_models(study.models).axes[0]
    sizes = sorted(text.get_text() for text in axes.texts)

    assert sizes == ["n = 4 000"] * 2 + ["n = 900"] * 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["RD", "WEIGHT16"]


def test_missing_matplotlib_is_missed_with_the_line_that_installs_it(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'torch-rasp\[report\]'"):
        matplotlib_figures.files(study)


def test_the_command_writes_the_page_and_the_figures(tmp_path):
    for number, arm in enumerate(STUDY):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / arms.SUMMARY).write_text(arm.to_json())
    runs = [str(tmp_path / str(number)) for number in range(len(STUDY))]
    out, folder = tmp_path / "page.html", tmp_path / "paper" / "figures"
    result = CliRunner().invoke(
        app, ["report", *runs, "--out", str(out), "--figures", str(folder), "--json"]
    )
    assert result.exit_code == 0, result.output

    written = json.loads(result.stdout)["figures"]
    assert {path.name for path in folder.iterdir()} == NAMES
    assert written == sorted(str(folder / name) for name in NAMES)
    assert out.read_text().startswith("<!doctype html>")
