"""One writer at a time: an advisory lock beside a file or directory."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from rasp.errors import ConfigError, PrerequisiteError, StoreMismatchError

if TYPE_CHECKING:
    from pathlib import Path


def claim(path: Path) -> int:
    """Take the lock of a path's one writer; closing the file descriptor gives it back.

    The lock ends with its process, however that ends; ``PATH.lock`` stays.

    Raises:
        StoreMismatchError: another process has it.
        ConfigError: nothing can be written at ``path``.
        PrerequisiteError: the disk is full.

    Example:
        >>> import os, tempfile
        >>> from pathlib import Path
        >>> store = Path(tempfile.mkdtemp()) / "store.sqlite"
        >>> os.close(claim(store))
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = PrerequisiteError if full else ConfigError
        raise kind(f"Cannot write '{path}': {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreMismatchError(
            f"'{path}' is being filled by another process. Wait for it, or name another."
        ) from None
    return lock
