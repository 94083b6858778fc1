"""How a result came to be: versions, machine, revision, time and arguments."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_DISTRIBUTION = "torch-rasp"


def collect(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this process, for a file that a result is saved in.

    Args:
        arguments: the resolved arguments of the step, JSON values.

    Returns:
        JSON object: ``rasp``, ``python``, ``numpy`` and ``torch`` versions (the last two only if
        imported), ``platform``, ``git`` (revision of the working directory, ``+`` at its end if
        files differ from it, ``None`` outside a repository), ``time`` (UTC), ``argv`` and
        ``arguments``.

    Example:
        >>> collect({"seed": 0})["arguments"]
        {'seed': 0}
    """
    return {
        "rasp": _version(),
        "python": platform.python_version(),
        **{
            name: str(sys.modules[name].__version__)
            for name in ("numpy", "torch")
            if name in sys.modules
        },
        "platform": platform.platform(),
        "git": _git_revision(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        "arguments": dict(arguments),
    }


def _version() -> str | None:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    try:
        revision = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changed else "")


def _git(*command: str) -> str:
    return subprocess.run(
        ["git", *command], check=True, capture_output=True, text=True, timeout=5
    ).stdout.strip()
