"""Residual networks for 32x32 images (He et al., CVPR 2016, arXiv:1512.03385).

Two families. The thin one (section 4.2 of the paper: 6n+2 layers, widths 16-32-64) joins blocks of
different width by the parameter-free option A; its parameter names are those of the public
akamaster/pytorch_resnet_cifar10 checkpoints. The wide one is the ImageNet layout (widths 64-512)
with a 3x3 stem and no max-pool; its names are those of kuangliu/pytorch-cifar.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rasp.errors import unknown_name


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels before and after.

    Attributes:
        before: zero channels put before the input's channels.
        after: zero channels put behind them.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, before + C + after, ceil(H / 2), ceil(W / 2))``."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Attributes shown by ``print(model)``."""
        return f"before={self.before}, after={self.after}"


def pad_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option A where the width changes, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    extra = outputs - inputs
    return PadShortcut(extra // 2, extra - extra // 2)


def project_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B: 1x1 convolution and batch-norm where the shape changes, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Shortcut = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling and one linear layer.

    Args:
        block: class of the blocks.
        depths: blocks in each stage; every stage but the first halves the image.
        width: kernels of the first stage, doubled at every further one.
        shortcut: builds a shortcut from (inputs, outputs, stride).
        num_classes: number of logits.
        channels: channels of the image.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        *,
        width: int,
        shortcut: Shortcut,
        num_classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = tuple(f"layer{stage + 1}" for stage in range(len(depths)))
        inputs = width
        for stage, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(block(inputs, width << stage, stride, shortcut))
                inputs = (width << stage) * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits


def thin_resnet(
    *, depth: int, num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32)
) -> ResNet:
    """ResNet-20, 32, 44 or 56 of the CIFAR experiments, with option-A shortcuts."""
    if depth not in (20, 32, 44, 56):
        raise unknown_name("depth", str(depth), ["20", "32", "44", "56"])
    return ResNet(
        BasicBlock,
        ((depth - 2) // 6,) * 3,
        width=16,
        shortcut=pad_shortcut,
        num_classes=num_classes,
        channels=input_shape[0],
    )


def imagenet_resnet(
    *, depth: int, num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32)
) -> ResNet:
    """ResNet-18 or 50 with widths 64-512 and projection shortcuts, for small images."""
    layouts = {
        18: partial(ResNet, BasicBlock, (2, 2, 2, 2)),
        50: partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    }
    if depth not in layouts:
        raise unknown_name("depth", str(depth), map(str, layouts))
    return layouts[depth](
        width=64, shortcut=project_shortcut, num_classes=num_classes, channels=input_shape[0]
    )
