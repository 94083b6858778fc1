"""Training and accuracy: SGD with Nesterov momentum, one cycle of the learning rate.

Everything random in an epoch (order, crops, flips, dropout) is a function of the seed and the
epoch's number, so a run that was stopped goes on exactly as if it had not been. No test image is
seen here.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rasp import rng
from rasp.checkpoint import write_atomic
from rasp.errors import ConfigError, StoreMismatchError
from rasp.progress import Progress, silent
from rasp.upsets import upset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rasp.data.dataset import Augment, Dataset, Split

Precision = Literal["auto", "fp32", "bf16"]
STATE_FILE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch: images a step.
        lr: highest learning rate of the cycle.
        momentum: of SGD, Nesterov's form.
        weight_decay: L2 factor on weights; biases and batch-norm are left alone.
        label_smoothing: probability given to all classes evenly.
        warmup: share of the steps in which the rate climbs; it then falls to 0 by a half cosine.
        seed: of order and augmentation.
        precision: ``bf16`` computes convolutions and products in bfloat16, ``auto`` does where
            this machine is faster at it.
        augment: change training images as the data set allows.
        upset_rate: probability that a layer's result of an image is struck, see :mod:`rasp.upsets`.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    warmup: float = 0.2
    seed: int = 0
    precision: Precision = "auto"
    augment: bool = True
    upset_rate: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch": (self.batch >= 2, "at least 2"),
            "lr": (0 < self.lr < float("inf"), "above 0"),
            "momentum": (0 < self.momentum < 1, "between 0 and 1"),
            "weight_decay": (0 <= self.weight_decay < 1, "from 0 to below 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "warmup": (0 <= self.warmup < 1, "from 0 to below 1"),
            "upset_rate": (0 <= self.upset_rate <= 1, "from 0 to 1"),
            "seed": (0 <= self.seed < 2**63, "a non-negative integer below 2**63"),
            "precision": (
                self.precision in get_args(Precision),
                f"one of {', '.join(get_args(Precision))}",
            ),
        }
        for name, (fine, allowed) in ranges.items():
            if not fine:
                raise ConfigError(f"{name} must be {allowed}, got {getattr(self, name)!r}.")


class Teacher(NamedTuple):
    """A network whose answers are learned beside the labels (Hinton et al., 2015).

    Attributes:
        model: takes the same images; it is not changed.
        share: of the loss that holds the student's softened probabilities against the teacher's.
        temperature: that both are softened with.
    """

    model: nn.Module
    share: float
    temperature: float = 4.0


class AccuracyCount(NamedTuple):
    """Right answers among images; an image whose logits are not finite counts as wrong."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.n


class Epoch(NamedTuple):
    """What one pass over the training images gave."""

    loss: float
    validation: AccuracyCount


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network.

    Attributes:
        model: in evaluation mode, with the weights of the last epoch.
        history: one entry an epoch.
        validation_accuracy: of ``model``, in fp32.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    validation_accuracy: AccuracyCount


def default_config(model: str, dataset: str) -> TrainingConfig:
    """A configuration that trains a network well on a data set.

    Args:
        model: name as in :class:`rasp.zoo.ModelSpec`.
        dataset: name as in :data:`rasp.data.DATASETS`.
    """
    if dataset == "cifar10":
        thin = model in ("resnet20", "resnet32", "resnet44", "resnet56")
        return TrainingConfig(epochs=120 if thin else 40, lr=0.2, label_smoothing=0.1)
    if dataset == "mnist":
        return TrainingConfig(epochs=15, batch=64, lr=0.05)
    return TrainingConfig(epochs=40, batch=64, lr=0.05)


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    teacher: Teacher | None = None,
    device: str = "cpu",
    checkpoint_dir: Path | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a network in place.

    Args:
        model: takes normalised images ``(N, C, H, W)``, gives logits ``(N, classes)``.
        dataset: its ``train`` and ``validation`` parts are used, never ``test``.
        config: how to train.
        teacher: whose answers count beside the labels.
        device: ``"cpu"``, ``"cuda"``, ...; the network stays there.
        checkpoint_dir: folder for a state file, written after every epoch. If it holds the state of
            this very run (configuration, data and first weights), training goes on from there; on
            the CPU the weights come out bit-identical to those of an uninterrupted run.
        progress: hears every step.

    Raises:
        ConfigError: no parameter to train, or the loss stopped being a number.
        StoreMismatchError: the folder holds the state of another run.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("The network has no parameter that requires a gradient: nothing to fit.")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(parameters, config)
    state = None
    if checkpoint_dir is not None:
        state = _StateFile(
            Path(checkpoint_dir) / STATE_FILE, _identity(model, dataset, config, teacher)
        )
    history = [] if state is None else state.restore(model, optimizer)
    if teacher is not None:
        teacher.model.eval().to(device)
    images = torch.from_numpy(dataset.train.images).to(device)
    labels = torch.from_numpy(dataset.train.labels).to(device)
    autocast = _autocast(config.precision, device)
    per_epoch = len(_batches(len(images), 0, config))
    detail = ""
    for epoch in range(len(history), config.epochs):
        model.train()
        loss = torch.zeros((), device=device)
        with (
            _seeded(config.seed, epoch, device),
            upset(model, dataset.normalise(images[:2]), config.upset_rate),
        ):
            for step, index in enumerate(_batches(len(images), epoch, config), epoch * per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = _rate(step, config.epochs * per_epoch, config)
                x = augmented(images[index], dataset.augment if config.augment else "none")
                x = dataset.normalise(x).to(memory_format=torch.channels_last)
                with autocast():
                    mean = _loss(model, teacher, x, labels[index], config)
                optimizer.zero_grad()
                mean.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss += mean.detach() * (len(index) / len(images))
                progress("train", step + 1, config.epochs * per_epoch, detail)
        if not loss.isfinite():
            raise ConfigError(
                f"Training diverged in epoch {epoch + 1}: the loss is {float(loss)}. "
                f"Lower the learning rate, which is {config.lr}."
            )
        model.eval()
        with autocast():
            validation = accuracy(model, dataset, dataset.validation, device=device)
        history.append(Epoch(float(loss), validation))
        detail = f"loss {float(loss):.3f}, validation {validation.value:.2%}"
        if state is not None:
            state.store(model, optimizer, history)
    progress("train", config.epochs * per_epoch, config.epochs * per_epoch, detail)
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    final = accuracy(model, dataset, dataset.validation, device=device)
    return TrainingResult(model, tuple(history), final)


def accuracy(
    run: Callable[[Tensor], Tensor],
    dataset: Dataset,
    split: Split,
    *,
    batch: int = 256,
    limit: int | None = None,
    device: str = "cpu",
) -> AccuracyCount:
    """Count right answers, see :func:`right_answers`."""
    found = right_answers(run, dataset, split, batch=batch, limit=limit, device=device)
    return AccuracyCount(int(found.sum()), len(found))


def right_answers(
    run: Callable[[Tensor], Tensor],
    dataset: Dataset,
    split: Split,
    *,
    batch: int = 256,
    limit: int | None = None,
    device: str = "cpu",
) -> NDArray[np.bool_]:
    """Which images are answered rightly, ``(N,)``; not one whose logits are not finite.

    Args:
        run: normalised images ``(N, C, H, W)`` to logits ``(N, classes)``; a network in evaluation
            mode, lowered or not.
        dataset: gives the normalisation.
        split: images and labels.
        batch: images at a time.
        limit: use only a random subset of so many images.
        device: where the images are sent.
    """
    if limit is not None and limit < len(split):
        split = split.take(limit)
    found = []
    with torch.inference_mode():
        for start in range(0, len(split), batch):
            part = slice(start, start + batch)
            images = torch.from_numpy(split.images[part]).to(device)
            logits = run(dataset.normalise(images))
            right = logits.argmax(1).cpu() == torch.from_numpy(split.labels[part])
            found.append(right & logits.isfinite().all(1).cpu())
    return torch.cat(found).numpy()


def augmented(images: Tensor, how: Augment) -> Tensor:
    """Shift every image by up to an eighth of its size, black coming in, and mirror half of them.

    Args:
        images: grey levels ``(N, C, H, W)``.
        how: ``none``, ``crop`` (shift only) or ``crop+flip``.

    Draws from torch's generator of the CPU, so that every device gets the same images.
    """
    if how == "none":
        return images
    n, channels, height, width = images.shape
    margin = max(height, width) // 8
    padded = nn.functional.pad(images, (margin,) * 4)
    offset = torch.randint(0, 2 * margin + 1, (2, n, 1))
    rows = offset[0] + torch.arange(height)
    columns = torch.arange(width).expand(n, -1)
    if how == "crop+flip":
        columns = torch.where(torch.rand(n, 1) < 0.5, width - 1 - columns, columns)
    columns = offset[1] + columns
    device = images.device
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows.to(device)[:, None, :, None],
        columns.to(device)[:, None, None, :],
    ]


def _loss(
    model: nn.Module, teacher: Teacher | None, x: Tensor, labels: Tensor, config: TrainingConfig
) -> Tensor:
    logits = model(x)
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"While training, {type(model).__name__} gives {type(logits).__name__}; it must give "
            "one tensor of logits (N, classes). Switch other heads off."
        )
    logits = logits.float()
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if teacher is None:
        return loss
    with torch.no_grad():
        answers = teacher.model(x).float()
    student, wanted = ((of / teacher.temperature).log_softmax(1) for of in (logits, answers))
    apart = nn.functional.kl_div(student, wanted, reduction="batchmean", log_target=True)
    return torch.lerp(loss, teacher.temperature**2 * apart, teacher.share)


def _batches(n: int, epoch: int, config: TrainingConfig) -> list[Tensor]:
    keys = rng.words(config.seed, f"epoch {epoch}", 0, n, 4)[:, 0]
    order = torch.from_numpy(np.argsort(keys, kind="stable"))
    batches = [order[start : start + config.batch] for start in range(0, n, config.batch)]
    if len(batches) > 1 and len(batches[-1]) < 2:  # batch-norm cannot take a single value
        batches.pop()
    return batches


def _rate(step: int, steps: int, config: TrainingConfig) -> float:
    place = (step + 1) / steps
    if place < config.warmup:
        return config.lr * place / config.warmup
    return config.lr * 0.5 * (1 + cos(pi * (place - config.warmup) / (1 - config.warmup)))


def _optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.SGD:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=True,
    )


def _autocast(precision: Precision, device: str) -> Callable[[], AbstractContextManager[object]]:
    kind = torch.device(device).type
    if precision == "auto":
        precision = "bf16" if _fast_bf16(kind) else "fp32"
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(kind, dtype=torch.bfloat16)


def _fast_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001


@contextmanager
def _seeded(seed: int, epoch: int, device: str) -> Iterator[None]:
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(rng.words(seed, "augmentation", epoch, 1, 4)[0, 0] >> np.uint64(1)))
        yield


def _identity(
    model: nn.Module, dataset: Dataset, config: TrainingConfig, teacher: Teacher | None
) -> dict[str, Any]:
    data = sha256(dataset.train.images.data)
    data.update(dataset.train.labels.data)
    identity: dict[str, Any] = {
        "kind": "rasp training 1",
        "config": asdict(config),
        "data": data.hexdigest(),
        "start": _weights(model),
    }
    if teacher is not None:
        identity["teacher"] = [_weights(teacher.model), teacher.share, teacher.temperature]
    return identity


def _weights(model: nn.Module) -> str:
    digest = sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _StateFile:
    path: Path
    identity: dict[str, Any]

    def store(self, model: nn.Module, optimizer: torch.optim.SGD, history: Sequence[Epoch]) -> None:
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for index, parameter in enumerate(_parameters(optimizer)):
            if "momentum_buffer" in optimizer.state[parameter]:
                tensors[f"momentum.{index}"] = optimizer.state[parameter]["momentum_buffer"]
        content = safetensors.torch.save(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            {"rasp": json.dumps({"identity": self.identity, "history": history})},
        )
        write_atomic(self.path, content)

    def restore(self, model: nn.Module, optimizer: torch.optim.SGD) -> list[Epoch]:
        if not self.path.is_file():
            return []
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                header = json.loads((file.metadata() or {})["rasp"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = header["identity"] == self.identity
            history = [Epoch(loss, AccuracyCount(*count)) for loss, count in header["history"]]
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreMismatchError(
                f"'{self.path}' is not the state of a training run. Give another folder."
            ) from error
        if not same:
            raise StoreMismatchError(
                f"'{self.path}' is the state of another training run: configuration, data or "
                "first weights differ. Give another folder, or delete the file to start over."
            )
        model.load_state_dict(
            {name: tensors[f"model.{name}"] for name in model.state_dict()}, strict=True
        )
        for index, parameter in enumerate(_parameters(optimizer)):
            if f"momentum.{index}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{index}"])
                optimizer.state[parameter]["momentum_buffer"] = buffer
        return history


def _parameters(optimizer: torch.optim.SGD) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
