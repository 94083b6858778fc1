"""Optional packages: imported where they are needed, missed with the line that installs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rasp.errors import PrerequisiteError

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        module: dotted name to import, e.g. ``"plotly.graph_objects"``.
        extra: the extra of this distribution that brings it.
        feature: what the user asked for, as the subject of the error's sentence.

    Raises:
        PrerequisiteError: the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise PrerequisiteError(
            f"{feature} needs the package '{error.name}', which is not installed. "
            f"Run: pip install 'torch-rasp[{extra}]'"
        ) from error
