"""Removing channels that are always zero must not change what a network computes.

Channels are silenced by hand-written knowledge of each architecture, never by the dependency
graph, so a wrong index anywhere shows in the output.
"""

import pytest
import torch
from torch import nn

from rasp.errors import UnsupportedModelError
from rasp.pruning.allocation import Budget
from rasp.pruning.importance import Magnitude
from rasp.pruning.pruner import prune, replay
from rasp.zoo import MODELS, ModelSpec, build


def some(generator, channels, count):
    order = torch.randperm(len(channels), generator=generator)
    return {channels[i] for i in order[:count].tolist()}


def silence(layer, channels):
    layer.weight.data[sorted(channels)] = 0
    layer.bias.data[sorted(channels)] = 0


def silence_half(model, generator):
    """Make half of the channels of every stream zero."""
    if not hasattr(model, "stages"):
        for layer in (model.conv1, model.conv2, model.fc1, model.fc2):
            width = len(layer.weight)
            silence(layer, some(generator, range(width), width // 2))
        return
    stream, width = some(generator, range(len(model.bn1.weight)), 0), 0
    for name in model.stages:
        blocks = model.get_submodule(name)
        last = "bn3" if hasattr(blocks[0], "bn3") else "bn2"
        new = len(getattr(blocks[0], last).weight)
        joined = isinstance(blocks[0].shortcut, nn.Sequential) or not width
        if joined:
            stream = some(generator, range(new), new // 2)
        else:
            shift = blocks[0].shortcut.before
            passed = range(shift, shift + width)
            padded = [channel for channel in range(new) if channel not in passed]
            stream = {c + shift for c in stream} | some(generator, padded, len(padded) // 2)
        if not width:
            if len(model.bn1.weight) == new:
                silence(model.bn1, stream)
            else:
                silence(model.bn1, some(generator, range(len(model.bn1.weight)), new // 8))
        width = new
        for block in blocks:
            for inner in {"bn1", "bn2"} - {last}:
                half = len(getattr(block, inner).weight)
                silence(getattr(block, inner), some(generator, range(half), half // 2))
            silence(getattr(block, last), stream)
            if isinstance(block.shortcut, nn.Sequential):
                silence(block.shortcut[1], stream)


class Biases:
    """Scores a channel by the biases that produce it: zero where it was silenced."""

    name = "biases"

    def __call__(self, model, groups, batch):
        scores = {}
        for group in groups:
            scores[group.root] = torch.zeros(group.width)
            for member in group.producers:
                bias = model.get_submodule(member.module).bias
                if bias is not None:
                    size = bias.detach().abs().float()[torch.from_numpy(member.positions)]
                    scores[group.root].index_add_(0, torch.from_numpy(member.channels), size)
        return scores


@pytest.mark.parametrize("name", sorted(MODELS))
def test_pruning_silent_channels_leaves_the_function_unchanged(name):
    generator = torch.Generator().manual_seed(1)
    shape = MODELS[name].input_shape
    model = build(ModelSpec(model=name, num_classes=10, input_shape=shape)).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(0.0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    silence_half(model, generator)
    images = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    result = prune(model, example=images, importance=Biases(), budget=Budget("channels", 0.5))
    for layer, width in result.plan.widths.items():
        assert width.after == (width.before if layer in {"linear", "fc3"} else width.before // 2)
    fresh = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(result.model(fresh), model(fresh), rtol=1e-9, atol=1e-9)
        assert torch.equal(replay(model, result.plan, images)(fresh), result.model(fresh))


class Shuffled(nn.Module):
    """Channels change places between two layers, which no dependency graph of ours sees."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(self.conv2(self.conv1(x).flip(1)).mean((2, 3)))


def test_a_network_whose_channels_change_places_is_refused_not_damaged():
    torch.manual_seed(0)  # some sets of channels are the same when flipped
    with pytest.raises(UnsupportedModelError, match="Shuffled cannot be pruned"):
        prune(
            Shuffled().eval(),
            example=torch.randn(2, 3, 9, 9),
            importance=Magnitude(),
            budget=Budget("channels", 0.5),
        )
