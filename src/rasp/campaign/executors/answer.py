"""What a worker in another process sends back: a result, or why there is none."""

from __future__ import annotations

import os
import pickle
import platform
import traceback
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def answered(
    run: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | Exception:
    """The result of a call, or its error with a note on where it was raised."""
    try:
        return run(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  `result` raises it again
        trace = "".join(traceback.format_exception(error))
        error.add_note(f"In process {os.getpid()} on {platform.node()}:\n{trace}")
        return error if _can_be_sent(error) else RuntimeError(f"A worker failed:\n{trace}")


def result(answer: Result | Exception) -> Result:
    """The result in an answer.

    Raises:
        Exception: what the worker raised.
    """
    if isinstance(answer, Exception):
        raise answer
    return answer


def _can_be_sent(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301  its own bytes
    except Exception:  # noqa: BLE001  classes fail in their own ways
        return False
