"""Display: plain lines, intervals that survive, JSON alone on stdout."""

from __future__ import annotations

import json

from rasp.cli.console import Console, Table


def test_plain_table_aligns_numbers_to_the_right():
    table = Table(["name", ">value"], [["a", "1"], ["long name", "1 000"]], title="T", notes=["n"])

    assert table.plain().splitlines() == [
        "T",
        "name       value",
        "a              1",
        "long name  1 000",
        "n",
    ]


def test_intervals_are_not_taken_for_markup(capsys):
    with Console() as console:
        console.progress("inject [bold]", 1, 1, "0.4 % [0.3, 0.5]")
    console.result({}, Table(["rate [x]"], [["0.4 % [0.3, 0.5]"]]))

    shown = capsys.readouterr()
    assert "0.4 % [0.3, 0.5]" in shown.out
    assert "rate [x]" in shown.out
    assert "inject [bold]: done" in shown.err
    assert "0.4 % [0.3, 0.5]" in shown.err


def test_json_is_the_only_thing_on_stdout(capsys):
    console = Console(json_output=True)
    with console:
        console.progress("train", 2, 2)
    console.result({"top1": 0.5}, Table(["a"], [["b"]]))

    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"top1": 0.5}
    assert "train: done" in shown.err


def test_plain_progress_is_one_line_a_finished_stage(capsys):
    with Console() as console:
        for step in range(101):
            console.progress("train", step, 100, f"loss {step}")
        console.progress("inject", 0, 10)

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: done in")
    assert lines[0].endswith("loss 100")
