"""From what a user names (a model, a data set, a format) to a network that runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from rasp import checkpoint, data, zoo
from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError, unknown_name
from rasp.nvdla.config import FORMATS
from rasp.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rasp.network.graph import Network
    from rasp.pruning.plan import PruningPlan

Record = TypeVar("Record", bound=BaseModel)

CALIBRATION_IMAGES = 256
"""Training images that activations are calibrated on unless the caller says otherwise."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network in evaluation mode with the data it is for.

    Attributes:
        model: the module, pruned if ``plan`` is there.
        spec: the dense network it started from.
        dataset: normalised as the network expects.
        identity: what it came from, a SHA-256 of the weights' file and, where there are bounds, of
            these; ``None`` without a file.
        plan: the pruning plan, ``None`` for a dense network.
        quantization: the quantisation record as JSON, ``None`` if there is none.
        hardening: the bounds as JSON, ``None`` if there are none.
    """

    model: nn.Module
    spec: zoo.ModelSpec
    dataset: data.Dataset
    identity: str | None = None
    plan: PruningPlan | None = None
    quantization: dict[str, Any] | None = None
    hardening: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the model without the place it comes from."""
        return self.spec.model.rpartition(":")[2]

    @property
    def label(self) -> str:
        """What tells it from other networks of a study: how it was pruned and hardened."""
        plan, hardening = self.plan, self.hardening
        scales = (self.quantization or {}).get("upset_rate")
        parts = [f"{plan.criterion} {100 * plan.kept_macs:.0f} %" if plan else "dense"]
        if plan is not None and plan.scope == "failures":
            parts.append("widths by failures")
        if plan is not None and plan.upset_rate:
            parts.append(f"fine-tuned under upsets {plan.upset_rate:g}")
        if plan is not None and plan.distill:
            parts.append(f"distilled {plan.distill:g}")
        if hardening is not None:
            rate = hardening.get("upset_rate")
            tight = f" for upsets {rate:g}" if rate else ""
            parts.append(f"{hardening['mode']} per {hardening['scope']}{tight}")
        if scales:
            parts.append(f"scales for upsets {scales:g}")
        return ", ".join(parts)

    @property
    def own_format(self) -> str:
        """``int8`` with scales, else ``fp32``."""
        return "fp32" if self.quantization is None else "int8"

    @property
    def example(self) -> Tensor:
        """One normalised training image, ``(1, C, H, W)``."""
        return self.dataset.tensor(self.dataset.train[:1])


def is_checkpoint(model: str | Path) -> bool:
    """Whether a model is named by a directory that a verb wrote."""
    return isinstance(model, Path) or Path(model).is_dir() or "/" in model


def open_model(
    model: str | Path,
    data_name: str | None = None,
    *,
    weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    trust_factory: bool = False,
    seed: int | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Build or read a network and its data set.

    Args:
        model: checkpoint directory, or a name :func:`rasp.zoo.build` takes.
        data_name: data set; a checkpoint knows its own.
        weights: weight file for a name.
        data_dir: where data sets lie.
        trust_factory: let a checkpoint that names ``package.module:factory`` import it.
        seed: start from fresh weights of this seed; without it, weights are demanded.
        progress: hears about a download.

    Raises:
        PrerequisiteError: data, weights or a package is missing.
        ConfigError: unknown name, weights that do not fit, data of another shape.
    """
    weights = None if weights is None else Path(weights)
    data_dir = None if data_dir is None else Path(data_dir)
    if is_checkpoint(model):
        if weights is not None:
            raise ConfigError(f"Checkpoint '{model}' has its own weights; leave --weights out.")
        return _read_checkpoint(
            Path(model), data_name, data_dir, trust_factory=trust_factory, progress=progress
        )
    name = str(model)
    if ":" not in name and name not in zoo.MODELS:
        raise unknown_name("model", name, [*zoo.MODELS, "a checkpoint directory"])
    if data_name is None:
        raise ConfigError(
            f"Model '{name}' needs a data set: give --data. "
            f"Allowed: {', '.join(data.DATASETS)}, PATH.npz."
        )
    if weights is not None and not weights.is_file():
        raise PrerequisiteError(f"There is no weight file '{weights}'. Check the path.")
    if weights is None and seed is None and (":" not in name or _is_hub(name)):
        raise PrerequisiteError(
            f"Model '{name}' has no trained weights. Give --weights FILE, or a checkpoint "
            f"directory that 'rasp train --model {name}' wrote."
        )
    dataset = data.load(data_name, data_dir=data_dir, progress=progress)
    spec = zoo.ModelSpec(model=name, num_classes=dataset.classes, input_shape=dataset.input_shape)
    module = zoo.build(spec, seed=seed or 0, trust_factory=True)
    if weights is not None:
        zoo.load_weights(module, weights)
    identity = None if weights is None else digest_of(weights)
    loaded = Loaded(module.eval(), spec, dataset, identity)
    _check_output(loaded)
    return loaded


def network_of(
    loaded: Loaded, number_format: str, *, calibration: int = CALIBRATION_IMAGES, seed: int = 0
) -> Network:
    """Lower a network and put it into a number format.

    Args:
        loaded: the network.
        number_format: ``fp32``, ``fp16`` or ``int8``.
        calibration: training images INT8 scales are fitted on, unless the checkpoint has scales.
        seed: which training images.
    """
    check_format(number_format)
    from rasp.network.float_ops import FloatArithmetic
    from rasp.network.lower import lower
    from rasp.pruning import hardening
    from rasp.quantization import calibrate

    network = lower(loaded.model, loaded.example)
    if loaded.hardening is not None:
        bounds = hardening.HardeningRecord.model_validate(loaded.hardening)
        network = hardening.harden(network, bounds)
    if number_format == "fp32":
        return network
    if number_format == "fp16":
        return network.with_arithmetic(FloatArithmetic("fp16"))
    if loaded.quantization is not None:
        record = calibrate.QuantizationRecord.model_validate(loaded.quantization)
        return calibrate.apply(network, record)
    sample = calibration_split(loaded, calibration, seed)
    return calibrate.quantize(network, loaded.dataset.tensor(sample))[0]


def calibration_split(loaded: Loaded, count: int, seed: int) -> data.Split:
    """``count`` training images; for the default number, all of a smaller set.

    Raises:
        ConfigError: ``count`` is below 1 or above the number of training images.
    """
    train = loaded.dataset.train
    if count == CALIBRATION_IMAGES:
        count = min(count, len(train))
    if not 1 <= count <= len(train):
        empty = "The calibration set is empty: g" if count < 1 else "G"
        raise ConfigError(f"{empty}ot {count} images to calibrate on. Give 1 to {len(train)}.")
    return train.take(count, seed)


def check_format(number_format: str | None) -> None:
    """Refuse a format that does not exist; ``None`` stands for the default."""
    if number_format is not None and number_format not in FORMATS:
        raise unknown_name("format", number_format, FORMATS)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_checkpoint(
    directory: Path,
    data_name: str | None,
    data_dir: Path | None,
    *,
    trust_factory: bool,
    progress: Progress,
) -> Loaded:
    from rasp.pruning import pruner
    from rasp.pruning.hardening import HardeningRecord
    from rasp.pruning.plan import PruningPlan
    from rasp.quantization.calibrate import QuantizationRecord

    saved = checkpoint.read(directory)
    chosen = data_name or saved.data
    if chosen is None:
        raise ConfigError(f"Checkpoint '{directory}' names no data set. Give --data.")
    dataset = data.load(chosen, data_dir=data_dir, progress=progress)
    if saved.mean:
        dataset = replace(dataset, mean=saved.mean, std=saved.std)
    _check_shape(str(directory), saved.spec, dataset)
    module = zoo.build(saved.spec, trust_factory=trust_factory).eval()
    plan = _valid(PruningPlan, saved.plan, directory)
    _valid(QuantizationRecord, saved.quantization, directory)
    bounds = _valid(HardeningRecord, saved.hardening, directory)
    if plan is not None:
        module = pruner.replay(module, plan, dataset.tensor(dataset.train[:1]))
    zoo.load_state(module, saved.state, source=f"Checkpoint '{directory}'")
    identity = digest_of(directory / checkpoint.STATE_FILE)
    if bounds is not None:
        identity = hashlib.sha256(f"{identity}{bounds.model_dump_json()}".encode()).hexdigest()
    loaded = Loaded(
        module, saved.spec, dataset, identity, plan, saved.quantization, saved.hardening
    )
    _check_output(loaded)
    return loaded


def _valid(kind: type[Record], content: dict[str, Any] | None, directory: Path) -> Record | None:
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreMismatchError(
            f"'{directory / checkpoint.HEADER_FILE}' holds no {kind.__name__} of this version: "
            f"{where}: {first['msg']}."
        ) from None


def _check_shape(name: str, spec: zoo.ModelSpec, dataset: data.Dataset) -> None:
    if spec.input_shape != dataset.input_shape or spec.num_classes != dataset.classes:
        raise ConfigError(
            f"'{name}' takes images of shape {spec.input_shape} in {spec.num_classes} classes, "
            f"data set '{dataset.name}' has {dataset.input_shape} in {dataset.classes}. "
            "Give the data set it was trained on."
        )


def _check_output(loaded: Loaded) -> None:
    import torch

    try:
        with torch.inference_mode():
            output = loaded.model(loaded.example)
    except Exception as error:  # of the user's model, so of any type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"Model '{loaded.spec.model}' does not take images of shape "
            f"{loaded.dataset.input_shape}: {reason}"
        ) from error
    if isinstance(output, torch.Tensor) and not output.isfinite().all():
        raise ConfigError(
            f"Model '{loaded.spec.model}' gives NaN or infinite logits for an image of "
            f"'{loaded.dataset.name}'. Check the weights and the normalisation."
        )
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != (1, loaded.dataset.classes):
        raise ConfigError(
            f"Model '{loaded.spec.model}' gives {shape} for one image of '{loaded.dataset.name}', "
            f"which has {loaded.dataset.classes} classes. Its output must be (N, classes) logits."
        )


def _is_hub(name: str) -> bool:
    return name.partition(":")[0] in ("torchvision", "timm")
