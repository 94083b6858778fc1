"""A hostile user and a stranger's files: one sentence, an exit code, nothing written or changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rasp import data, runs, zoo
from rasp.checkpoint import write_atomic
from rasp.cli.app import app
from rasp.errors import ConfigError, PrerequisiteError
from rasp.loading import Loaded
from rasp.report import arms

LENET = ("--model", "lenet5", "--data", "digits", "--weights")
HALF = ("--criterion", "random", "--macs", "0.5", "--epochs", "0")


def rasp(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def everything(folder):
    """Every path below a folder with a digest of what is there."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def fails(tmp_path, monkeypatch):
    """Asserts an exit code, words of the one error line, and that no file came, went or changed."""
    monkeypatch.chdir(tmp_path)

    def check(code, words, *arguments):
        before = everything(tmp_path)
        result = rasp(*arguments)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        for word in [words] if isinstance(words, str) else words:
            assert word in result.stderr
        assert everything(tmp_path) == before

    return check


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of a LeNet-5, dense and pruned and quantised, and a small campaign."""
    home = tmp_path_factory.mktemp("trained")
    spec = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))
    runs.save(home / "dense", Loaded(zoo.build(spec), spec, data.load("digits")), {}, {})
    for line in (
        ("prune", "--model", home / "dense", *HALF, "--out", home / "pruned"),
        ("quantize", "--model", home / "pruned", "--calibration", 32, "--out", home / "int8"),
        (
            *("inject", "--model", home / "int8", "--trials", 64, "--images", 4),
            *("--out", home / "faults"),
        ),
    ):
        result = rasp(*line)
        assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def checkpoint(trained, tmp_path):
    """Copies the quantised checkpoint after a change of its description."""

    def change(*path, **values):
        target = tmp_path / "stranger"
        shutil.copytree(trained / "int8", target)
        header = json.loads((target / "model.json").read_text())
        place = header
        for key in path:
            place = place[key]
        place.update(values)
        (target / "model.json").write_text(json.dumps(header))
        return target

    return change


@pytest.fixture
def summary(trained, tmp_path):
    """Copies a finished campaign's summary after a change."""

    def change(*path, **values):
        target = tmp_path / "stranger"
        target.mkdir()
        content = json.loads((trained / "faults" / arms.SUMMARY).read_text())
        place = content
        for key in path:
            place = place[key]
        place.update(values)
        (target / arms.SUMMARY).write_text(json.dumps(content))
        return target

    return change


def with_state(directory, content):
    """Put other bytes into a checkpoint, whose description agrees with them."""
    (directory / "model.safetensors").write_bytes(content)
    header = json.loads((directory / "model.json").read_text())
    header |= {"state_bytes": len(content), "state_sha256": hashlib.sha256(content).hexdigest()}
    (directory / "model.json").write_text(json.dumps(header))


# Arguments


def test_comparisons_that_cannot_be_made(fails, trained):
    run = trained / "faults"
    fails(2, "at least two", "compare", run)
    fails(2, "Unknown outcome 'sdc'", "compare", run, run, "--outcome", "sdc")
    fails(3, "summary.json", "compare", run, trained / "dense")


@pytest.mark.parametrize(
    ("code", "word", "arguments"),
    [
        (2, "Did you mean 'mse'", ("quantize", "--observer", "ms")),
        (2, "Did you mean 'clip'", ("harden", "--mode", "clp")),
        (2, "Did you mean 'layer'", ("harden", "--scope", "layers")),
        (2, "calibration set is empty", ("harden", "--calibration", "0")),
        (2, "Did you mean 'test'", ("evaluate", "--split", "tets")),
        (2, "Did you mean 'uniform'", ("prune", *HALF, "--scope", "unifrom")),
        (2, "from 0 to 1, got 2", ("prune", *HALF, "--upset-rate", "2")),
        (2, "--distill must lie from 0 to 1, got -1", ("prune", *HALF, "--distill", "-1")),
        (2, "Did you mean 'nvdla'", ("prune", *HALF, "--faults", "nvdl")),
        (2, "Unknown criterion", ("prune", *HALF, "--criterion", "luck")),
        (2, "Did you mean 'test'", ("inject", "--split", "tset")),
        (2, "layer_weights", ("inject", "--layer-weights", "cycle")),
        (2, "fault_models.RD", ("inject", "--fault-model", "RD=-1")),
        (2, "fault_models.RD", ("inject", "--fault-model", "RD=nan")),
        (2, "--trials", ("inject", "--trials", "0")),
        (2, "trials", ("inject", "--trials", str(10**19))),
        (2, "1 to 450", ("inject", "--images", "10000")),
        (2, "confidence", ("inject", "--confidence", "1")),
        (2, "--limit", ("evaluate", "--limit", "0")),
        (2, "lambda", ("prune", *HALF, "--criterion", "reliability", "--lambda", "nan")),
        (2, "--round-to", ("prune", *HALF, "--round-to", "0")),
        (2, "--iterations", ("prune", *HALF, "--iterations", "0")),
        (2, "calibration set is empty", ("inject", "--format", "int8", "--calibration", "0")),
        (2, "calibration set is empty", ("evaluate", "--format", "int8", "--calibration", "-3")),
        (2, "--seed", ("evaluate", "--seed", "-1")),
        (2, "--seed", ("quantize", "--seed", "-1")),
        (2, "--seed", ("prune", *HALF, "--seed", str(2**63))),
        (2, "--seed", ("inject", "--seed", str(2**70))),
        (2, "Unknown device 'gpu'", ("inject", "--device", "gpu")),
        (2, "Unknown device 'meta'", ("prune", *HALF, "--device", "meta")),
        (2, "--workers", ("inject", "--workers", "0")),
        (2, "exclude each other", ("inject", "--workers", "2", "--ray", "local")),
        (2, "fresh weights", ("train", "--data", "digits")),
    ],
)
def test_arguments_out_of_range(fails, trained, code, word, arguments):
    verb, *options = arguments
    fails(code, word, verb, "--model", trained / "dense", *options)


@pytest.mark.parametrize("value", ["0", "1", "-1", "2", "nan", "inf"])
@pytest.mark.parametrize("budget", ["--channels", "--macs", "--cycles"])
def test_budgets_outside_zero_and_one(fails, trained, budget, value):
    model = trained / "dense"
    fails(2, "between 0 and 1", "prune", "--model", model, "--criterion", "random", budget, value)


def test_seed_of_training_and_of_the_demo(fails):
    fails(2, "--seed", "train", "--model", "lenet5", "--data", "digits", "--seed", "-1")
    fails(2, "--seed", "train", "--model", "lenet5", "--data", "digits", "--seed", str(2**80))
    fails(2, "--seed", "demo", "--seed", "-4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_device_that_is_not_there(fails, trained):
    for line in (
        ("train", "--model", "lenet5", "--data", "digits"),
        ("prune", "--model", trained / "dense", *HALF),
        ("inject", "--model", trained / "dense"),
    ):
        fails(3, "'cuda' cannot be used", *line, "--device", "cuda")


def test_ray_that_is_not_installed(fails, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = "pip install 'torch-rasp[ray]'"
    fails(3, words, "inject", "--model", trained / "dense", "--ray", "local")


def test_name_that_is_neither_a_model_nor_a_directory(fails):
    fails(2, ("Unknown model 'lenet55'", "checkpoint directory"), "evaluate", "--model", "lenet55")


# A user's own code


NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)
    def forward(self, x):
        y = self.fc(x.flatten(1))
        {}
"""


@pytest.mark.parametrize(
    ("code", "word", "line"),
    [
        (3, "cannot be exported", "return y if y.sum() > 0 else -y"),
        (3, "cannot be exported", "return torch.from_numpy(y.detach().numpy())"),
        (3, "randn", "return y + torch.randn(1)"),
        (2, "tuple", "return y, y"),
        (2, "(1, 784)", "return x.flatten(1)"),
        (2, "boom", "raise KeyError('boom')"),
        (2, "AssertionError", "assert False"),
        (2, "NaN", "return y * float('nan')"),
    ],
)
def test_models_that_cannot_be_used(fails, tmp_path, monkeypatch, code, word, line):
    name = f"net_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(NET.format(line))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for verb in (["quantize"], ["prune", *HALF]):
        fails(code, word, *verb, "--model", f"{name}:Net", "--data", "digits")


# Weight files


def state_of(trained):
    return load_file(trained / "dense" / "model.safetensors")


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("not finite", lambda value: value * torch.nan),
        ("not finite", lambda value: value * torch.inf),
        ("NaN or infinite logits", lambda value: value.abs() * 1e30),
        ("conv1.weight is int32", lambda value: value.to(torch.int32)),
        ("conv1.weight is complex64", lambda value: value.to(torch.complex64)),
        ("conv1.weight is float8_e4m3fn", lambda value: value.to(torch.float8_e4m3fn)),
    ],
)
def test_weights_that_are_no_weights(fails, trained, tmp_path, word, change):
    file = tmp_path / "w.safetensors"
    save_file({name: change(value) for name, value in state_of(trained).items()}, file)
    for verb in (["evaluate"], ["quantize"], ["inject"], ["prune", *HALF]):
        fails(2, word, *verb, *LENET, file)


def test_half_precision_weights_are_taken(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({n: value.half() for n, value in state_of(trained).items()}, "w.safetensors")

    assert rasp("evaluate", *LENET, "w.safetensors", "--limit", 20).exit_code == 0


def test_damaged_weight_files(fails, trained, tmp_path):
    whole = (trained / "dense" / "model.safetensors").read_bytes()
    torch.save(state_of(trained), tmp_path / "whole.pt")
    zipped = (tmp_path / "whole.pt").read_bytes()
    for name, content in {
        "a.safetensors": whole[:5000],
        "b.safetensors": b"",
        "c.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "d.pt": zipped[: len(zipped) // 2],
        "e.pt": b"",
        "f.pt": bytes(range(256)) * 9,
        "g.bin": whole,
    }.items():
        (tmp_path / name).write_bytes(content)
        fails(2, name, "evaluate", *LENET, name)


class Malicious:
    """Writes a file if it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_files_is_never_run(fails, trained, tmp_path):
    import pickle

    trap = tmp_path / "ran"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(trap)))
    torch.save({"conv1.weight": Malicious(trap)}, tmp_path / "zip.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("plain.pth", "zip.pt", "module.pt"):
        fails(2, "none of it was run", "evaluate", *LENET, name)
    evil = np.array([Malicious(trap)] * 20, dtype=object)
    weights = trained / "dense" / "model.safetensors"
    np.savez(
        tmp_path / "evil.npz",
        **dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"), evil),
    )
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Malicious(trap)))
    for name in ("evil.npz", "pickle.npz"):
        fails(
            *(2, "plain number arrays", "evaluate", "--model", "lenet5", "--weights", weights),
            *("--data", name),
        )
    assert not trap.exists()


# Images


def test_images_that_are_no_images(fails, trained, tmp_path):
    images, labels = np.zeros((20, 1, 28, 28), np.uint8), np.arange(20) % 10
    whole = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
    }
    weights = trained / "dense" / "model.safetensors"
    for word, change in [
        ("labels of shape", {"train_labels": labels[:, None]}),
        ("labels of shape", {"test_labels": labels[:-1]}),
        ("Labels must be numbers", {"train_labels": labels - 1}),
        ("Labels must be numbers", {"train_labels": np.array(["a"] * 20)}),
        ("whole numbers", {"test_images": images + 0.5}),
        ("test images have shape", {"test_images": images[:, :, :14]}),
        ("at least 16x16", {"train_images": images[..., :8], "test_images": images[..., :8]}),
        ("is empty", {"test_images": images[:0], "test_labels": labels[:0]}),
        ("at least two training images", {"train_images": images[:1], "train_labels": labels[:1]}),
    ]:
        np.savez(tmp_path / "x.npz", **(whole | change))
        fails(2, word, "evaluate", "--model", "lenet5", "--weights", weights, "--data", "x.npz")


def test_damaged_npz_files(fails, trained, tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 3, 4096, 4096), }"
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
            file.writestr(f"{name}.npy", start + header + bytes(10))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "short.npz").write_bytes((tmp_path / "huge.npz").read_bytes()[:300])
    weights = trained / "dense" / "model.safetensors"
    for name in ("huge.npz", "empty.npz", "short.npz"):
        fails(2, name, "evaluate", "--model", "lenet5", "--weights", weights, "--data", name)


def test_missing_data_leaves_no_folder(fails, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("rasp.data.download.urlopen", offline)
    fails(
        *(3, "no network", "train", "--model", "resnet20", "--data", "cifar10"),
        *("--data-dir", "nowhere"),
    )


# A stranger's checkpoint


@pytest.mark.parametrize(
    ("code", "word", "path", "values"),
    [
        (4, "spec", (), {"spec": "lenet5"}),
        (4, "num_classes", ("spec",), {"num_classes": 10**30}),
        (2, "7 classes", ("spec",), {"num_classes": 7}),
        (2, "65536", ("spec",), {"input_shape": [1, 65_536, 65_536]}),
        (2, "Did you mean 'lenet5'", ("spec",), {"model": "lenet6"}),
        (4, "starts from", ("spec",), {"model": "resnet20"}),
        (2, "was not imported", ("spec",), {"model": "stranger_code:make"}),
        (2, "mean", (), {"mean": [float("nan")]}),
        (2, "mean", (), {"mean": [1e300]}),
        (2, "std", (), {"std": [float("inf")]}),
        (2, "std", (), {"std": []}),
        (4, "data", (), {"data": 7}),
        (2, "'/etc/passwd'", (), {"data": "/etc/passwd"}),
        (4, "schema_version", (), {"schema_version": 2}),
        (4, "evil", (), {"evil": 1}),
        (2, "another shape", (), {"plan": None}),
        (4, "PruningPlan", (), {"plan": {}}),
        (4, "schema_version", ("plan",), {"schema_version": 2}),
        (4, "steps", ("plan",), {"steps": "x"}),
        (4, "kept_macs", ("plan",), {"kept_macs": float("nan")}),
        (4, "'nope'", ("plan", "steps", 0), {"module": "nope"}),
        (4, "99999", ("plan", "steps", 0), {"channels": [0, 99_999]}),
        (4, "channels", ("plan", "steps", 0), {"channels": [-1]}),
        (4, "cannot lose", ("plan", "steps", 0), {"channels": [10**40]}),
        (4, "ends at", ("plan",), {"steps": []}),
        (4, "QuantizationRecord", (), {"quantization": {"a": 1}}),
        (4, "HardeningRecord", (), {"hardening": {"a": 1}}),
        (4, "images", ("quantization",), {"images": 0}),
        (4, "scales.input", ("quantization", "scales"), {"input": "x"}),
        (2, "'input'", ("quantization", "scales"), {"input": 0.0}),
        (2, "'input'", ("quantization", "scales"), {"input": float("nan")}),
        (2, "conv1", ("quantization", "scales"), {"input": 1e300}),
        (2, "'more'", ("quantization", "scales"), {"more": 1.0}),
    ],
)
def test_description_of_a_stranger(fails, checkpoint, tmp_path, code, word, path, values):
    (tmp_path / "stranger_code.py").write_text("raise SystemExit('ran')")
    fails(code, word, "evaluate", "--model", checkpoint(*path, **values))


@pytest.mark.parametrize("text", ["hello", "[]", "[" * 200_000, "\ufeff{}", ""])
def test_description_that_is_none(fails, checkpoint, text):
    stranger = checkpoint()
    (stranger / "model.json").write_text(text, encoding="utf-16" if "\ufeff" in text else "utf-8")
    fails(4, "not a checkpoint", "evaluate", "--model", stranger)


def test_state_that_is_damaged_though_its_digest_holds(fails, checkpoint):
    stranger = checkpoint()
    whole = (stranger / "model.safetensors").read_bytes()
    for content in (whole[:-10], b"", bytes(200)):
        with_state(stranger, content)
        fails(4, "not a safetensors file", "evaluate", "--model", stranger)


def test_links_and_folders_in_place_of_files(fails, checkpoint):
    stranger = checkpoint()
    state, header = stranger / "model.safetensors", stranger / "model.json"
    state.unlink()
    state.symlink_to("/etc/passwd")
    fails(4, "bytes", "evaluate", "--model", stranger)
    header.unlink()
    for target in ("/dev/zero", "model.json", "absent"):
        header.symlink_to(target)
        fails(3, "not a checkpoint", "evaluate", "--model", stranger)
        header.unlink()
    header.mkdir()
    fails(3, "not a checkpoint", "evaluate", "--model", stranger)


# Stores and summaries


@pytest.mark.parametrize("content", [b"hello\n", b"", b"SQLite format 3\0" + bytes(range(256)) * 8])
def test_store_that_is_none_stays_as_it_is(fails, trained, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "campaign.sqlite").write_bytes(content)
    fails(4, "store", "inject", "--model", trained / "int8", "--out", "out")


def test_store_of_another_campaign_stays_as_it_is(fails, trained, tmp_path):
    shutil.copytree(trained / "faults", tmp_path / "out")
    line = ("inject", "--model", trained / "int8", "--images", 4, "--out", "out")
    fails(4, "trials is 64", *line, "--trials", 65)
    fails(4, "seed is 0", *line, "--trials", 64, "--seed", 1)


@pytest.mark.parametrize("text", ["hello", "", "[" * 100_000])
def test_summary_that_is_no_json(fails, summary, text):
    stranger = summary()
    (stranger / arms.SUMMARY).write_text(text)
    fails(2, "not JSON", "report", stranger)


@pytest.mark.parametrize(
    ("code", "word", "path", "values"),
    [
        (4, "version 9", (), {"schema_version": 9}),
        (2, "cycles", (), {"cycles": "many"}),
        (2, "cycles", (), {"cycles": 0}),
        (2, "sdc1", (), {"outcomes": {}}),
        (2, "accuracy", (), {"accuracy": None}),
        (2, "Not a rate", ("outcomes", "sdc1"), {"estimate": 1e300}),
        (2, "finite", ("outcomes", "sdc1"), {"estimate": float("nan")}),
        (2, "Not a rate", ("outcomes", "sdc1"), {"low": -5.0}),
        (2, "Not a rate", ("outcomes", "sdc1"), {"n": 0, "events": 0}),
        (2, "Not a rate", ("outcomes", "sdc1"), {"low": 0.0, "estimate": 0.0, "high": 0.0}),
        (2, "bit", ("cells", 0), {"bit": 10**30}),
    ],
)
def test_summary_of_a_stranger(fails, summary, code, word, path, values):
    fails(code, word, "report", summary(*path, **values), "--figures", "figures")


def test_summary_with_markup_and_odd_weights_becomes_text(summary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    markup = "</script><script>alert(1)</script>"
    stranger = summary(name=markup, command=markup, notes=[markup])
    result = rasp("report", stranger, "--out", "page.html")
    assert result.exit_code == 0, result.output

    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize("weights", [{"RD": "x"}, {"RD": 0}, {}, [1]])
def test_summary_with_odd_fault_weights_still_reports(summary, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)

    assert rasp("report", summary("spec", fault_models=weights)).exit_code == 0


# Places that cannot be written


def test_out_that_is_a_file_is_refused_before_any_work(fails, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    dense = trained / "dense"
    for out in ("file", "file/below"):
        for line in (
            ("train", "--model", "lenet5", "--data", "digits"),
            ("prune", "--model", dense, *HALF),
            ("quantize", "--model", dense),
            ("inject", "--model", dense),
            ("demo",),
        ):
            fails(2, "is a file", *line, "--out", out)
    fails(2, "is a file", "report", trained / "faults", "--out", "file/page.html")
    fails(2, "is a file", "report", trained / "faults", "--figures", "file")
    fails(2, "is a directory", "report", trained / "faults", "--out", tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions here")
def test_out_without_permission_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PrerequisiteError, match=f"no permission for '{tmp_path}'"):
        runs.directory(tmp_path / "a" / "b", "x")
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file_says_what_could_not_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PrerequisiteError, match=r"Cannot write '.*file/x': "):
        write_atomic(tmp_path / "file" / "x", b"")
    with pytest.raises(ConfigError, match="is a file"):
        runs.check_writable(tmp_path / "file" / "x")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.name != "posix":
        pytest.skip("this machine cannot mount a small file system")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("not permitted to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(trained, tiny_disk):
    dense = trained / "dense"
    for line in (
        ("quantize", "--model", dense),
        ("prune", "--model", dense, *HALF),
        ("inject", "--model", trained / "int8", "--trials", 64, "--images", 4),
        ("report", trained / "faults"),
    ):
        result = rasp(*line, "--out", tiny_disk / line[0])
        assert result.exit_code == 3, result.output
        assert "Cannot write" in result.stderr
        assert not any(path.stat().st_size for path in tiny_disk.rglob("*") if path.is_file())
