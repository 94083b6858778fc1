"""The command line without long work: help, lists, exit codes, bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from rasp import runs, zoo
from rasp.cli.app import app

runner = CliRunner()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights(tmp_path_factory):
    """Fresh weights of LeNet-5 as a file."""
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    file = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    save_file(zoo.build(spec).state_dict(), file)
    return file


def fails(arguments, code, *words, directory):
    """Assert an exit code, the words of the one-sentence error and that nothing was written."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("error:") == 1
    assert result.stdout == ""
    assert list(directory.iterdir()) == []


LENET = ("--model", "lenet5", "--data", "digits", "--weights")


def test_unknown_model_is_named_with_the_nearest(here):
    arguments = ["evaluate", "--model", "lenet", "--data", "digits"]
    fails(arguments, 2, "'lenet'", "'lenet5'", "resnet20", directory=here)


def test_unknown_data_set(here, weights):
    arguments = ["evaluate", "--model", "lenet5", "--weights", weights, "--data", "digit"]
    fails(arguments, 2, "'digit'", "'digits'", "cifar10", directory=here)


def test_unknown_format(here, weights):
    arguments = ["evaluate", *LENET, weights, "--format", "int4"]
    fails(arguments, 2, "'int4'", "int8", directory=here)


def test_unknown_criterion(here, weights):
    arguments = ["prune", *LENET, weights, "--macs", "0.5", "--criterion", "magnitud"]
    fails(arguments, 2, "'magnitud'", "'magnitude'", "reliability", directory=here)


def test_unknown_fault_model(here, weights):
    arguments = ["inject", *LENET, weights, "--fault-model", "WEIGTH"]
    fails(arguments, 2, "'WEIGTH'", "'WEIGHT'", "RD_BFLIP", directory=here)


def test_fault_model_weight_that_is_no_number(here, weights):
    arguments = ["inject", *LENET, weights, "--fault-model", "RD=much"]
    fails(arguments, 2, "RD=much", directory=here)


def test_unknown_accelerator(here, weights):
    arguments = ["inject", *LENET, weights, "--accelerator", "nv_tiny"]
    fails(arguments, 2, "'nv_tiny'", "nv_small", directory=here)


def test_unknown_layer(here, weights):
    arguments = ["inject", *LENET, weights, "--layer", "conv9", "--trials", "8"]
    fails(arguments, 2, "conv9", "conv1", directory=here)


@pytest.mark.parametrize(
    "budget",
    [
        ("--macs", "0"),
        ("--macs", "1"),
        ("--channels", "1.5"),
        ("--cycles", "-0.2"),
        ("--macs", "nan"),
    ],
)
def test_ratio_outside_zero_and_one(here, weights, budget):
    arguments = ["prune", *LENET, weights, "--criterion", "magnitude", *budget]
    fails(arguments, 2, "between 0 and 1", directory=here)


def test_budget_must_be_given_once(here, weights):
    arguments = ["prune", *LENET, weights, "--criterion", "magnitude"]
    fails(arguments, 2, "exactly one", directory=here)
    fails([*arguments, "--macs", "0.5", "--cycles", "0.5"], 2, "exactly one", directory=here)


def test_empty_calibration_set(here, weights):
    common = [*LENET, weights, "--calibration", "0"]
    fails(["quantize", *common], 2, "calibration set is empty", directory=here)
    fails(
        ["prune", *common, "--criterion", "taylor", "--macs", "0.5"],
        2,
        "calibration set is empty",
        directory=here,
    )


def test_weights_are_demanded_not_made_up(here):
    arguments = ["evaluate", "--model", "lenet5", "--data", "digits"]
    fails(arguments, 3, "--weights", "rasp train", directory=here)


def test_missing_weight_file(here):
    arguments = ["evaluate", *LENET, "absent.safetensors"]
    fails(arguments, 3, "absent.safetensors", directory=here)


def test_nan_weights(here, tmp_path_factory):
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    state = zoo.build(spec).state_dict()
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    file = tmp_path_factory.mktemp("nan") / "nan.safetensors"
    save_file(state, file)

    fails(["evaluate", *LENET, file], 2, "not finite", "conv1.weight", directory=here)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (np.full((20, 1, 28, 28), 300.0), "255"),
        (np.zeros((20, 784), np.uint8), "(N, C, H, W)"),
        (np.full((20, 1, 28, 28), np.nan), "NaN"),
    ],
)
def test_images_of_wrong_shape_or_range(here, tmp_path_factory, weights, images, word):
    file = tmp_path_factory.mktemp("images") / "images.npz"
    labels = np.arange(20) % 10
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    arguments = ["evaluate", "--model", "lenet5", "--weights", weights, "--data", file]
    fails(arguments, 2, word, directory=here)


def test_no_checkpoint_and_no_summary(here):
    fails(["evaluate", "--model", "runs/none"], 3, "runs/none", "not a checkpoint", directory=here)
    fails(["report", "runs/none"], 3, "rasp inject", directory=here)


def test_model_that_is_not_importable(here):
    arguments = ["evaluate", "--model", "no_such_package.nets:net", "--data", "digits"]
    fails(arguments, 3, "no_such_package", directory=here)


def test_model_that_cannot_be_exported(here, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("models")
    (folder / "branching_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(784, 10)\n"
        "    def forward(self, x):\n"
        "        y = self.fc(x.flatten(1))\n"
        "        return y if y.sum() > 0 else -y\n"
    )
    monkeypatch.syspath_prepend(folder)
    arguments = ["evaluate", "--model", "branching_net:Net", "--data", "digits"]
    fails(arguments, 3, "export", directory=here)


def test_factory_in_a_strangers_checkpoint_is_not_imported(tmp_path, monkeypatch):
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    from rasp import data
    from rasp.loading import Loaded

    runs.save(tmp_path / "net", Loaded(zoo.build(spec), spec, data.load("digits")), {}, {})
    header = json.loads((tmp_path / "net" / "model.json").read_text())
    header["spec"]["model"] = "stranger_code:make"
    (tmp_path / "net" / "model.json").write_text(json.dumps(header))
    (tmp_path / "stranger_code.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)

    result = runner.invoke(app, ["evaluate", "--model", "net/"])
    assert result.exit_code == 2
    assert "stranger_code" not in sys.modules


def test_factory_is_built_and_evaluated(tmp_path, monkeypatch):
    (tmp_path / "flat_net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(
        app, ["evaluate", "--model", "flat_net:make", "--data", "digits", "--json"]
    )

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["accuracy"]["n"] == 450


def test_limit_and_format_reach_the_result(here, weights):
    arguments = ["evaluate", *LENET, weights, "--format", "int8", "--limit", "40", "--json"]
    result = runner.invoke(app, [str(argument) for argument in arguments])
    found = json.loads(result.stdout)

    assert found["format"] == "int8"
    assert found["accuracy"]["n"] == 40
    assert found["accuracy"]["low"] <= found["accuracy"]["estimate"] <= found["accuracy"]["high"]
    assert list(here.iterdir()) == []


def test_lists_name_every_registry(here):
    found = json.loads(runner.invoke(app, ["ls", "--json"]).stdout)

    kinds = {"models", "criteria", "fault-models", "accelerators", "registers", "data"}
    assert set(found) == kinds
    assert found["registers"]["cmac_sum"].startswith("datapath, 456 flip-flops on nv_small")
    assert found["fault-models"]["MAC_SUM"] == "sum of a MAC cell"
    assert {"lenet5", "resnet18", "resnet50", "resnet20", "resnet56"} <= set(found["models"])
    assert {"INPUT", "WEIGHT", "INPUT16", "WEIGHT16", "RD_BFLIP", "RD"} <= set(
        found["fault-models"]
    )
    for names in found.values():
        for name, line in names.items():
            assert line, name
    fails(["ls", "modles"], 2, "'models'", directory=here)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )


def test_help_and_report_need_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from rasp.cli.app import app\n"
        "for line in (['--help'], ['inject', '--help'], ['ls', 'models'], ['report', 'absent']):\n"
        "    CliRunner().invoke(app, line)\n"
        "import rasp, rasp.verbs\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert run_python(code).returncode == 0


def test_public_names_resolve_and_are_few():
    code = (
        "import sys, rasp\n"
        "assert len(rasp.__all__) <= 25\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(rasp.__all__) == set(rasp._HOMES)\n"
        "for name in rasp.__all__:\n"
        "    assert callable(getattr(rasp, name)), name\n"
    )
    found = run_python(code)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["inject"], 2), (["report", "absent"], 3)]
)
def test_exit_codes_of_the_process(arguments, code):
    found = subprocess.run(
        [sys.executable, "-c", "from rasp.cli.app import main; main()", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert found.returncode == code
    assert "Traceback" not in found.stderr
