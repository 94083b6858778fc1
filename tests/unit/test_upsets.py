import pytest
import torch
from torch import nn

from rasp.upsets import upset
from rasp.zoo.resnet import BasicBlock, pad_shortcut

IMAGES = torch.rand(64, 3, 6, 6)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        BasicBlock(4, 4, 1, pad_shortcut), nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip


def results(model, rate):
    """Output of every convolution, batch-norm and linear layer in one forward pass."""
    seen = {}
    with upset(model, IMAGES[:2], rate):
        hooks = [
            module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({name: output.detach()})
            )
            for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
        ]
        torch.manual_seed(2)
        model(IMAGES)
    for hook in hooks:
        hook.remove()
    return seen


def test_results_of_all_layers_but_the_last_are_struck_behind_their_batch_norm():
    model = net().train()
    calm = results(model, 0.0)
    struck = results(model, 0.02)
    changed = {name: int((struck[name] != calm[name]).sum()) for name in calm}
    assert changed["0"] == 0
    assert 0 < changed["1"] <= 0.02 * calm["1"].numel() + 1
    assert not torch.equal(struck["3.bn1"], calm["3.bn1"])


def test_an_upset_is_a_power_of_two_of_the_127_steps_either_way():
    model = net().train()
    with upset(model, IMAGES[:2], 1 / 144):
        hook = next(iter(model[1]._forward_hooks.values()))
    output = torch.randn(4000, 4, 6, 6)
    change = (hook(model[1], (), output) - output)[:, :, :, :]
    step = output.abs().max() / 127
    sizes = (change[change != 0] / step).round()
    assert 3900 <= len(sizes) <= 4000  # two may strike one place
    single = sizes[torch.log2(sizes.abs()).frac() == 0]
    assert len(single) > 3950
    counts = torch.bincount(torch.log2(single.abs()).long(), minlength=8)
    assert ((counts - 500).abs() < 4.5 * 500**0.5).all()
    assert abs((single > 0).float().mean() - 0.5) < 0.04


def test_nothing_is_struck_in_evaluation_mode_or_afterwards():
    model = net().eval()
    calm = model(IMAGES)
    with upset(model, IMAGES[:2], 0.5):
        assert torch.equal(model(IMAGES), calm)
    assert torch.equal(model(IMAGES), calm)
    assert not any(module._forward_hooks for module in model.modules())


def test_looking_at_the_layers_leaves_modes_and_statistics_alone():
    model = net().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with upset(model, IMAGES[:2], 0.1):
        pass
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_pass_through_an_upset():
    model = net().train()
    with upset(model, IMAGES[:2], 0.05):
        model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_the_generator_decides_the_upsets(rate):
    model = net().train()
    first, second = results(model, rate), results(model, rate)
    assert all(torch.equal(first[name], second[name]) for name in first)
