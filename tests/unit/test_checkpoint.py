from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from rasp import zoo
from rasp.checkpoint import HEADER_FILE, STATE_FILE, Checkpoint, read, save, write_atomic
from rasp.errors import ConfigError, PrerequisiteError, RaspError, StoreMismatchError

SPEC = zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28))


def example(**change) -> Checkpoint:
    full = Checkpoint(
        SPEC,
        zoo.build(SPEC).state_dict(),
        data="digits",
        mean=(0.3,),
        std=(0.25,),
        plan={"steps": [["conv1", [0, 3]]]},
        quantization={"scales": {"conv1": 0.1}},
        hardening={"high": {"conv1": [1.5]}},
        metrics={"accuracy": 0.1 + 0.2},
        provenance={"seed": 0},
    )
    return replace(full, **change)


def test_a_checkpoint_comes_back_equal_to_the_last_bit(tmp_path):
    written = example()
    save(tmp_path / "a" / "b", written)
    found = read(tmp_path / "a" / "b")
    for name in (
        "spec",
        "data",
        "mean",
        "std",
        "plan",
        "quantization",
        "hardening",
        "metrics",
        "provenance",
    ):
        assert getattr(found, name) == getattr(written, name)
    assert found.state.keys() == written.state.keys()
    assert all(torch.equal(found.state[k], v) for k, v in written.state.items())
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [HEADER_FILE, STATE_FILE]


def test_tensors_of_any_layout_and_shared_tensors_are_saved(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {"a": weight, "b": weight, "c": torch.arange(3), "d": weight.half(), "e": weight.mT}
    save(tmp_path, example(state=state))
    found = read(tmp_path).state
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ConfigError, match="'w' is not finite"):
        save(tmp_path / "new", example(state={"w": torch.tensor([1.0, torch.nan])}))
    assert not (tmp_path / "new").exists()


def edit_header(**change):
    def edit(folder):
        header = json.loads((folder / HEADER_FILE).read_text())
        for key, value in change.items():
            if value is None:
                del header[key]
            else:
                header[key] = value
        (folder / HEADER_FILE).write_text(json.dumps(header))

    return edit


def edit_state(change):
    def edit(folder):
        path = folder / STATE_FILE
        path.write_bytes(change(path.read_bytes()))

    return edit


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (edit_header(schema_version=2), "schema_version"),
        (edit_header(kind="something else"), "kind"),
        (edit_header(spec=None), "spec"),
        (edit_header(spec={"model": "x", "num_classes": -1, "input_shape": [1, 1, 1]}), "spec"),
        (edit_header(run="rm -rf /"), "run"),
        (edit_header(state_bytes=7), "says 7"),
        (edit_header(state_sha256="0" * 64), "SHA-256"),
        (edit_state(lambda content: content[:-1]), "bytes"),
        (edit_state(lambda content: content[:-1] + bytes([content[-1] ^ 1])), "SHA-256"),
        (lambda folder: (folder / HEADER_FILE).write_bytes(b""), "not a checkpoint"),
        (lambda folder: (folder / HEADER_FILE).write_bytes(b"\xff\xfe{"), "not a checkpoint"),
        (lambda folder: (folder / HEADER_FILE).write_text("[" * 50_000), "not a checkpoint"),
        (lambda folder: (folder / HEADER_FILE).write_text("[1]"), "not a checkpoint"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_in_one_sentence(tmp_path, damage, text):
    save(tmp_path, example())
    damage(tmp_path)
    with pytest.raises(StoreMismatchError, match=text) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pair_of_files_of_two_saves_is_refused(tmp_path):
    save(tmp_path / "a", example())
    save(tmp_path / "b", example(state=zoo.build(SPEC, seed=1).state_dict()))
    (tmp_path / "a" / STATE_FILE).write_bytes((tmp_path / "b" / STATE_FILE).read_bytes())
    with pytest.raises(StoreMismatchError, match="SHA-256"):
        read(tmp_path / "a")


def test_a_state_file_of_another_kind_is_refused_even_with_its_digest(tmp_path):
    from hashlib import sha256

    save(tmp_path, example())
    content = b"\x80\x02}q\x00."
    (tmp_path / STATE_FILE).write_bytes(content)
    edit_header(state_bytes=len(content), state_sha256=sha256(content).hexdigest())(tmp_path)
    with pytest.raises(StoreMismatchError, match="not a safetensors file"):
        read(tmp_path)


@pytest.mark.parametrize("name", [HEADER_FILE, STATE_FILE])
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path, example())
    (tmp_path / name).unlink()
    with pytest.raises(PrerequisiteError, match=name):
        read(tmp_path)


def test_a_factory_named_by_a_checkpoint_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "rasp_test_trap.py").write_text("open('trapped', 'w')\ndef net(): ...\n")
    monkeypatch.chdir(tmp_path)
    trap = SPEC.model_copy(update={"model": "rasp_test_trap:net"})
    save(tmp_path / "run", example(spec=trap))
    with pytest.raises(RaspError, match="was not imported"):
        zoo.build(read(tmp_path / "run").spec)
    assert not (tmp_path / "trapped").exists()


def test_an_interrupted_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, b"old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
