import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasp.errors import ConfigError
from rasp.nvdla.config import load
from rasp.pruning.allocation import Budget
from rasp.pruning.plan import LayerWidth, PruningPlan, PruningStep


def plan(**changes):
    values = {
        "criterion": "taylor",
        "budget": Budget("macs", 0.5),
        "steps": (PruningStep(module="conv1", channels=(0, 3)),),
        "widths": {"conv1": LayerWidth(before=6, after=4)},
        "kept_macs": 0.51,
    }
    return PruningPlan(**(values | changes))


steps = st.lists(
    st.builds(
        PruningStep,
        module=st.text(min_size=1, max_size=30),
        channels=st.sets(st.integers(0, 10_000), min_size=1).map(lambda s: tuple(sorted(s))),
    ),
    max_size=5,
).map(tuple)


@given(steps, st.floats(1e-6, 1, exclude_min=True), st.lists(st.text(max_size=20)).map(tuple))
def test_a_plan_survives_json(some_steps, kept, notes):
    original = plan(steps=some_steps, kept_macs=kept, notes=notes)
    assert PruningPlan.from_json(original.to_json()) == original


def test_a_budget_in_cycles_keeps_its_accelerator():
    budget = Budget("cycles", 0.4, load("nv_small"), "int8")
    again = PruningPlan.from_json(plan(budget=budget).to_json())
    assert again.budget == budget


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("schema_version",), 2, "schema_version"),
        (("surprise",), 1, "surprise"),
        (("steps", 0, "channels"), [3, 0], "channels"),
        (("steps", 0, "channels"), [0, 0], "channels"),
        (("steps", 0, "channels"), [-1], "channels"),
        (("steps", 0, "channels"), [], "channels"),
        (("steps", 0, "module"), "", "module"),
        (("widths", "conv1", "after"), 7, "conv1"),
        (("widths", "conv1", "after"), 0, "after"),
        (("kept_macs",), 0, "kept_macs"),
        (("kept_macs",), "NaN", "kept_macs"),
        (("budget", "kept"), 1.5, "between 0 and 1"),
        (("budget", "kind"), "watts", "kind"),
    ],
)
def test_a_strangers_file_is_checked_field_by_field(path, value, where):
    content = json.loads(plan().to_json())
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ConfigError, match=where):
        PruningPlan.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe", '{"criterion": "x"}'])
def test_what_is_no_plan_is_refused_in_a_sentence(text):
    with pytest.raises(ConfigError, match="Not a pruning plan of schema 1"):
        PruningPlan.from_json(text)
