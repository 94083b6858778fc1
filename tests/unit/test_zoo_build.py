from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from rasp import zoo
from rasp.errors import ConfigError, PrerequisiteError


def spec(model: str, classes: int = 4) -> zoo.ModelSpec:
    return zoo.ModelSpec(model=model, num_classes=classes, input_shape=(1, 8, 8))


FACTORIES = """
from torch import nn
def plain(): return nn.Linear(2, 3)
def sized(num_classes, depth=2): return nn.Linear(2, num_classes)
def shaped(*, num_classes, input_shape): return nn.Linear(input_shape[1], num_classes)
def nothing(): return 7
def raising(): raise ValueError("too deep")
def broken(): import no_such_package_anywhere
constant = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module in the working directory that is not on the Python path."""
    (tmp_path / "rasp_test_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield "rasp_test_nets"
    sys.modules.pop("rasp_test_nets", None)


def test_a_misspelt_model_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"Unknown model 'resnt20'\. Did you mean 'resnet20'"):
        zoo.build(spec("resnt20"))


def test_a_factory_gets_the_arguments_its_signature_takes(factories):
    sizes = {"plain": (2, 3), "sized": (2, 4), "shaped": (8, 4)}
    for name, (inputs, outputs) in sizes.items():
        net = zoo.build(spec(f"{factories}:{name}"), trust_factory=True)
        assert (net.in_features, net.out_features) == (inputs, outputs)
    assert str(factories) not in sys.path


def test_a_factory_is_not_imported_without_trust(factories):
    with pytest.raises(ConfigError, match="was not imported"):
        zoo.build(spec(f"{factories}:plain"))
    assert factories not in sys.modules


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("nothing", ConfigError, "returned int, not a torch.nn.Module"),
        ("constant", ConfigError, "names int, not a factory"),
        ("absent", ConfigError, "no attribute 'absent'"),
    ],
)
def test_a_factory_that_gives_no_network_is_named(factories, name, error, text):
    with pytest.raises(error, match=text):
        zoo.build(spec(f"{factories}:{name}"), trust_factory=True)


def test_a_missing_module_is_told_from_a_missing_import_inside_it(factories):
    with pytest.raises(PrerequisiteError, match="no module 'no_such_module'"):
        zoo.build(spec("no_such_module.nets:f"), trust_factory=True)
    with pytest.raises(PrerequisiteError, match=r"no_such_package_anywhere.*rasp_test_nets\.py"):
        zoo.build(spec(f"{factories}:broken"), trust_factory=True)


@pytest.mark.parametrize("name", ["a:b:c", "../net.py:f", "os;x:f", ":f", "mod:"])
def test_a_name_of_another_form_is_refused_before_any_import(name):
    with pytest.raises(ConfigError, match=r"not of the form package\.module:factory"):
        zoo.build(spec(name), trust_factory=True)


def test_what_a_factory_raises_is_told_with_the_place(factories):
    with pytest.raises(ConfigError, match=r"ValueError: too deep \(.*rasp_test_nets\.py, line 7\)"):
        zoo.build(spec(f"{factories}:raising"), trust_factory=True)


@pytest.mark.parametrize(
    "change", [{"num_classes": 0}, {"input_shape": (0, 8, 8)}, {"model": ""}, {"more": 1}]
)
def test_a_specification_out_of_range_is_refused(change):
    fields = {"model": "lenet5", "num_classes": 10, "input_shape": (1, 28, 28)}
    with pytest.raises(ValidationError):
        zoo.ModelSpec(**{**fields, **change})


def test_names_and_data_are_at_hand_without_torch():
    code = (
        "import sys, rasp.zoo, rasp.data; rasp.data.load('digits'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
