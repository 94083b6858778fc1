"""Criteria: how much a network needs each of its channels.

A criterion is a callable that scores every channel of every group; the lowest go first. All but
``random`` and ``magnitude`` look at calibration images, and all that do look at the tensors the
group's consumers read: the channels as they are stored between layers, ReLU and shortcut included.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rasp.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rasp.network.graph import Network
    from rasp.pruning.groups import Group, Member

_BATCH = 32
_FAULTS_A_CHANNEL, _MOST_FAULTS = 100, 1 << 18

Scores = dict[str, Tensor]
"""Scores ``(width,)`` of each group by its root; lower goes first."""


@dataclass(frozen=True, eq=False)
class CalibrationBatch:
    """Images and labels a criterion may look at; take them from the training split.

    Attributes:
        images: normalised ``(N, C, H, W)``.
        labels: int64 ``(N,)``.

    Raises:
        ConfigError: no images, NaN or Inf, or another number of labels.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ConfigError("The calibration set is empty. Give at least one image.")
        if not self.images.isfinite().all():
            raise ConfigError("The calibration images hold NaN or Inf. Check the normalisation.")
        if self.labels.shape != self.images.shape[:1]:
            raise ConfigError(
                f"The calibration set has {len(self.images)} images and labels of shape "
                f"{tuple(self.labels.shape)}. Give one label an image."
            )

    def __iter__(self) -> Iterator[CalibrationBatch]:
        for start in range(0, len(self.images), _BATCH):
            stop = start + _BATCH
            yield CalibrationBatch(self.images[start:stop], self.labels[start:stop])


class Importance(Protocol):
    """A criterion."""

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""

    def __call__(
        self, model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch | None
    ) -> Scores:
        """Score every channel of ``groups``.

        The model is in evaluation mode and must be left as it is. Torch's generator is seeded.
        """


@dataclass(frozen=True)
class Random:
    """Uniform random scores: what any criterion has to beat."""

    name: str = "random"

    def __call__(
        self,
        model: nn.Module,  # noqa: ARG002
        groups: Sequence[Group],
        batch: CalibrationBatch | None,  # noqa: ARG002
    ) -> Scores:
        return {group.root: torch.rand(group.width) for group in groups}


@dataclass(frozen=True)
class Magnitude:
    r"""Group norm :math:`(\sum |w|^p)^{1/p}` over every weight of a channel in every layer.

    Counted are the kernels that produce the channel, its batch-norm scales and the weights that
    read it; biases are not.

    Attributes:
        p: 1 or 2.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ConfigError(f"The norm p must be 1 or 2, got {self.p}.")

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "magnitude" if self.p == 2 else "magnitude-l1"

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        batch: CalibrationBatch | None,  # noqa: ARG002
    ) -> Scores:
        scores = {}
        for group in groups:
            total = torch.zeros(group.width)
            for member in group.members:
                weight = getattr(model.get_submodule(member.module), "weight", None)
                if weight is None:
                    continue
                axis = int(member.side == "in")
                power = weight.detach().float().cpu().abs().pow(self.p).movedim(axis, 0)
                power = power.reshape(len(power), -1).sum(1)
                total.index_add_(0, _channel(member), power[torch.from_numpy(member.positions)])
            scores[group.root] = total.pow(1 / self.p)
        return scores


@dataclass(frozen=True)
class Activation:
    """Mean absolute activation, over images, positions and the layers that read the channel.

    Attributes:
        class_max: take the mean per class and keep the greatest, so that a channel that serves
            one class is not lost in the average.
    """

    class_max: bool = False

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "activation-class-max" if self.class_max else "activation"

    def __call__(
        self, model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch | None
    ) -> Scores:
        batch = _needed(batch, self.name)
        parts: dict[str, list[Tensor]] = {group.root: [] for group in groups}
        for chunk in batch:
            with torch.no_grad(), _inputs(model, groups) as inputs:
                model(chunk.images)
            for group in groups:
                size = torch.zeros(len(chunk.images), group.width)
                share = torch.zeros(group.width)
                for member in group.consumers:
                    values = _per_image(inputs[member.module].abs(), mean=True)
                    index = torch.from_numpy(member.positions)
                    size.index_add_(1, _channel(member), values[:, index])
                    share.index_add_(0, _channel(member), torch.ones(len(index)))
                parts[group.root].append(size / share.clamp(min=1))
        scores = {root: torch.cat(part) for root, part in parts.items()}
        if not self.class_max:
            return {root: score.mean(0) for root, score in scores.items()}
        classes = torch.unique(batch.labels)
        return {
            root: torch.stack([score[batch.labels == c].mean(0) for c in classes]).amax(0)
            for root, score in scores.items()
        }


@dataclass(frozen=True)
class Taylor:
    r"""First-order change of the answer if the channel went, :math:`E_x |\sum a\,df/da|`.

    The sum runs over the positions of every tensor in which the group's consumers read the
    channel. Over a consumer's weights :math:`\sum w\,df/dw` is the same number, so this is the
    criterion of Molchanov et al. (CVPR 2019) taken image by image. The producers' weights would
    count the same change once more and are left out.

    :math:`f` is the margin, the top logit less the runner-up. The loss of the original is nearly
    flat on images the network has learned by heart.

    Attributes:
        of: ``"margin"`` or ``"loss"``, the cross-entropy.
    """

    of: Literal["margin", "loss"] = "margin"

    def __post_init__(self) -> None:
        if self.of not in ("margin", "loss"):
            raise unknown_name("Taylor function", self.of, ("margin", "loss"))

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "taylor" if self.of == "margin" else "taylor-loss"

    def __call__(
        self, model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch | None
    ) -> Scores:
        batch = _needed(batch, self.name)
        scores = {group.root: torch.zeros(group.width) for group in groups}
        for chunk in batch:
            with torch.enable_grad(), _inputs(model, groups) as inputs:
                logits = model(chunk.images.detach().clone().requires_grad_())
                value = _loss(logits, chunk.labels) if self.of == "loss" else _margin(logits)
                gradients = torch.autograd.grad(value, list(inputs.values()))
            change = {
                name: _per_image(values.detach() * gradient, mean=False)
                for (name, values), gradient in zip(inputs.items(), gradients, strict=True)
            }
            for group in groups:
                total = torch.zeros(len(chunk.images), group.width)
                for member in group.consumers:
                    index = torch.from_numpy(member.positions)
                    total.index_add_(1, _channel(member), change[member.module][:, index])
                scores[group.root] += total.abs().sum(0)
        return {root: score / len(batch.images) for root, score in scores.items()}


@dataclass(frozen=True)
class KeepVulnerable:
    """Expected number of corrupted answers that flips in the channel cause: the least go first.

    The rule of SentinelNN (Ahmadilivani et al., IOLTS 2024), which takes vulnerability for
    importance. What stays is then what fails most per fault.

    Attributes:
        format: number format the values are stored in.
    """

    format: str = "fp32"

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "keep-vulnerable"

    def __call__(
        self, model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch | None
    ) -> Scores:
        batch = _needed(batch, self.name)
        return _failures(model, groups, batch, self.format)


@dataclass(frozen=True)
class Reliability:
    r"""Taylor importance less vulnerability, by ranks: :math:`rank(T) - \lambda\,rank(V)`.

    :math:`V` is the expected number of corrupted answers the channel's stored values cause, summed
    over the layers that produce the channel and weighted by their pixels: in floating point from
    :func:`rasp.pruning.vulnerability.channel_vulnerability`, in INT8 from
    :func:`rasp.pruning.injection.injected_vulnerability`. Ranks run within a segment, from 0 to 1.
    A channel the answer needs little and that a bit-flip corrupts often goes first.

    Attributes:
        lam: weight of the vulnerability; 0 is :class:`Taylor` itself.
        format: number format the values are stored in.
    """

    lam: float = 0.5
    format: str = "fp32"

    def __post_init__(self) -> None:
        if not 0 <= self.lam < float("inf"):
            raise ConfigError(f"lambda must be 0 or greater, got {self.lam:g}.")

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "reliability"

    def __call__(
        self, model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch | None
    ) -> Scores:
        batch = _needed(batch, self.name)
        importance = Taylor()(model, groups, batch)
        if not self.lam:
            return importance
        failures = _failures(model, groups, batch, self.format)
        scores = {}
        for group in groups:
            score = torch.zeros(group.width)
            for segment in group.segments:
                those = torch.from_numpy(segment.channels)
                against = self._of_segment(failures[group.root][those])
                score[those] = _ranks(importance[group.root][those]) - self.lam * _ranks(against)
            scores[group.root] = score
        return scores

    def _of_segment(self, failures: Tensor) -> Tensor:
        return failures


@dataclass(frozen=True)
class Placebo(Reliability):
    """Reliability with the vulnerabilities of a segment in random order.

    What it gains over Taylor is what any other order would; the rest is vulnerability's.
    """

    @property
    def name(self) -> str:
        """Name written into the pruning plan."""
        return "placebo"

    def _of_segment(self, failures: Tensor) -> Tensor:
        return failures[torch.randperm(len(failures))]


CRITERIA: dict[
    str, type[Random | Magnitude | Activation | Taylor | KeepVulnerable | Reliability]
] = {
    "random": Random,
    "magnitude": Magnitude,
    "activation": Activation,
    "taylor": Taylor,
    "keep-vulnerable": KeepVulnerable,
    "reliability": Reliability,
    "placebo": Placebo,
}
"""Criteria by name; each is called without arguments for its defaults."""


def _failures(
    model: nn.Module, groups: Sequence[Group], batch: CalibrationBatch, number_format: str
) -> Scores:
    """Answers that one flip in every stored value of a channel would corrupt, by bits' mean."""
    from rasp.network.lower import lower

    network = lower(model, batch.images[:1])
    rates = _vulnerability(network, batch.images, number_format)
    pixels = {layer.name: layer.conv.pixels for layer in network.layers}
    scores = {}
    for group in groups:
        scores[group.root] = torch.zeros(group.width)
        for member in group.producers:
            if member.module in rates:
                rate = rates[member.module][torch.from_numpy(member.positions)].float()
                scores[group.root].index_add_(0, _channel(member), rate * pixels[member.module])
    return scores


def _vulnerability(network: Network, images: Tensor, number_format: str) -> dict[str, Tensor]:
    """Of each layer's channels ``(K,)``, by the predictor that suits the format."""
    if number_format != "int8":
        from rasp.pruning.vulnerability import channel_vulnerability

        return channel_vulnerability(network, images, format=number_format)
    from rasp.nvdla.config import load
    from rasp.pruning.injection import injected_vulnerability
    from rasp.quantization.calibrate import quantize

    channels = sum(layer.conv.K for layer in network.layers)
    anywhere = load("nv_small")  # what a stored bit's flip does is the same on every accelerator
    return injected_vulnerability(
        quantize(network, images)[0],
        anywhere,
        images,
        trials=min(_FAULTS_A_CHANNEL * channels, _MOST_FAULTS),
        seed=torch.initial_seed() % 2**63,
    )


def _needed(batch: CalibrationBatch | None, name: str) -> CalibrationBatch:
    if batch is None:
        raise ConfigError(
            f"Criterion '{name}' looks at images: give a calibration set from the training split."
        )
    return batch


def _margin(logits: Tensor) -> Tensor:
    best = logits.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).sum()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ConfigError(
            f"Calibration labels must lie in 0..{logits.shape[1] - 1}, got "
            f"{int(labels.min())}..{int(labels.max())}."
        )
    return cross_entropy(logits, labels, reduction="sum")


def _channel(member: Member) -> Tensor:
    return torch.from_numpy(member.channels)


def _ranks(values: Tensor) -> Tensor:
    """Ranks scaled to 0..1, ties sharing their mean; ``(n,)`` to ``(n,)``."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - (counts + 1) / 2
    ranks: Tensor = (middle / max(len(values) - 1, 1)).float()[place]
    return ranks


def _per_image(values: Tensor, *, mean: bool) -> Tensor:
    """``(N, C, H, W)`` or ``(N, ..., F)`` to ``(N, C)`` or ``(N, F)`` on the CPU in fp32."""
    if values.ndim == 4:
        values = values.flatten(2).movedim(1, 2)
    rows = values.reshape(len(values), -1, values.shape[-1])
    return (rows.mean(1) if mean else rows.sum(1)).float().cpu()


@contextmanager
def _inputs(model: nn.Module, groups: Sequence[Group]) -> Iterator[dict[str, Tensor]]:
    """Collect the tensors the consumers of ``groups`` read during a forward pass."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name in dict.fromkeys(member.module for group in groups for member in group.consumers):

        def take(_: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            inputs[name] = args[0]

        hooks.append(model.get_submodule(name).register_forward_pre_hook(take))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
