"""Errors that a user can act on; each carries the exit code the command line ends with."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NEAREST, _MANY = 5, 40


class RaspError(Exception):
    """Base of every error that is printed as one sentence, without a traceback."""

    exit_code = 2


class ConfigError(RaspError):
    """An argument, a specification or an input has a value that is not allowed."""


class UnsupportedModelError(RaspError):
    """A model cannot be exported, lowered or pruned; the message names the node or layer."""

    exit_code = 3


class PrerequisiteError(RaspError):
    """Something outside the call is missing: data, weights, an optional package."""

    exit_code = 3


class StoreMismatchError(RaspError):
    """A store or checkpoint on disk belongs to another specification or schema."""

    exit_code = 4


def unknown_name(kind: str, got: str, allowed: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not in a registry.

    Args:
        kind: what the name stands for, in the singular ("criterion").
        got: the name that was given.
        allowed: every name that would have been accepted.

    Returns:
        A :class:`ConfigError` naming the value, the nearest match and the allowed names; of very
        many names only the nearest.

    Example:
        >>> print(unknown_name("criterion", "magnitud", ["magnitude", "taylor"]))
        Unknown criterion 'magnitud'. Did you mean 'magnitude'? Allowed: magnitude, taylor.
    """
    names = sorted(allowed)
    near = get_close_matches(got, names, n=_NEAREST)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    if len(names) <= _MANY:
        return ConfigError(f"Unknown {kind} '{got}'.{hint} Allowed: {', '.join(names)}.")
    others = f", nearest: {', '.join(near)}" if near else f", from {names[0]} to {names[-1]}"
    return ConfigError(f"Unknown {kind} '{got}'.{hint} Allowed: {len(names)} names{others}.")
