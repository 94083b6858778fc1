"""Fetching published files: resumed where it stopped, verified, never half there."""

from __future__ import annotations

import tarfile
from hashlib import file_digest
from http.client import HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import Request, urlopen

from rasp.errors import PrerequisiteError
from rasp.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rasp.progress import Progress

_CHUNK = 1 << 18
_TIMEOUT_S = 30
_LARGEST_MEMBER = 1 << 28


class Published(NamedTuple):
    """A file at its canonical address.

    Attributes:
        url: http or https address.
        path: where it goes, relative to the data folder.
        size: in bytes.
        sha256: hexadecimal digest of its content.
        members: files to take out of it, relative to the data folder, if it is a tar archive; the
            archive is then deleted.
    """

    url: str
    path: str
    size: int
    sha256: str
    members: tuple[str, ...] = ()


def fetch(files: Sequence[Published], folder: Path, *, progress: Progress = silent) -> None:
    """Bring files into a folder.

    A broken download stays as ``NAME.part`` and is continued by the next call.

    Args:
        files: what to bring.
        folder: made if it does not exist.
        progress: hears bytes done of bytes in all, per file.

    Raises:
        PrerequisiteError: no connection, a full or read-only disk, another size or digest.
    """
    for file in files:
        target = folder / file.path
        try:
            part = target.with_name(f"{target.name}.part")
            _download(file, part, progress)
            if file.members:
                _extract(part, file.members, folder)
                part.unlink()
            else:
                part.replace(target)
        except (OSError, HTTPException, tarfile.TarError) as error:
            reason = getattr(error, "reason", None) or error
            raise PrerequisiteError(f"Fetching {file.url} failed: {reason}.") from error


def _download(file: Published, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have < file.size:
        request = Request(file.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
        with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            done = have if resumed else 0
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab" if resumed else "wb") as output:
                while done <= file.size and (chunk := answer.read(_CHUNK)):
                    output.write(chunk)
                    done += len(chunk)
                    progress(f"download {file.path}", min(done, file.size), file.size)
    have = part.stat().st_size
    if have < file.size:
        raise PrerequisiteError(
            f"Fetching {file.url} stopped after {have} of {file.size} bytes; "
            "run again to continue where it stopped."
        )
    with part.open("rb") as content:
        digest = file_digest(content, "sha256").hexdigest()
    if have > file.size or digest != file.sha256:
        part.unlink()
        raise PrerequisiteError(
            f"{file.url} gave {have} bytes with SHA-256 {digest[:16]}..., expected {file.size} "
            f"bytes with {file.sha256[:16]}...; the download was deleted."
        )


def _extract(archive: Path, members: Sequence[str], folder: Path) -> None:
    wanted = set(members)
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            if entry.name not in wanted or not entry.isreg() or entry.size > _LARGEST_MEMBER:
                continue
            source = tar.extractfile(entry)
            assert source is not None  # a regular file always has content
            target = folder / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.part")
            temporary.write_bytes(source.read())
            temporary.replace(target)
            wanted.discard(entry.name)
    if wanted:
        raise PrerequisiteError(f"The archive '{archive}' does not hold {min(wanted)}.")
