"""From a specification to a network with fresh weights."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasp._lazy import require
from rasp.errors import ConfigError, PrerequisiteError, RaspError, unknown_name
from rasp.zoo.spec import MODELS, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def build(spec: ModelSpec, *, seed: int = 0, trust_factory: bool = False) -> nn.Module:
    """Build a network; the initial weights are a function of ``seed`` alone.

    Args:
        spec: what to build.
        seed: seed of the initial weights; torch's global generators are left as they were.
        trust_factory: allow ``package.module:factory``, which imports and runs that code. Pass
            true only where the user named the factory, never for a name read from a file.

    Returns:
        The network in training mode on the CPU.

    Raises:
        ConfigError: an unknown name, a factory that is not trusted, that raises an exception or
            returns no module.
        PrerequisiteError: the package that holds the network is missing or broken.

    Example:
        >>> net = build(ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32)))
        >>> sum(p.numel() for p in net.parameters())
        269722
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _made(spec, trusted=trust_factory)
    except RaspError:
        raise
    except Exception as error:  # of code that is not ours, so of any type
        kind = PrerequisiteError if isinstance(error, ImportError) else ConfigError
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise kind(
            f"Model '{spec.model}' cannot be built for {spec.num_classes} classes and images of "
            f"shape {spec.input_shape}: {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})."
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"'{spec.model}' returned {type(model).__name__}, not a torch.nn.Module. "
            "Name a class or function that returns the network."
        )
    return model


def _made(spec: ModelSpec, *, trusted: bool) -> Any:
    source, separator, name = spec.model.partition(":")
    arguments: dict[str, Any] = {"num_classes": spec.num_classes, "input_shape": spec.input_shape}
    if separator and source == "torchvision":
        return _torchvision(name, spec)
    if separator and source == "timm":
        return _timm(name, spec)
    if separator:
        return _user_model(spec.model, arguments, trusted=trusted)
    if spec.model not in MODELS:
        raise unknown_name("model", spec.model, MODELS)
    entry = MODELS[spec.model]
    module, _, attribute = entry.factory.partition(":")
    return getattr(import_module(module), attribute)(**entry.options, **arguments)


def _vision_package(package: str, model: str) -> Any:
    try:
        return require(package, extra="vision", feature=f"Model '{model}'")
    except RuntimeError as error:
        raise PrerequisiteError(
            f"Model '{model}' needs {package}, which cannot be imported ({error}). "
            "Install the torchvision build that pairs with this torch, see https://pytorch.org."
        ) from error


def _torchvision(name: str, spec: ModelSpec) -> Any:
    models = _vision_package("torchvision.models", spec.model)
    classifiers = models.list_models(module=models)  # the others fetch weights or give no logits
    if name not in classifiers:
        raise unknown_name("torchvision model", name, classifiers)
    return models.get_model(name, weights=None, num_classes=spec.num_classes)


def _timm(name: str, spec: ModelSpec) -> Any:
    timm = _vision_package("timm", spec.model)
    if name not in timm.list_models():
        raise unknown_name("timm model", name, timm.list_models())
    return timm.create_model(
        name, pretrained=False, num_classes=spec.num_classes, in_chans=spec.input_shape[0]
    )


def _user_model(model: str, arguments: dict[str, Any], *, trusted: bool) -> Any:
    if not _DOTTED.fullmatch(model):
        raise ConfigError(
            f"Model '{model}' is not of the form package.module:factory. "
            f"Give that, or one of: {', '.join(sorted(MODELS))}."
        )
    if not trusted:
        raise ConfigError(
            f"Model '{model}' is code outside rasp and was not imported, because it was named by "
            "a file. If you trust it, name it yourself: --model on the command line, "
            "trust_factory=True in Python."
        )
    module, _, attribute = model.partition(":")
    with _working_directory_importable():
        try:
            factory = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise PrerequisiteError(
                f"Model '{model}': there is no module '{error.name}' on the Python path or in "
                "the working directory. Check the spelling, or install the package."
            ) from error
        except AttributeError as error:
            raise ConfigError(f"Model '{model}': {error}.") from error
        if not callable(factory):
            raise ConfigError(f"Model '{model}' names {type(factory).__name__}, not a factory.")
        return factory(**_accepted(factory, arguments))


def _accepted(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:
        return {}
    return {name: value for name, value in arguments.items() if name in parameters}


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
