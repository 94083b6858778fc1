from __future__ import annotations

import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from rasp.errors import ConfigError, PrerequisiteError
from rasp.zoo import load_state, load_weights


def net(seed: int = 0, width: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("suffix", [".th", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_come_back_from_every_kind_of_file(tmp_path, suffix, prefix, wrapped):
    source, target, path = net(1), net(2), tmp_path / f"w{suffix}"
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "best_prec1": 91.7} if wrapped else state, path)
    assert not same(source, target)
    load_weights(target, path)
    assert same(source, target)


def test_batch_counters_may_be_missing_as_in_files_of_old_torch(tmp_path):
    state = {k: v for k, v in net(1).state_dict().items() if "num_batches" not in k}
    target = net(2)
    load_state(target, state, source="It")
    assert same(net(1), target)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("0.bias"), "missing 1: 0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected 1: extra"),
        (
            lambda s: s.update({"0.bias": torch.zeros(4)}),
            r"0.bias is \(4,\) and should be \(3,\)",
        ),
        (lambda s: s.update({"0.bias": torch.full((3,), torch.nan)}), "not finite 1: 0.bias"),
        (lambda s: s.update({"1.running_var": torch.full((3,), torch.inf)}), "not finite 1"),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_alone(change, text):
    state = net(1).state_dict()
    change(state)
    target = net(2)
    with pytest.raises(ConfigError, match=text):
        load_state(target, state, source="It")
    assert same(net(2), target)


class _Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_weight_file_is_refused_and_not_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": _Attack()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="none of it was run"):
        load_weights(net(), tmp_path / "evil.pt")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a weight file", b"PK\x03\x04" + b"\0" * 40])
def test_a_damaged_file_is_one_sentence(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="Weight file"):
        load_weights(net(), path)


def test_a_truncated_file_is_one_sentence(tmp_path):
    for suffix, save in [(".pt", torch.save), (".safetensors", safetensors.torch.save_file)]:
        path = tmp_path / f"w{suffix}"
        save(net().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ConfigError, match="Weight file"):
            load_weights(net(), path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {1: torch.zeros(1)}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="not a state dict"):
        load_weights(net(), tmp_path / "w.pt")


def test_missing_files_and_other_suffixes_are_named(tmp_path):
    with pytest.raises(PrerequisiteError, match="There is no weight file"):
        load_weights(net(), tmp_path / "none.pt")
    (tmp_path / "w.pkl").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"ends in '\.pkl'\. Allowed: \.safetensors"):
        load_weights(net(), tmp_path / "w.pkl")
