"""Weights from files of strangers: read as data, checked in full, then loaded."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasp.errors import ConfigError, PrerequisiteError

if TYPE_CHECKING:
    from torch import Tensor, nn

_TORCH_SUFFIXES = (".th", ".pt", ".pth")
_FLOATS = ("float64", "float32", "bfloat16", "float16")
_COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a weight file into a network, or leave the network as it was.

    Args:
        model: network to load into, in place.
        path: ``.safetensors``, or ``.th``, ``.pt``, ``.pth`` holding a state dict of tensors, bare
            or under the key ``state_dict``. A ``module.`` before every name is dropped. No code
            in the file is run.

    Raises:
        PrerequisiteError: there is no such file.
        ConfigError: not a weight file, code in the file, or weights that do not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise PrerequisiteError(f"There is no weight file '{path}'. Check the path.")
    load_state(model, read_state(path), source=f"Weight file '{path}'")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read names and tensors of a weight file onto the CPU; see :func:`load_weights`."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    raise ConfigError(
        f"Weight file '{path}' ends in '{path.suffix}'. "
        f"Allowed: .safetensors, {', '.join(_TORCH_SUFFIXES)}."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"Weight file '{path}' is not a safetensors file: {error}.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols that are then refused
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"Weight file '{path}' holds Python objects or code besides tensors; none of it was "
            "run. Save the weights alone: torch.save(model.state_dict(), path)."
        ) from error
    except PermissionError:
        raise
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"Weight file '{path}' is damaged or not written by torch.save."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ConfigError(f"Weight file '{path}' is not a state dict, a map of names to tensors.")
    return dict(content)


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors by name into a network, or leave the network as it was.

    Args:
        model: network to load into, in place.
        state: tensors by name; batch counters may be missing.
        source: subject of the error's sentence.

    Raises:
        ConfigError: names or shapes differ from the network's, or a value is not finite.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(value.shape)} and should be {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    kinds = [
        f"{name} is {_kind(value)}"
        for name, value in state.items()
        if name in own and not _converts(value, own[name])
    ]
    broken = [
        name
        for name, value in state.items()
        if _kind(value) in _FLOATS and not value.isfinite().all()
    ]
    problems = [
        f"{what} {len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another kind", kinds),
            ("not finite", broken),
        ]
        if names
    ]
    if problems:
        raise ConfigError(
            f"{source} does not fit the network. Tensors {'; '.join(problems)}. "
            "Check the model's name, its number of classes and the file."
        )
    model.load_state_dict(state, strict=False)


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _converts(value: Tensor, own: Tensor) -> bool:
    """Whether copying loses nothing but precision."""
    if own.is_floating_point():
        return _kind(value) in _FLOATS
    return not value.is_floating_point() and not value.is_complex()
