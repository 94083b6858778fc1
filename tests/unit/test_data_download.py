from __future__ import annotations

import io
import tarfile
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from threading import Thread

import numpy as np
import pytest

from rasp import data
from rasp.data import cifar10, download
from rasp.data.download import Published, fetch
from rasp.errors import PrerequisiteError

CONTENT = np.random.default_rng(0).bytes(100_000)


class _Server(BaseHTTPRequestHandler):
    """Serves one content; honours ranges unless told not to; may hang up early."""

    def __init__(self, *args, content, ranges, stop_after, seen):
        self.content, self.ranges, self.stop_after, self.seen = content, ranges, stop_after, seen
        super().__init__(*args)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.seen.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        body = self.content[start:]
        self.send_response(206 if start else 200)
        if start:
            end = len(self.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.stop_after])

    def log_message(self, *args):
        pass


@contextmanager
def serving(content=CONTENT, *, ranges=True, stop_after=None):
    seen: list[str | None] = []
    handler = partial(_Server, content=content, ranges=ranges, stop_after=stop_after, seen=seen)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/file", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def published(url: str, content: bytes = CONTENT, **change) -> Published:
    file = Published(url, "sub/file.gz", len(content), sha256(content).hexdigest())
    return file._replace(**change)


def test_a_file_arrives_whole_and_progress_ends_at_its_size(tmp_path):
    events = []
    with serving() as (url, seen):
        fetch([published(url)], tmp_path, progress=lambda *event: events.append(event))
    assert (tmp_path / "sub/file.gz").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["file.gz"]
    assert seen == [None]
    assert events[-1] == ("download sub/file.gz", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped_or_starts_over(tmp_path, ranges):
    with (
        serving(stop_after=30_000) as (url, _),
        pytest.raises(PrerequisiteError, match=r"stopped after 30000 of 100000 bytes|failed"),
    ):
        fetch([published(url)], tmp_path)
    assert not (tmp_path / "sub/file.gz").exists()
    assert (tmp_path / "sub/file.gz.part").stat().st_size == 30_000
    with serving(ranges=ranges) as (url, seen):
        fetch([published(url)], tmp_path)
    assert seen == ["bytes=30000-"]
    assert (tmp_path / "sub/file.gz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content", [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT + b"x", CONTENT * 5]
)
def test_another_content_is_deleted_and_named(tmp_path, content):
    with (
        serving(content) as (url, _),
        pytest.raises(PrerequisiteError, match="the download was deleted"),
    ):
        fetch([published(url)], tmp_path)
    assert not list((tmp_path / "sub").iterdir())


def test_a_stale_part_of_another_file_is_found_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file.gz.part").write_bytes(b"z" * 500)
    with serving() as (url, _), pytest.raises(PrerequisiteError, match="was deleted"):
        fetch([published(url)], tmp_path)
    with serving() as (url, _):
        fetch([published(url)], tmp_path)
    assert (tmp_path / "sub/file.gz").read_bytes() == CONTENT


def free_port() -> int:
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_a_connection_the_error_names_data_folder_and_remedy(tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{free_port()}/file"
    monkeypatch.setattr(cifar10, "published", lambda _: (published(address),))
    with pytest.raises(PrerequisiteError) as error:
        data.load("cifar10", data_dir=tmp_path)
    text = str(error.value)
    assert "\n" not in text
    for part in (str(tmp_path), "cifar-10-batches-bin/data_batch_1.bin", address, "--data-dir"):
        assert part in text
    assert "refused" in text


def test_a_server_that_refuses_and_a_folder_that_cannot_be_made_are_one_sentence(tmp_path):
    with serving() as (url, _):
        (tmp_path / "sub").write_text("a file where the folder should be")
        with pytest.raises(PrerequisiteError, match="failed"):
            fetch([published(url)], tmp_path)


def archive(entries: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in entries.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def test_only_the_members_asked_for_leave_an_archive(tmp_path):
    link = tarfile.TarInfo("evil/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    packed = archive({"../escaped": b"x", "d/wanted.bin": b"data", "d/other": b"y", "l": link})
    with serving(packed) as (url, _):
        file = published(url, packed, path="a.tar.gz", members=("d/wanted.bin",))
        fetch([file], tmp_path / "folder")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["wanted.bin"]
    assert (tmp_path / "folder/d/wanted.bin").read_bytes() == b"data"


def test_a_link_in_place_of_a_member_and_a_bomb_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LARGEST_MEMBER", 10)
    link = tarfile.TarInfo("d/wanted.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for folder, member in [("link", link), ("bomb", b"x" * 11)]:
        packed = archive({"d/wanted.bin": member})
        with serving(packed) as (url, _):
            file = published(url, packed, path="a.tar.gz", members=("d/wanted.bin",))
            with pytest.raises(PrerequisiteError, match=r"does not hold d/wanted\.bin"):
                fetch([file], tmp_path / folder)
        assert not (tmp_path / folder / "d").exists()


def test_published_files_are_the_missing_ones_only(tmp_path):
    from rasp.data import mnist

    raw = tmp_path / mnist.FOLDER
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    (raw / "t10k-images-idx3-ubyte.gz").touch()
    names = mnist.missing(tmp_path)
    assert names == [f"{mnist.FOLDER}/{part}-labels-idx1-ubyte.gz" for part in ("train", "t10k")]
    assert [file.path for file in mnist.published(names)] == names
