"""What to build: a name, the number of classes and the shape of an image. Torch-free."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=65_536)]


class ZooEntry(NamedTuple):
    """A network of the zoo: where its class is, how it is called, what images it was made for."""

    factory: str
    options: dict[str, object]
    input_shape: tuple[int, int, int]
    summary: str


class ModelSpec(BaseModel):
    """Names a network completely, up to its weights.

    Attributes:
        model: a name of :data:`MODELS`, ``package.module:factory``, ``torchvision:NAME`` or
            ``timm:NAME``.
        num_classes: number of logits.
        input_shape: ``(C, H, W)`` of an image.

    Example:
        >>> ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28)).model
        'lenet5'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Annotated[str, Field(min_length=1, max_length=200)]
    num_classes: Positive
    input_shape: tuple[Positive, Positive, Positive]


def _cifar_resnet(depth: int) -> ZooEntry:
    return ZooEntry(
        "rasp.zoo.resnet:thin_resnet",
        {"depth": depth},
        (3, 32, 32),
        f"ResNet-{depth} for CIFAR, widths 16-64, parameter-free shortcuts",
    )


def _wide_resnet(depth: int) -> ZooEntry:
    return ZooEntry(
        "rasp.zoo.resnet:imagenet_resnet",
        {"depth": depth},
        (3, 32, 32),
        f"ResNet-{depth} with a 3x3 stem and no max-pool, widths 64-512",
    )


MODELS: dict[str, ZooEntry] = {
    "lenet5": ZooEntry(
        "rasp.zoo.lenet:LeNet5", {}, (1, 28, 28), "LeNet-5 with ReLU and max-pooling"
    ),
    "resnet18": _wide_resnet(18),
    "resnet50": _wide_resnet(50),
    "resnet20": _cifar_resnet(20),
    "resnet32": _cifar_resnet(32),
    "resnet44": _cifar_resnet(44),
    "resnet56": _cifar_resnet(56),
}
"""The zoo, by name."""
