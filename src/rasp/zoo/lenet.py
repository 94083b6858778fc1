"""LeNet-5 (LeCun et al., Proc. IEEE 86(11), 1998) with ReLU and max-pooling."""

from __future__ import annotations

from torch import Tensor, nn

from rasp.errors import ConfigError


class LeNet5(nn.Module):
    """Two 5x5 convolutions (6 and 16 kernels, no padding), three linear layers (120, 84, classes).

    Args:
        num_classes: number of logits.
        input_shape: ``(C, H, W)``; at least 16x16, 28x28 gives the 256 features of the original.

    Example:
        >>> import torch
        >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28)
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        height, width = (((side - 4) // 2 - 4) // 2 for side in size)
        if min(height, width) < 1:
            raise ConfigError(
                f"lenet5 needs images of at least 16x16 pixels, got {size[0]}x{size[1]}."
            )
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc3(self.relu(self.fc2(x)))
        return logits
