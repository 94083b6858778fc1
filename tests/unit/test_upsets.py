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


def test_one_channel_of_a_struck_image_stands_at_an_extreme_of_the_batch():
    model = net().train()
    calm, struck = results(model, 0.0), results(model, 0.2)
    assert torch.equal(struck["0"], calm["0"])
    assert not torch.equal(struck["3.bn1"], calm["3.bn1"])
    changed = (struck["1"] != calm["1"]).flatten(2).any(2)
    assert changed.sum(1).max() == 1
    assert 5 <= changed.sum() <= 21  # of 64 images a fifth: 12.8, four standard deviations
    ends = calm["1"].movedim(1, 0).flatten(1).aminmax(dim=1)
    for image, channel in changed.nonzero().tolist():
        [value] = struck["1"][image, channel].unique()
        assert value.item() in {ends.min[channel].item(), ends.max[channel].item()}


def test_channels_and_ends_are_struck_alike():
    model = net().train()
    with upset(model, IMAGES[:2], 1.0):
        hook = next(iter(model[1]._forward_hooks.values()))
    output = torch.rand(4000, 4, 6, 6)
    struck = hook(model[1], (), output)
    flat = struck.flatten(2).amax(2) == struck.flatten(2).amin(2)
    assert (flat.sum(1) == 1).all()
    assert ((flat.sum(0) - 1000).abs() < 4.5 * 750**0.5).all()
    high = struck.mean((2, 3))[flat] > 0.5
    assert abs(high.float().mean() - 0.5) < 4.5 * 0.5 / 4000**0.5


def test_an_extreme_is_pulled_by_its_gradient():
    model = net().train()
    with upset(model, IMAGES[:2], 1.0):
        hook = next(iter(model[1]._forward_hooks.values()))
    output = torch.rand(1, 1, 6, 6, requires_grad=True)
    hook(model[1], (), output).sum().backward()
    end = output.grad.nonzero()
    assert len(end) == 1
    assert output.grad.sum() == 36
    values = output.detach()
    assert values[tuple(end[0])].item() in {values.max().item(), values.min().item()}


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
    with upset(model, IMAGES[:2], 0.5):
        model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_generator_decides_the_upsets(rate):
    model = net().train()
    first, second = results(model, rate), results(model, rate)
    assert all(torch.equal(first[name], second[name]) for name in first)
